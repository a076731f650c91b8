"""Plans hold every owned weight once, where the kernels look for it, and choose what costs least."""

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rsn2_kernels as rk
from rsn2_kernels import plans
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.plan import HEIGHTS, ROWS_TOGETHER, RUNS, WIDTH, Plan, Survey, survey_conv, survey_linear, traffic

from .cases import random_mask

Owned = dict[tuple[int, int, int], int]
"""Where the value of each owned (stack, row, column) stands."""


def staircase(rows: int, cols: int, density: float, seed: int) -> Tensor:
    """The top fraction of an outer product, as the masks of training are, in no order of rows or columns."""
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(rows, 1, generator=generator) * torch.rand(1, cols, generator=generator)
    kept = max(1, round(density * rows * cols))
    return saliency >= saliency.flatten().topk(kept).values[-1]


def blocks(rows: int, cols: int, density: float, seed: int) -> Tensor:
    """Whole blocks of 16 x 16, cut at the edges."""
    coarse = random_mask(-(-rows // 16), -(-cols // 16), density, seed)
    return coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)[:rows, :cols]


KINDS: dict[str, Callable[[int, int, float, int], Tensor]] = {
    "random": random_mask,
    "staircase": staircase,
    "blocks": blocks,
    "holes": lambda rows, cols, density, seed: random_mask(rows, cols, density, seed, holes=True),
}

MASKS = {
    "1x1": torch.ones(1, 1, dtype=torch.bool),
    "63x65": random_mask(63, 65, 0.3, 0),
    "65x63": random_mask(65, 63, 0.3, 1),
    "130x300-staircase": staircase(130, 300, 0.1, 2),
    "96x160-blocks": blocks(96, 160, 0.2, 3),
    "20x30-empty": torch.zeros(20, 30, dtype=torch.bool),
    "40x200-full": torch.ones(40, 200, dtype=torch.bool),
    "1x300-row": random_mask(1, 300, 0.5, 4),
    "200x1-column": random_mask(200, 1, 0.5, 5),
}


def decoded(plan: Plan, stacks: int, rows: int) -> Owned:
    """Read a plan as its fields are documented, bit by bit; fails where a field contradicts another."""
    row_order, used, first_chunk = plan.row_order.tolist(), plan.used.tolist(), plan.first_chunk.tolist()
    columns, bits, starts, order = (part.tolist() for part in (plan.columns, plan.bits, plan.starts, plan.order))
    assert all(part.dtype == torch.int32 for part in plan)
    assert plan.windows % stacks == 0 and len(used) == plan.windows and len(first_chunk) == plan.windows + 1
    assert first_chunk[0] == 0 and first_chunk[-1] == plan.chunks
    found: Owned = {}
    for window, (first, end) in enumerate(pairwise(first_chunk)):
        stack = window // (plan.windows // stacks)
        assert plan.chunk_window[first:end].tolist() == [window] * (end - first)
        assert end - first == -(-used[window] // plan.width)
        condensed = [column for chunk in columns[first:end] for column in chunk]
        assert len(set(condensed[: used[window]])) == used[window], "a column is held twice"
        assert not any(condensed[used[window] :]), "the padding points somewhere"
        for chunk in range(first, end):
            for word, places in enumerate(bits[chunk]):
                for place, bitmap in enumerate(places):
                    for rank, bit in enumerate(b for b in range(32) if bitmap >> b & 1):
                        at = (chunk - first) * plan.width + 32 * word + bit
                        position = starts[chunk][word][place] + rank
                        key = stack, row_order[window][place], condensed[at]
                        assert at < used[window] and key[1] < rows and key not in found
                        found[key] = order[position] if order else position
    return found


def owned_linear(masks: list[Tensor], transposed: bool) -> Owned:
    """From the masks themselves: the values are in row-major order, mask after mask."""
    positions = [(stack, *at) for stack, mask in enumerate(masks) for at in mask.nonzero().tolist()]
    return {(s, c, r) if transposed else (s, r, c): value for value, (s, r, c) in enumerate(positions)}


def owned_conv(mask: Tensor, taps: int, groups: int, run: int, transposed: bool) -> Owned:
    """From the mask: columns counted tap by tap, the channels (or filters) of each padded to whole runs."""
    filters, channels = mask.shape[0] // groups, mask.shape[1] // taps
    padded = -(-(filters if transposed else channels) // run) * run
    found = {}
    for value, (row, col) in enumerate(mask.nonzero().tolist()):
        group, filter_, channel, tap = row // filters, row % filters, col // taps, col % taps
        place, within = (channel, filter_) if transposed else (filter_, channel)
        found[group, place, tap * padded + within] = value
    return found


def ranking(mask: Tensor, together: int) -> list[int]:
    """Rows by falling count of what ``together`` neighbours own, ties by row, the padding last."""
    places = -(-mask.shape[0] // HEIGHTS[-1]) * HEIGHTS[-1]
    counts = mask.sum(1).tolist() + [-1] * (places - mask.shape[0])
    of_block = [sum(counts[first : first + together]) for first in range(0, places, together)]
    ranked = sorted(range(len(of_block)), key=lambda block: (-of_block[block], block))
    return [block * together + row for block in ranked for row in range(together)]


def visited_by(mask: Tensor, height: int, run: int = 1, together: int = 1) -> int:
    """Positions in the windows of one stack: rows times the runs of columns in which any of them owns a weight."""
    order = [row if row < mask.shape[0] else -1 for row in ranking(mask, together)]
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % run, 0, 1))
    windows = padded[order].view(-1, height, padded.shape[1] // run, run)
    return int(windows.any(3).any(1).sum()) * run * height


def survey_of(mask: Tensor) -> Survey:
    pattern = rk.SparsePattern.from_mask(mask)
    return survey_linear(1, pattern.crow, pattern.col, mask.shape[1])


def grouped(masks: list[Tensor]) -> PatternGroup:
    return PatternGroup.of([rk.SparsePattern.from_mask(mask) for mask in masks])


masks = st.builds(
    lambda kind, *rest: KINDS[kind](*rest),
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from((0.0, 0.02, 0.1, 0.3, 1.0)),
    st.integers(0, 1000),
)


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("name", MASKS)
def test_a_plan_holds_every_owned_weight_once_and_nothing_else(name: str, height: int) -> None:
    mask = MASKS[name]
    survey = survey_of(mask)
    plan = Plan.build(survey, height)
    assert decoded(plan, 1, mask.shape[0]) == owned_linear([mask], False)
    assert (plan.height, plan.width) == (height, WIDTH)
    assert int(plan.used.sum()) * height == survey.visited[height]


@settings(max_examples=15)
@given(mask=masks, height=st.sampled_from(HEIGHTS))
def test_any_mask_can_be_read_back_from_its_plan(mask: Tensor, height: int) -> None:
    assert decoded(Plan.build(survey_of(mask), height), 1, mask.shape[0]) == owned_linear([mask], False)


@pytest.mark.parametrize("name", MASKS)
def test_the_transposed_plan_finds_the_values_of_the_columns(name: str) -> None:
    mask = MASKS[name]
    pattern = rk.SparsePattern.from_mask(mask)
    plan = plans.plan(pattern, transposed=True)
    assert decoded(plan, 1, mask.shape[1]) == owned_linear([mask], True)
    assert torch.equal(plan.order, pattern.by_column()[2])
    assert plans.plan(pattern).order.numel() == 0, "row by row, the values stand where they are"


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
def test_the_plans_of_several_tasks_stand_one_behind_the_other(transposed: bool) -> None:
    shape = (70, 45)
    given_masks = [staircase(*shape, 0.2, 0), torch.zeros(shape, dtype=torch.bool), random_mask(*shape, 0.1, 1)]
    plan = plans.plan(grouped(given_masks), transposed=transposed)
    assert decoded(plan, 3, shape[transposed]) == owned_linear(given_masks, transposed)


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize(
    ("filters", "channels", "kernel", "groups"),
    [(20, 40, (3, 2), 1), (34, 24, (1, 3), 2), (6, 6, (2, 2), 6), (1, 1, (1, 1), 1), (130, 17, (1, 1), 1)],
    ids=str,
)
def test_the_plan_of_a_convolution_counts_its_columns_tap_by_tap(
    filters: int, channels: int, kernel: tuple[int, int], groups: int, transposed: bool
) -> None:
    taps = kernel[0] * kernel[1]
    mask = random_mask(filters, channels // groups * taps, 0.2, filters, holes=True)
    geometry = ConvGeometry(kernel, (1, 1), (0, 0), (1, 1), groups)
    plan = plans.plan(rk.SparsePattern.from_mask(mask), geometry, transposed)
    rows = (channels if transposed else filters) // groups
    assert plan.width in RUNS
    assert decoded(plan, groups, rows) == owned_conv(mask, taps, groups, plan.width, transposed)
    # A chunk is one run of neighbours at one tap: the kernels read its first column alone.
    assert torch.equal(plan.columns, plan.columns[:, :1] + torch.arange(plan.width))
    assert not (plan.columns[:, 0] % plan.width).any()


@given(mask=masks)
def test_rows_stand_by_falling_count_and_ties_by_row(mask: Tensor) -> None:
    assert survey_of(mask).row_order.tolist() == [ranking(mask, 1)]


@given(mask=masks)
def test_filters_of_a_convolution_stay_beside_their_neighbours(mask: Tensor) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    survey = survey_conv(pattern.crow, pattern.col, mask.shape[1], taps=1, groups=1, transposed=False)
    assert survey.row_order.tolist() == [ranking(mask, ROWS_TOGETHER)]


@given(mask=masks)
def test_windows_of_every_height_hold_the_same_rows_in_the_same_order(mask: Tensor) -> None:
    survey = survey_of(mask)
    built = [Plan.build(survey, height) for height in HEIGHTS]
    for lower, taller in pairwise(built):
        longest = taller.row_order.flatten()
        assert torch.equal(lower.row_order.flatten(), longest[: lower.row_order.numel()])
        assert (longest[lower.row_order.numel() :] >= mask.shape[0]).all()
        both = survey.present(lower.height).view(-1, 2, mask.shape[1]).any(1)
        assert torch.equal(both, survey.present(taller.height))


@given(mask=masks)
def test_what_a_survey_says_is_visited_is_what_windows_hold(mask: Tensor) -> None:
    assert survey_of(mask).visited == {height: visited_by(mask, height) for height in HEIGHTS}


@given(mask=masks)
def test_a_convolution_visits_whole_runs(mask: Tensor) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    survey = survey_conv(pattern.crow, pattern.col, mask.shape[1], taps=1, groups=1, transposed=False)
    expected = {height: visited_by(mask, height, survey.run, ROWS_TOGETHER) for height in HEIGHTS}
    assert survey.visited == expected


@given(mask=masks)
def test_the_height_chosen_moves_the_fewest_operand_elements_and_is_the_tallest_of_equals(mask: Tensor) -> None:
    survey = survey_of(mask)
    # A step over one condensed column reads a window's rows and 128 of the batch, for as many products.
    moved = {height: visited_by(mask, height) * (height + 128) / (height * 128) for height in HEIGHTS}
    least = min(moved.values())
    assert survey.height == max(height for height in HEIGHTS if moved[height] == pytest.approx(least, rel=1e-12))
    assert Plan.build(survey).height == survey.height
    assert survey.cost == pytest.approx(least)


def test_a_full_mask_takes_the_tallest_windows_and_a_diagonal_the_lowest() -> None:
    assert survey_of(torch.ones(256, 256, dtype=torch.bool)).height == HEIGHTS[-1]
    assert survey_of(torch.eye(256, dtype=torch.bool)).height == HEIGHTS[0]
    assert traffic(HEIGHTS[0]) > traffic(HEIGHTS[-1])


def test_whole_blocks_are_visited_and_nothing_beside_them() -> None:
    mask = torch.zeros(256, 512, dtype=torch.bool)
    mask[:64, 64:128] = mask[128:192, 256:320] = mask[128:192, :64] = True
    assert survey_of(mask).visited[64] == int(mask.sum())


@pytest.mark.parametrize("longest", RUNS)
def test_runs_are_as_long_as_costs_least(longest: int) -> None:
    """Filters that own whole runs of channels are read in such runs; a longer one would read what nobody owns."""
    channels = torch.zeros(64, 4, 128, dtype=torch.bool)
    channels[:, 0, 0:longest] = channels[:, 3, 64 : 64 + longest] = True
    mask = channels.transpose(1, 2).flatten(1)
    pattern = rk.SparsePattern.from_mask(mask)
    survey = survey_conv(pattern.crow, pattern.col, mask.shape[1], taps=4, groups=1, transposed=False)
    assert survey.run == longest
    assert survey.visited[64] == int(mask.sum())


def test_no_run_is_twice_as_long_as_the_channels_there_are() -> None:
    mask = torch.ones(32, 9 * 20, dtype=torch.bool)
    pattern = rk.SparsePattern.from_mask(mask)
    assert survey_conv(pattern.crow, pattern.col, 180, taps=9, groups=1, transposed=False).run <= 32


@pytest.mark.parametrize("geometry", [None, ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 2)], ids=["linear", "conv"])
def test_the_same_mask_gives_the_same_plan_every_time(geometry: ConvGeometry | None) -> None:
    mask = staircase(64, 9 * 20, 0.2, 0)
    for transposed in (False, True):
        once, again = (plans.plan(rk.SparsePattern.from_mask(mask), geometry, transposed) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_plan_takes_two_bits_per_visited_position_and_its_columns() -> None:
    full = Plan.build(survey_of(torch.ones(256, 512, dtype=torch.bool)), 128)
    windows, chunks = 2, 2 * 4
    assert (full.windows, full.chunks) == (windows, chunks)
    assert full.bits.nbytes + full.starts.nbytes == 256 * 512 * 2 // 8
    per_window = 4 * (128 + 1 + 512)
    assert full.nbytes == 256 * 512 * 2 // 8 + windows * per_window + 4 * (windows + 1) + 4 * chunks
    assert 8 * full.nbytes / (256 * 512) < 2.5, "the column order alone takes 32 bits per weight"


def test_the_bytes_of_a_pattern_count_each_index_tensor_of_its_plans_once() -> None:
    pattern = rk.SparsePattern.from_mask(MASKS["63x65"])
    rows = pattern.nbytes
    forward = plans.plan(pattern)
    assert pattern.nbytes == rows + forward.nbytes == rows + sum(part.nbytes for part in forward)
    transposed = plans.plan(pattern, transposed=True)
    columns = sum(part.nbytes for part in pattern.by_column())
    # The order of the transposed plan is that of the columns, held once.
    shared = transposed.order.nbytes
    assert transposed.order is pattern.by_column()[2]
    assert pattern.nbytes == rows + forward.nbytes + columns + transposed.nbytes - shared


def test_the_bytes_of_a_group_count_its_plans() -> None:
    group = grouped([MASKS["63x65"], ~MASKS["63x65"]])
    before = group.nbytes
    plan = plans.plan(group)
    assert group.nbytes == before + plan.nbytes


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_pattern_makes_its_own_plans(copied: Callable[[Any], Any]) -> None:
    pattern = rk.SparsePattern.from_mask(MASKS["63x65"])
    alone = pattern.nbytes
    plan = plans.plan(pattern)
    twin = copied(pattern)
    assert twin.nbytes == alone
    own = plans.plan(twin)
    assert own is not plan and all(torch.equal(a, b) for a, b in zip(own, plan, strict=True))
    assert plans.plan(pattern) is plan, "copying took the plan from the original"


def test_a_plan_is_built_once_per_kernel_size_groups_and_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(16, 36, 0.3, 0))
    geometries = [
        None,
        *(ConvGeometry(k, (1, 1), (0, 0), (1, 1), g) for k, g in (((3, 3), 1), ((2, 1), 1), ((3, 3), 4))),
    ]
    first = [plans.plan(pattern, geometry, transposed) for geometry in geometries for transposed in (False, True)]
    monkeypatch.setattr(Plan, "build", lambda survey, height=None: pytest.fail("built again"))
    again = [plans.plan(pattern, geometry, transposed) for geometry in geometries for transposed in (False, True)]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len({id(plan) for plan in first}) == len(first)
    # Stride, padding and dilation change where a tap looks, not what a window holds.
    assert plans.plan(pattern, ConvGeometry((3, 3), (2, 1), (1, 1), (3, 3), 1)) is first[2]


def test_a_call_asks_for_the_transposed_plan_only_with_the_column_order() -> None:
    pattern = rk.SparsePattern.from_mask(MASKS["63x65"])
    short, both = (plans.plan_tensors(pattern, None, with_columns) for with_columns in (False, True))
    forward, transposed = plans.plan(pattern), plans.plan(pattern, transposed=True)
    assert [id(each) for each in short] == [id(each) for each in forward]
    assert [id(each) for each in both] == [id(each) for each in (*forward, *transposed)]


def test_a_plan_made_in_inference_mode_can_be_saved_for_a_backward_pass() -> None:
    pattern = rk.SparsePattern.from_mask(MASKS["63x65"])
    with torch.inference_mode():
        plans.plan(pattern)
    assert not any(part.is_inference() for part in plans.plan(pattern))


def test_tensors_without_data_leave_nothing_behind_in_a_pattern() -> None:
    real = rk.SparsePattern.from_mask(MASKS["63x65"])
    with FakeTensorMode() as mode:
        fake = rk.SparsePattern(real.shape, mode.from_tensor(real.crow), mode.from_tensor(real.col))
        made = [fake.derived("sum", fake.crow.sum) for _ in range(2)]
    assert made[0] is not made[1], "a tensor without data was remembered"
    remembered = [real.derived("sum", real.crow.sum) for _ in range(2)]
    assert remembered[0] is remembered[1]
