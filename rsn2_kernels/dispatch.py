"""Which backend runs a call, and why: a small cost model picks the faster of the backends.

Costs are predicted seconds of one product: the forward one, or of a call that trains the mean one of the three. The
models are in cpu_cost.py and gpu_cost.py. On the CPU each of the three may have a backend of its own: such a mixture
has a name like any backend, "cpu/dense/dense" for forward, dx and dvalues.
"""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from rsn2_kernels import cpu_cost, gpu_cost, plans
from rsn2_kernels.backends import Backend, cpu, cuda, dense, reference, triton
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry, Pair, checked_geometry
from rsn2_kernels.pattern import SparsePattern
from rsn2_kernels.tracing import is_traced

OPERATORS = ("linear", "conv2d", "grouped_linear")

# Columns that a graph for all batches is predicted to multiply with.
_TYPICAL_BATCH = 64

# Calls that one weight remembers the backend and index of: enough for the batch sizes of a program.
_REMEMBERED = 64

_MODULES = cast(
    dict[str, Backend], {"reference": reference, "dense": dense, "cpu": cpu, "cuda": cuda, "triton": triton}
)


def _mixture(*backends: str) -> Backend:
    """The forward products of the first of three backends, the ``_dx`` of the second, the ``_dvalues`` of the third."""
    functions = {
        op + product: getattr(_MODULES[backend], op + product)
        for product, backend in zip(("", "_dx", "_dvalues"), backends, strict=True)
        for op in OPERATORS
    }
    return cast(Backend, SimpleNamespace(**functions))


_OF_PRODUCTS = {
    "/".join(names) if len(set(names)) > 1 else names[0]: names
    for names in itertools.product(("dense", "cpu"), repeat=len(cpu_cost.PRODUCTS))
}
"""What may run on the CPU without being asked for -> the backend of each of `cpu_cost.PRODUCTS`."""

_MODULES |= {name: _mixture(*names) for name, names in _OF_PRODUCTS.items() if name not in _MODULES}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run the call."""


@dataclass(frozen=True)
class Explanation:
    """The backend that `backend=None` runs, and how it was chosen.

    Attributes:
        backend: name of the choice; "cpu/dense/dense" and the like where forward, dx and dvalues have different ones.
        seconds: predicted seconds of one forward product, or of a third of a training step, per backend that could run
            it; 0 where there is nothing to choose from, and so nothing was predicted.
        unavailable: why each other backend could not.
        reason: the choice in one sentence.
    """

    backend: str
    seconds: dict[str, float]
    unavailable: dict[str, str]
    reason: str

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}"]
        if len(self.seconds) > 1:
            lines += [f"  {name:10} {1e3 * cost:10.4f} ms predicted" for name, cost in self.seconds.items()]
        lines += [f"  {name:10} not used: {why}" for name, why in self.unavailable.items()]
        return "\n".join(lines)


def module(name: str) -> Backend:
    """The module of a backend, or what serves as one for a mixture, that is known to be available."""
    return _MODULES[name]


def available_backends() -> dict[str, bool | str]:
    """For each backend True, or in one sentence why it cannot run on this machine."""
    return {
        "reference": True,
        "dense": True,
        "cpu": cpu.unavailable or True,
        "cuda": cuda.unavailable or True,
        "triton": triton.unavailable or True,
    }


def index(
    backend: str,
    weight: CsrIndex,
    with_columns: bool,
    geometry: ConvGeometry | None = None,
    batch: int | None = None,
    trains: bool = False,
) -> list[Tensor]:
    """The index tensors that a backend reads: those of the weight, and what the backend derives from them.

    With a ``batch``, the rows of x: sums for few of them may run in another order than in a larger batch, where that is
    faster; and those of the gradients where the call ``trains``.
    """
    if backend in _OF_PRODUCTS and backend != "dense":
        return cpu.index(weight, with_columns, geometry, batch, trains)
    tensors = weight.index(with_columns)
    if backend == "dense" and weight.device.type == "cpu":
        return tensors + cpu.mask_words(weight)
    if backend == "triton":
        tensors += plans.plan_tensors(weight, geometry, with_columns)
    elif backend == "cuda":
        tensors += plans.compact(weight)
    return tensors


def choose(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    backend: str | None,
    geometry: ConvGeometry | None = None,
    trains: bool = False,
) -> str:
    """The backend that runs a call, and its gradients if it trains: the one asked for, else the cheapest predicted.

    Raises:
        BackendError: if the backend asked for does not exist or cannot run this call; says why.
    """
    if backend is None:
        return _cheapest(_costs(op, weight, batch, dtype, weight.device, geometry, trains))
    why = _why_not(backend, weight.device, dtype, op)
    if why is not None:
        raise BackendError(f"backend {backend!r} cannot run this call: {why}.")
    return backend


def resolve(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    backend: str | None,
    with_columns: bool,
    geometry: ConvGeometry | None = None,
    trains: bool = False,
) -> tuple[str, list[Tensor]]:
    """What `choose` and `index` say; the weight remembers it for the next such call, unless the call is traced.

    A backend that is asked for by name reads no words, so that ``cpu`` sums a row in the same order in every batch.
    """
    # A compiled graph would be bound to what is looked up, and a symbolic batch is no key. Other modes may read what an
    # eager call left, which is half the questions of `is_traced`, and leave nothing.
    remembers = not torch.compiler.is_compiling() and type(batch) is int
    if remembers:
        key = (op, batch, dtype, backend, with_columns, geometry, trains)
        known: dict[Hashable, tuple[str, list[Tensor]]] = weight.derived("resolved", dict)
        # In one step: another thread may clear it.
        if (remembered := known.get(key)) is not None:
            return remembered
    traced = is_traced()
    if traced and backend is None:
        batch = _as_number(batch)
    name = choose(op, weight, batch, dtype, backend, geometry, trains)
    by_words = backend is None and _reads_words(name, weight, batch, geometry)
    found = name, index(name, weight, with_columns, geometry, batch if by_words else None, trains)
    if remembers and not traced:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = found
    return found


def _as_number(batch: int) -> int:
    """The batch to choose a backend for, where a traced one may be symbolic: to compare it would bound the graph's."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # noqa: PLC0415 slow to import

    return batch if has_static_value(batch) else _TYPICAL_BATCH


def _reads_words(name: str, weight: CsrIndex, batch: int, geometry: ConvGeometry | None) -> bool:
    """Whether a call that asks for no backend may go by the words of a mask, or copies by them, as mixtures do."""
    # Of a stack, any task may have few rows. A convolution itself reads none.
    return "/" in name or (geometry is None and (weight.stacks > 1 or batch <= cpu.BIT_BATCH))


def explain(
    op: str,
    pattern: SparsePattern,
    batch: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    kernel_size: int | Pair = 1,
    groups: int = 1,
    training: bool = False,
) -> Explanation:
    """Say which backend `backend=None` would run, what each is predicted to cost, and why.

    Args:
        op: "linear", "conv2d" or "grouped_linear".
        pattern: of the weight; for grouped_linear that of one task, whose rows are then the batch.
        batch: columns that the weight is multiplied with: rows of x, or for conv2d N * OH * OW.
        dtype: of the operands.
        device: where the call would run.
        kernel_size, groups: of a conv2d; what a GPU would visit depends on them.
        training: whether gradients are recorded; the seconds are then those of a third of a training step.

    Raises:
        ValueError: if ``op`` is not an operator, ``batch`` is negative, ``dtype`` is not a floating-point one, or the
            pattern is not that of a convolution with this ``kernel_size`` and ``groups``.
    """
    if op not in OPERATORS:
        raise ValueError(f"op: expected one of {OPERATORS}. Got {op!r}.")
    if batch < 0:
        raise ValueError(f"batch: expected at least 0. Got {batch}.")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype. Got {dtype}.")
    geometry = checked_geometry(kernel_size, 1, 0, 1, groups) if op == "conv2d" else None
    if geometry is not None:
        check_filters(pattern, geometry)
    where = torch.device(device)
    predicted = _costs(op, pattern, batch, dtype, where, geometry, training)
    best = _cheapest(predicted)
    known = available_backends()
    costs = {name: cost for name, cost in predicted.items() if name in known or name == best}
    unavailable = {name: why for name in known if (why := _why_not(name, where, dtype, op)) is not None}
    unavailable["reference"] = "it is the definition the others are tested against; ask for it by name"
    others = {name: cost / max(costs[best], 1e-9) for name, cost in costs.items() if name != best}
    against = ", ".join(f"{ratio:.1f}x the time on {name}" for name, ratio in others.items())
    reason = f"predicted fastest at density {pattern.density:.3f} and batch {batch} ({against})"
    if where.type == "cpu":
        reason += f", by costs {cpu_cost.COSTS.origin}"
    if not others:
        reason = f"the only backend for {dtype} on {where.type}"
    return Explanation(best, costs, unavailable, reason)


def check_filters(pattern: SparsePattern, geometry: ConvGeometry) -> None:
    """Raise ValueError unless the pattern is that of filters of this kernel size and number of groups."""
    rows, cols = pattern.shape
    kernel = geometry.kernel_size[0] * geometry.kernel_size[1]
    if rows % geometry.groups:
        raise ValueError(f"groups: expected a divisor of the {rows} filters. Got {geometry.groups}.")
    if cols % kernel:
        raise ValueError(f"kernel_size: expected a divisor of the {cols} columns. Got {geometry.kernel_size}.")


def _why_not(backend: str, device: torch.device, dtype: torch.dtype, op: str = "linear") -> str | None:
    known = available_backends()
    if backend not in _MODULES:
        return f"there is no such backend; there are {sorted(known)}"
    mixed = backend not in known
    status = known["cpu" if mixed else backend]
    if isinstance(status, str):
        return status
    if (mixed or backend == "cpu") and device.type != "cpu":
        return f"it runs on the CPU, and the operands are on {device.type}"
    if (mixed or backend == "cpu") and dtype not in cpu.DTYPES:
        return f"it has no kernels for {dtype}"
    if backend == "cuda":
        return cuda.why_not(op, device, dtype)
    if backend == "triton":
        return triton.why_not(device, dtype)
    return None


def _cheapest(costs: dict[str, float]) -> str:
    """The name of the lowest cost, the first of equals."""
    # Plain comparisons: torch.compile traces this with a batch that may be symbolic.
    best = next(iter(costs))
    for name, cost in costs.items():
        if cost < costs[best]:
            best = name
    return best


def _costs(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    geometry: ConvGeometry | None,
    trains: bool = False,
) -> dict[str, float]:
    """Predicted seconds of one product, the forward one or a mean one of a step that trains, on ``device``."""
    if device.type == "cuda":
        return _gpu_costs(op, weight, batch, dtype, device, geometry, trains)
    if device.type != "cpu":
        return {"dense": 0.0}
    # A grouped product is one product per task.
    op = op.removeprefix("grouped_")
    forward = cpu_cost.seconds(op, weight, batch, dtype, "forward")
    if not trains or len(forward) == 1:
        return forward
    costs = [forward, *(cpu_cost.seconds(op, weight, batch, dtype, product) for product in ("dx", "dvalues"))]
    return {
        name: sum(of[backend] for of, backend in zip(costs, names, strict=True)) / len(names)
        for name, names in _OF_PRODUCTS.items()
    }


def _gpu_costs(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    geometry: ConvGeometry | None,
    trains: bool,
) -> dict[str, float]:
    """The first call for a weight counts what its windows would visit, and waits for the device."""
    able = [name for name in ("cuda", "triton") if _why_not(name, device, dtype, op) is None]
    if not able:
        return {"dense": 0.0}
    visits = plans.visits(weight, geometry)
    tasks = weight.stacks
    each = -(-batch // tasks)
    grouped = op == "grouped_linear"
    # Grouped, the vendor's library runs one product per task, and the rows are gathered and scattered for each.
    costs = {"dense": gpu_cost.dense_seconds(visits, each, dtype, launches=5 * tasks if grouped else 2)}
    if "cuda" in able:
        forward = gpu_cost.compact_seconds(weight, batch, dtype, grouped)
        costs["cuda"] = (forward + 2 * costs["dense"]) / 3 if trains else forward
    if "triton" in able:
        visiting = gpu_cost.visiting_seconds(visits, each, dtype)
        sampling = gpu_cost.sampling_seconds(visits, each, dtype)
        costs["triton"] = (2 * visiting + sampling) / 3 if trains else visiting
    return costs
