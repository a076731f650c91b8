"""Operands in the layout the kernels read: feature-major, the rows of a batch sorted by task where they have tasks.

A column of a condensed window is one row of ``x.T``. Feature-major, it is a run of neighbouring addresses that 16-byte
asynchronous loads can fetch; batch-major it would be one element every ``cols``.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsn2_kernels.plan import ALIGNMENT

_TILE = 64


class Groups(NamedTuple):
    """Where the rows of a batch stand once they are sorted by task; all int32, made on the device.

    Every task starts at a multiple of the block, so that a block of neighbouring slots belongs to one task.

    Attributes:
        slot_row: ``[slots]``; the row at each slot, -1 at the padding.
        block_task: ``[blocks]``; the task of each block; as many as there are tasks for rows of no task, -1 for none.
        first_slot: ``[tasks + 1]``; where each task starts.
    """

    slot_row: Tensor
    block_task: Tensor
    first_slot: Tensor

    @property
    def slots(self) -> int:
        """Rows of the sorted batch, padding included."""
        return self.slot_row.shape[0]


def feature_major(x: Tensor) -> Tensor:
    """``x [batch, features]`` as ``[features, batch]`` with rows that start aligned, padded with zeros.

    Not copied where ``x`` is such a matrix seen through ``.t()`` already.
    """
    batch = x.shape[0]
    aligned = batch % ALIGNMENT == 0 and x.stride(1) % ALIGNMENT == 0 and x.data_ptr() % 16 == 0
    if aligned and x.stride(0) == 1:
        return x.t()
    return transposed(x, -(-batch // ALIGNMENT) * ALIGNMENT)


def sorted_by_task(x: Tensor, groups: Groups) -> Tensor:
    """``x [batch, features]`` as ``[features, slots]``, zeros at the padding."""
    return transposed(x, groups.slots, groups.slot_row)


def transposed(x: Tensor, slots: int, slot_row: Tensor | None = None) -> Tensor:
    """``x [batch, features]`` as ``[features, slots]``: its rows in turn or as ``slot_row`` says, zeros behind them."""
    batch, features = x.shape
    out = x.new_empty(features, slots)
    if out.numel():
        grid = (triton.cdiv(slots, _TILE), triton.cdiv(features, _TILE))
        _transpose[grid](
            x, slot_row, out, batch, features, slots, x.stride(0), x.stride(1),
            SORTED=slot_row is not None, TILE=_TILE,
        )  # fmt: skip
    return out


def in_batch_order(y: Tensor, groups: Groups, batch: int) -> Tensor:
    """``y [features, slots]`` of sorted rows as ``[batch, features]``."""
    features, slots = y.shape
    out = y.new_empty(batch, features)
    if out.numel():
        grid = (triton.cdiv(slots, _TILE), triton.cdiv(features, _TILE))
        _untranspose[grid](y, groups.slot_row, out, features, slots, TILE=_TILE)
    return out


def group_rows(task_of_row: Tensor, tasks: int, block: int) -> Groups:
    """Sort the rows of a batch by task, stable, with no word from the device to the host.

    Args:
        task_of_row: int ``[batch]``; rows whose task is not in ``[0, tasks)`` come last, as task ``tasks``.
        tasks: number of tasks.
        block: slots that belong to one task together.
    """
    batch = task_of_row.shape[0]
    # One block per task may be partly filled, and one of rows without a task.
    blocks = batch // block + min(tasks + 1, batch)
    device = task_of_row.device
    slot_row = torch.empty(blocks * block, dtype=torch.int32, device=device)
    block_task = torch.empty(blocks, dtype=torch.int32, device=device)
    first_slot = torch.empty(tasks + 1, dtype=torch.int32, device=device)
    padded = triton.next_power_of_2(tasks + 1)
    _group[(tasks + 2,)](
        task_of_row.contiguous(), slot_row, block_task, first_slot, batch, tasks, blocks,
        BLOCK=block, TASKS=padded, LANES=max(16, min(1024, 8192 // padded)),
    )  # fmt: skip
    return Groups(slot_row, block_task, first_slot)


@triton.jit
def _transpose(
    x, slot_row, out, batch, features, slots, stride_row, stride_col, SORTED: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """One TILE x TILE block per program, through shared memory."""
    slot = tl.program_id(0) * TILE + tl.arange(0, TILE)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    if SORTED:
        row = tl.load(slot_row + slot, mask=slot < slots, other=-1)
        real = row >= 0
    else:
        row = slot
        real = slot < batch
    source = x + row.to(tl.int64)[:, None] * stride_row + feature.to(tl.int64)[None, :] * stride_col
    value = tl.load(source, mask=real[:, None] & (feature < features)[None, :], other=0.0)
    target = out + feature.to(tl.int64)[:, None] * slots + slot[None, :]
    tl.store(target, tl.trans(value), mask=(feature < features)[:, None] & (slot < slots)[None, :])


@triton.jit
def _untranspose(y, slot_row, out, features, slots, TILE: tl.constexpr):
    """One TILE x TILE block per program: what `_transpose` does with a sorted batch, led back."""
    slot = tl.program_id(0) * TILE + tl.arange(0, TILE)
    feature = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = tl.load(slot_row + slot, mask=slot < slots, other=-1)
    source = y + feature.to(tl.int64)[:, None] * slots + slot[None, :]
    value = tl.load(source, mask=(feature < features)[:, None] & (slot < slots)[None, :], other=0.0)
    target = out + row.to(tl.int64)[:, None] * features + feature[None, :]
    tl.store(target, tl.trans(value), mask=(row >= 0)[:, None] & (feature < features)[None, :])


@triton.jit
def _group(
    task_of_row, slot_row, block_task, first_slot, batch, tasks, blocks,
    BLOCK: tl.constexpr, TASKS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Program t places the rows of task t; the last program marks the blocks that nobody has."""
    mine = tl.program_id(0)
    task = tl.arange(0, TASKS)
    lane = tl.arange(0, LANES)
    counts = tl.zeros((TASKS,), tl.int32)
    for start in range(0, batch, LANES):
        given = _task_of(task_of_row, start + lane, batch, tasks)
        counts += tl.sum((given[:, None] == task[None, :]).to(tl.int32), axis=0)
    lengths = (counts + BLOCK - 1) // BLOCK
    first = tl.sum(tl.where(task < mine, lengths, 0), axis=0)
    length = tl.sum(tl.where(task == mine, lengths, 0), axis=0)
    if mine <= tasks:
        tl.store(first_slot + mine, first * BLOCK)
        for block in range(first, first + length):
            tl.store(block_task + block, mine)
        placed = first * BLOCK
        for start in range(0, batch, LANES):
            given = _task_of(task_of_row, start + lane, batch, tasks)
            match = given == mine
            rank = tl.cumsum(match.to(tl.int32), axis=0)
            tl.store(slot_row + placed + rank - 1, start + lane, mask=match)
            placed += tl.sum(match.to(tl.int32), axis=0)
        padding = placed + tl.arange(0, BLOCK)
        tl.store(slot_row + padding, tl.full((BLOCK,), -1, tl.int32), mask=padding < (first + length) * BLOCK)
    else:
        for block in range(first, blocks):
            tl.store(block_task + block, -1)
            tl.store(slot_row + block * BLOCK + tl.arange(0, BLOCK), tl.full((BLOCK,), -1, tl.int32))


@triton.jit
def _task_of(task_of_row, row, batch, tasks):
    """The task of each row: ``tasks`` if it is none of them, -1 behind the batch."""
    given = tl.load(task_of_row + row, mask=row < batch, other=0)
    given = tl.where((given < 0) | (given >= tasks), tasks, given).to(tl.int32)
    return tl.where(row < batch, given, -1)
