"""Write docs/api.md from the docstrings of the public names; with ``--check``, say whether it is there already."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import nn

import rsn2
import rsn2_kernels

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Written by `python docs/write_api.py` from the docstrings, which have shapes, dtypes, units, and the errors raised:
`help(rsn2.allocate)`.
"""
MODULES = {
    "rsn2": (rsn2, "Networks of many tasks: convert, allocate, train, answer, keep."),
    "rsn2.nn": (rsn2.nn, "Layers. `rsn2.convert` makes them of torch's own."),
    "rsn2_kernels": (
        rsn2_kernels,
        "Masks, and the operators that visit only what a task owns. Usually imported as `rk`.",
    ),
}


# Methods by which torch calls a module, rather than a user.
OF_TORCH = ("forward", "get_extra_state", "set_extra_state", "extra_repr")


def page() -> str:
    """The text of docs/api.md."""
    parts = [HEAD]
    for path, (module, what) in MODULES.items():
        parts.append(f"\n## `{path}`\n\n{what}\n\n")
        for name in sorted(module.__all__, key=str.lower):
            item = getattr(module, name)
            if not inspect.ismodule(item):
                parts.extend(entry(f"{path}.{name}", item))
    return "".join(parts)


def entry(path: str, item: object) -> Iterator[str]:
    """A public name, and the methods of a class that are not told of elsewhere."""
    yield f"- **`{path}`**{called(item)}: {summary(item)}\n"
    if inspect.isclass(item) and not issubclass(item, Exception):
        for name in sorted(own_names(item)):
            method = inspect.getattr_static(item, name)
            bound = method if isinstance(method, property) else getattr(item, name)
            if isinstance(bound, property) or inspect.isroutine(bound):
                yield f"  - `.{name}`{called(bound)}: {summary(bound)}\n"


def own_names(item: type) -> set[str]:
    """Public names of a class and of its bases, as far as these are ours and not public themselves."""
    public = {getattr(module, name) for module, _ in MODULES.values() for name in module.__all__}
    bases = [
        base for base in item.__mro__ if base.__module__.startswith("rsn2") and (base is item or base not in public)
    ]
    return {name for base in bases for name in vars(base) if not name.startswith("_") and name not in OF_TORCH}


def called(item: object) -> str:
    """How it is called, without types; nothing for what users do not call: they read it, catch it, or get it made."""
    if isinstance(item, property) or (inspect.isclass(item) and not issubclass(item, nn.Module)):
        return ""
    signature = inspect.signature(item)  # type: ignore[arg-type]
    parameters = [
        each.replace(annotation=inspect.Parameter.empty, default=default(each))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    return f" `{signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)}`"


def default(parameter: inspect.Parameter) -> object:
    """A default as it is written in a program."""
    return Name(parameter.default.__name__) if inspect.isfunction(parameter.default) else parameter.default


class Name(str):
    """Text whose representation is itself."""

    __repr__ = str.__str__


def summary(item: object) -> str:
    """The first paragraph of a docstring, as Markdown."""
    first = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", first).replace("``", "`")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
