"""The operators of the grid: operands of a case, and every way to multiply by its weight that is to be had here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

import rsn2_kernels as rk
from rsn2.bench.cases import Case
from rsn2.bench.masks import masks
from rsn2.bench.work import Amount


class Problem:
    """Operands of one product on one device.

    Attributes:
        case: what it is of.
        x: ``[batch, cols]``, or images ``[batch, channels, side, side]``; takes a gradient.
        weights: a dense ``[rows, cols]`` weight per task, 0 where nothing is owned; each takes a gradient. So every
            baseline has the same product, and none has more to read.
        masks: bool ``[rows, cols]`` per task.
        task_of_row: int64 ``[batch]``, of a grouped product.
    """

    def __init__(self, case: Case, device: torch.device | str = "cpu"):
        self.case = case
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, case.dtype)
        generator = torch.Generator().manual_seed(1)
        self.masks = [mask.to(device) for mask in masks(case)]
        rows, cols = self.masks[0].shape
        size = (case.batch, case.shape[1], case.shape[2], case.shape[2]) if self.is_conv else (case.batch, cols)
        self.x = self._operand(torch.randn(size, generator=generator))
        scale = (case.density * cols) ** -0.5
        self.weights = [
            self._operand(scale * torch.randn(rows, cols, generator=generator).to(device) * mask) for mask in self.masks
        ]
        self.task_of_row = torch.arange(case.batch, device=device) % case.tasks

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.case.op == "conv2d"

    @cached_property
    def patterns(self) -> list[rk.SparsePattern]:
        """The index structure of each task's weights."""
        return [rk.SparsePattern.from_mask(mask) for mask in self.masks]

    @cached_property
    def values(self) -> list[Tensor]:
        """Each task's packed weights ``[nnz]``, the same tensors for every backend; they take gradients."""
        pairs = zip(self.patterns, self.weights, strict=True)
        return [pattern.pack(weight.detach()).requires_grad_() for pattern, weight in pairs]

    @cached_property
    def rows_of_task(self) -> list[Tensor]:
        """int64, the rows of x of each task."""
        return [(self.task_of_row == task).nonzero().squeeze(1) for task in range(self.case.tasks)]

    def dense(self, x: Tensor, weight: Tensor) -> Tensor:
        """The vendor's product, by a dense ``[rows, cols]`` weight."""
        return F.conv2d(x, weight.view(len(weight), -1, 3, 3), padding=1) if self.is_conv else F.linear(x, weight)

    def reference(self, rows: int) -> Tensor:
        """The result for the first rows (or images) of x, float64."""
        return self._product(self.x.detach()[:rows].double())

    def reference_gradient(self, dy: Tensor) -> Tensor:
        """The gradient of the first rows (or images) of x, float64, by that of the result's first rows."""
        x = self.x.detach()[: len(dy)].double().requires_grad_()
        (dx,) = torch.autograd.grad(self._product(x), x, dy.double())
        return dx

    def amount(self, kind: str) -> Amount:
        """The least to be done, by what visits "all" weights, the "owned" ones, or "half" of all.

        Each operand is read or written once. An owned weight has an index of 2 bytes, or of 4 where a row is longer
        than 65536; of a pair of 2:4 weights it is half a byte. A weight is multiplied by each row of its task, and in a
        convolution wherever it does not meet padding. A training step does all three times.
        """
        case, size = self.case, self.dtype.itemsize
        rows, cols = self.masks[0].shape
        counts = [
            {"all": rows * cols, "half": rows * cols // 2, "owned": pattern.nnz}[kind] for pattern in self.patterns
        ]
        index = {"all": 0.0, "half": 0.25, "owned": 2.0 if cols <= 1 << 16 else 4.0}[kind]
        results = case.batch * rows * (case.shape[2] ** 2 if self.is_conv else 1)
        moved = sum(counts) * (size + index) + (self.x.numel() + results) * size
        if self.is_conv:
            macs = case.batch * self._macs_of_image(torch.ones_like(self.masks[0]) if kind == "all" else self.masks[0])
        else:
            macs = sum(count * len(of_task) for count, of_task in zip(counts, self.rows_of_task, strict=True))
        passes = 3 if case.training else 1
        return Amount(passes * moved, passes * macs, case.dtype)

    def _macs_of_image(self, mask: Tensor) -> int:
        """Multiply-adds of one image's forward product: at its edges, outer weights of the kernels meet padding."""
        side = self.case.shape[2]
        inside = torch.tensor([side - 1, side, side - 1], device=self.device)
        return int((mask.view(-1, 9).sum(0) * torch.outer(inside, inside).flatten()).sum())

    def _product(self, x: Tensor) -> Tensor:
        """Of the first rows (or images) of x, which are float64, with the weights in float64."""
        weights = [weight.detach().double() for weight in self.weights]
        if self.case.op != "grouped_linear":
            return self.dense(x, weights[0])
        return torch.stack([F.linear(x[row], weights[int(self.task_of_row[row])]) for row in range(len(x))])

    def _operand(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype).requires_grad_()


@dataclass(frozen=True)
class Candidate:
    """One way to have the product.

    Attributes:
        forward: gives ``[batch, rows]``, or images.
        inputs: what a training step takes gradients of: x, or the part of it of each task, then the weights.
        kind: the weights it visits: "all", "owned" or "half".
    """

    forward: Callable[[], Tensor]
    inputs: list[Tensor]
    kind: str = "all"

    def call(self, training: bool) -> Callable[[], object]:
        """What is timed: the product alone, or with all gradients."""
        if training:
            with torch.no_grad():
                dy = torch.ones_like(self.forward())
            return lambda: torch.autograd.grad(self.forward(), self.inputs, dy)

        def without_gradients() -> Tensor:
            with torch.no_grad():
                return self.forward()

        return without_gradients
