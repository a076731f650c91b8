"""One module per backend, with the functions of :class:`Backend` for the operators that it has."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from rsn2_kernels.geometry import ConvGeometry, Pair

Index = list[Tensor]
"""``[crow, col]``, with ``[crow_t, row_t, perm]`` behind for ``*_dx``; see :meth:`SparsePattern.index`. Last, where a
backend asks for them, what it adds: on the CPU the words of the mask, ``[rows, n]``, or none of them, ``[rows, 0]``;
either way the sums for a single row of x may run in any order."""


ACTIVATIONS = ("none", "relu", "gelu")
"""What a product may apply to its result; GELU is the one with erf."""


def columns(index: Index) -> int:
    """Columns of the weight, read off an index that has the column order."""
    return index[2].shape[0] - 1


def words_of(index: Index) -> Tensor | None:
    """The words of the mask, ``[rows, n]``, where an index on the CPU has them."""
    return index[-1] if index[-1].dim() == 2 else None


def activated(y: Tensor, activation: str) -> Tensor:
    """``y`` behind its activation, one of ACTIVATIONS: for backends that do not fuse it."""
    if activation == "relu":
        return F.relu(y)
    return F.gelu(y) if activation == "gelu" else y


class Backend(Protocol):
    """What a backend module offers; one that has no convolution leaves out those three.

    Shapes: ``x [batch, cols]`` of any strides, ``values [nnz]``, ``bias [rows]``, ``dy [batch, rows]``; for a
    convolution ``x [N, C, H, W]`` and ``dy [N, rows, OH, OW]``. All floating-point operands have one dtype and device.
    The grouped products take the values of all ``tasks`` one behind the other, ``biases [tasks, rows]``, and the index
    of :meth:`PatternGroup.index`, whose first tensor gives each row of the batch its task. A backend that need not have
    them in one tensor has `grouped_linear_apart` too, which takes a list of each.
    """

    def linear(self, x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
        """``activation(x @ W.T + bias)``, ``[batch, rows]``; for the activations see `activated`."""

    def linear_dx(self, dy: Tensor, values: Tensor, index: Index) -> Tensor:
        """``dy @ W``, ``[batch, cols]``."""

    def linear_dvalues(self, dy: Tensor, x: Tensor, index: Index) -> Tensor:
        """The owned entries of ``dy.T @ x``, ``[nnz]``."""

    def conv2d(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: Index,
        geometry: ConvGeometry,
        activation: str = "none",
    ) -> Tensor:
        """``activation(F.conv2d(...))`` with the packed weight, ``[N, rows, OH, OW]``."""

    def conv2d_dx(self, dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
        """Gradient of the input of ``size = (H, W)``, ``[N, C, H, W]``."""

    def conv2d_dvalues(self, dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
        """The owned entries of the weight gradient, ``[nnz]``."""

    def grouped_linear(self, x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
        """Each row of x times its own task's weight, ``[batch, rows]``; NaN in the rows of no task."""

    def grouped_linear_dx(self, dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
        """Each row of dy times its own task's weight, ``[batch, cols]``; 0 in the rows of no task."""

    def grouped_linear_dvalues(self, dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
        """The owned entries of each task's ``dy.T @ x`` over its own rows, ``[nnz]`` of all tasks."""
