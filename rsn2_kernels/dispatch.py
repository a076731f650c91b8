"""The backend that runs a call, the one asked for or the cheapest predicted, and the index that it reads."""

from collections.abc import Hashable

import torch
from torch import Tensor

from rsn2_kernels import cost, plans
from rsn2_kernels.backends import cpu, registry
from rsn2_kernels.compact import Compact
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry, Pair
from rsn2_kernels.plan import Plan
from rsn2_kernels.tracing import is_captured, is_traced

# Columns that a graph for all batches is predicted to multiply with.
_TYPICAL_BATCH = 64

# An index tells by its length whether it has the column order: the schemas have one list for it and for whatever a
# backend adds. It has at least so many tensors with that order, and fewer without; on the other backends 5.
_TENSORS_WITH_COLUMNS = {"cuda": 5 + len(Compact._fields), "triton": 5 + 2 * len(Plan._fields)}

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


def completed(
    tensors: list[Tensor], backend: str, shape: Pair, stacks: int = 1, geometry: ConvGeometry | None = None
) -> list[Tensor]:
    """What `index` gives with the column order, from what it gave: made anew if x required no gradient at the time."""
    if len(tensors) >= _TENSORS_WITH_COLUMNS.get(backend, 5):
        return tensors
    crow, col = tensors[:2]
    if col.dtype == torch.int16:
        col = col.to(torch.int32) & (cpu.NARROW - 1)
    return index(backend, CsrIndex(stacks, shape, crow, col), True, geometry)


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
        TypeError: if it is no name.
    """
    if backend is None:
        return cost.cheapest(cost.predicted(op, weight, batch, dtype, weight.device, geometry, trains))
    if not isinstance(backend, str):
        raise _no_name(backend)
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
        try:
            # In one step: another thread may clear it.
            if (remembered := known.get(key)) is not None:
                return remembered
        except TypeError:
            raise _no_name(backend) from None
    traced = is_traced()
    compiles = torch.compiler.is_dynamo_compiling()
    if compiles or (traced and backend is None):
        batch = _as_number(batch)
    if compiles:
        from rsn2_kernels import outside_graphs  # noqa: PLC0415

        outside_graphs.resolve((op, weight, batch, dtype, backend, with_columns, geometry, trains))
    name = choose(op, weight, batch, dtype, backend, geometry, trains)
    by_words = backend is None and _reads_words(name, weight, batch, geometry)
    found = name, index(name, weight, with_columns, geometry, batch if by_words else None, trains)
    if remembers and not traced and not is_captured(weight.col):
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = found
    return found


def _as_number(batch: int | Tensor) -> int:
    """The batch to choose a backend for, where a traced one may be symbolic: to compare it would bound the graph's."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # noqa: PLC0415 slow to import

    # torch.jit.trace hands over sizes as tensors.
    return int(batch) if isinstance(batch, Tensor) or has_static_value(batch) else _TYPICAL_BATCH


def _no_name(backend: object) -> TypeError:
    return TypeError(f"backend: expected the name of one, or None. Got {type(backend).__name__}.")


def _reads_words(name: str, weight: CsrIndex, batch: int, geometry: ConvGeometry | None) -> bool:
    """Whether a call that asks for no backend may go by the words of a mask, or copies by them, as mixtures do."""
    # Of a stack, any task may have few rows. A convolution itself reads none.
    return registry.is_mixture(name) or (geometry is None and (weight.stacks > 1 or batch <= cpu.BIT_BATCH))
