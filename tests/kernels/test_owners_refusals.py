"""OwnerMap refuses bad arguments and damaged planes, names what is wrong, and stays as it was."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rsn2_kernels as rk

from .test_owners import MAX_TASK, SHAPES, several_tasks, snapshot

ALL = torch.ones(3, 5, dtype=torch.bool)

BAD_TASKS = {
    "negative": (-1, ValueError, "-1"),
    "too high": (MAX_TASK + 1, ValueError, str(MAX_TASK)),
    "bool": (True, TypeError, "bool"),
    "float": (1.0, TypeError, "float"),
    "str": ("1", TypeError, "str"),
    "None": (None, TypeError, "NoneType"),
}
BAD_MASKS = {
    "dtype": (ALL.float(), r"float32 \(3, 5\)"),
    "uint8": (ALL.to(torch.uint8), "uint8"),
    "transposed": (ALL.t(), r"bool \(5, 3\)"),
    "dimensions": (ALL.unsqueeze(0), r"\(1, 3, 5\)"),
    "row": (ALL[0], r"\(5,\)"),
    "list": (ALL.tolist(), "list"),
    "None": (None, "NoneType"),
    "device": (ALL.to("meta"), "meta"),
}


@pytest.fixture
def owners() -> rk.OwnerMap:
    """A [3, 5] map of three tasks."""
    return several_tasks((3, 5), 3)[0]


@pytest.mark.parametrize(("task", "error", "got"), BAD_TASKS.values(), ids=BAD_TASKS)
def test_a_bad_task_changes_nothing(owners: rk.OwnerMap, task: int, error: type[Exception], got: str) -> None:
    before = snapshot(owners)
    with pytest.raises(error, match=rf"task: expected .*{got}"):
        owners.claim(task, owners.free())
    assert snapshot(owners) == before


@pytest.mark.parametrize(("mask", "got"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_bad_mask_changes_nothing(owners: rk.OwnerMap, mask: Tensor, got: str) -> None:
    before = snapshot(owners)
    with pytest.raises(ValueError, match=rf"mask: expected .*{got}"):
        owners.claim(7, mask)
    assert snapshot(owners) == before


@pytest.mark.parametrize("method", ["release", "mask", "count"])
@pytest.mark.parametrize("task", [3, -1, MAX_TASK])
def test_a_task_without_a_claim_is_named(owners: rk.OwnerMap, method: str, task: int) -> None:
    before = snapshot(owners)
    with pytest.raises(KeyError, match=rf"task {task} .*\[0, 1, 2\]"):
        getattr(owners, method)(task)
    assert snapshot(owners) == before


def test_one_unknown_task_among_several_is_named(owners: rk.OwnerMap) -> None:
    with pytest.raises(KeyError, match="task 9"):
        owners.mask([0, 9])


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 4), (4, 0), (-1, 4), (2.5, 4)], ids=str)
def test_a_bad_shape_is_named(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"shape: expected \(rows, cols\)"):
        rk.OwnerMap.empty(shape)


@pytest.mark.parametrize("name", ["shape", "numel", "device", "planes", "tasks", "nbytes"])
def test_attributes_cannot_be_set(owners: rk.OwnerMap, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(owners, name, getattr(owners, name))


@given(shape=SHAPES, tasks=st.sampled_from((0, 1, 2, 3, 7, 8, 200)), seed=st.integers(0, 99))
def test_planes_make_the_round_trip(shape: tuple[int, int], tasks: int, seed: int) -> None:
    owners, _ = several_tasks(shape, tasks, seed)
    again = rk.OwnerMap.from_planes([plane.clone() for plane in owners.planes], shape, owners.tasks)
    assert snapshot(again) == snapshot(owners)
    assert torch.equal(again.codes(), owners.codes())


def test_a_rebuilt_map_does_not_write_to_the_planes_it_was_given(owners: rk.OwnerMap) -> None:
    planes = list(owners.planes)
    held = [plane.clone() for plane in planes]
    again = rk.OwnerMap.from_planes(planes, owners.shape, owners.tasks)
    again.claim(2, again.free())
    again.release(1)
    assert all(torch.equal(a, b) for a, b in zip(planes, held, strict=True))


def test_a_rebuilt_map_keeps_its_owners_whatever_becomes_of_the_planes_it_was_given(owners: rk.OwnerMap) -> None:
    planes = [plane.clone() for plane in owners.planes]
    rebuilt = rk.OwnerMap.from_planes(planes, owners.shape, owners.tasks)
    for plane in planes:
        plane.zero_()
    assert torch.equal(rebuilt.codes(), owners.codes())


def test_planes_of_any_strides_are_read(owners: rk.OwnerMap) -> None:
    planes = [plane.t().contiguous().t() for plane in several_tasks((6, 130), 3)[0].planes]
    again = rk.OwnerMap.from_planes(planes, (6, 130), (0, 1, 2))
    assert torch.equal(again.codes(), several_tasks((6, 130), 3)[0].codes())


def _set_bit(planes: list[Tensor], plane: int, row: int, col: int) -> list[Tensor]:
    damaged = [each.clone() for each in planes]
    damaged[plane][row, col // 64] ^= 1 << col % 64 if col % 64 < 63 else -(2**63)
    return damaged


# What was done to the two planes of a [4, 70] map of tasks 0, 1 and 2, and what the error must say.
DAMAGE: dict[str, tuple[Callable[[list[Tensor]], list[Tensor]], str]] = {
    "a plane missing": (lambda planes: planes[:1], r"planes: expected 2 .*Got 1"),
    "a plane too many": (lambda planes: [*planes, planes[0]], r"planes: expected 2 .*Got 3"),
    "no planes": (lambda planes: [], r"planes: expected 2 .*Got 0"),
    "int32": (lambda planes: [planes[0], planes[1].int()], r"planes\[1\]: expected int64 .*int32 \(4, 2\)"),
    "float64": (lambda planes: [planes[0].double(), planes[1]], r"planes\[0\]: expected int64 .*float64"),
    "a row missing": (lambda planes: [planes[0][:3], planes[1]], r"planes\[0\]: .*\(4, 2\).*\(3, 2\)"),
    "a word missing": (lambda planes: [planes[0], planes[1][:, :1]], r"planes\[1\]: .*\(4, 2\).*\(4, 1\)"),
    "flat": (lambda planes: [planes[0].flatten(), planes[1]], r"planes\[0\]: .*\(4, 2\).*\(8,\)"),
    "first padding bit": (lambda planes: _set_bit(planes, 1, 2, 70), r"planes\[1\]: .*69"),
    "last padding bit": (lambda planes: _set_bit(planes, 0, 0, 127), r"planes\[0\]: .*69"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_planes_are_refused(damage: Callable[[list[Tensor]], list[Tensor]], message: str) -> None:
    owners, _ = several_tasks((4, 70), 3)
    with pytest.raises(ValueError, match=message):
        rk.OwnerMap.from_planes(damage(list(owners.planes)), (4, 70), owners.tasks)


def test_a_code_of_an_unlisted_task_is_refused_by_its_number() -> None:
    owners, _ = several_tasks((4, 70), 3)
    with pytest.raises(ValueError, match=r"planes: codes \[2\] belong to no task in \[0, 2\]"):
        rk.OwnerMap.from_planes(owners.planes, (4, 70), (0, 2))


@given(
    shape=SHAPES,
    tasks=st.sampled_from((1, 2, 3, 5)),
    position=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
)
def test_a_flipped_bit_is_refused_or_shows_in_the_counts(
    shape: tuple[int, int], tasks: int, position: tuple[int, int, int]
) -> None:
    owners, _ = several_tasks(shape, tasks)
    plane, row, col = position[0] % len(owners.planes), position[1] % shape[0], position[2] % shape[1]
    damaged = _set_bit(list(owners.planes), plane, row, col)
    try:
        read = rk.OwnerMap.from_planes(damaged, shape, owners.tasks)
    except ValueError as error:
        assert str(error).startswith("planes: codes")
        return
    # The values' counts, stored apart, then tell: at least one task's count is off by one.
    assert any(read.count(task) != owners.count(task) for task in owners.tasks)
    assert all(read.count(task) == int(read.mask(task).sum()) for task in read.tasks)


@pytest.mark.parametrize("tasks", [(-1,), (True,), (1.5,), ("0",)], ids=str)
def test_a_bad_task_in_a_file_is_refused(tasks: tuple[int, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match="task: expected"):
        rk.OwnerMap.from_planes([torch.zeros(2, 1, dtype=torch.int64)], (2, 3), tasks)
