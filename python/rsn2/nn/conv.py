"""MultitaskConv1d and MultitaskConv2d: nn.Conv1d and nn.Conv2d for many tasks."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.nn.layer import MultitaskLayer


class MultitaskConv(MultitaskLayer):
    """A convolution of one or two dimensions, with every task's filters in one weight.

    Attributes:
        in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode: as of torch's convolution.
        padding: what the operator pads on both sides of each dimension; 0 where x is padded before it.
    """

    _dense_form: ClassVar[Callable[..., nn.Conv1d | nn.Conv2d]]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **options: Any):
        self._become(self._dense_form(in_channels, out_channels, kernel_size, **options))

    @classmethod
    def from_dense(cls, conv: nn.Conv1d | nn.Conv2d) -> Self:
        """A multitask layer whose pool is the weight of ``conv``."""
        layer = cls.__new__(cls)
        layer._become(conv)
        return layer

    def _become(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(conv.weight, conv.bias)
        self.in_channels = conv.in_channels
        self.out_channels = conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.groups = conv.groups
        self.padding_mode = conv.padding_mode
        # Torch's own resolution of "same", last dimension first; it may be one pixel larger behind than before.
        both = list(conv._reversed_padding_repeated_twice)
        before, behind = both[0::2], both[1::2]
        # What the operator cannot pad itself is padded before it.
        self._pad_before = both if before != behind or conv.padding_mode != "zeros" else None
        self.padding = tuple(0 if self._pad_before else size for size in reversed(before))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Torch's shape of the dense weight."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation, groups and padding mode, as JSON."""
        return {
            "stride": _plain(self.stride),
            "padding": self._pad_before or _plain(self.padding),
            "dilation": _plain(self.dilation),
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = F.conv1d if len(self.kernel_size) == 1 else F.conv2d
        return convolve(self._padded(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _packed(self, x: Tensor, values: Tensor, pattern: rk.SparsePattern, bias: Tensor | None) -> Tensor:
        x = self._padded(x)
        # One dimension is the horizontal one of an image of height 1.
        flat = len(self.kernel_size) == 1
        output = rk.conv2d(
            x.unsqueeze(-2) if flat else x,
            values,
            pattern,
            bias,
            _pair(self.stride, 1),
            _pair(self.padding, 0),
            _pair(self.dilation, 1),
            self.groups,
            kernel_size=_pair(self.kernel_size, 1),
        )
        return output.squeeze(-2) if flat else output

    def _padded(self, x: Tensor) -> Tensor:
        if self._pad_before is None:
            return x
        return F.pad(x, self._pad_before, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)


class MultitaskConv2d(MultitaskConv):
    """``nn.Conv2d`` over ``[N, C, H, W]`` or ``[C, H, W]``, with every task's filters in one weight.

    Starts with nothing allocated, weights and bias drawn as ``nn.Conv2d`` draws them. Takes the arguments of
    ``nn.Conv2d``, all of them: stride, padding (``"same"`` and ``"valid"`` too), dilation, groups, bias, padding_mode,
    device, dtype.
    """

    _dense_form = nn.Conv2d


class MultitaskConv1d(MultitaskConv):
    """``nn.Conv1d`` over ``[N, C, L]`` or ``[C, L]``, with every task's filters in one weight.

    Starts with nothing allocated, weights and bias drawn as ``nn.Conv1d`` draws them. Takes the arguments of
    ``nn.Conv1d``, all of them.
    """

    _dense_form = nn.Conv1d


def _plain(sizes: tuple[int, ...]) -> int | list[int]:
    """A number for one dimension, a list for two."""
    return sizes[0] if len(sizes) == 1 else list(sizes)


def _pair(sizes: tuple[int, ...], vertical: int) -> tuple[int, int]:
    """Sizes of two dimensions; ``vertical`` is what stands for the first where there is one."""
    return (vertical, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
