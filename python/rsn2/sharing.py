"""Which layers a new task runs through, and which of them it shares with a task that is there: ``layers``, ``share``.

Both are arguments of `rsn2.allocate` and `rsn2.warm_up`, and name layers in the same way.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from rsn2.nn.layer import MultitaskLayer, TaskError

Share = Mapping[str, Sequence[str]]
"""Task -> the layers that are shared with it, as names or patterns such as ``"conv*"``."""


def used_layers(all_layers: Mapping[str, MultitaskLayer], layers: Sequence[str] | None) -> dict[str, MultitaskLayer]:
    """Those of a network's layers that a new task runs through, in order; None: all of them.

    Raises:
        ValueError: if ``layers`` is of another type or empty, or a pattern fits no layer.
    """
    if layers is None:
        return dict(all_layers)
    named = _fitting("layers", layers, all_layers)
    if not named:
        raise ValueError("layers: expected at least one name, or None for all layers. Got none.")
    return {name: layer for name, layer in all_layers.items() if name in named}


def shared_layers(
    all_layers: Mapping[str, MultitaskLayer], used: Mapping[str, MultitaskLayer], task: str, share: Share | None
) -> dict[str, str]:
    """Those of the ``used`` layers that ``task`` shares, in order: layer name -> the task whose slot it is.

    Raises:
        ValueError: if ``share`` is of another type, a pattern fits no layer, or one that is not used, or a layer is
            claimed from two tasks.
        TaskError: if a task that is named has nothing allocated in a layer.
    """
    holders: dict[str, str] = {}
    if share is not None and not isinstance(share, Mapping):
        raise ValueError(f"share: expected task -> names of layers. Got {share!r}.")
    for holder, patterns in (share or {}).items():
        for name in _fitting(f"share[{holder!r}]", patterns, all_layers):
            if name not in used:
                raise ValueError(f"share[{holder!r}]: expected some of the task's layers, {[*used]}. Got {name!r} too.")
            if holders.setdefault(name, holder) != holder:
                raise ValueError(f"share: layer {name!r} is named for {holders[name]!r} and for {holder!r}.")
            if holder not in used[name].slots:
                raise TaskError(
                    f"task {holder!r}, with which {task!r} is to share layer {name!r}, has nothing allocated there."
                )
    return {name: holders[name] for name in used if name in holders}


def _fitting(argument: str, patterns: object, layers: Mapping[str, MultitaskLayer]) -> list[str]:
    """Names of the layers that the names or patterns of an argument fit, pattern by pattern."""
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ValueError(f"{argument}: expected a sequence of names. Got {patterns!r}.")
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in layers if isinstance(pattern, str) and fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"{argument}: no multitask layer is named {pattern!r}. There are {[*layers]}.")
        found += fitting
    return found
