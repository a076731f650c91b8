"""Problems for the operators: sizes, masks and memory layouts, from a seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels.backends import registry

from . import oracle

device = torch.device("cpu")
"""Where operands are made; the option `--device` sets it. Masks stay on the CPU, for the oracle."""


def widest(backend: str) -> torch.dtype:
    """float64, or float32 for a backend that does not take it on the device under test."""
    return torch.float64 if registry.why_not(backend, device, torch.float64) is None else torch.float32


# Expanded: every stride 0, as the gradient of a sum. Repeated: stride 0 in the first dimension.
LAYOUTS = ("contiguous", "reversed", "strided", "channels_last", "expanded", "repeated")


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """``tensor`` with other strides. "expanded" and "repeated" keep only part of its values."""
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.contiguous()
    if layout == "reversed":
        order = list(range(tensor.dim()))[::-1]
        return tensor.permute(order).contiguous().permute(order)
    if layout == "strided":
        # A kernel that ignores a stride or reads past an end meets NaN.
        holder = tensor.new_full([2 * size + 1 for size in tensor.shape], torch.nan)
        view = holder[tuple(slice(1, 2 * size + 1, 2) for size in tensor.shape)]
        return view.copy_(tensor)
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()
    if layout == "expanded":
        return tensor.new_full((), 0.75).expand(tensor.shape)
    assert layout == "repeated", layout
    return tensor[:1].expand(tensor.shape)


def lazily_negated(tensor: Tensor) -> Tensor:
    """The same values, of which memory holds the negative: torch leaves it to whoever reads them to negate again."""
    return torch._neg_view(-tensor.detach())


def random_mask(rows: int, cols: int, density: float, seed: int, holes: bool = False) -> Tensor:
    """A bool mask with about ``density`` of it owned; ``holes`` empties every third row and column."""
    mask = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < density
    if holes:
        mask[::3] = False
        mask[:, 2::3] = False
    return mask


@dataclass(frozen=True)
class Operands:
    """What an operator is called with, in one dtype; x, values and bias require gradients.

    The mask is on the CPU, the others are on the device under test.
    A grouped operator has a mask ``[tasks, rows, cols]``, a pattern per task, the values of all tasks one behind the
    other, and a bias ``[tasks, rows]``.
    """

    mask: Tensor
    patterns: tuple[rk.SparsePattern, ...]
    x: Tensor
    values: Tensor
    bias: Tensor | None
    dy: Tensor

    @property
    def pattern(self) -> rk.SparsePattern:
        """The pattern, or that of the first task."""
        return self.patterns[0]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What is differentiated, by the name of its gradient."""
        return {"dx": self.x, "dvalues": self.values} | ({} if self.bias is None else {"dbias": self.bias})


@dataclass(frozen=True)
class LinearCase:
    """One call of `rk.linear`."""

    rows: int
    cols: int
    batch: tuple[int, ...]
    density: float = 0.3
    holes: bool = False
    x_layout: str = "contiguous"
    dy_layout: str = "contiguous"
    bias: bool = True
    bias_layout: str = "contiguous"
    seed: int = 0

    def __str__(self) -> str:
        batch = "x".join(map(str, self.batch)) or "none"
        layouts = "".join(f"-{each}" for each in _layouts(self) if each != "contiguous")
        return f"R{self.rows}-C{self.cols}-B{batch}-d{self.density}{'-holes' * self.holes}{layouts}"

    def operands(self, dtype: torch.dtype) -> Operands:
        mask = random_mask(self.rows, self.cols, self.density, self.seed, self.holes)
        x, dy = (*self.batch, self.cols), (*self.batch, self.rows)
        return _operands(mask, x, dy, _layouts(self), self.bias, self.seed, dtype)

    def call(self, operands: Operands, backend: str | None) -> Tensor:
        return rk.linear(operands.x, operands.values, operands.pattern, operands.bias, backend=backend)

    def function(self, mask: Tensor) -> oracle.Function:
        return oracle.linear(mask)


@dataclass(frozen=True)
class ConvCase:
    """One call of `rk.conv2d`; ``images`` None is an x without the batch dimension."""

    images: int | None
    channels: int
    filters: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 0.3
    holes: bool = False
    x_layout: str = "contiguous"
    dy_layout: str = "contiguous"
    bias: bool = True
    bias_layout: str = "contiguous"
    seed: int = 0

    def __str__(self) -> str:
        pairs = {"k": self.kernel_size, "s": self.stride, "p": self.padding, "dil": self.dilation}
        shape = "-".join(f"{name}{a}x{b}" for name, (a, b) in pairs.items())
        layouts = "".join(f"-{each}" for each in _layouts(self) if each != "contiguous")
        size = f"N{self.images}-C{self.channels}-F{self.filters}-{self.size[0]}x{self.size[1]}"
        return f"{size}-{shape}-g{self.groups}-d{self.density}{'-holes' * self.holes}{layouts}"

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of y, counted from the kernel's legal positions."""
        return self._positions(0), self._positions(1)

    def _positions(self, axis: int) -> int:
        padded = self.size[axis] + 2 * self.padding[axis]
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return len(range(0, padded - reach + 1, self.stride[axis]))

    def operands(self, dtype: torch.dtype) -> Operands:
        cols = self.kernel_size[0] * self.kernel_size[1] * self.channels // self.groups
        mask = random_mask(self.filters, cols, self.density, self.seed, self.holes)
        batch = () if self.images is None else (self.images,)
        x, dy = (*batch, self.channels, *self.size), (*batch, self.filters, *self.output_size)
        return _operands(mask, x, dy, _layouts(self), self.bias, self.seed, dtype)

    def call(self, operands: Operands, backend: str | None) -> Tensor:
        return rk.conv2d(
            operands.x,
            operands.values,
            operands.pattern,
            operands.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            kernel_size=self.kernel_size,
            backend=backend,
        )

    def function(self, mask: Tensor) -> oracle.Function:
        return oracle.conv2d(mask, self.kernel_size, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class GroupedCase:
    """One call of `rk.grouped_linear`; tasks ``absent`` have no rows, ``empty`` own nothing, ``full`` all."""

    tasks: int
    rows: int
    cols: int
    batch: tuple[int, ...]
    density: float = 0.3
    absent: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    x_layout: str = "contiguous"
    dy_layout: str = "contiguous"
    bias: bool = True
    bias_layout: str = "contiguous"
    seed: int = 0

    def __str__(self) -> str:
        batch = "x".join(map(str, self.batch)) or "none"
        special = {"absent": self.absent, "empty": self.empty, "full": self.full}
        names = "".join(f"-{name}{'.'.join(map(str, which))}" for name, which in special.items() if which)
        layouts = "".join(f"-{each}" for each in _layouts(self) if each != "contiguous")
        return f"T{self.tasks}-R{self.rows}-C{self.cols}-B{batch}-d{self.density}{names}{layouts}"

    def task_of_row(self, batch: Sequence[int]) -> Tensor:
        """The tasks that have rows in turn, their rows interleaved."""
        present = torch.tensor([task for task in range(self.tasks) if task not in self.absent])
        turns = torch.arange(math.prod(batch)) * 11 % len(present)
        return present[turns].view(tuple(batch))

    def operands(self, dtype: torch.dtype) -> Operands:
        mask = torch.stack([self._mask(task) for task in range(self.tasks)])
        x, dy = (*self.batch, self.cols), (*self.batch, self.rows)
        return _operands(mask, x, dy, _layouts(self), self.bias, self.seed, dtype)

    def _mask(self, task: int) -> Tensor:
        density = 0.0 if task in self.empty else 1.0 if task in self.full else self.density
        return random_mask(self.rows, self.cols, density, self.seed + task)

    def call(self, operands: Operands, backend: str | None) -> Tensor:
        vs = operands.values.split([each.nnz for each in operands.patterns])
        task_of_row = self.task_of_row(operands.x.shape[:-1]).to(operands.x.device)
        return rk.grouped_linear(operands.x, vs, operands.patterns, task_of_row, operands.bias, backend=backend)

    def function(self, mask: Tensor) -> oracle.Function:
        return oracle.grouped_linear(mask, self.task_of_row)


Case = LinearCase | ConvCase | GroupedCase

SMALL: dict[str, Case] = {
    "linear": LinearCase(5, 7, (3,), 0.5),
    "conv2d": ConvCase(2, 4, 6, (5, 4), (3, 2), stride=(2, 1), padding=(1, 0), groups=2, density=0.5),
    "grouped_linear": GroupedCase(4, 5, 7, (6,), 0.5),
}
"""One small problem per operator, for what does not depend on sizes."""


class Tasks:
    """Three tasks of one 6 x 8 layer in the widest type, the last without rows; values and biases are leaves."""

    def __init__(self, backend: str = "reference") -> None:
        dtype = widest(backend)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return drawn.to(device, dtype).requires_grad_()

        self.ps = [rk.SparsePattern.from_mask(random_mask(6, 8, 0.4, seed).to(device)) for seed in range(3)]
        self.vs = [normal(each.nnz) for each in self.ps]
        self.biases = [normal(6) for _ in self.ps]
        self.x, self.dy = normal(7, 8), normal(7, 6).detach()
        self.task_of_row = torch.tensor([1, 0, 1, 1, 0, 0, 1], device=device)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.x, *self.vs, *self.biases]

    def call(self, backend: str | None, **changed: Any) -> Tensor:
        """The call, with ``changed`` arguments."""
        arguments: dict[str, Any] = {name: getattr(self, name) for name in ("x", "vs", "ps", "task_of_row", "biases")}
        return rk.grouped_linear(**(arguments | {"backend": backend} | changed))


def _layouts(case: Case) -> tuple[str, str, str]:
    """Those of x, dy and the bias."""
    return case.x_layout, case.dy_layout, case.bias_layout


def _operands(
    mask: Tensor,
    x_shape: tuple[int, ...],
    dy_shape: tuple[int, ...],
    layouts: tuple[str, str, str],
    bias: bool,
    seed: int,
    dtype: torch.dtype,
) -> Operands:
    generator = torch.Generator().manual_seed(seed + 1)
    x_layout, dy_layout, bias_layout = layouts

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return Operands(
        mask,
        tuple(rk.SparsePattern.from_mask(each) for each in mask.to(device).view(-1, *mask.shape[-2:])),
        laid_out(normal(*x_shape), x_layout).requires_grad_(),
        normal(int(mask.sum())).requires_grad_(),
        laid_out(normal(*mask.shape[:-1]), bias_layout).requires_grad_() if bias else None,
        laid_out(normal(*dy_shape), dy_layout),
    )
