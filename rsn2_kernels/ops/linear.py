"""The linear operator on packed weights: ``y = x @ W.T + bias``, with W known only by its owned positions."""

import math
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels import dispatch
from rsn2_kernels.backends import Index, activated, cpu, registry
from rsn2_kernels.geometry import Pair
from rsn2_kernels.ops.gradients import register_gradients
from rsn2_kernels.ops.layout import feature_major
from rsn2_kernels.ops.library import checked_operands, empty_matrix, fused_activation
from rsn2_kernels.ops.operator import Operator
from rsn2_kernels.pattern import SparsePattern


def linear(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    backend: str | None = None,
    *,
    activation: str | None = None,
) -> Tensor:
    """Multiply by the packed weight of one task. Differentiable in ``x``, ``values`` and ``bias``, to any order.

    In reverse mode: ``torch.func`` (grad, jacrev, hessian, vmap) and forward mode raise errors. Many gradients at once
    come from ``torch.autograd.grad(..., is_grads_batched=True)`` and
    ``torch.autograd.functional.jacobian(..., vectorize=True)``.

    Args:
        x: ``[..., cols]``, any strides; a ``[cols, batch]`` tensor seen through ``.t()`` is not copied.
        values: ``[nnz]``, the owned weights in row-major order.
        pattern: where they belong, shape ``(rows, cols)``.
        bias: ``[rows]``, or None.
        backend: a name from :func:`available_backends`, or None for the one predicted to be fastest. On the CPU also
            three names, such as ``cpu/dense/dense``: of the product, of the gradient of x, of that of the values; None
            may choose so, too. Asked for by name, ``cpu`` gives a row of x the same bits in every batch (in bfloat16
            but for numbers below the smallest normal one); with None, up to eight rows may be summed in another way.
        activation: "relu" or "gelu" (with erf) of the result; the Triton kernels apply it before they write, GELU only
            where no gradient is recorded.

    Returns:
        ``[..., rows]``, in the dtype of the operands (autocast's where it is on). Types narrower than float32
        accumulate in float32. The Triton kernels read and write feature-major matrices: there the result is the
        ``.t()`` of a contiguous ``[rows, batch]``, and x is copied unless it is one, with a batch of a multiple of 16.
        So a network stays feature-major behind its first layer.

        Where x is NaN or infinite in a column that no weight of a row owns, that row's result may be NaN: a dense
        product multiplies it by 0. So may the gradient of x in a column, where the gradient of the result is NaN or
        infinite in a row that owns no weight of it.

    Raises:
        TypeError, ValueError: if an operand has the wrong type, shape, dtype or device, or ``activation`` is unknown;
            names it.
        BackendError: if ``backend`` cannot run here; says why.
        NotImplementedError: under forward-mode differentiation, from the gradients as well.
    """
    x, values, bias = checked_operands(x, values, bias, pattern)
    rows, cols = pattern.shape
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: expected shape [..., {cols}]. Got {tuple(x.shape)}.")
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), cols)
    records = torch.is_grad_enabled()
    trains = records and (x.requires_grad or values.requires_grad)
    with_columns = records and x.requires_grad
    name, index = dispatch.resolve("linear", pattern, flat.shape[0], x.dtype, backend, with_columns, trains=trains)
    inside, behind = fused_activation(activation, (x, values, bias))
    if records and values.requires_grad:
        flat = feature_major(flat, (name,))
    y = activated(_LINEAR(flat, values, bias, index, inside, pattern.shape, name), behind)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], rows)


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str, *rest: Any) -> Tensor:
    return registry.module(rest[-1]).linear(x, values, bias, index, activation)


def _linear_fake(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str, *rest: Any) -> Tensor:
    features, backend = rest
    return empty_matrix(x, x.shape[0], features[0], backend)


def _linear_dx(dy: Tensor, values: Tensor, index: Index, features: Pair, backend: str) -> Tensor:
    return registry.module(backend).linear_dx(dy, values, dispatch.completed(index, backend, features))


def _linear_dx_fake(dy: Tensor, values: Tensor, index: Index, features: Pair, backend: str) -> Tensor:
    return empty_matrix(dy, dy.shape[0], features[1], backend)


def _linear_dvalues(dy: Tensor, x: Tensor, index: Index, features: Pair, backend: str) -> Tensor:
    return registry.module(backend).linear_dvalues(dy, x, index)


def _linear_dvalues_fake(dy: Tensor, x: Tensor, index: Index, features: Pair, backend: str) -> Tensor:
    return dy.new_empty(index[1].shape[0])


def _both(
    dy: Tensor, x: Tensor, values: Tensor, index: Index, features: Pair, backend: str
) -> tuple[Tensor, Tensor] | None:
    if backend != "cpu":
        return None
    return cpu.linear_gradients(dy, x, values, dispatch.completed(index, backend, features))


_REST = "int[2] features, str backend"
_LINEAR = Operator(
    f"linear(Tensor x, Tensor values, Tensor? bias, Tensor[] index, str activation, {_REST}) -> Tensor",
    _linear,
    _linear_fake,
    operands=3,
)
_LINEAR_DX = Operator(
    f"linear_dx(Tensor dy, Tensor values, Tensor[] index, {_REST}) -> Tensor",
    _linear_dx,
    _linear_dx_fake,
    operands=2,
)
_LINEAR_DVALUES = Operator(
    f"linear_dvalues(Tensor dy, Tensor x, Tensor[] index, {_REST}) -> Tensor",
    _linear_dvalues,
    _linear_dvalues_fake,
    operands=2,
)
register_gradients(
    _LINEAR, _LINEAR_DX, _LINEAR_DVALUES, size_of=lambda x: (), activates=True, both=_both, laid_out=feature_major
)
