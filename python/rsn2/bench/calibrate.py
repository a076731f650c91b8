"""What the CPU's backends cost on this machine: the constants by which `backend=None` chooses, and how well it does.

The three products of the `dense` and `cpu` backends are timed on one thread, over shapes, densities, batches and
dtypes; costs that are not negative are fitted to them by least squares on the relative error. Between two calls stands
what another layer of that size would leave in the caches: an expanded weight that is found in a cache costs less than
one that is not.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2 import extras, machine
from rsn2.bench.timing import medians
from rsn2_kernels import cpu_cost, dispatch
from rsn2_kernels.backends import cpu, registry
from rsn2_kernels.geometry import checked_geometry

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
# Powers of two, too, of which dense libraries are slower at some batches.
LINEAR = ((10, 1000), (64, 64), (256, 256), (1000, 1000), (1024, 1024), (128, 2048), (2048, 512))
BATCHES = (1, 8, 64, 512)
# Of one row, from memory, too: more rows of weights as large take minutes.
LARGE = (4096, 4096)
# Filters, channels, image side, images; kernels of 3 x 3.
CONVOLUTIONS = (
    (16, 8, 28, 4),
    (32, 1, 28, 64),
    (16, 3, 48, 64),
    (32, 32, 14, 8),
    (64, 64, 28, 4),
    (128, 64, 7, 16),
    (64, 64, 28, 64),
    (64, 64, 14, 1),
    (256, 256, 7, 1),
    (256, 256, 7, 16),
)
_GEOMETRY = checked_geometry(3, 1, 1, 1, 1)


class Product(NamedTuple):
    """A product to time.

    Attributes:
        density: of its weight.
        pattern: of its weight.
        batch: columns that the weight is multiplied with.
        bytes: of the dense weight, the input and the output.
        calls: name of `cpu_cost.FEATURES` -> the call by that backend.
    """

    density: float
    pattern: rk.SparsePattern
    batch: int
    bytes: int
    calls: dict[str, Callable[[], Tensor]]


def products(op: str, dtype: torch.dtype, product: str) -> Iterator[Product]:
    """What is timed of one of `cpu_cost.KINDS`, made one after the other."""
    generator = torch.Generator().manual_seed(0)

    def made(rows: int, cols: int, density: float, batch: int, x: tuple[int, ...], dy: tuple[int, ...]) -> Product:
        pattern = rk.SparsePattern.from_mask(torch.rand(rows, cols, generator=generator) < density)
        values, *operands = (torch.randn(size, generator=generator).to(dtype) for size in ((pattern.nnz,), x, dy))
        by_bits = op == "linear" and dtype != torch.float64 and cpu.is_worth_bits(pattern, batch, product)
        names = {"dense": "dense", "cpu by bits" if by_bits else "cpu": "cpu"}
        calls = {name: _call(op, product, backend, pattern, values, *operands) for name, backend in names.items()}
        size = dtype.itemsize * (rows * cols + math.prod(x) + math.prod(dy))
        return Product(density, pattern, batch, size, calls)

    if op == "linear":
        sizes = [*itertools.product(LINEAR, DENSITIES, BATCHES), *itertools.product((LARGE,), DENSITIES, (1,))]
        for (rows, cols), density, batch in sizes:
            yield made(rows, cols, density, batch, (batch, cols), (batch, rows))
    else:
        for (rows, channels, side, images), density in itertools.product(CONVOLUTIONS, DENSITIES):
            x, dy = ((images, each, side, side) for each in (channels, rows))
            yield made(rows, channels * 9, density, images * side * side, x, dy)


def calibrate(seconds: float = 0.04, tell: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """The content of a file for :func:`rsn2_kernels.cpu_cost.read`, with how well these costs choose.

    Args:
        seconds: time for each call, about.
        tell: called with the name of each of `cpu_cost.KINDS` before it is measured.

    Raises:
        BackendError: if there are no C++ operators to choose; says why.
        MissingPackageError: if SciPy is not installed.
    """
    if cpu.unavailable is not None:
        raise rk.BackendError(f"there is nothing to choose: {cpu.unavailable}.")
    extras.load("scipy")
    machine.keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        about = {"machine": machine.facts(), "for": cpu_cost.machine(), "features": cpu_cost.FEATURES}
        costs = {}
        for kind in cpu_cost.KINDS:
            tell(cpu_cost.key(*kind))
            costs[cpu_cost.key(*kind)] = _fitted(list(_timed(*kind, seconds)))
    finally:
        torch.set_num_threads(threads)
    return about | {"costs": costs}


def _call(
    op: str, product: str, backend: str, pattern: rk.SparsePattern, values: Tensor, x: Tensor, dy: Tensor
) -> Callable[[], Tensor]:
    """A product as it runs where nobody asked for the backend by name."""
    run, convolves = registry.module(backend), op == "conv2d"
    few = not convolves and len(x) <= cpu.BIT_BATCH
    index = dispatch.index(
        backend, pattern, True, _GEOMETRY if convolves else None, batch=len(x) if few else None, trains=True
    )
    size, rest = ([x.shape[2:]], [_GEOMETRY]) if convolves else ([], [])
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": partial(getattr(run, op), x, values, None, index, *rest),
        "dx": partial(getattr(run, f"{op}_dx"), dy, values, index, *size, *rest),
        "dvalues": partial(getattr(run, f"{op}_dvalues"), dy, x, index, *rest),
    }
    return calls[product]


class _Timed(NamedTuple):
    """A product's density, amounts of work and seconds, by name of `cpu_cost.FEATURES`."""

    density: float
    amounts: dict[str, tuple[float, ...]]
    seconds: dict[str, float]


def _timed(op: str, dtype: torch.dtype, product: str, seconds: float) -> Iterator[_Timed]:
    for each in products(op, dtype, product):
        amounts = cpu_cost.features(each.pattern, each.batch, "cpu by bits" in each.calls)
        # Another layer's operands, and their gradients.
        others = torch.ones(2 * each.bytes // 4)
        yield _Timed(each.density, amounts, medians(each.calls, seconds, before=dict.fromkeys(each.calls, others.sum)))


def _fitted(timed: list[_Timed]) -> dict[str, Any]:
    """Costs of all backends, and how the choices that follow from them do on the same products."""
    nnls = extras.load("scipy.optimize").nnls
    costs: dict[str, np.ndarray] = {}
    for name in cpu_cost.FEATURES:
        known = [(each.amounts[name], each.seconds[name]) for each in timed if name in each.seconds]
        if known:
            amounts, taken = (np.array(column, dtype=float) for column in zip(*known, strict=True))
            costs[name], _ = nnls(amounts / taken[:, None], np.ones(len(taken)))
    reached: list[float] = []
    gains: dict[float, list[float]] = {}
    for each in timed:
        (other,) = each.seconds.keys() - {"dense"}
        predicted = {
            name: cpu_cost.predicted(name, (1e9 * costs[name]).tolist(), each.amounts[name])
            for name in ("dense", other)
        }
        chosen = min(predicted, key=predicted.__getitem__)
        reached.append(min(each.seconds.values()) / each.seconds[chosen])
        gains.setdefault(each.density, []).append(each.seconds["dense"] / each.seconds[other])
    return {
        "nanoseconds": {name: [float(f"{1e9 * cost:.3g}") for cost in found] for name, found in costs.items()},
        "cases": len(timed),
        "share_within_5_percent_of_best": float(np.mean(np.array(reached) >= 0.95)),
        "worst_best_over_chosen": min(reached),
        "median_dense_over_cpu_by_density": {
            str(density): float(np.median(found)) for density, found in sorted(gains.items())
        },
    }
