"""What is made of a mask while torch.compile traces a call: made for real, and no part of the graph.

So a trace finds what the next one will find, which is that of the same call where torch.utils.checkpoint runs it again.
A module of its own, as torch's compiler is slow to import.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch._dynamo.comptime import ComptimeContext, comptime

from rsn2_kernels import dispatch
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.pattern import SparsePattern


def resolve(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    backend: str | None,
    with_columns: bool,
    geometry: ConvGeometry | None,
    trains: bool,
) -> None:
    """Have the weight remember all that `dispatch.resolve` will ask it for."""
    comptime(_resolve)


def stack(patterns: Sequence[SparsePattern]) -> None:
    """Have the first of these patterns remember their group."""
    comptime(_stack)


def _resolve(traced: ComptimeContext) -> None:
    names = ("op", "weight", "batch", "dtype", "backend", "with_columns", "geometry", "trains")
    # Of a backend that cannot run, or is no name: the trace meets the error itself.
    with suppress(dispatch.BackendError, TypeError):
        dispatch.resolve(*(_real(_local(traced, name)) for name in names))


def _stack(traced: ComptimeContext) -> None:
    patterns = [_real(each) for each in _local(traced, "patterns").items]
    # As above: too many weights.
    with suppress(ValueError):
        PatternGroup.of(patterns)


def _local(traced: ComptimeContext, name: str) -> Any:
    """What stands for a local variable of the traced function that called `comptime`."""
    return traced.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker().realize()


def _real(variable: Any) -> Any:
    """The constant or object that a variable stands for."""
    variable = variable.realize()
    return variable.as_python_constant() if variable.is_python_constant() else variable.value
