"""The gradients of an operator and of its gradients, to any order: one piece for all operators.

The products of an operator are the partial derivatives of one trilinear form, the sum of dy * (W x) over all
positions: in dy the operator itself, in x the product ``<name>_dx``, in the values the product ``<name>_dvalues``. So
the gradients of each product are the other two, and the three are closed under differentiation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels.ops.operator import Operator, is_watched


def sum_per_channel(dy: Tensor, index: list[Tensor], *rest: Any) -> Tensor:
    """The gradient of a bias that is added to every position of its row of the weight: ``[rows]``."""
    return dy.sum([axis for axis in range(dy.dim()) if axis != 1])


def register_gradients(
    forward: Operator,
    dx: Operator,
    dvalues: Operator,
    size_of: Callable[[Tensor], tuple[Any, ...]],
    dbias: Callable[..., Tensor] = sum_per_channel,
    activates: bool = False,
    both: Callable[..., tuple[Tensor, Tensor] | None] = lambda *call: None,
    laid_out: Callable[[Tensor, list[Any]], Tensor] = lambda dy, rest: dy,
) -> None:
    """Tell the three products of an operator their gradients.

    Args:
        forward: the operator, ``(x, values, bias, index, *rest)``.
        dx: its product ``(dy, values, index, *size, *rest)``.
        dvalues: its product ``(dy, x, index, *rest)``.
        size_of: ``x`` -> what ``dx`` must be told of its shape: a tuple of as many arguments as ``*size``.
        dbias: ``(dy, index, *rest)`` -> the gradient of the bias, by torch's own differentiable operators.
        activates: whether the operator, and it alone, takes an activation in front of ``*rest``. ReLU is undone from
            the result that it left; other activations are refused under gradients.
        both: ``(dy, x, values, index, *rest)`` -> what ``dx`` and ``dvalues`` return, without derivatives and in
            one call; None where the backend has no such call.
        laid_out: ``(dy, rest)`` -> dy in the layout that the backend reads, where both products will read it.
    """

    def multiplied(x: Tensor, values: Tensor, index: list[Tensor], rest: list[Any]) -> Tensor:
        return forward(x, values, None, index, *(["none"] if activates else []), *rest)

    def keep_forward(ctx: Any, operands: list[Any], others: tuple[Any, ...], output: Tensor) -> None:
        x, values, _ = operands
        index, *ctx.rest = others
        ctx.size = size_of(x)
        ctx.activation = ctx.rest.pop(0) if activates else "none"
        if ctx.activation not in ("none", "relu"):
            raise NotImplementedError(f"{forward} keeps nothing that the gradient of {ctx.activation!r} needs.")
        _save(ctx, (x, values), [output, *index] if ctx.activation == "relu" else index)

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, values, *index = ctx.saved_tensors
        if ctx.activation == "relu":
            y, *index = index
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
        # The bias sums dy as it came, so that its bits do not depend on which other gradients are asked for.
        shared = laid_out(dy, ctx.rest) if needs_x and needs_values else dy
        # First what finds dy in the caches, last what the layer in front will read.
        of_bias = dbias(dy, index, *ctx.rest) if needs_bias else None
        if needs_x and needs_values and not torch.is_grad_enabled() and not is_watched((shared, x, values)):
            at_once = both(shared, x, values, index, *ctx.rest)
            if at_once is not None:
                return *at_once, of_bias
        of_values = dvalues(shared, x, index, *ctx.rest) if needs_values else None
        of_x = dx(shared, values, index, *ctx.size, *ctx.rest) if needs_x else None
        return of_x, of_values, of_bias

    def keep_dx(ctx: Any, operands: list[Any], others: tuple[Any, ...], output: Tensor) -> None:
        index, *tail = others
        ctx.size = size_of(output)
        ctx.rest = tail[len(ctx.size) :]
        _save(ctx, operands, index)

    def backward_of_dx(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, values, *index = ctx.saved_tensors
        needs_dy, needs_values = ctx.needs_input_grad[:2]
        return (
            multiplied(g, values, index, ctx.rest) if needs_dy else None,
            dvalues(dy, g, index, *ctx.rest) if needs_values else None,
        )

    def keep_dvalues(ctx: Any, operands: list[Any], others: tuple[Any, ...], output: Tensor) -> None:
        index, *ctx.rest = others
        ctx.size = size_of(operands[1])
        _save(ctx, operands, index)

    def backward_of_dvalues(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, *index = ctx.saved_tensors
        needs_dy, needs_x = ctx.needs_input_grad[:2]
        return (
            multiplied(x, g, index, ctx.rest) if needs_dy else None,
            dx(dy, g, index, *ctx.size, *ctx.rest) if needs_x else None,
        )

    forward.differentiate(keep_forward, backward)
    dx.differentiate(keep_dx, backward_of_dx)
    dvalues.differentiate(keep_dvalues, backward_of_dvalues)


def _save(ctx: Any, factors: Sequence[Any], index: list[Tensor]) -> None:
    """Keep the index, and each of two factors only if the other one's gradient will ask for it."""
    needs_first, needs_second = ctx.needs_input_grad[:2]
    first, second = factors
    ctx.save_for_backward(first if needs_second else None, second if needs_first else None, *index)
