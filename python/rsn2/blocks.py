"""Blocks of a layer's weight, claimed as wholes so that block-sparse kernels can skip the rest."""

from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from rsn2.nn.layer import MultitaskLayer

Granularity = tuple[int, int]


def check_granularity(granularity: object) -> None:
    """Raise unless ``granularity`` is None or a pair of ints, each at least 1.

    Raises:
        ValueError: if it is anything else; floats and bools are no ints here.
    """
    if granularity is None:
        return
    sizes = granularity if isinstance(granularity, tuple | list) else ()
    if len(sizes) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
        raise ValueError(f"granularity: expected None or (rows, columns), two ints of at least 1. Got {granularity!r}.")


@dataclass(frozen=True)
class Grid:
    """How a weight ``[rows, cols]`` is cut into blocks, those at the lower and right edges smaller where sizes ask it.

    A block is ``height`` rows by ``width`` input features. In a convolution these are filters of one group and input
    channels at one kernel position, a tap: a channels-last implicit GEMM reads the channels of a tap side by side. In
    the layer's column order, ``weight.flatten(1)``, the columns of such a block are ``taps`` apart.

    Blocks are numbered in the order of their first positions, row-major.

    Attributes:
        groups: of a convolution, else 1. No block holds rows of two groups, which see different channels.
        rows: of one group.
        channels: input features, or input channels of one group.
        taps: kernel positions of a convolution, else 1.
        height, width: of a block, at most ``rows`` and ``channels``.
    """

    groups: int
    rows: int
    channels: int
    taps: int
    height: int
    width: int

    @classmethod
    def of(cls, layer: MultitaskLayer, granularity: Granularity) -> Self:
        """The grid of a layer; a block larger than the layer ends where the layer does."""
        out, channels, *_ = layer.weight_shape
        groups = layer.geometry.get("groups", 1)
        height, width = granularity
        taps = layer.owners.shape[1] // channels
        return cls(groups, out // groups, channels, taps, min(height, out // groups), min(width, channels))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of blocks: groups, down a group, across the channels, taps."""
        return (self.groups, -(-self.rows // self.height), -(-self.channels // self.width), self.taps)

    @property
    def largest(self) -> int:
        """Positions of a block that no edge cuts."""
        return self.height * self.width

    def sums(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over each block.

        The order of the additions is fixed: the result is the same, bit by bit, on every device and with any number of
        threads.

        Args:
            values: ``[rows, cols]`` of the layer, int64 or float64.

        Returns:
            ``[blocks]``, in the dtype of ``values``.
        """
        groups, down, across, taps = self.shape
        below, right = down * self.height - self.rows, across * self.width - self.channels
        whole = F.pad(values.view(groups, self.rows, self.channels, taps), (0, 0, 0, right, 0, below))
        split = whole.view(groups, down, self.height, across, self.width, taps)
        return _sum_by_halves(_sum_by_halves(split, 4), 2).flatten()

    def spread(self, chosen: Tensor) -> Tensor:
        """Mask ``[rows, cols]`` of the positions in the ``chosen`` blocks, bool ``[blocks]``."""
        tall = chosen.view(self.shape).repeat_interleave(self.height, 1)[:, : self.rows]
        wide = tall.repeat_interleave(self.width, 2)[:, :, : self.channels]
        return wide.reshape(self.groups * self.rows, self.channels * self.taps)


def _sum_by_halves(values: Tensor, dim: int) -> Tensor:
    """Sum over ``dim``, kept with size 1, as additions of two halves: ``sum`` may add in any order, this may not."""
    while (size := values.shape[dim]) > 1:
        rest = size // 2
        half = values.narrow(dim, 0, size - rest).clone()
        half.narrow(dim, 0, rest).add_(values.narrow(dim, size - rest, rest))
        values = half
    return values
