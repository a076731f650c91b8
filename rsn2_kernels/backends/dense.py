"""Expand the packed weight, then call the vendor's library: what runs where nothing beats it.

The expanded weight lives for one call. The gradient of the values is gathered out of the dense weight gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from rsn2_kernels import csr
from rsn2_kernels.backends import Index, activated, columns, cpu, triton
from rsn2_kernels.backends.by_task import dvalues_by_task, dx_by_task, linear_by_task
from rsn2_kernels.geometry import ConvGeometry, Pair


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """``F.linear`` on the expanded weight."""
    return activated(F.linear(x, _expand(values, index, x.shape[1]), bias), activation)


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """One dense product with the expanded weight."""
    return dy @ _expand(values, index, columns(index))


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """The whole dense weight gradient, and what is owned of it."""
    return _owned(dy.t() @ x, index)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry, activation: str = "none"
) -> Tensor:
    """``F.conv2d`` on the expanded weight."""
    _, stride, padding, dilation, groups = geometry
    weight = _filters(_wide(values), index, x.shape[1] // groups, geometry)
    y = F.conv2d(_wide(x), weight, None if bias is None else _wide(bias), stride, padding, dilation, groups)
    return activated(y.to(x.dtype).contiguous(), activation)


def conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
    """The vendor's input gradient with the expanded weight."""
    kernel_size, stride, padding, dilation, groups = geometry
    per_group = columns(index) // (kernel_size[0] * kernel_size[1])
    weight = _filters(_wide(values), index, per_group, geometry)
    shape = (dy.shape[0], per_group * groups, *size)
    dx: Tensor = conv2d_input(shape, weight, _wide(dy), stride, padding, dilation, groups)
    return dx.to(dy.dtype).contiguous()


def conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
    """The vendor's whole weight gradient, and what is owned of it."""
    kernel_size, stride, padding, dilation, groups = geometry
    shape = (dy.shape[1], x.shape[1] // groups, *kernel_size)
    dweight = conv2d_weight(_wide(x), shape, _wide(dy), stride, padding, dilation, groups)
    return _owned(dweight.flatten(1), index).to(x.dtype)


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """One `linear` per task that has rows, on the rows sorted by task, whose counts a GPU must first tell the host."""
    return linear_by_task(linear, x, values, biases, index, tasks)


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dx`."""
    return dx_by_task(linear_dx, dy, values, index, tasks)


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dvalues`."""
    return dvalues_by_task(linear_dvalues, dy, x, index, tasks)


def _wide(operand: Tensor) -> Tensor:
    """The operand in float32 where torch's convolution would sum in float16.

    It does so on the CPU, and is 9 to 70 times slower there than in float32 (3 x 3, 64 to 64 channels, torch 2.13).
    """
    return operand.float() if operand.dtype == torch.float16 and operand.device.type == "cpu" else operand


def _filters(values: Tensor, index: Index, channels: int, geometry: ConvGeometry) -> Tensor:
    """The expanded weight as ``[rows, C / groups, kh, kw]``."""
    height, width = geometry.kernel_size
    weight = _expand(values, index, channels * height * width)
    return weight.view(-1, channels, height, width)


def _expand(values: Tensor, index: Index, cols: int) -> Tensor:
    """The dense weight ``[rows, cols]``: by kernels of this package, which read the pattern once, where some do it."""
    if cpu.has_kernels(values):
        return cpu.expand(values, index, cols)
    weight: Tensor = (triton if _has_triton(values) else csr).expand(values, index[0], index[1], cols)
    return weight


def _owned(dense: Tensor, index: Index) -> Tensor:
    """What is owned of a dense ``[rows, cols]`` weight, packed: as in `_expand`."""
    if cpu.has_kernels(dense):
        return cpu.gather(dense, index)
    values: Tensor = (triton if _has_triton(dense) else csr).gather(dense, index[0], index[1])
    return values


def _has_triton(operand: Tensor) -> bool:
    return operand.is_cuda and triton.why_not(operand.device, operand.dtype) is None
