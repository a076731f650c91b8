"""MultitaskConv1d: nn.Conv1d for many tasks, as a two-dimensional convolution of height 1."""

from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.nn.layer import MultitaskLayer


class MultitaskConv1d(MultitaskLayer):
    """``nn.Conv1d`` over ``[N, C, L]`` or ``[C, L]``, with every task's filters in one weight.

    Starts with nothing allocated, weights and bias drawn as ``nn.Conv1d`` draws them. Takes the arguments of
    ``nn.Conv1d``, all of them.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int], **options: Any):
        dense = nn.Conv1d(in_channels, out_channels, kernel_size, **options)
        super().__init__(dense.weight, dense.bias)
        self._take_geometry(dense)

    @classmethod
    def from_dense(cls, conv: nn.Conv1d) -> Self:
        """A multitask layer whose pool is the weight of ``conv``."""
        layer = cls.__new__(cls)
        MultitaskLayer.__init__(layer, conv.weight, conv.bias)
        layer._take_geometry(conv)
        return layer

    def _take_geometry(self, conv: nn.Conv1d) -> None:
        self.in_channels = conv.in_channels
        self.out_channels = conv.out_channels
        (self.kernel_size,), (self.stride,), (self.dilation,) = conv.kernel_size, conv.stride, conv.dilation
        self.groups = conv.groups
        self.padding_mode = conv.padding_mode
        # Torch's own resolution of "same", left and right; it may be one larger behind than before.
        left, right = conv._reversed_padding_repeated_twice
        # What the operator cannot pad itself is padded before it.
        self._pad_before = [left, right] if left != right or conv.padding_mode != "zeros" else None
        self.padding = 0 if self._pad_before else left

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Torch's shape of the dense weight."""
        return (self.out_channels, self.in_channels // self.groups, self.kernel_size)

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation, groups and padding mode, as JSON."""
        return {
            "stride": self.stride,
            "padding": self._pad_before or self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    def _padded(self, x: Tensor) -> Tensor:
        if self._pad_before is None:
            return x
        return F.pad(x, self._pad_before, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(self._padded(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _packed(self, x: Tensor, values: Tensor, pattern: rk.SparsePattern, bias: Tensor | None) -> Tensor:
        return rk.conv2d(
            self._padded(x).unsqueeze(-2),
            values,
            pattern,
            bias,
            (1, self.stride),
            (0, self.padding),
            (1, self.dilation),
            self.groups,
            kernel_size=(1, self.kernel_size),
        ).squeeze(-2)
