"""The independent reference: expand the weight, call torch in float64, let torch's autograd differentiate.

It computes where the mask is: on the CPU, whatever device is under test.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import Exact

# Of (x, values, bias), all float64.
Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def expanded(values: Tensor, mask: Tensor) -> Tensor:
    """The dense weight, or weights: ``values`` in row-major order where ``mask`` is True, 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def beside(mask: Tensor, function: Function) -> Function:
    """``function`` with its operands moved to where the mask is."""

    def moved(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return function(x.to(mask.device), values.to(mask.device), None if bias is None else bias.to(mask.device))

    return moved


def linear(mask: Tensor) -> Function:
    """``F.linear`` with the expanded weight."""
    return beside(mask, lambda x, values, bias: F.linear(x, expanded(values, mask), bias))


def conv2d(
    mask: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Function:
    """``F.conv2d`` with the expanded weight."""

    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        weight = expanded(values, mask).view(mask.shape[0], -1, *kernel_size)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    return beside(mask, function)


def grouped_linear(mask: Tensor, task_of_row: Callable[[torch.Size], Tensor]) -> Function:
    """The product of every row with the expanded weight of its own task; ``mask`` is ``[tasks, rows, cols]``."""

    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        task = task_of_row(x.shape[:-1]).to(mask.device)
        y = torch.einsum("...rc,...c->...r", expanded(values, mask)[task], x)
        return y if bias is None else y + bias[task]

    return beside(mask, function)


def products(function: Function, x: Tensor, values: Tensor, bias: Tensor | None, dy: Tensor) -> dict[str, Exact]:
    """The exact result of ``function`` and its gradients, by name: y, dx, dvalues and, with a bias, dbias.

    Every result is a sum of products of its operands. So the same function on the operands' absolute values
    gives the sum of the absolute products, and on ones it gives their number.
    """
    given = [x, values, bias, dy]
    value = _results(function, [None if each is None else each.detach().double() for each in given])
    magnitude = _results(function, [None if each is None else each.detach().double().abs() for each in given])
    terms = _results(function, [None if each is None else torch.ones_like(each, dtype=torch.float64) for each in given])
    rounded = {name: each.abs() for name, each in value.items()}
    if bias is not None:
        rounded["y"] = rounded["y"] + function(x.detach().double(), values.detach().double(), None).abs()
    return {name: Exact(value[name], magnitude[name], terms[name], rounded[name]) for name in value}


def _results(function: Function, operands: list[Tensor | None]) -> dict[str, Tensor]:
    x, values, bias, dy = operands
    assert x is not None and values is not None and dy is not None
    inputs = {"dx": x, "dvalues": values} | ({} if bias is None else {"dbias": bias})
    for each in inputs.values():
        each.requires_grad_()
    y = function(x, values, bias)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy.to(y.device))
    return {"y": y.detach(), **dict(zip(inputs, gradients, strict=True))}
