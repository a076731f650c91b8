"""`grouped_linear` on every backend: each row meets its own task's weight and bias, and no other task's anything."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2_kernels import dispatch
from rsn2_kernels.group import PatternGroup

from .cases import LAYOUTS, SMALL, GroupedCase, Tasks, laid_out, widest
from .contract import assert_keeps_contract
from .precision import DTYPES

SIZES = (
    GroupedCase(1, 1, 1, (1,), 1.0),
    GroupedCase(1, 9, 14, (6,)),
    GroupedCase(5, 21, 37, (43,)),
    GroupedCase(5, 65, 63, (17,), 0.2),
    GroupedCase(30, 8, 12, (30,)),
    GroupedCase(30, 8, 12, (1,)),
    GroupedCase(4, 20, 30, (9,), empty=(0, 2)),
    GroupedCase(3, 20, 30, (9,), empty=(0, 1, 2)),
    GroupedCase(4, 20, 30, (9,), full=(1, 3)),
    GroupedCase(3, 20, 30, (9,), empty=(1,), full=(0, 2)),
    GroupedCase(5, 11, 13, (12,), absent=(0, 3)),
    GroupedCase(5, 11, 13, (12,), absent=(0, 1, 3, 4)),
    GroupedCase(4, 1, 70, (10,)),
    GroupedCase(4, 70, 1, (10,)),
    GroupedCase(3, 19, 23, (8,), bias=False),
    # Long enough that no kernel holds the reduction, or one task's rows, in one block.
    GroupedCase(2, 17, 2500, (5,), 0.1),
    GroupedCase(3, 13, 19, (700,)),
)
BATCHES = tuple(GroupedCase(3, 9, 14, batch) for batch in ((), (0,), (1,), (4, 3), (0, 3), (3, 0), (2, 1, 5)))
GROUPED_LAYOUTS = tuple(layout for layout in LAYOUTS if layout != "channels_last")


@st.composite
def grouped_cases(draw: st.DrawFn) -> GroupedCase:
    """Any small call, layouts included."""
    tasks = draw(st.integers(1, 6))
    some = st.lists(st.integers(0, tasks - 1), max_size=2, unique=True).map(tuple)
    return GroupedCase(
        tasks,
        rows=draw(st.integers(1, 40)),
        cols=draw(st.integers(1, 40)),
        batch=tuple(draw(st.lists(st.integers(0, 10), max_size=3))),
        density=draw(st.sampled_from((0.0, 0.02, 0.2, 0.6, 1.0))),
        absent=draw(some) if tasks > 2 else (),
        empty=draw(some),
        full=draw(some),
        x_layout=draw(st.sampled_from(GROUPED_LAYOUTS)),
        dy_layout=draw(st.sampled_from(GROUPED_LAYOUTS)),
        bias=draw(st.booleans()),
        bias_layout=draw(st.sampled_from(GROUPED_LAYOUTS)),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_awkward_sizes(case: GroupedCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_any_number_of_batch_dimensions(case: GroupedCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dy_layout", GROUPED_LAYOUTS)
@pytest.mark.parametrize("x_layout", GROUPED_LAYOUTS)
def test_any_strides(x_layout: str, dy_layout: str, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(GroupedCase(3, 21, 37, (50,), x_layout=x_layout, dy_layout=dy_layout), dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_layout", GROUPED_LAYOUTS)
def test_a_bias_of_any_strides(bias_layout: str, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(GroupedCase(3, 21, 37, (8,), bias_layout=bias_layout), dtype, backend)


@given(case=grouped_cases(), dtype=st.sampled_from(DTYPES))
def test_any_call(backend: str, case: GroupedCase, dtype: torch.dtype) -> None:
    assume(dtype != torch.float64 or widest(backend) == torch.float64)
    assert_keeps_contract(case, dtype, backend)


def test_every_task_gets_its_own_gradients(backend: str) -> None:
    tasks = Tasks(backend)
    found = torch.autograd.grad(tasks.call(backend), tasks.inputs, tasks.dy)
    rows = [tasks.task_of_row == task for task in range(3)]
    alone = [
        rk.linear(tasks.x[mine], v, p, bias, backend=backend)
        for mine, v, p, bias in zip(rows, tasks.vs, tasks.ps, tasks.biases, strict=True)
    ]
    expected = torch.autograd.grad(alone, tasks.inputs, [tasks.dy[mine] for mine in rows])
    torch.testing.assert_close(found, expected)
    assert not found[3].any() and not found[6].any(), "a task without rows has gradients of 0"


def test_numerical_first_and_second_derivatives_agree(backend: str) -> None:
    tasks = Tasks(backend)
    if tasks.x.dtype != torch.float64:
        pytest.skip("numerical differences need float64")

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        return tasks.call(backend, x=x[:3], vs=rest[:3], biases=rest[3:], task_of_row=tasks.task_of_row[:3])

    inputs = tuple(tasks.inputs)
    # Interpreted, one direction through all elements instead of each alone.
    fast = backend == "triton"
    assert torch.autograd.gradcheck(call, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=fast)


def test_one_pattern_may_serve_several_tasks(backend: str) -> None:
    tasks = Tasks(backend)
    p, v, w = tasks.ps[0], tasks.vs[0], tasks.vs[0] * 2
    y = tasks.call(backend, ps=[p, p, p], vs=[v, w, v], biases=None)
    expected = rk.linear(tasks.x, v, p, backend=backend) * (1 + (tasks.task_of_row == 1))[:, None]
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_both_integer_types_name_tasks(dtype: torch.dtype, backend: str) -> None:
    tasks = Tasks(backend)
    changed = tasks.task_of_row.to(dtype).repeat_interleave(2)[::2]
    assert torch.equal(tasks.call(backend, task_of_row=changed), tasks.call(backend))


def test_task_ids_that_changed_before_the_backward_pass_are_refused(backend: str) -> None:
    """Nobody has checked the new ones."""
    tasks = Tasks(backend)
    task_of_row = tasks.task_of_row.clone()
    y = tasks.call(backend, task_of_row=task_of_row)
    task_of_row.add_(1000)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, tasks.vs, tasks.dy)


def test_biases_in_one_tensor_or_several_are_the_same(backend: str) -> None:
    tasks = Tasks(backend)
    expected = tasks.call(backend)
    stacked = torch.stack(tasks.biases)
    assert torch.equal(tasks.call(backend, biases=stacked), expected)
    assert torch.equal(tasks.call(backend, biases=stacked.t().contiguous().t()), expected)
    assert torch.equal(tasks.call(backend, biases=nn.ParameterList(tasks.biases)), expected)


def test_values_in_one_tensor_or_several_are_the_same(backend: str) -> None:
    tasks = Tasks(backend)
    together = torch.cat([each.detach() for each in tasks.vs]).requires_grad_()
    y = tasks.call(backend, vs=together)
    assert torch.equal(y, tasks.call(backend))
    assert torch.equal(tasks.call(backend, vs=laid_out(together, "reversed")), y)
    (found,) = torch.autograd.grad(y, together, tasks.dy)
    expected = torch.autograd.grad(tasks.call(backend), tasks.vs, tasks.dy)
    assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_gradients_the_bits_are_the_same(dtype: torch.dtype, backend: str) -> None:
    """There a backend may read each task's values where they are."""
    if dtype == torch.float64 and widest(backend) != torch.float64:
        pytest.skip("it is not made for float64")
    case = GroupedCase(5, 33, 65, (29,), absent=(1,), empty=(2,))
    operands = case.operands(dtype)
    expected = case.call(operands, backend)
    ps, task_of_row = operands.patterns, case.task_of_row(case.batch).to(operands.x.device)
    values, biases = operands.values.detach(), operands.bias
    assert biases is not None
    vs = values.split([each.nnz for each in ps])
    strided = [laid_out(each, "strided") for each in vs]
    with torch.no_grad():
        for given, added in ((vs, biases), (strided, list(biases)), (values, biases.t().contiguous().t())):
            y = rk.grouped_linear(operands.x, given, ps, task_of_row, added, backend)
            assert torch.equal(y, expected)
        assert torch.equal(
            rk.grouped_linear(operands.x, vs, ps, task_of_row, None, backend),
            rk.grouped_linear(operands.x, values, ps, task_of_row, torch.zeros_like(biases), backend),
        )


def test_the_operator_itself_takes_biases_of_any_strides(backend: str) -> None:
    """`rk.grouped_linear` hands contiguous ones over; another caller may not. cuBLAS may then round otherwise."""
    tasks = Tasks(backend)
    index = [tasks.task_of_row, *dispatch.index(backend, PatternGroup.of(tasks.ps), with_columns=True)]
    biases = laid_out(torch.stack(tasks.biases).detach(), "reversed")
    y = torch.ops.rsn2.grouped_linear(tasks.x, torch.cat(tasks.vs), biases, index, tasks.ps[0].shape, 3, backend)
    torch.testing.assert_close(y, tasks.call(backend))


def test_the_same_call_gives_the_same_bits(backend: str) -> None:
    case = GroupedCase(5, 33, 65, (129,))
    operands = case.operands(torch.float32)
    inputs = list(operands.inputs.values())
    first, second = (torch.autograd.grad(case.call(operands, backend), inputs, operands.dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_not_finite_in_one_task_reaches_no_other(backend: str) -> None:
    tasks = Tasks(backend)
    clean = torch.autograd.grad(tasks.call(backend), tasks.inputs, tasks.dy)
    mine = tasks.task_of_row == 1
    x, dy = tasks.x.detach().clone(), tasks.dy.clone()
    x[2, 3], dy[3, 4], dy[6, 0] = torch.inf, torch.nan, torch.inf
    x.requires_grad_()
    y = tasks.call(backend, x=x)
    assert torch.equal(y[~mine], tasks.call(backend)[~mine])
    found = torch.autograd.grad(y, [x, *tasks.inputs[1:]], dy)
    assert torch.equal(found[0][~mine], clean[0][~mine])
    for position in (1, 3, 4, 6):
        assert torch.equal(found[position], clean[position])
    bias = found[5]
    assert not bias[4].isfinite() and not bias[0].isfinite() and bias[[1, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize(
    ("of_task", "expected"),
    [
        ([torch.inf], torch.inf),
        ([-torch.inf], -torch.inf),
        ([torch.inf, torch.inf], torch.inf),
        ([torch.inf, -torch.inf], torch.nan),
        ([torch.inf, torch.nan], torch.nan),
        ([-torch.inf, torch.nan], torch.nan),
    ],
    ids=str,
)
def test_the_gradient_of_a_bias_is_infinite_where_a_plain_sum_is(
    of_task: list[float], expected: float, backend: str
) -> None:
    tasks = Tasks(backend)
    mine = (tasks.task_of_row == 1).nonzero().flatten()[: len(of_task)]
    dy = tasks.dy.clone()
    dy[mine, 4] = torch.tensor(of_task, dtype=dy.dtype, device=dy.device)
    found = torch.autograd.grad(tasks.call(backend), tasks.biases[1], dy)[0]
    torch.testing.assert_close(found[4], dy.new_tensor(expected), equal_nan=True)
    assert found[[0, 1, 2, 3, 5]].isfinite().all()


def test_an_unknown_task_that_is_not_checked_is_nan_and_contributes_nothing(backend: str) -> None:
    """As on a GPU: the registered operator itself checks no values."""
    tasks = Tasks(backend)
    values, biases = torch.cat(tasks.vs).detach().requires_grad_(), torch.stack(tasks.biases).detach().requires_grad_()
    group = PatternGroup.of(tasks.ps)

    def run(rows: list[int], task_of_row: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = tasks.x.detach()[rows].requires_grad_()
        index = [task_of_row, *dispatch.index(backend, group, with_columns=True)]
        y = torch.ops.rsn2.grouped_linear(x, values, biases, index, tasks.ps[0].shape, 3, backend)
        # The gradient of a row that is NaN is NaN as a rule.
        dy = tasks.dy[rows].where(y.isfinite(), torch.nan)
        return y, torch.autograd.grad(y, [x, values, biases], dy)

    wild = tasks.task_of_row.clone()
    wild[0], wild[3], wild[5] = -1, 3, 2**40
    known = [1, 2, 4, 6]
    expected, expected_gradients = run(known, tasks.task_of_row[known])
    y, (dx, dvalues, dbiases) = run(list(range(7)), wild)
    assert y[[0, 3, 5]].isnan().all() and not dx[[0, 3, 5]].any()
    found = (y[known], dx[known], dvalues, dbiases)
    torch.testing.assert_close(found, (expected, *expected_gradients), rtol=0, atol=0)


@pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason=str(rk.available_backends()["cpu"]))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_native_operator_gives_the_bits_of_linear(dtype: torch.dtype) -> None:
    case = GroupedCase(4, 33, 70, (23,), absent=(1,), x_layout="reversed")
    operands = case.operands(dtype)
    y = case.call(operands, "cpu")
    tasks = case.task_of_row(case.batch)
    vs = operands.values.split([each.nnz for each in operands.patterns])
    assert operands.bias is not None
    for task, (v, p, bias) in enumerate(zip(vs, operands.patterns, operands.bias, strict=True)):
        assert torch.equal(y[tasks == task], rk.linear(operands.x[tasks == task], v, p, bias, backend="cpu"))


def test_a_second_call_builds_nothing(backend: str) -> None:
    tasks = Tasks(backend)
    torch.autograd.grad(tasks.call(backend), tasks.inputs, tasks.dy)
    group = PatternGroup.of(tasks.ps)
    before = (group.crow, group.col, *group.by_column())
    torch.autograd.grad(tasks.call(backend, ps=tuple(tasks.ps)), tasks.inputs, tasks.dy)
    assert PatternGroup.of(tasks.ps) is group and len(tasks.ps[0].groups) == 1
    assert all(a is b for a, b in zip(before, (group.crow, group.col, *group.by_column()), strict=True))


def test_a_group_stacked_in_inference_mode_serves_training(backend: str) -> None:
    tasks = Tasks(backend)
    with torch.inference_mode():
        y = tasks.call(backend)
    assert torch.equal(tasks.call(backend), y)
    torch.autograd.grad(tasks.call(backend), tasks.inputs, tasks.dy)


class Layer(nn.Module):
    """A grouped layer that is exported with its patterns as constants."""

    def __init__(self, tasks: Tasks, backend: str) -> None:
        super().__init__()
        self.vs = nn.ParameterList(tasks.vs)
        self.ps, self.backend = tasks.ps, backend

    def forward(self, x: Tensor, task_of_row: Tensor) -> Tensor:
        return rk.grouped_linear(x, self.vs, self.ps, task_of_row, backend=self.backend)


def test_an_exported_layer_serves_other_rows_and_tasks_and_leaves_no_group_without_data(backend: str) -> None:
    tasks = Tasks(backend)
    layer = Layer(tasks, backend)
    batch = torch.export.Dim("batch", min=2)
    arguments = (tasks.x.detach(), tasks.task_of_row)
    if backend == "triton":
        layer(*arguments)  # makes the plan, which an exporter cannot
    program = torch.export.export(layer, arguments, dynamic_shapes=({0: batch}, {0: batch}))
    assert not any(type(each.crow) is not Tensor for each in tasks.ps[0].groups.values())
    x, task_of_row = torch.randn(9, 8).to(tasks.x), torch.arange(9, device=tasks.x.device) % 3
    assert torch.equal(program.module()(x, task_of_row), layer(x, task_of_row))


def test_without_a_name_the_backend_that_explain_names_runs() -> None:
    case = SMALL["grouped_linear"]
    operands = case.operands(torch.float32)
    said = rk.explain("grouped_linear", operands.pattern, 2, torch.float32, "cpu")
    assert rk.available_backends()[said.backend] is True
    group = PatternGroup.of(operands.patterns)
    assert dispatch.resolve("grouped_linear", group, 6, torch.float32, None, with_columns=False)[0] == said.backend
    # Not the same bits: with no name, a task's only row may be summed in another order.
    torch.testing.assert_close(case.call(operands, None), case.call(operands, said.backend))
    empty = replace(case, batch=(0,))
    assert empty.call(empty.operands(torch.float32), None).shape == (0, 5)
