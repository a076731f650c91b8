"""What the CPU's backends cost on this machine: the constants by which `backend=None` chooses, and how well it does.

Forward products of the `dense` and `cpu` backends, and steps of training, are timed on one thread, over shapes,
densities, batches and dtypes; costs that are not negative are fitted to them by least squares on the relative error.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2 import extras, machine
from rsn2.bench.timing import medians
from rsn2_kernels import cpu_cost, dispatch
from rsn2_kernels.backends import cpu
from rsn2_kernels.ops.linear import _LINEAR

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
LINEAR = ((10, 1000), (64, 64), (256, 256), (1000, 1000), (128, 2048), (2048, 512))
BATCHES = (1, 8, 64, 512)
# Filters, channels, image side, images; kernels of 3 x 3.
CONVOLUTIONS = (
    (16, 8, 28, 4),
    (32, 1, 28, 64),
    (16, 3, 48, 64),
    (32, 32, 14, 8),
    (64, 64, 28, 4),
    (128, 64, 7, 16),
    (64, 64, 28, 64),
)
Calls = dict[str, Callable[[], Any]]


class Product(NamedTuple):
    """A product to time, or a step of training with it.

    Attributes:
        density: of its weight.
        pattern: of its weight.
        batch: columns that the weight is multiplied with.
        calls: name of `cpu_cost.FEATURES` -> the call by that backend.
    """

    density: float
    pattern: rk.SparsePattern
    batch: int
    calls: Calls


def products(op: str, dtype: torch.dtype, trains: bool) -> Iterator[Product]:
    """What is timed of one of `cpu_cost.KINDS`, made one after the other."""
    generator = torch.Generator().manual_seed(0)

    def operands(rows: int, cols: int, density: float, *x: int) -> tuple[rk.SparsePattern, Tensor, Tensor]:
        pattern = rk.SparsePattern.from_mask(torch.rand(rows, cols, generator=generator) < density)
        values = torch.randn(pattern.nnz, generator=generator).to(dtype).requires_grad_(trains)
        return pattern, values, torch.randn(x, generator=generator).to(dtype).requires_grad_(trains)

    if op == "linear":
        for (rows, cols), density, batch in itertools.product(LINEAR, DENSITIES, BATCHES):
            pattern, values, x = operands(rows, cols, density, batch, cols)
            yield Product(density, pattern, batch, _steps(_linear(x, values, pattern), x, values))
    else:
        for (rows, channels, side, images), density in itertools.product(CONVOLUTIONS, DENSITIES):
            pattern, values, x = operands(rows, channels * 9, density, images, channels, side, side)
            yield Product(density, pattern, images * side * side, _steps(_conv2d(x, values, pattern), x, values))


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


def _linear(x: Tensor, values: Tensor, pattern: rk.SparsePattern) -> Calls:
    dense: Calls = {"dense": lambda: rk.linear(x, values, pattern, backend="dense")}
    if len(x) > 1 or x.dtype == torch.float64 or not cpu.is_worth_bits(pattern):
        return dense | {"cpu": lambda: rk.linear(x, values, pattern, backend="cpu")}
    # As the backend is where nobody asked for it by name.
    index = dispatch.index("cpu", pattern, with_columns=x.requires_grad, single=True)
    return dense | {"cpu by bits": lambda: _LINEAR(x, values, None, index, "none", "cpu")}


def _conv2d(x: Tensor, values: Tensor, pattern: rk.SparsePattern) -> Calls:
    def call(backend: str) -> Callable[[], Tensor]:
        return lambda: rk.conv2d(x, values, pattern, padding=1, kernel_size=3, backend=backend)

    return {name: call(name) for name in ("dense", "cpu")}


def _steps(calls: Calls, x: Tensor, values: Tensor) -> Calls:
    """The same calls with both gradients, if there are to be any."""
    if not x.requires_grad:
        return calls
    dy = torch.ones_like(calls["dense"]())

    def step(call: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(call(), [x, values], dy)

    return {name: step(call) for name, call in calls.items()}


class _Timed(NamedTuple):
    """A product's density, amounts of work and seconds (of a step a third), by name of `cpu_cost.FEATURES`."""

    density: float
    amounts: dict[str, tuple[float, ...]]
    seconds: dict[str, float]


def _timed(op: str, dtype: torch.dtype, trains: bool, seconds: float) -> Iterator[_Timed]:
    for product in products(op, dtype, trains):
        amounts = cpu_cost.features(product.pattern, product.batch, "cpu by bits" in product.calls)
        with torch.set_grad_enabled(trains):
            measured = medians(product.calls, seconds)
        share = 1 / 3 if trains else 1.0
        yield _Timed(product.density, amounts, {name: share * taken for name, taken in measured.items()})


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
        predicted = {name: float(np.dot(costs[name], each.amounts[name])) for name in ("dense", other)}
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
