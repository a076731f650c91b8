"""Grouped products from plain ones: the rows of a batch sorted by task, and one call per task that has rows.

For backends without a grouped product of their own. The index of a `PatternGroup` is taken apart by task again.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rsn2_kernels.backends import words_of


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
    words = words_of(index)
    _, crow, col, *by_column = index if words is None else index[:-1]
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
        if words is not None:
            own.append(words[task * rows : (task + 1) * rows])
        yield TaskPart(task, slice(begin, end), weights, own)


def _by_row(index: list[Tensor]) -> list[Tensor]:
    """An index without the column order."""
    words = words_of(index)
    return index[:3] if words is None else [*index[:3], words]


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
        for part in parts(_by_row(index), tasks, bounds)
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
    for part in parts(_by_row(index), tasks, bounds):
        dvalues[part.weights] = linear_dvalues(dy[part.rows], x[part.rows], part.own_index)
    return dvalues
