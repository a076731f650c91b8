"""The Triton backend, interpreted on the CPU: every height of window, every layout, the rows of tasks in blocks."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import plan as plan_module
from rsn2_kernels import plans
from rsn2_kernels.backends import triton as backend
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.plan import HEIGHTS, RUNS, Survey

from .cases import SMALL, Case, ConvCase, GroupedCase, LinearCase, Operands, laid_out, lazily_negated, random_mask
from .contract import assert_keeps_contract

if not backend.interpreted:
    pytest.skip("the kernels run on the CPU only with TRITON_INTERPRET=1", allow_module_level=True)

from rsn2_kernels.backends.triton import conv, expansion, layout, schedule

CASES: dict[str, Case] = {
    "linear": LinearCase(70, 140, (33,), 0.2, holes=True),
    "conv2d": ConvCase(2, 24, 40, (5, 4), (2, 2), stride=(2, 1), padding=(1, 1), groups=2, density=0.2),
    "grouped_linear": GroupedCase(4, 40, 45, (60,), absent=(2,), empty=(1,), full=(3,)),
}


def geometry_of(case: ConvCase) -> ConvGeometry:
    return ConvGeometry(case.kernel_size, case.stride, case.padding, case.dilation, case.groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("height", HEIGHTS, ids=lambda height: f"H{height}")
def test_windows_of_every_height_give_the_exact_products(
    height: int, operator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Survey, "height", property(lambda survey: height))
    heights = _heights_multiplied(monkeypatch)
    assert_keeps_contract(CASES[operator], dtype, "triton")
    assert heights == {height}


def _heights_multiplied(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The heights of the plans that products read from now on."""
    found: set[int] = set()
    expand_tiles = expansion.expand_tiles

    def recorded(values: Tensor, plan: plan_module.Plan, depth: int) -> Tensor:
        found.add(plan.height)
        return expand_tiles(values, plan, depth)

    for module in (conv, backend.gemm):
        monkeypatch.setattr(module, "expand_tiles", recorded)
    return found


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"run{run}")
@pytest.mark.parametrize("channels", [(32, 32), (35, 20), (6, 70)], ids=str)
def test_runs_of_every_length_give_the_exact_convolution(
    run: int, channels: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "RUNS", (run,))
    case = ConvCase(1, *channels, (4, 5), (2, 3), padding=(1, 0), density=0.2)
    assert_keeps_contract(case, torch.float32, "triton")


@pytest.mark.parametrize("x_layout", ["contiguous", "reversed"])
@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 130])
def test_batches_around_the_size_of_a_block(batch: int, x_layout: str) -> None:
    for dtype in (torch.float32, torch.float16):
        assert_keeps_contract(LinearCase(18, 37, (batch,), x_layout=x_layout, dy_layout=x_layout), dtype, "triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_of_values_are_exact_when_the_batch_is_summed_in_parts(
    operator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part may be shorter than a step of the kernel, and the last parts empty."""
    monkeypatch.setattr(schedule, "_SHORTEST_PART", 7)
    parts = set()
    parts_of = schedule.parts_of

    def recorded(chunks: int, batch: int, programs: int) -> int:
        parts.add(parts_of(chunks, batch, programs))
        return parts_of(chunks, batch, programs)

    monkeypatch.setattr(schedule, "parts_of", recorded)
    assert_keeps_contract(CASES[operator], dtype, "triton")
    assert min(parts) > 1


def test_few_chunks_are_summed_in_more_parts_but_in_none_shorter_than_is_worth_it() -> None:
    parts_of = partial(schedule.parts_of, programs=100)
    assert parts_of(1, 10**6) > parts_of(20, 10**6) > parts_of(51, 10**6) == 1
    assert parts_of(1, 100) == parts_of(0, 0) == 1
    for batch in (1, 511, 512, 1023, 1024, 5000):
        assert batch // parts_of(1, batch) >= min(batch, 512)


def test_the_same_call_gives_the_same_bits(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_SHORTEST_PART", 2)
    operands = SMALL[operator].operands(torch.float32)
    results = []
    for _ in range(2):
        y = SMALL[operator].call(operands, "triton")
        results.append([y.detach(), *torch.autograd.grad(y, list(operands.inputs.values()), operands.dy)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("features", [1, 7, 64, 65])
@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 130])
def test_a_feature_major_operand_is_the_transpose_with_aligned_rows_of_zeros_behind(batch: int, features: int) -> None:
    for x_layout in ("contiguous", "reversed", "strided"):
        x = laid_out(torch.randn(batch, features), x_layout)
        x_t = layout.feature_major(x)
        assert x_t.data_ptr() % 16 == 0
        assert batch == 0 or (x_t.stride(1) == 1 and x_t.stride(0) % layout.ALIGNMENT == 0)
        assert x_t.shape == (features, math.ceil(batch / layout.ALIGNMENT) * layout.ALIGNMENT)
        assert torch.equal(x_t[:, :batch], x.t()) and not x_t[:, batch:].any()


def test_an_aligned_feature_major_operand_is_not_copied() -> None:
    x = torch.randn(20, 48).t()
    assert layout.feature_major(x).data_ptr() == x.data_ptr()
    wider = torch.randn(20, 64)[:, :48].t()
    assert layout.feature_major(wider).data_ptr() == wider.data_ptr()


@pytest.mark.parametrize(
    "x",
    [torch.randn(20, 47).t(), torch.randn(20, 65)[:, 1:49].t(), torch.randn(20, 72)[:, :48].t(), torch.randn(48, 20)],
    ids=["batch", "start", "pitch", "batch-major"],
)
def test_an_operand_whose_rows_would_start_unaligned_is_copied(x: Tensor) -> None:
    x_t = layout.feature_major(x)
    assert x_t.data_ptr() != x.data_ptr() and torch.equal(x_t[:, : x.shape[0]], x.t())


def test_a_network_of_products_stays_feature_major_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LinearCase(30, 30, (32,))
    operands = case.operands(torch.float32)
    first = rk.linear(operands.x, operands.values, operands.pattern, operands.bias, "triton", activation="relu")
    monkeypatch.setattr(layout, "transposed", lambda *rest: pytest.fail("copied"))
    first = first.detach().requires_grad_()
    second = rk.linear(first, operands.values, operands.pattern, operands.bias, "triton")
    dx, _ = torch.autograd.grad(second, (first, operands.values), laid_out(operands.dy, "reversed"))
    assert second.t().is_contiguous() and dx.t().is_contiguous()


def test_results_have_the_layout_that_the_next_kernel_reads() -> None:
    for operator, case in SMALL.items():
        operands = case.operands(torch.float32)
        y = case.call(operands, "triton")
        (dx,) = torch.autograd.grad(y, operands.x, operands.dy)
        for result in (y.detach(), dx):
            if operator == "conv2d":
                assert result.is_contiguous(memory_format=torch.channels_last)
            elif operator == "linear":
                assert result.t().is_contiguous()
            else:
                # The next product sorts the rows again.
                assert result.is_contiguous()


# Sorting rows by task.


def sorted_in_python(task_of_row: Sequence[int], tasks: int, block: int) -> tuple[list[int], list[int], list[int]]:
    """Rows at each slot, the task of each block in use, and where each task starts."""
    slots: list[int] = []
    blocks: list[int] = []
    starts: list[int] = []
    for task in range(tasks + 1):
        starts.append(len(slots))
        rows = [r for r, given in enumerate(task_of_row) if given == task or (task == tasks and not 0 <= given < tasks)]
        slots += rows + [-1] * (-len(rows) % block)
        blocks += [task] * -(-len(rows) // block)
    return slots, blocks, starts


def assert_sorted(task_of_row: Sequence[int], tasks: int, block: int) -> None:
    groups = layout.group_rows(torch.tensor(task_of_row, dtype=torch.int64), tasks, block)
    slots, blocks, starts = sorted_in_python(task_of_row, tasks, block)
    slot_row, block_task = groups.slot_row.tolist(), groups.block_task.tolist()
    assert len(slot_row) == groups.slots == block * len(block_task)
    assert slot_row == slots + [-1] * (len(slot_row) - len(slots))
    assert block_task == blocks + [-1] * (len(block_task) - len(blocks))
    assert groups.first_slot.tolist() == starts
    assert sorted(row for row in slot_row if row >= 0) == list(range(len(task_of_row)))


IDS = st.one_of(st.integers(0, 4), st.sampled_from((-1, -(2**31), -(2**63), 5, 6, 2**31, 2**32, 2**63 - 1)))


@settings(max_examples=20)
@given(task_of_row=st.lists(IDS, max_size=120), tasks=st.sampled_from((1, 2, 5)), block=st.sampled_from((16, 32)))
def test_rows_are_sorted_by_task_into_blocks_of_one_task(task_of_row: list[int], tasks: int, block: int) -> None:
    assert_sorted(task_of_row, tasks, block)


@pytest.mark.parametrize(
    ("task_of_row", "tasks"),
    [([], 3), ([0], 1), ([0] * 100, 1), (list(range(30)), 30), ([7] * 33, 30), ([-1] * 40, 4), ([2**32] * 40, 4)],
    ids=["no-rows", "one-row", "one-task", "a-row-each", "empty-tasks", "no-task", "2^32"],
)
def test_rows_are_sorted_when_tasks_are_one_many_or_missing(task_of_row: list[int], tasks: int) -> None:
    assert_sorted(task_of_row, tasks, 16)


def test_rows_of_a_batch_longer_than_one_step_are_sorted() -> None:
    lanes = 1024
    assert_sorted([row * 7 % 5 - 1 for row in range(2 * lanes + 100)], 3, 128)


def test_thirty_tasks_with_one_row_each_are_multiplied_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    multiply = backend.gemm.multiply
    monkeypatch.setattr(backend.gemm, "multiply", lambda *a, **k: launches.append(1) or multiply(*a, **k))
    case = GroupedCase(30, 5, 7, (30,))
    case.call(case.operands(torch.float32), "triton")
    assert len(launches) == 1


def test_the_plan_of_a_group_has_the_windows_of_each_task() -> None:
    case = CASES["grouped_linear"]
    assert isinstance(case, GroupedCase)
    operands = case.operands(torch.float32)
    plan = plans.plan(PatternGroup.of(operands.patterns))
    assert plan.windows == case.tasks * math.ceil(case.rows / plan.height)


# Packed values to dense and back.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "mask",
    [
        random_mask(9, 40, 0.3, 0, holes=True),
        random_mask(3, 2500, 0.6, 1),
        torch.zeros(4, 5, dtype=torch.bool),
        torch.ones(2, 1025, dtype=torch.bool),
        torch.ones(1, 1, dtype=torch.bool),
    ],
    ids=["empty-rows", "long-rows", "empty", "full", "1x1"],
)
def test_expanding_and_gathering_give_back_every_value(mask: Tensor, dtype: torch.dtype) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    values = torch.randn(pattern.nnz).to(dtype)
    dense = backend.expand(values, pattern.crow, pattern.col, mask.shape[1])
    assert torch.equal(dense, torch.zeros(mask.shape, dtype=dtype).masked_scatter(mask, values))
    assert torch.equal(backend.gather(dense, pattern.crow, pattern.col), values)
    assert torch.equal(backend.gather(laid_out(dense, "reversed"), pattern.crow, pattern.col), values)
    assert torch.equal(backend.gather(laid_out(dense, "strided"), pattern.crow, pattern.col), values)
    assert torch.equal(backend.expand(lazily_negated(values), pattern.crow, pattern.col, mask.shape[1]), dense)
    assert torch.equal(backend.gather(lazily_negated(dense), pattern.crow, pattern.col), values)


def test_values_with_strides_are_read_as_they_are(operator: str) -> None:
    case = CASES[operator]
    operands = case.operands(torch.float64)
    index = plans_index(case, operands)
    values = laid_out(operands.values.detach(), "strided")
    x = operands.x.detach()
    if isinstance(case, ConvCase):
        y = backend.conv2d(x, values, None, index, geometry_of(case))
        y_of_contiguous = backend.conv2d(x, values.contiguous(), None, index, geometry_of(case))
    elif isinstance(case, GroupedCase):
        y = backend.grouped_linear(x, values, None, index, case.tasks)
        y_of_contiguous = backend.grouped_linear(x, values.contiguous(), None, index, case.tasks)
    else:
        y = backend.linear(x, values, None, index)
        y_of_contiguous = backend.linear(x, values.contiguous(), None, index)
    assert torch.equal(y, y_of_contiguous)


def plans_index(case: Case, operands: Operands) -> list[Tensor]:
    """What the backend is given behind the operands."""
    weight = PatternGroup.of(operands.patterns) if isinstance(case, GroupedCase) else operands.pattern
    geometry = geometry_of(case) if isinstance(case, ConvCase) else None
    index = [*weight.index(False), *plans.plan_tensors(weight, geometry, False)]
    return [case.task_of_row(case.batch), *index] if isinstance(case, GroupedCase) else index


def test_padding_of_the_batch_never_reaches_the_result() -> None:
    """Zeros behind the batch times an infinite weight would be NaN."""
    case = LinearCase(5, 7, (3,), 0.5)
    operands = case.operands(torch.float32)
    with torch.no_grad():
        y = rk.linear(operands.x, operands.values * math.inf, operands.pattern, backend="triton")
    dense = operands.x.detach() @ (operands.mask * math.inf).nan_to_num(0, posinf=math.inf).t()
    assert torch.isfinite(y[:, ~operands.mask.any(1)]).all()
    assert y.shape == dense.shape and torch.isinf(y[:, operands.mask.sum(1) == 1]).all()


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_an_interpreted_backend_refuses_operands_elsewhere_and_says_so(device: str) -> None:
    assert "interpreted" in str(backend.why_not(torch.device(device), torch.float32))
    assert rk.available_backends()["triton"] is True
