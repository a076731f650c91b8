"""The gradients of an operator and of its gradients, to any order: one piece for all operators.

The products of an operator are the partial derivatives of one trilinear form, the sum of dy * (W x) over all
positions: in dy the operator itself, in x the product ``<name>_dx``, in the values the product ``<name>_dvalues``. So
the gradients of each product are the other two, and the three are closed under differentiation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels.ops.library import LIBRARY


def sum_per_channel(dy: Tensor, index: list[Tensor], *rest: Any) -> Tensor:
    """The gradient of a bias that is added to every position of its row of the weight: ``[rows]``."""
    return dy.sum([axis for axis in range(dy.dim()) if axis != 1])


def register_gradients(
    name: str,
    size_of: Callable[[Tensor], tuple[Any, ...]],
    dbias: Callable[..., Tensor] = sum_per_channel,
    activates: bool = False,
    laid_out: Callable[[Tensor, list[Any]], Tensor] = lambda dy, rest: dy,
) -> None:
    """Register the gradients of ``rsn2::<name>``, ``rsn2::<name>_dx`` and ``rsn2::<name>_dvalues``.

    Args:
        name: of an operator ``(x, values, bias, index, *rest)`` that has the products
            ``_dx (dy, values, index, *size, *rest)`` and ``_dvalues (dy, x, index, *rest)``.
        size_of: ``x`` -> what ``_dx`` must be told of its shape: a tuple of as many arguments as ``*size``.
        dbias: ``(dy, index, *rest)`` -> the gradient of the bias, by torch's own differentiable operators.
        activates: whether the operator, and it alone, takes an activation in front of ``*rest``. ReLU is undone from
            the result that it left; other activations are refused under gradients.
        laid_out: ``(dy, rest)`` -> dy in the layout that the backend reads, where both products will read it.
    """
    forward, dx, dvalues = (getattr(torch.ops.rsn2, name + product) for product in ("", "_dx", "_dvalues"))

    def multiplied(x: Tensor, values: Tensor, index: list[Tensor], rest: list[Any]) -> Tensor:
        result: Tensor = forward(x, values, None, index, *(["none"] if activates else []), *rest)
        return result

    def setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _, index, *ctx.rest = inputs
        ctx.size = size_of(x)
        ctx.activation = ctx.rest.pop(0) if activates else "none"
        if ctx.activation not in ("none", "relu"):
            raise NotImplementedError(f"rsn2::{name} keeps nothing that the gradient of {ctx.activation!r} needs.")
        _save(ctx, x, values, [output, *index] if ctx.activation == "relu" else index)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, values, *index = ctx.saved_tensors
        if ctx.activation == "relu":
            y, *index = index
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
        # The bias sums dy as it came, so that its bits do not depend on which other gradients are asked for.
        shared = laid_out(dy, ctx.rest) if needs_x and needs_values else dy
        return (
            dx(shared, values, index, *ctx.size, *ctx.rest) if needs_x else None,
            dvalues(shared, x, index, *ctx.rest) if needs_values else None,
            dbias(dy, index, *ctx.rest) if needs_bias else None,
            *_none(index, ["activation", *ctx.rest] if activates else ctx.rest),
        )

    def setup_dx(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, values, index, *tail = inputs
        ctx.size = size_of(output)
        ctx.rest = tail[len(ctx.size) :]
        _save(ctx, dy, values, index)

    def backward_of_dx(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        dy, values, *index = ctx.saved_tensors
        needs_dy, needs_values = ctx.needs_input_grad[:2]
        return (
            multiplied(g, values, index, ctx.rest) if needs_dy else None,
            dvalues(dy, g, index, *ctx.rest) if needs_values else None,
            *_none(index, [*ctx.size, *ctx.rest]),
        )

    def setup_dvalues(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, x, index, *ctx.rest = inputs
        ctx.size = size_of(x)
        _save(ctx, dy, x, index)

    def backward_of_dvalues(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        dy, x, *index = ctx.saved_tensors
        needs_dy, needs_x = ctx.needs_input_grad[:2]
        return (
            multiplied(x, g, index, ctx.rest) if needs_dy else None,
            dx(dy, g, index, *ctx.size, *ctx.rest) if needs_x else None,
            *_none(index, ctx.rest),
        )

    for product, back, setup in (
        ("", backward, setup_forward),
        ("_dx", backward_of_dx, setup_dx),
        ("_dvalues", backward_of_dvalues, setup_dvalues),
    ):
        torch.library.register_autograd(f"rsn2::{name}{product}", back, setup_context=setup, lib=LIBRARY)


def _save(ctx: Any, first: Tensor, second: Tensor, index: list[Tensor]) -> None:
    """Keep the index, and each of two factors only if the other one's gradient will ask for it."""
    needs_first, needs_second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(first if needs_second else None, second if needs_first else None, *index)


def _none(index: list[Tensor], rest: list[Any]) -> list[Any]:
    """No gradients for the index tensors, nor for the arguments behind them."""
    return [[None] * len(index), *([None] * len(rest))]
