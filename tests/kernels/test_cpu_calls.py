"""Calls that go past torch's dispatcher, as nothing but autograd follows them, and calls that must not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rsn2_kernels as rk
from rsn2_kernels.backends import cpu
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.tracing import is_traced

from .cases import SMALL, GroupedCase, Operands
from .precision import DTYPES

STATUS = rk.available_backends()["cpu"]
pytestmark = pytest.mark.skipif(STATUS is not True, reason=str(STATUS))


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen = [*getattr(self, "seen", []), func.name()]
        return func(*args, **(kwargs or {}))


class Named(Tensor):
    """A tensor that is more than one."""


def results(operator: str, operands: Operands) -> list[Tensor]:
    """y, and the gradients of all inputs."""
    y = SMALL[operator].call(operands, "cpu")
    return [y, *torch.autograd.grad(y, list(operands.inputs.values()), operands.dy)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_watched_call_gives_the_same_bits(operator: str, dtype: torch.dtype) -> None:
    operands = SMALL[operator].operands(dtype)
    direct = results(operator, operands)
    with Watching() as watching:
        watched = results(operator, operands)
    assert {f"rsn2::{operator}{product}" for product in ("", "_dx", "_dvalues")} <= set(watching.seen)
    assert all(torch.equal(a, b) for a, b in zip(direct, watched, strict=True))


def test_a_weight_is_neither_expanded_nor_gathered_where_its_columns_do_not_fit() -> None:
    pattern = rk.SparsePattern.from_mask(torch.ones(100, 128, dtype=torch.bool))
    values = torch.ones(pattern.nnz)
    for index in (cpu.index(pattern, False, None), pattern.index(False)):
        with pytest.raises(RuntimeError, match="rsn2_cpu::expand: expected the index of a weight of 127 columns"):
            cpu.expand(values, index, 127)
        with pytest.raises(RuntimeError, match="rsn2_cpu::gather: expected the index of a weight of 127 columns"):
            cpu.gather(torch.ones(100, 127), index)
        assert torch.equal(cpu.gather(cpu.expand(values, index, 128), index), values)


def test_the_gradient_of_a_line_is_right_beyond_the_largest_stride() -> None:
    """A long line and a long stride: little to compute."""
    pattern = rk.SparsePattern.from_mask(torch.ones(1, 1, dtype=torch.bool))
    x = torch.zeros(1, 1, 1, 2**24 + 1, requires_grad=True)
    y = rk.conv2d(x, torch.tensor([3.0]), pattern, stride=(1, 2**24), kernel_size=1, backend="cpu")
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == (1, 1, 1, 2) and dx.shape == x.shape
    assert dx.flatten()[[0, -1]].eq(3).all() and dx.sum() == 6


def test_a_result_that_no_memory_holds_is_refused() -> None:
    """Its number of elements would not fit 64 bits."""
    crow_t, row_t, perm = torch.tensor([0, 1]).int(), torch.tensor([0]).int(), torch.tensor([0]).int()
    dy, size, stride = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**16), [2**40, 2**40], [2**24, 2**24]
    with pytest.raises(RuntimeError, match="a result of more than 2"):
        torch.ops.rsn2_cpu.conv2d_dx(dy, torch.ones(1), crow_t, row_t, perm, size, [1, 1], stride, [0, 0], [1, 1], 1)


def test_a_default_device_does_not_count_as_tracing(operator: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    with torch.device("cpu"):
        assert not is_traced()
        with TorchFunctionMode():
            assert is_traced()
        found = results(operator, operands)
    weight = PatternGroup.of(operands.patterns) if operator == "grouped_linear" else operands.pattern
    assert weight.remembers("resolved")
    assert all(torch.equal(a, b) for a, b in zip(found, results(operator, operands), strict=True))


def test_a_default_device_elsewhere_moves_nothing() -> None:
    operands = SMALL["linear"].operands(torch.float32)
    with torch.device("meta"):
        found = results("linear", operands)
    assert all(torch.equal(a, b) for a, b in zip(found, results("linear", operands), strict=True))


def test_a_subclass_of_tensor_is_served(operator: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    y = SMALL[operator].call(replace(operands, x=operands.x.detach().as_subclass(Named)), "cpu")
    assert torch.equal(y.as_subclass(Tensor), SMALL[operator].call(operands, "cpu"))


def test_a_function_transform_gives_the_gradient_or_says_that_it_cannot(operator: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float64)
    (expected,) = torch.autograd.grad(case.call(operands, "cpu").sum(), operands.x)

    def total(x: Tensor) -> Tensor:
        return case.call(replace(operands, x=x), "cpu").sum()

    try:
        found = torch.func.grad(total)(operands.x.detach())
    except RuntimeError as error:
        assert "functorch transforms" in str(error)
    else:
        assert torch.equal(found, expected)


def test_saved_tensors_pass_through_hooks(operator: str) -> None:
    """As activation offloading and checkpointing need it."""
    packed: list[Any] = []
    operands = SMALL[operator].operands(torch.float32)
    expected = results(operator, operands)

    def pack(each: Tensor) -> Tensor:
        packed.append(each)
        return each.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
        found = results(operator, operands)
    assert packed and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sorted_by_task", [False, True], ids=["mixed", "sorted"])
def test_the_gradients_of_a_group_are_those_of_separate_calls(dtype: torch.dtype, sorted_by_task: bool) -> None:
    case = GroupedCase(4, 33, 70, (67,), absent=(1,), x_layout="reversed")
    operands = case.operands(dtype)
    x, dy = operands.x, operands.dy
    tasks = case.task_of_row(case.batch)
    if sorted_by_task:
        tasks = tasks.sort().values
    vs = [each.detach().requires_grad_() for each in operands.values.split([p.nnz for p in operands.patterns])]
    y = rk.grouped_linear(x, vs, operands.patterns, tasks, backend="cpu")
    dx, *dvs = torch.autograd.grad(y, [x, *vs], dy)
    for task, (v, p) in enumerate(zip(vs, operands.patterns, strict=True)):
        mine = tasks == task
        alone = rk.linear(x[mine], v, p, backend="cpu")
        expected_dx, expected_dv = torch.autograd.grad(alone, [x, v], dy[mine])
        assert torch.equal(y[mine], alone) and torch.equal(dx[mine], expected_dx[mine])
        assert torch.equal(dvs[task], expected_dv)
