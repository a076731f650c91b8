"""One module per backend, all with the six functions of :class:`Backend`."""

from typing import Protocol

from torch import Tensor

from rsn2_kernels.geometry import ConvGeometry, Pair

Index = list[Tensor]
"""``[crow, col]``, with ``[crow_t, row_t, perm]`` behind for ``*_dx``; see :meth:`SparsePattern.index`."""


def columns(index: Index) -> int:
    """Columns of the weight, read off an index that has the column order."""
    return index[2].shape[0] - 1


class Backend(Protocol):
    """What a backend module offers.

    Shapes: ``x [batch, cols]`` of any strides, ``values [nnz]``, ``bias [rows]``, ``dy [batch, rows]``; for a
    convolution ``x [N, C, H, W]`` and ``dy [N, rows, OH, OW]``. All floating-point operands have one dtype and device.
    """

    def linear(self, x: Tensor, values: Tensor, bias: Tensor | None, index: Index) -> Tensor:
        """``x @ W.T + bias``, ``[batch, rows]``."""

    def linear_dx(self, dy: Tensor, values: Tensor, index: Index) -> Tensor:
        """``dy @ W``, ``[batch, cols]``."""

    def linear_dvalues(self, dy: Tensor, x: Tensor, index: Index) -> Tensor:
        """The owned entries of ``dy.T @ x``, ``[nnz]``."""

    def conv2d(self, x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry) -> Tensor:
        """``F.conv2d`` with the packed weight, ``[N, rows, OH, OW]``."""

    def conv2d_dx(self, dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
        """Gradient of the input of ``size = (H, W)``, ``[N, C, H, W]``."""

    def conv2d_dvalues(self, dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
        """The owned entries of the weight gradient, ``[nnz]``."""
