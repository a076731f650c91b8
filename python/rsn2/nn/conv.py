"""MultitaskConv1d, MultitaskConv2d and MultitaskConv3d: torch's convolutions for many tasks."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.nn.layer import MultitaskLayer


class MultitaskConv(MultitaskLayer):
    """A convolution of one, two or three dimensions, with every task's filters in one weight.

    All run on the operator for images. A line is an image of height 1. Of a volume, each slice of the result is made of
    one image, which has the channels of all slices that it depends on.

    Attributes:
        in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode: as of torch's convolution.
        padding: what the operator pads on both sides of each dimension; 0 where x is padded before it.
    """

    _dense_form: ClassVar[Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d]]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **options: Any):
        self._become(self._dense_form(in_channels, out_channels, kernel_size, **options))

    @classmethod
    def from_dense(cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Self:
        """A multitask layer whose pool is the weight of ``conv``."""
        layer = cls.__new__(cls)
        layer._become(conv)
        return layer

    def _become(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
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
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        return convolve(self._padded(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _packed(self, x: Tensor, values: Tensor, pattern: rk.SparsePattern, bias: Tensor | None) -> Tensor:
        x = self._padded(x)
        output = rk.conv2d(
            self._images(x),
            values,
            pattern,
            bias,
            _pair(self.stride, 1),
            _pair(self.padding, 0),
            _pair(self.dilation, 1),
            self.groups,
            kernel_size=_pair(self.kernel_size, 1),
        )
        return self._of_images(output, x)

    def _images(self, x: Tensor) -> Tensor:
        """The images that the operator convolves."""
        return x

    def _of_images(self, output: Tensor, x: Tensor) -> Tensor:
        """The layer's output, from the operator's for the images of ``x``."""
        return output

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

    def _images(self, x: Tensor) -> Tensor:
        if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels:
            channels = self.in_channels
            raise ValueError(f"x: expected shape [N, {channels}, L] or [{channels}, L]. Got {tuple(x.shape)}.")
        return x.unsqueeze(-2)

    def _of_images(self, output: Tensor, x: Tensor) -> Tensor:
        return output.squeeze(-2)


class MultitaskConv3d(MultitaskConv):
    """``nn.Conv3d`` over ``[N, C, D, H, W]`` or ``[C, D, H, W]``, with every task's filters in one weight.

    Starts with nothing allocated, weights and bias drawn as ``nn.Conv3d`` draws them. Takes the arguments of
    ``nn.Conv3d``, all of them. It copies x as often as the kernel has slices.
    """

    _dense_form = nn.Conv3d

    @property
    def _reach(self) -> int:
        """Slices from the first to the last that a slice of the output depends on."""
        return self.dilation[0] * (self.kernel_size[0] - 1) + 1

    def _images(self, x: Tensor) -> Tensor:
        """One for each slice of the output, with the channels of all slices that it depends on."""
        if x.dim() not in (4, 5) or x.shape[-4] != self.in_channels:
            channels = self.in_channels
            raise ValueError(
                f"x: expected shape [N, {channels}, D, H, W] or [{channels}, D, H, W]. Got {tuple(x.shape)}."
            )
        around = self.padding[0]
        if x.shape[-3] + 2 * around < self._reach:
            raise ValueError(f"x: its {x.shape[-3]} slices and {around} around them are fewer than the kernel's reach.")
        if around:
            x = F.pad(x, (0, 0, 0, 0, around, around))
        windows = x.unfold(-3, self._reach, self.stride[0])[..., :: self.dilation[0]]  # [..., C, D', H, W, depth]
        return windows.movedim((-4, -1), (-5, -3)).flatten(-4, -3).flatten(0, -4)

    def _of_images(self, output: Tensor, x: Tensor) -> Tensor:
        slices = (x.shape[-3] + 2 * self.padding[0] - self._reach) // self.stride[0] + 1
        volumes: Tensor = output.unflatten(0, (*x.shape[:-4], slices))
        return volumes.transpose(-3, -4).contiguous()


def _plain(sizes: tuple[int, ...]) -> int | list[int]:
    """A number for one dimension, a list for several."""
    return sizes[0] if len(sizes) == 1 else list(sizes)


def _pair(sizes: tuple[int, ...], vertical: int) -> tuple[int, int]:
    """Sizes of the last two dimensions; ``vertical`` is what stands for the first where there is one."""
    return (vertical, sizes[0]) if len(sizes) == 1 else (sizes[-2], sizes[-1])
