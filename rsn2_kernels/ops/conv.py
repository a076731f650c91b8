"""The convolution operator on packed weights: ``F.conv2d``, with the filters known only by their owned positions."""

from typing import Any

import torch
from torch import Tensor

from rsn2_kernels import dispatch
from rsn2_kernels.backends import Index, activated, registry
from rsn2_kernels.geometry import ConvGeometry, Pair, check_filters, checked_geometry
from rsn2_kernels.ops.gradients import register_gradients
from rsn2_kernels.ops.layout import channels_last
from rsn2_kernels.ops.library import checked_operands, empty_images, fused_activation
from rsn2_kernels.ops.operator import Operator
from rsn2_kernels.pattern import SparsePattern


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    kernel_size: int | Pair,
    backend: str | None = None,
    activation: str | None = None,
) -> Tensor:
    """Convolve with the packed filters of one task. Differentiable in ``x``, ``values`` and ``bias``, to any order.

    In reverse mode, as :func:`linear` is; many gradients at once come from the ``cpu`` backend alone.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any strides.
        values: ``[nnz]``, the owned weights in row-major order.
        pattern: where they belong in ``weight.flatten(1)`` of torch's ``[rows, C / groups, kh, kw]`` weight.
        bias: ``[rows]``, or None.
        stride, padding, dilation: an int or ``(vertical, horizontal)``; the padding is zeros.
        groups: row r sees the channels of group ``r // (rows / groups)``.
        kernel_size: ``kh = kw`` or ``(kh, kw)``.
        backend: a name from :func:`available_backends`, or None for the one predicted to be fastest; see
            :func:`linear`.
        activation: "relu" or "gelu" (with erf) of the result; the Triton kernels apply it before they write, GELU only
            where no gradient is recorded.

    Returns:
        ``[N, rows, OH, OW]`` or ``[rows, OH, OW]``, contiguous, from the Triton kernels channels-last (an x that is
        not is copied), in the dtype of the operands (autocast's where it is on). Types narrower than float32
        accumulate in float32. What is not finite may reach other results, as it may in :func:`linear`; and where x is
        not finite, the gradients of values that no position of the result multiplies with it may be NaN, too.

    Raises:
        TypeError, ValueError: if an operand has the wrong type, shape, dtype or device, or ``activation`` is unknown;
            names it.
        BackendError: if ``backend`` cannot run here; says why.
        NotImplementedError: under forward-mode differentiation, from the gradients as well.
    """
    x, values, bias = checked_operands(x, values, bias, pattern)
    geometry = checked_geometry(kernel_size, stride, padding, dilation, groups)
    check_filters(pattern.shape, geometry)
    channels = pattern.shape[1] // (geometry.kernel_size[0] * geometry.kernel_size[1]) * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x: expected shape [N, {channels}, H, W] or [{channels}, H, W]. Got {tuple(x.shape)}.")
    height, width = geometry.output_size(*x.shape[-2:])
    if min(height, width) < 1:
        raise ValueError(f"x: its {tuple(x.shape[-2:])} pixels are smaller than the kernel's reach.")
    features = pattern.shape[0], channels
    images = x if x.dim() == 4 else x.unsqueeze(0)
    records = torch.is_grad_enabled()
    positions = images.shape[0] * height * width
    trains = records and (x.requires_grad or values.requires_grad)
    with_columns = records and x.requires_grad
    name, index = dispatch.resolve("conv2d", pattern, positions, x.dtype, backend, with_columns, geometry, trains)
    inside, behind = fused_activation(activation, (x, values, bias))
    if records and values.requires_grad:
        images = channels_last(images, (name,))
    y = activated(_CONV2D(images, values, bias, index, inside, features, *geometry, name), behind)
    return y if x.dim() == 4 else y.squeeze(0)


def _conv2d(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str, *rest: Any) -> Tensor:
    _, *geometry, backend = rest
    return registry.module(backend).conv2d(x, values, bias, index, _geometry(geometry), activation)


def _conv2d_fake(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str, *rest: Any) -> Tensor:
    features, *geometry, backend = rest
    size = _geometry(geometry).output_size(*x.shape[2:])
    return empty_images(x, x.shape[0], features[0], *size, backend)


def _conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: list[int], *rest: Any) -> Tensor:
    (rows, channels), *fields, backend = rest
    geometry = _geometry(fields)
    cols = channels // geometry.groups * geometry.kernel_size[0] * geometry.kernel_size[1]
    index = dispatch.completed(index, backend, (rows, cols), geometry=geometry)
    return registry.module(backend).conv2d_dx(dy, values, index, (size[0], size[1]), geometry)


def _conv2d_dx_fake(dy: Tensor, values: Tensor, index: Index, size: list[int], *rest: Any) -> Tensor:
    features, *_, backend = rest
    return empty_images(dy, dy.shape[0], features[1], size[0], size[1], backend)


def _conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, *rest: Any) -> Tensor:
    _, *geometry, backend = rest
    return registry.module(backend).conv2d_dvalues(dy, x, index, _geometry(geometry))


def _conv2d_dvalues_fake(dy: Tensor, x: Tensor, index: Index, *rest: Any) -> Tensor:
    return dy.new_empty(index[1].shape[0])


def _geometry(fields: Any) -> ConvGeometry:
    kernel_size, stride, padding, dilation, groups = fields
    return ConvGeometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)


_REST = "int[2] features, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups, str backend"
_CONV2D = Operator(
    f"conv2d(Tensor x, Tensor values, Tensor? bias, Tensor[] index, str activation, {_REST}) -> Tensor",
    _conv2d,
    _conv2d_fake,
    operands=3,
)
_CONV2D_DX = Operator(
    f"conv2d_dx(Tensor dy, Tensor values, Tensor[] index, SymInt[2] size, {_REST}) -> Tensor",
    _conv2d_dx,
    _conv2d_dx_fake,
    operands=2,
)
_CONV2D_DVALUES = Operator(
    f"conv2d_dvalues(Tensor dy, Tensor x, Tensor[] index, {_REST}) -> Tensor",
    _conv2d_dvalues,
    _conv2d_dvalues_fake,
    operands=2,
)
register_gradients(
    _CONV2D,
    _CONV2D_DX,
    _CONV2D_DVALUES,
    size_of=lambda x: (x.shape[2:],),
    activates=True,
    laid_out=channels_last,
)
