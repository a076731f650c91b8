"""What is made of a mask while torch.compile traces a call: made for real, and no part of the graph.

So a trace finds what the next one will find, which is that of the same call where torch.utils.checkpoint runs it again.
A module of its own, as torch's compiler is slow to import.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch._dynamo.comptime import ComptimeContext, comptime

from rsn2_kernels import dispatch
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.pattern import SparsePattern


def resolve(call: tuple[object, ...]) -> None:
    """Have the weight remember all that `dispatch.resolve` will ask it for, with the arguments ``call``."""
    comptime(_resolve)


def stack(patterns: Sequence[SparsePattern]) -> None:
    """Have the first of these patterns remember their group."""
    comptime(_stack)


def _resolve(traced: ComptimeContext) -> None:
    # Of a backend that cannot run, or is no name: the trace meets the error itself.
    with suppress(dispatch.BackendError, TypeError):
        dispatch.resolve(*_parts(traced, "call"))


def _stack(traced: ComptimeContext) -> None:
    # As above: too many weights.
    with suppress(ValueError):
        PatternGroup.of(_parts(traced, "patterns"))


def _parts(traced: ComptimeContext, name: str) -> list[Any]:
    """The constants and objects in a local variable, a sequence, of the traced function that called `comptime`."""
    sequence: Any = traced.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker().realize()
    parts = [part.realize() for part in sequence.items]
    return [part.as_python_constant() if part.is_python_constant() else part.value for part in parts]
