"""ConvGeometry: the sizes of a two-dimensional convolution, checked once and passed to every backend."""

from typing import NamedTuple

Pair = tuple[int, int]


class ConvGeometry(NamedTuple):
    """Kernel size, stride, padding and dilation as ``(vertical, horizontal)``, and the number of groups."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def output_size(self, height: int, width: int) -> Pair:
        """Output height and width: ``(size + 2 padding - dilation (kernel - 1) - 1) // stride + 1``."""
        return self._output(height, 0), self._output(width, 1)

    def _output(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def checked_geometry(
    kernel_size: int | Pair,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
) -> ConvGeometry:
    """A geometry from the arguments of a convolution, each an int or a pair.

    Raises:
        ValueError: if an argument is not one or two integers in range; names it.
    """
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups: expected an int of at least 1. Got {groups!r}.")
    return ConvGeometry(
        _pair("kernel_size", kernel_size, 1),
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
        groups,
    )


def check_filters(shape: Pair, geometry: ConvGeometry) -> None:
    """Raise ValueError unless a weight of this shape is that of filters of this kernel size and number of groups."""
    rows, cols = shape
    kernel = geometry.kernel_size[0] * geometry.kernel_size[1]
    if rows % geometry.groups:
        raise ValueError(f"groups: expected a divisor of the {rows} filters. Got {geometry.groups}.")
    if cols % kernel:
        raise ValueError(f"kernel_size: expected a divisor of the {cols} columns. Got {geometry.kernel_size}.")


def _pair(name: str, value: object, smallest: int) -> Pair:
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < smallest for size in pair):
        raise ValueError(f"{name}: expected an int of at least {smallest}, or a pair of them. Got {value!r}.")
    return pair[0], pair[1]
