"""The backend that runs a call, the one asked for or the cheapest predicted, and the index that it reads."""

from collections.abc import Hashable

import torch
from torch import Tensor

from rsn2_kernels import cost, plans
from rsn2_kernels.backends import cpu, registry
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.tracing import is_traced

# Columns that a graph for all batches is predicted to multiply with.
_TYPICAL_BATCH = 64

# Calls that one weight remembers the backend and index of: enough for the batch sizes of a program.
_REMEMBERED = 64


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run the call."""


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
    if backend == "cpu" or registry.is_mixture(backend):
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
        return cost.cheapest(cost.predicted(op, weight, batch, dtype, weight.device, geometry, trains))
    why = registry.why_not(backend, weight.device, dtype, op)
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
    return registry.is_mixture(name) or (geometry is None and (weight.stacks > 1 or batch <= cpu.BIT_BATCH))
