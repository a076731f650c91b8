"""The linear operator on packed weights: ``y = x @ W.T + bias``, with W known only by its owned positions."""

import math
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels import dispatch
from rsn2_kernels.backends import Index, columns
from rsn2_kernels.ops.library import checked_operands, register
from rsn2_kernels.pattern import SparsePattern


def linear(
    x: Tensor, values: Tensor, pattern: SparsePattern, bias: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Multiply by the packed weight of one task. Differentiable in ``x``, ``values`` and ``bias``, to any order.

    Args:
        x: ``[..., cols]``, any strides; a ``[cols, batch]`` tensor seen through ``.t()`` is not copied.
        values: ``[nnz]``, the owned weights in row-major order.
        pattern: where they belong, shape ``(rows, cols)``.
        bias: ``[rows]``, or None.
        backend: a name from :func:`available_backends`, or None for the one predicted to be fastest.

    Returns:
        ``[..., rows]``, in the dtype of the operands (autocast's where it is on). Types narrower than float32
        accumulate in float32. Where x is NaN or infinite in a column that no weight of a row owns, that row's result
        may be NaN: a dense backend multiplies it by 0.

    Raises:
        TypeError, ValueError: if an operand has the wrong type, shape, dtype or device; names it.
        BackendError: if ``backend`` cannot run here; says why.
    """
    x, values, bias = checked_operands(x, values, bias, pattern)
    rows, cols = pattern.shape
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: expected shape [..., {cols}]. Got {tuple(x.shape)}.")
    flat = x.reshape(math.prod(x.shape[:-1]), cols)
    name = dispatch.choose("linear", pattern, flat.shape[0], x.dtype, backend)
    index = pattern.index(with_columns=x.requires_grad and torch.is_grad_enabled())
    y: Tensor = torch.ops.rsn2.linear(flat, values, bias, index, name)
    return y.view(*x.shape[:-1], rows)


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, backend: str) -> Tensor:
    return dispatch.module(backend).linear(x, values, bias, index)


def _linear_fake(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], index[0].shape[0] - 1)


def _linear_dx(dy: Tensor, values: Tensor, index: Index, backend: str) -> Tensor:
    return dispatch.module(backend).linear_dx(dy, values, index)


def _linear_dx_fake(dy: Tensor, values: Tensor, index: Index, backend: str) -> Tensor:
    return dy.new_empty(dy.shape[0], columns(index))


def _linear_dvalues(dy: Tensor, x: Tensor, index: Index, backend: str) -> Tensor:
    return dispatch.module(backend).linear_dvalues(dy, x, index)


def _linear_dvalues_fake(dy: Tensor, x: Tensor, index: Index, backend: str) -> Tensor:
    return dy.new_empty(index[1].shape[0])


# The three products are the partial derivatives of one trilinear form, sum of dy * (x @ W.T), so each one's gradients
# are the other two: that closes them under differentiation, to any order.


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, index, ctx.backend = inputs
    needs_x, needs_values = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_values else None, values if needs_x else None, *index)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    return (
        torch.ops.rsn2.linear_dx(dy, values, index, ctx.backend) if needs_x else None,
        torch.ops.rsn2.linear_dvalues(dy, x, index, ctx.backend) if needs_values else None,
        dy.sum(0) if needs_bias else None,
        [None] * len(index),
        None,
    )


def _setup_context_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, index, ctx.backend = inputs
    needs_first, needs_second = ctx.needs_input_grad[:2]
    ctx.save_for_backward(first if needs_second else None, second if needs_first else None, *index)


def _backward_of_dx(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dy, values, *index = ctx.saved_tensors
    needs_dy, needs_values = ctx.needs_input_grad[:2]
    return (
        torch.ops.rsn2.linear(g, values, None, index, ctx.backend) if needs_dy else None,
        torch.ops.rsn2.linear_dvalues(dy, g, index, ctx.backend) if needs_values else None,
        [None] * len(index),
        None,
    )


def _backward_of_dvalues(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dy, x, *index = ctx.saved_tensors
    needs_dy, needs_x = ctx.needs_input_grad[:2]
    return (
        torch.ops.rsn2.linear(x, g, None, index, ctx.backend) if needs_dy else None,
        torch.ops.rsn2.linear_dx(dy, g, index, ctx.backend) if needs_x else None,
        [None] * len(index),
        None,
    )


register(
    "linear(Tensor x, Tensor values, Tensor? bias, Tensor[] index, str backend) -> Tensor",
    _linear,
    _linear_fake,
    _setup_context,
    _backward,
)
register(
    "linear_dx(Tensor dy, Tensor values, Tensor[] index, str backend) -> Tensor",
    _linear_dx,
    _linear_dx_fake,
    _setup_context_of_gradient,
    _backward_of_dx,
)
register(
    "linear_dvalues(Tensor dy, Tensor x, Tensor[] index, str backend) -> Tensor",
    _linear_dvalues,
    _linear_dvalues_fake,
    _setup_context_of_gradient,
    _backward_of_dvalues,
)
