"""The patterns of several tasks as one index, and that index taken apart by task again.

Row r of task t is row ``t * rows + r`` of the stack, and likewise column c in the column order. The values of the
tasks follow each other in one tensor, in the order of the patterns.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsn2_kernels.pattern import (
    MAX_NNZ,
    Derived,
    SparsePattern,
    column_order,
    index_nbytes,
    remembered,
    row_of_each_value,
)

# Groups that one pattern remembers: enough for the batches of a training loop, few enough to forget old ones.
REMEMBERED = 8


class PatternGroup:
    """The stacked index of patterns that have one shape and device. Immutable; get one with :meth:`of`.

    Attributes (read-only):
        tasks: number of patterns.
        shape: ``(rows, cols)`` of each of them.
        nnz: number of owned positions, all tasks together.
        crow: int32 ``[tasks * rows + 1]``; where the values of each row begin.
        col: int32 ``[nnz]``; the column of each value, in ``[0, cols)``.
    """

    __slots__ = ("_by_column", "_col", "_crow", "_derived", "_shape", "_tasks")

    def __init__(self, patterns: Sequence[SparsePattern]):
        self._tasks = len(patterns)
        self._shape = patterns[0].shape
        counts = torch.stack([each.crow for each in patterns]).diff(dim=1).flatten()
        self._crow = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        self._col = torch.cat([each.col for each in patterns])
        self._by_column: tuple[Tensor, Tensor, Tensor] | None = None
        self._derived: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, patterns: Sequence[SparsePattern]) -> "PatternGroup":
        """The group of these patterns in this order. The first of them remembers it for the next call.

        Args:
            patterns: at least one, all of one shape and device.

        Raises:
            ValueError: if they own more than 2**31 - 1 positions together.
        """
        nnz = sum(each.nnz for each in patterns)
        if nnz > MAX_NNZ:
            raise ValueError(f"ps: expected at most {MAX_NNZ} owned positions in all. Got {nnz}.")
        first = patterns[0]
        # Patterns are equal only to themselves. The key keeps the others alive, but makes no cycle through the first.
        key = tuple(None if each is first else each for each in patterns)
        group = first.groups.get(key)
        if group is None:
            # Made in inference mode, the tensors could not be saved for the backward pass of a later call.
            with torch.inference_mode(False):
                group = cls(patterns)
            # An exporter runs this on tensors without data, which must not stay behind for real calls.
            if type(group.crow) is Tensor:
                if len(first.groups) >= REMEMBERED:
                    first.groups.pop(next(iter(first.groups)))
                first.groups[key] = group
        return group

    @property
    def tasks(self) -> int:
        """Number of patterns."""
        return self._tasks

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)`` of each pattern."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of owned positions, all tasks together."""
        return self._col.shape[0]

    @property
    def crow(self) -> Tensor:
        """Row pointers, int32 ``[tasks * rows + 1]``."""
        return self._crow

    @property
    def col(self) -> Tensor:
        """Column of each value, int32 ``[nnz]``."""
        return self._col

    @property
    def device(self) -> torch.device:
        """Where the index tensors live."""
        return self._col.device

    @property
    def nbytes(self) -> int:
        """Bytes of the index tensors that exist now: with the column order and the plans once they were built."""
        return index_nbytes(self._crow, self._col, self._by_column, self._derived)

    def derived(self, key: Hashable, build: Callable[[], Derived]) -> Derived:
        """What ``build`` makes of this group, made once and remembered; see :meth:`SparsePattern.derived`."""
        return remembered(self._derived, key, build, self._col)

    def remembers(self, key: Hashable) -> bool:
        """Whether `derived` has made what is under ``key``."""
        return key in self._derived

    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed order, built on first use.

        Returns:
            crow_t: int32 ``[tasks * cols + 1]``; where the weights of each column begin.
            row_t: int32 ``[nnz]``; the row of each of them, in ``[0, rows)``, ascending within a column.
            perm: int32 ``[nnz]``; where its value stands in the ``[nnz]`` values of all tasks.
        """
        if self._by_column is None:
            rows, cols = self._shape
            stacked_row = row_of_each_value(self._crow, self._col)
            # int64: there may be more than 2**31 columns in the stack.
            stacked_col = (stacked_row // rows).to(torch.int64) * cols + self._col
            crow_t, perm = column_order(stacked_col, self._tasks * cols)
            by_column = (crow_t, (stacked_row % rows)[perm], perm.to(torch.int32))
            if type(crow_t) is not Tensor:
                return by_column
            self._by_column = by_column
        return self._by_column

    def index(self, with_columns: bool) -> list[Tensor]:
        """What an operator takes behind each row's task: ``[crow, col]``, then ``[crow_t, row_t, perm]`` if asked."""
        return [self._crow, self._col, *(self.by_column() if with_columns else ())]

    def __repr__(self) -> str:
        return f"PatternGroup(tasks={self._tasks}, shape={self._shape}, nnz={self.nnz}, device='{self.device}')"


class TaskPart(NamedTuple):
    """What one task has of a call.

    Attributes:
        task: which one.
        rows: its rows, in a batch sorted by task.
        weights: its values, in those of all tasks.
        own_index: of its pattern alone, as :meth:`SparsePattern.index` gives it.
    """

    task: int
    rows: slice
    weights: slice
    own_index: list[Tensor]


def rows_by_task(task_of_row: Tensor, tasks: int) -> tuple[Tensor, list[int]]:
    """Sort the rows of a batch by task.

    Args:
        task_of_row: int64 ``[N]``; ids outside ``[0, tasks)`` belong to no task.
        tasks: number of tasks.

    Returns:
        The rows in the order of their tasks, int64, without those of no task; and the ``tasks + 1`` places in it
        where each task begins. The places are numbers on the host: on a GPU this waits for the device.
    """
    task, order = torch.sort(task_of_row, stable=True)
    bounds = torch.searchsorted(task, torch.arange(tasks + 1, device=task.device)).tolist()
    return order[bounds[0] : bounds[-1]], [bound - bounds[0] for bound in bounds]


def parts(index: list[Tensor], tasks: int, bounds: list[int]) -> Iterator[TaskPart]:
    """The tasks that have rows, in ascending order.

    Args:
        index: as :meth:`PatternGroup.index` gives it.
        tasks: number of tasks.
        bounds: as :func:`rows_by_task` gives them.
    """
    _, crow, col, *by_column = index
    rows = (crow.shape[0] - 1) // tasks
    begins = crow[::rows].tolist()
    pointers = [_from_zero(each, tasks) for each in (crow, *by_column[:1])]
    for task, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        first = begins[task]
        weights = slice(first, begins[task + 1])
        own = [pointers[0][task], col[weights]]
        if by_column:
            own += [pointers[1][task], by_column[1][weights], by_column[2][weights] - first]
        yield TaskPart(task, slice(begin, end), weights, own)


def _from_zero(crow: Tensor, tasks: int) -> Tensor:
    """The pointers of each task, each counted from 0: ``[tasks, size + 1]``."""
    size = (crow.shape[0] - 1) // tasks
    windows = crow.unfold(0, size + 1, size)
    return windows - windows[:, :1]


def linear_by_task(
    linear: Callable[[Tensor, Tensor, Tensor | None, list[Tensor]], Tensor],
    x: Tensor,
    values: Tensor,
    biases: Tensor | None,
    index: list[Tensor],
    tasks: int,
) -> Tensor:
    """A backend's ``grouped_linear`` from its ``linear``: one call per task that has rows."""
    order, bounds = rows_by_task(index[0], tasks)
    y = x.new_full((x.shape[0], (index[1].shape[0] - 1) // tasks), torch.nan)
    x, values = x.index_select(0, order), values.contiguous()
    found = [
        linear(x[part.rows], values[part.weights], None if biases is None else biases[part.task], part.own_index)
        for part in parts(index[:3], tasks, bounds)
    ]
    return y.index_copy_(0, order, torch.cat(found).to(y.dtype)) if found else y


def dx_by_task(
    linear_dx: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
    dy: Tensor,
    values: Tensor,
    index: list[Tensor],
    tasks: int,
) -> Tensor:
    """A backend's ``grouped_linear_dx`` from its ``linear_dx``: one call per task that has rows."""
    order, bounds = rows_by_task(index[0], tasks)
    dx = dy.new_zeros(dy.shape[0], (index[3].shape[0] - 1) // tasks)
    dy, values = dy.index_select(0, order), values.contiguous()
    found = [linear_dx(dy[part.rows], values[part.weights], part.own_index) for part in parts(index, tasks, bounds)]
    return dx.index_copy_(0, order, torch.cat(found).to(dx.dtype)) if found else dx


def dvalues_by_task(
    linear_dvalues: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
    dy: Tensor,
    x: Tensor,
    index: list[Tensor],
    tasks: int,
) -> Tensor:
    """A backend's ``grouped_linear_dvalues`` from its ``linear_dvalues``: one call per task that has rows."""
    order, bounds = rows_by_task(index[0], tasks)
    dvalues = x.new_zeros(index[2].shape[0])
    dy, x = dy.index_select(0, order), x.index_select(0, order)
    for part in parts(index[:3], tasks, bounds):
        dvalues[part.weights] = linear_dvalues(dy[part.rows], x[part.rows], part.own_index)
    return dvalues
