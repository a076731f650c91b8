"""Predicted seconds of one product on the CPU: how much of each kind of work a call has, times what that costs.

The costs are read from a file: the one that `rsn2 calibrate` wrote on this machine, or one in `cpu-costs/`, which it
wrote on another. They decide which backend runs, so they are read once, and no timing is done here.
"""

import itertools
import json
import math
import os
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rsn2_kernels.backends import cpu
from rsn2_kernels.csr import CsrIndex

FEATURES = {
    "dense": (
        "call",
        "owned weights",
        "positions",
        "positions beyond the cache, for several rows",
        "(rows + columns) x batch",
        "positions x batch",
    ),
    "cpu": ("call", "owned weights", "rows x batch", "columns x batch", "owned weights x lines"),
    "cpu by bits": ("call", "owned weights", "positions", "positions x rows of x"),
}
"""What the predicted time of a backend is a sum of: expansion and dense product; packing and sparse product; or, of few
rows of x, a product by the bits of the mask. "lines" is the batch, filled up to whole cache lines; "rows of x" are
filled up to a power of two. A dense library that multiplies several rows copies the weight to another order, from as
far as it lies."""

OPERATORS = ("linear", "conv2d")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PRODUCTS = ("forward", "dx", "dvalues")
KINDS = tuple(itertools.product(OPERATORS, DTYPES, PRODUCTS))
"""What costs are of: an operator, the type of its operands, and which of its products."""

DOUBT = 1.1
"""What the predicted seconds of `dense` are multiplied by, so that `cpu` runs where both are about equal: what an
expanded weight costs varies with where in memory it happens to lie, and what the sparse kernels cost hardly varies."""

# Numbers of four bytes in a cache line, and positions of a weight that stay in a core's own cache, 1 MB of float32.
_LINE = 16
_CACHED = 1 << 18
_BUILT_IN = Path(__file__).with_name("cpu-costs")
# Whose costs stand in for those of a processor that nothing was measured on.
_TYPICAL = "amd-family-25"

Table = Mapping[tuple[str, torch.dtype, str], Mapping[str, tuple[float, ...]]]
"""One of KINDS -> name of FEATURES -> nanoseconds per unit of each, on one thread."""


class Costs(NamedTuple):
    """A table, and in words where it is from."""

    table: Table
    origin: str


def key(op: str, dtype: torch.dtype, product: str) -> str:
    """The name in the file of one of KINDS."""
    return f"{op} {str(dtype).removeprefix('torch.')}, {product}"


def features(weight: CsrIndex, batch: int, by_bits: bool = False) -> dict[str, tuple[float, ...]]:
    """How much of each of FEATURES a call has. A group is one call per task, the batch shared out evenly."""
    rows, cols = weight.shape
    nnz = weight.nnz
    tasks = weight.stacks
    each, positions = -(-batch // tasks), tasks * rows * cols
    beyond = tasks * max(0, rows * cols - _CACHED) if each > 1 else 0
    dense = (tasks, nnz, positions, beyond, (rows + cols) * batch, rows * cols * batch)
    if by_bits:
        filled = each if each <= 2 else 4 if each <= 4 else 8
        return {"dense": dense, "cpu by bits": (tasks, nnz, positions, positions * filled)}
    # Several rows of x are multiplied by the cache line.
    lines = each if each == 1 else -(-each // _LINE) * _LINE
    return {"dense": dense, "cpu": (tasks, nnz, rows * batch, cols * batch, nnz * lines)}


def seconds(op: str, weight: CsrIndex, batch: int, dtype: torch.dtype, product: str) -> dict[str, float]:
    """Predicted seconds of one of PRODUCTS of "linear" or "conv2d" by each backend, those of "dense" with DOUBT.

    More threads speed up both sides alike, and are left out.
    """
    if cpu.unavailable is not None or (op, dtype, product) not in COSTS.table:
        return {"dense": 0.0}
    known = COSTS.table[op, dtype, product]
    by_bits = "cpu by bits" in known and cpu.is_worth_bits(weight, -(-batch // weight.stacks), product)
    return {
        backend.partition(" ")[0]: predicted(backend, known[backend], amounts)
        for backend, amounts in features(weight, batch, by_bits).items()
    }


def predicted(name: str, costs: Sequence[float], amounts: Sequence[float]) -> float:
    """Seconds of one of FEATURES for its costs in nanoseconds, with DOUBT where it is "dense"."""
    total = sum(cost * much for cost, much in zip(costs, amounts, strict=True))
    return 1e-9 * total * (DOUBT if name == "dense" else 1.0)


def processor() -> str:
    """The processor's name for itself, with the numbers that tell generations of one name apart."""
    words = {"model name": "", "cpu family": "family ", "model": "model ", "CPU implementer": "implementer "}
    words["CPU part"] = "part "
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return ", ".join(before + fields[name] for name, before in words.items() if name in fields) or platform.machine()


def machine() -> dict[str, str]:
    """What the costs are true of, and no other: the processor, what it may use, and torch's dense library."""
    release = ".".join(torch.__version__.split(".")[:2])
    return {"processor": processor(), "isa": os.environ.get("RSN2_CPU_ISA") or "all", "torch": release}


def place() -> Path | None:
    """The file of this machine's costs: ``RSN2_CPU_COSTS``, else in the user's cache.

    None where that is empty, or the user has no home directory.
    """
    named = os.environ.get("RSN2_CPU_COSTS")
    if named is not None:
        return Path(named) if named else None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home directory
        return None
    return cache / "rsn2-kernels" / "cpu-costs.json"


def built_in() -> Path:
    """The file of costs in this package that were measured on this processor's family, else of a typical one."""
    found = re.fullmatch(r"(\w+)\b.*, family (\d+)\b.*", processor())
    mine = _BUILT_IN / (f"{found[1]}-family-{found[2]}.json".lower() if found else "")
    return mine if mine.is_file() else _BUILT_IN / f"{_TYPICAL}.json"


def read(path: Path) -> tuple[dict[str, Any], Table]:
    """The machine of a file of costs, and the table.

    Raises:
        ValueError: if it is no such file, or a cost is missing, negative or not a finite number; names it.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}.") from error
    rows = content.get("costs") if isinstance(content, dict) else None
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: expected what `rsn2 calibrate` writes, a table with the field 'costs'.")
    if content.get("features") != {name: list(parts) for name, parts in FEATURES.items()}:
        raise ValueError(f"{path}: costs of other features than this version has; run `rsn2 calibrate` again.")
    if missing := [name for name in itertools.starmap(key, KINDS) if name not in rows]:
        raise ValueError(f"{path}: no costs of {missing[0]!r}; run `rsn2 calibrate` again.")
    table = {}
    for kind in KINDS:
        name = key(*kind)
        found = rows[name].get("nanoseconds") if isinstance(rows[name], dict) else None
        if not isinstance(found, dict) or not {"dense", "cpu"} <= set(found) <= set(FEATURES):
            raise ValueError(f"{path}, {name!r}: expected 'nanoseconds' of 'dense' and 'cpu'. Got {found!r}.")
        for backend, costs in found.items():
            if not _are_costs(costs, len(FEATURES[backend])):
                wanted = f"{len(FEATURES[backend])} numbers, finite and not negative"
                raise ValueError(f"{path}, {name!r}, {backend!r}: expected {wanted}. Got {costs!r}.")
        table[kind] = {backend: tuple(map(float, costs)) for backend, costs in found.items()}
    about = content.get("for")
    return about if isinstance(about, dict) else {}, table


def load() -> Costs:
    """This machine's costs where there are any, else the built-in ones. A damaged file is told in a warning."""
    path, ours = place(), built_in()
    origin = f"built in, {ours.stem}; `rsn2 calibrate` measures this machine's"
    try:
        if path is not None and path.is_file():
            about, table = read(path)
            if about == machine():
                return Costs(table, f"measured here, {path}")
            origin = f"built in, {ours.stem}; those of {path} are of another machine: {about}"
    except (OSError, ValueError) as error:
        warnings.warn(f"costs of the CPU's backends: {error} The built-in ones are taken.", stacklevel=2)
    return Costs(read(ours)[1], origin)


def _are_costs(found: object, count: int) -> bool:
    return (
        isinstance(found, list)
        and len(found) == count
        and all(isinstance(each, int | float) and not isinstance(each, bool) for each in found)
        and all(math.isfinite(each) and each >= 0 for each in found)
    )


COSTS = load()
