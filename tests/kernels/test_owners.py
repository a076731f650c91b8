"""OwnerMap against a plain integer per position: the invariants of the packed format."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rsn2_kernels as rk

from .cases import laid_out, random_mask

WORD = 64
MAX_TASK = 2**31 - 2

SHAPES = st.tuples(
    st.sampled_from((1, 2, 3, 7, 63, 64, 65)), st.sampled_from((1, 2, 37, 63, 64, 65, 127, 128, 129, 200))
)


@dataclass(frozen=True)
class Step:
    """One change to a map: a claim of free positions, or a release."""

    task: int
    release: bool
    density: float
    seed: int


STEPS = st.lists(
    st.builds(
        Step,
        task=st.one_of(st.integers(0, 8), st.integers(0, 199)),
        release=st.booleans(),
        density=st.sampled_from((0.0, 0.01, 0.3, 1.0)),
        seed=st.integers(0, 1000),
    ),
    max_size=8,
)


def applied(shape: tuple[int, int], steps: list[Step]) -> Iterator[tuple[rk.OwnerMap, Tensor, set[int]]]:
    """Each state of a map under ``steps``, with the codes and the tasks it should hold."""
    owners = rk.OwnerMap.empty(shape)
    codes, tasks = torch.zeros(shape, dtype=torch.int64), set[int]()
    for step in steps:
        if step.release and step.task in tasks:
            owners.release(step.task)
            codes[codes == step.task + 1] = 0
            tasks.remove(step.task)
        elif not step.release:
            mask = random_mask(*shape, step.density, step.seed) & (codes == 0)
            owners.claim(step.task, mask)
            codes[mask] = step.task + 1
            tasks.add(step.task)
        yield owners, codes, tasks


def snapshot(owners: rk.OwnerMap) -> tuple[object, ...]:
    """Everything a map holds, as values that compare bit by bit."""
    planes = [plane.tolist() for plane in owners.planes]
    return planes, owners.tasks, [owners.count(task) for task in owners.tasks], owners.nbytes


def bits(plane: Tensor) -> Tensor:
    """The bits of a plane, int64 ``[rows, 64 * words]``: column c is bit c % 64 of word c // 64."""
    return (plane.unsqueeze(-1) >> torch.arange(WORD) & 1).flatten(1)


def several_tasks(shape: tuple[int, int], tasks: int, seed: int = 0) -> tuple[rk.OwnerMap, Tensor]:
    """A map whose positions got random owners, or none, and their codes; claimed in random order."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, tasks + 1, shape, generator=generator)
    owners = rk.OwnerMap.empty(shape)
    for task in torch.randperm(tasks, generator=generator).tolist():
        owners.claim(task, codes == task + 1)
    return owners, codes


@given(shape=SHAPES, steps=STEPS)
def test_any_claims_and_releases_keep_masks_disjoint_and_counts_exact(
    shape: tuple[int, int], steps: list[Step]
) -> None:
    for owners, codes, tasks in applied(shape, steps):
        assert owners.tasks == tuple(sorted(tasks))
        masks = {task: owners.mask(task) for task in tasks}
        for task, mask in masks.items():
            assert mask.dtype == torch.bool and torch.equal(mask, codes == task + 1)
            assert owners.count(task) == int(mask.sum())
        total = sum((mask.int() for mask in masks.values()), torch.zeros(shape, dtype=torch.int32))
        assert int(total.max()) <= 1
        assert torch.equal(owners.free(), total == 0)
        assert sum(map(owners.count, tasks)) + int(owners.free().sum()) == owners.numel == shape[0] * shape[1]
        assert owners.codes().dtype == torch.int32 and torch.equal(owners.codes().long(), codes)


@given(shape=SHAPES, steps=STEPS)
def test_planes_hold_the_binary_digits_of_the_codes_and_nothing_else(shape: tuple[int, int], steps: list[Step]) -> None:
    rows, cols = shape
    for owners, codes, tasks in applied(shape, steps):
        assert len(owners.planes) == (max(tasks, default=-1) + 1).bit_length()
        assert owners.nbytes == len(owners.planes) * rows * math.ceil(cols / WORD) * 8
        read = torch.zeros(shape, dtype=torch.int64)
        for index, plane in enumerate(owners.planes):
            assert plane.dtype == torch.int64 and plane.shape == (rows, math.ceil(cols / WORD))
            digits = bits(plane)
            assert not digits[:, cols:].any(), "a padding bit is set"
            read += digits[:, :cols] << index
        assert torch.equal(read, codes)


@given(shape=SHAPES, tasks=st.one_of(st.integers(1, 9), st.sampled_from((31, 32, 200))), seed=st.integers(0, 99))
def test_t_tasks_cost_log2_of_t_plus_1_planes(shape: tuple[int, int], tasks: int, seed: int) -> None:
    owners, codes = several_tasks(shape, tasks, seed)
    assert len(owners.planes) == math.ceil(math.log2(tasks + 1))
    assert owners.tasks == tuple(range(tasks))
    assert torch.equal(owners.codes().long(), codes)


@given(shape=SHAPES, planes=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_new_plane_rewrites_no_earlier_one(shape: tuple[int, int], planes: int, seed: int) -> None:
    """The code 2 ** P has one digit, in the new plane: the earlier planes stay the same tensors."""
    owners, _ = several_tasks(shape, 2**planes - 1, seed)
    before = owners.planes
    held = [plane.clone() for plane in before]
    owners.claim(2**planes - 1, owners.free())
    assert len(owners.planes) == planes + 1
    for earlier, later, bits_before in zip(before, owners.planes, held, strict=False):
        assert later is earlier and torch.equal(later, bits_before)


@given(shape=SHAPES, tasks=st.integers(1, 9), seed=st.integers(0, 99), stranger=st.integers(0, 12))
def test_an_overlap_names_the_first_position_and_its_owner_and_changes_nothing(
    shape: tuple[int, int], tasks: int, seed: int, stranger: int
) -> None:
    owners, codes = several_tasks(shape, tasks, seed)
    mask = random_mask(*shape, 0.3, seed + 1)
    taken = (mask & (codes > 0)).nonzero().tolist()
    before = snapshot(owners)
    if not taken:
        owners.claim(stranger, mask)
        return
    row, col = taken[0]
    with pytest.raises(rk.OverlapError, match=re.escape(f"({row}, {col})")) as caught:
        owners.claim(stranger, mask)
    assert re.search(rf"\btask {int(codes[row, col]) - 1}\b", str(caught.value))
    assert snapshot(owners) == before


def test_a_task_may_not_claim_its_own_positions_again() -> None:
    owners = rk.OwnerMap.empty((2, 3))
    owners.claim(4, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(rk.OverlapError, match="task 4"):
        owners.claim(4, torch.ones(2, 3, dtype=torch.bool))


def test_a_second_claim_adds_to_the_first() -> None:
    owners = rk.OwnerMap.empty((4, 70))
    first, second = random_mask(4, 70, 0.3, 0), random_mask(4, 70, 0.3, 1)
    owners.claim(2, first)
    owners.claim(2, second & ~first)
    assert torch.equal(owners.mask(2), first | second) and owners.count(2) == int((first | second).sum())


def test_empty_and_full_claims_count_as_tasks() -> None:
    owners = rk.OwnerMap.empty((3, 65))
    owners.claim(0, torch.zeros(3, 65, dtype=torch.bool))
    owners.claim(6, torch.ones(3, 65, dtype=torch.bool))
    assert owners.tasks == (0, 6) and owners.count(0) == 0 and owners.count(6) == 3 * 65
    assert not owners.free().any() and not owners.mask(0).any() and owners.mask(6).all()


def test_released_positions_are_free_again_and_the_other_tasks_stay() -> None:
    owners, codes = several_tasks((5, 100), 5)
    owners.release(2)
    assert owners.tasks == (0, 1, 3, 4)
    assert torch.equal(owners.free(), (codes == 0) | (codes == 3))
    owners.claim(7, codes == 3)
    assert torch.equal(owners.mask(7), codes == 3)
    for task in (0, 1, 3, 4):
        assert torch.equal(owners.mask(task), codes == task + 1)


def test_releasing_the_highest_task_drops_the_planes_it_needed() -> None:
    owners, _ = several_tasks((5, 100), 4)
    words = 5 * 2 * 8
    assert owners.nbytes == 3 * words
    owners.release(3)
    assert owners.nbytes == 2 * words
    for task in (0, 1, 2):
        owners.release(task)
    assert owners.nbytes == 0 and owners.free().all() and owners.tasks == ()


def test_the_mask_of_several_tasks_is_their_union() -> None:
    owners, codes = several_tasks((7, 65), 5)
    assert torch.equal(owners.mask([0, 3]), (codes == 1) | (codes == 4))
    assert torch.equal(owners.mask((4,)), owners.mask(4))
    assert not owners.mask([]).any() and owners.mask([]).shape == (7, 65)


def test_masks_are_copies() -> None:
    owners, _ = several_tasks((4, 64), 3)
    before = snapshot(owners)
    for mask in (owners.mask(0), owners.mask([0, 1]), owners.free()):
        mask.logical_not_()
    owners.codes().fill_(9)
    assert snapshot(owners) == before


def test_the_highest_task_number_fits() -> None:
    owners = rk.OwnerMap.empty((2, 3))
    owners.claim(MAX_TASK, random_mask(2, 3, 0.5, 0))
    assert torch.equal(owners.mask(MAX_TASK), random_mask(2, 3, 0.5, 0))
    assert int(owners.codes().max()) == MAX_TASK + 1


@pytest.mark.parametrize("layout", ["reversed", "repeated"])
def test_a_mask_of_any_strides_can_be_claimed(layout: str) -> None:
    mask = laid_out(random_mask(6, 70, 0.5, 0), layout)
    owners = rk.OwnerMap.empty((6, 70))
    owners.claim(1, mask)
    assert torch.equal(owners.mask(1), mask)


@pytest.mark.parametrize("device", ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_to_keeps_tasks_counts_and_sizes(device: str) -> None:
    owners, _ = several_tasks((6, 70), 5)
    moved = owners.to(device)
    assert moved.device.type == device and all(plane.device.type == device for plane in moved.planes)
    assert moved.shape == owners.shape and moved.tasks == owners.tasks and moved.nbytes == owners.nbytes
    assert [moved.count(task) for task in moved.tasks] == [owners.count(task) for task in owners.tasks]
    if device != "meta":
        assert snapshot(moved.to("cpu")) == snapshot(owners)


def test_a_claim_on_a_deep_copy_leaves_the_original_alone() -> None:
    owners, _ = several_tasks((6, 70), 3)
    before = snapshot(owners)
    twin = copy.deepcopy(owners)
    twin.claim(8, twin.free())
    twin.release(1)
    assert snapshot(owners) == before


def test_repr_shows_shape_and_shares() -> None:
    owners = rk.OwnerMap.empty((2, 4))
    owners.claim(3, torch.tensor([[True] * 4, [False] * 4]))
    assert "(2, 4)" in repr(owners) and "3: 0.500" in repr(owners)
