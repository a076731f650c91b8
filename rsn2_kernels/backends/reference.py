"""The definition of every operator, weight by weight: the oracle of every test, slow and memory-hungry by intent.

Nothing here expands a dense weight. Each owned weight k sits at (row[k], col[k]), and each product is one sum over k.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rsn2_kernels.backends import Index, activated, columns
from rsn2_kernels.csr import row_of_each_value
from rsn2_kernels.geometry import ConvGeometry, Pair


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """y[b, row[k]] += values[k] * x[b, col[k]]."""
    crow, col = index[:2]
    products = _wide(x)[:, col] * _wide(values)
    y = products.new_zeros(x.shape[0], crow.shape[0] - 1)
    y = y.index_add(1, row_of_each_value(crow, col), products)
    return activated(y if bias is None else y + _wide(bias), activation).to(x.dtype)


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """dx[b, col[k]] += values[k] * dy[b, row[k]]."""
    crow, col = index[:2]
    return _scatter(dy, values, row_of_each_value(crow, col), col, columns(index)).to(dy.dtype)


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """dvalues[k] = sum over b of dy[b, row[k]] * x[b, col[k]]."""
    crow, col = index[:2]
    return (_wide(dy)[:, row_of_each_value(crow, col)] * _wide(x)[:, col]).sum(0).to(x.dtype)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry, activation: str = "none"
) -> Tensor:
    """The linear product on the patches under the kernel."""
    crow, col = index[:2]
    patches, ungrouped = _patches(x, geometry), _ungrouped(crow, col, x.shape[1], geometry)
    y = linear(patches, values, bias, [crow, ungrouped], activation)
    height, width = geometry.output_size(*x.shape[2:])
    return y.view(x.shape[0], height, width, y.shape[1]).permute(0, 3, 1, 2).contiguous()


def conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
    """The gradient of the patches, each entry added back to the pixel it came from."""
    crow, col = index[:2]
    all_columns = columns(index) * geometry.groups
    channels = all_columns // (geometry.kernel_size[0] * geometry.kernel_size[1])
    row, col = row_of_each_value(crow, col), _ungrouped(crow, col, channels, geometry)
    patches = _scatter(_positions(dy), values, row, col, all_columns)
    patches = patches.view(dy.shape[0], dy.shape[2] * dy.shape[3], all_columns).transpose(1, 2)
    _, stride, padding, dilation, _ = geometry
    return F.fold(patches, size, geometry.kernel_size, dilation, padding, stride).to(dy.dtype)


def conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
    """The linear gradient of the values, on the patches."""
    crow, col = index[:2]
    return linear_dvalues(_positions(dy), _patches(x, geometry), [crow, _ungrouped(crow, col, x.shape[1], geometry)])


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """y[b, row[k]] += values[k] * x[b, col[k]] over the weights k of row b's own task; NaN where it has none."""
    row, col, own = _weights_by_row(index, tasks)
    products = (_wide(x)[:, col] * _wide(values)).where(own, 0)
    y = products.new_zeros(x.shape[0], (index[1].shape[0] - 1) // tasks).index_add(1, row, products)
    task = index[0]
    if biases is not None:
        y = y + _wide(biases)[task.clamp(0, tasks - 1)]
    return y.masked_fill(((task < 0) | (task >= tasks))[:, None], torch.nan).to(x.dtype)


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """dx[b, col[k]] += values[k] * dy[b, row[k]] over the weights k of row b's own task."""
    row, col, own = _weights_by_row(index, tasks)
    products = (_wide(dy)[:, row] * _wide(values)).where(own, 0)
    return products.new_zeros(dy.shape[0], columns(index[1:]) // tasks).index_add(1, col, products).to(dy.dtype)


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """dvalues[k] = sum over the rows b of weight k's own task of dy[b, row[k]] * x[b, col[k]]."""
    row, col, own = _weights_by_row(index, tasks)
    return (_wide(dy)[:, row] * _wide(x)[:, col]).where(own, 0).sum(0).to(x.dtype)


def _weights_by_row(index: Index, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """row[k] and col[k] of the weights of all tasks, and whether b and k have one task: bool [b, k]."""
    task, crow, col = index[:3]
    rows = (crow.shape[0] - 1) // tasks
    stacked = row_of_each_value(crow, col)
    return stacked % rows, col, task[:, None] == stacked // rows


def _scatter(dy: Tensor, values: Tensor, row: Tensor, col: Tensor, cols: int) -> Tensor:
    """out[b, col[k]] += values[k] * dy[b, row[k]], in float32 or wider."""
    products = _wide(dy)[:, row] * _wide(values)
    return products.new_zeros(dy.shape[0], cols).index_add(1, col, products)


def _wide(operand: Tensor) -> Tensor:
    """The operand in the type that sums are taken in: at least float32."""
    return operand.to(torch.promote_types(operand.dtype, torch.float32))


def _patches(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """What the kernel sees at each output position: ``[N * OH * OW, C * kh * kw]``."""
    patches = F.unfold(x, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def _positions(y: Tensor) -> Tensor:
    """Output positions as rows: ``[N, rows, OH, OW]`` to ``[N * OH * OW, rows]``."""
    return y.permute(0, 2, 3, 1).flatten(0, 2)


def _ungrouped(crow: Tensor, col: Tensor, channels: int, geometry: ConvGeometry) -> Tensor:
    """Columns counted over the channels of all groups instead of the row's own group."""
    rows = crow.shape[0] - 1
    group = row_of_each_value(crow, col) // (rows // geometry.groups)
    per_group = channels // geometry.groups * geometry.kernel_size[0] * geometry.kernel_size[1]
    return col + group * per_group
