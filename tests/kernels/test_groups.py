"""Groups of patterns: one index for the weights of several tasks, remembered by the first and by nothing else."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rsn2_kernels as rk
from rsn2_kernels.group import REMEMBERED, PatternGroup

from .cases import Tasks, random_mask


def test_the_stacked_index_is_that_of_the_patterns_one_below_the_other() -> None:
    masks = torch.stack([random_mask(6, 8, density, 0) for density in (0.4, 0.0, 1.0, 0.2)])
    patterns = [rk.SparsePattern.from_mask(mask) for mask in masks]
    group = PatternGroup.of(patterns)
    rows = rk.SparsePattern.from_mask(masks.view(24, 8))
    assert (group.stacks, group.shape, group.nnz) == (4, (6, 8), rows.nnz)
    assert torch.equal(group.crow, rows.crow) and torch.equal(group.col, rows.col)
    crow_t, row_t, perm = group.by_column()
    cols = rk.SparsePattern.from_mask(masks.transpose(1, 2).reshape(32, 6))
    assert torch.equal(crow_t, cols.crow) and torch.equal(row_t, cols.col)
    numbers = torch.arange(rows.nnz, dtype=torch.int32)
    dense = torch.zeros(4, 6, 8, dtype=torch.int32).masked_scatter(masks, numbers)
    assert torch.equal(perm, dense.transpose(1, 2)[masks.transpose(1, 2)])
    assert all(each.dtype == torch.int32 for each in (group.crow, group.col, crow_t, row_t, perm))
    assert group.nbytes == 4 * (25 + 33 + 3 * rows.nnz)


def test_another_order_is_another_group() -> None:
    p, q = Tasks().ps[:2]
    groups = [PatternGroup.of(each) for each in ([p, q], [p, p, q], [p], [p, p], [q, p])]
    assert len({id(each) for each in groups}) == 5
    assert [each.nnz for each in groups] == [p.nnz + q.nnz, 2 * p.nnz + q.nnz, p.nnz, 2 * p.nnz, p.nnz + q.nnz]


def test_a_group_dies_with_its_first_pattern() -> None:
    tasks = Tasks()
    p = tasks.ps[0]
    gc.disable()
    try:
        built = [weakref.ref(PatternGroup.of(each).crow) for each in (tasks.ps, [p, p], [p])]
        assert all(each() is not None for each in built)
        del tasks, p
        assert all(each() is None for each in built), "no cycle keeps it"
    finally:
        gc.enable()


def test_groups_that_begin_with_each_other_die_with_their_patterns() -> None:
    p, q = Tasks().ps[:2]
    gc.disable()
    try:
        built = [weakref.ref(PatternGroup.of(each).crow) for each in ([p, q], [q, p])]
        del p, q
        assert all(each() is None for each in built), "no cycle keeps them"
    finally:
        gc.enable()


class EvictedMeanwhile(dict[Any, Any]):
    """Another thread is always the first to remove what this one is about to remove."""

    def pop(self, key: Any, *default: Any) -> Any:
        super().pop(key, None)
        return super().pop(key, *default)


def test_a_group_that_another_thread_forgets_first_is_no_error() -> None:
    first = Tasks().ps[0]
    first._groups = EvictedMeanwhile()
    for count in range(1, REMEMBERED + 3):
        assert PatternGroup.of([first] * count).stacks == count
    assert len(first.groups) == REMEMBERED


def test_a_group_never_serves_other_patterns_than_its_own() -> None:
    """A new pattern may get the address of one that died."""
    first = Tasks().ps[0]
    for seed in range(3 * REMEMBERED):
        other = rk.SparsePattern.from_mask(random_mask(6, 8, 0.4, 100 + seed))
        assert torch.equal(PatternGroup.of([first, other]).col, torch.cat([first.col, other.col]))


def test_only_the_last_groups_are_remembered() -> None:
    first = Tasks().ps[0]
    built = [weakref.ref(PatternGroup.of([first] * (1 + count)).crow) for count in range(REMEMBERED + 3)]
    assert [each() is not None for each in built] == [False] * 3 + [True] * REMEMBERED


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["deepcopy", "pickle"]
)
def test_a_copied_pattern_takes_no_groups_along(copied: Callable[[Any], Any]) -> None:
    tasks = Tasks()
    tasks.call("reference")
    assert len(tasks.ps[0].groups) == 1 and not copied(tasks.ps[0]).groups


def test_more_owned_positions_than_the_index_can_count_are_refused() -> None:
    crow = torch.empty(7, dtype=torch.int32, device="meta")
    half = rk.SparsePattern((6, 2**29), crow, torch.empty(2**30, dtype=torch.int32, device="meta"))
    with pytest.raises(ValueError, match=r"ps: expected at most 2147483647 owned positions in all. Got 2147483648"):
        PatternGroup.of([half, half])
    assert not half.groups
