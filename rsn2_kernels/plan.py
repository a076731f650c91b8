"""Plan: which parts of a sparse weight the tensor cores visit, and where its packed values stand in them.

RSN2's masks are staircases: the rows of a weight, sorted by how many weights they own, fall into windows of neighbours
that own nearly the same columns. A window keeps the columns that any of its rows owns, side by side ("condensed"); the
rest of the matrix is never read. Measured on real masks, windows of count-sorted rows leave less to visit than tiles
of the matrix with rows and columns sorted (docs/plan.md).

The owned positions of a window are a bitmap over its condensed columns. The values of one row that fall into one
32-bit word of it are neighbours in the value order, so that (word, index of its first value) finds each of them.

Everything here is torch operators on the device of the mask: integers only, so the same plan everywhere.
"""

from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from rsn2_kernels.csr import row_of_each_value

HEIGHTS = (16, 32, 64, 128)
"""Rows per window that the kernels are written for."""

WIDTH = 128
"""Condensed columns per chunk of a linear plan."""

RUNS = (16, 32, 64)
"""Channels per run, and chunk, of a convolution's plan: 16 of 16 bits are the 32 bytes that a load brings at least."""

ROWS_TOGETHER = 16
"""Filters that stay neighbours in a convolution's windows, so that its result is written 32 bytes at a time."""

ALIGNMENT = 16
"""The rows of a feature-major operand start at multiples of this many elements, so that loads are wide."""

WORD = 32
_TALLEST = HEIGHTS[-1]
# Columns of the other operand that one program of the product holds, for the traffic per operation in `traffic`.
_ACROSS = 128


class Plan(NamedTuple):
    """The index tensors of one plan, all int32.

    A stack is one of several weights of one shape ``[rows, cols]`` that are multiplied in one launch: tasks, or the
    groups of a convolution. Window w of stack s is window ``s * ceil(rows / height) + w``.

    Attributes:
        row_order: ``[windows, height]``; the row of the stack at each place of a window, ``rows`` or more where none.
        used: ``[windows]``; condensed columns of each window.
        first_chunk: ``[windows + 1]``; its chunks of ``width`` condensed columns are ``first_chunk[w]`` to
            ``first_chunk[w + 1]``.
        chunk_window: ``[chunks]``; the window of each chunk.
        columns: ``[chunks, width]``; the column behind each condensed one, 0 behind the padding.
        bits: ``[chunks, words, height]``; bit b of word i is condensed column ``32 * i + b``.
        starts: ``[chunks, words, height]``; position, in row-major order of the owned weights of the stacks, of the
            first value in the word.
        order: ``[nnz]``; where the value at that position stands in the packed values. Empty where it is the same.
    """

    row_order: Tensor
    used: Tensor
    first_chunk: Tensor
    chunk_window: Tensor
    columns: Tensor
    bits: Tensor
    starts: Tensor
    order: Tensor

    @property
    def height(self) -> int:
        """Rows per window."""
        return self.row_order.shape[1]

    @property
    def width(self) -> int:
        """Condensed columns per chunk."""
        return self.columns.shape[1]

    @property
    def windows(self) -> int:
        """Windows of all stacks."""
        return self.row_order.shape[0]

    @property
    def chunks(self) -> int:
        """Chunks of all windows."""
        return self.columns.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the index tensors."""
        return sum(part.nbytes for part in self)

    @classmethod
    def build(cls, survey: "Survey", height: int | None = None) -> Self:
        """The plan of the owned positions that ``survey`` looked at.

        Args:
            survey: of the positions.
            height: rows per window, one of HEIGHTS; None for the cheapest.
        """
        height = survey.height if height is None else height
        width = WIDTH if survey.run == 1 else survey.run
        stacks, rows, _ = survey.shape
        # Windows behind the last row are cut off; what was counted up to there stays in order.
        per_stack = -(-rows // height)
        present = survey.present(height).unflatten(0, (stacks, -1))[:, :per_stack].flatten(0, 1)
        windows = present.shape[0]
        used = present.sum(1) * survey.run
        chunks = -(-used // width)
        first_chunk = torch.zeros(windows + 1, dtype=torch.int64, device=present.device)
        torch.cumsum(chunks, 0, out=first_chunk[1:])
        total = int(first_chunk[-1])
        chunk_window = torch.repeat_interleave(torch.arange(windows, device=present.device), chunks, output_size=total)

        # Where each run of columns of a window went: its place among the window's condensed columns.
        condensed = (torch.cumsum(present, 1) - 1) * survey.run
        columns = torch.zeros(total * width, dtype=torch.int32, device=present.device)
        window, run = present.nonzero().unbind(1)
        place = first_chunk[window] * width + condensed[window, run]
        within = torch.arange(survey.run, device=present.device)
        columns[(place[:, None] + within).flatten()] = (run[:, None] * survey.run + within).flatten().to(torch.int32)

        places = survey.row_order.shape[1]
        window = survey.slot // places * per_stack + survey.slot % places // height
        row = survey.slot % places % height
        at = condensed[window, survey.col // survey.run] + survey.col % survey.run
        chunk, at = first_chunk[window] + at // width, at % width
        words = -(-width // WORD)
        cell = (chunk * words + at // WORD) * height + row
        # Each bit is added once: the sum of one-bit numbers is their union.
        bits = torch.zeros(total * words * height, dtype=torch.int64, device=present.device)
        bits.index_add_(0, cell, 1 << (at % WORD))
        position = torch.arange(survey.nnz, dtype=torch.int32, device=present.device)
        starts = torch.zeros(total * words * height, dtype=torch.int32, device=present.device)
        starts.scatter_reduce_(0, cell, position, "amin", include_self=False)
        shape = (total, words, height)
        return cls(
            survey.row_order[:, : per_stack * height].contiguous().view(-1, height),
            used.to(torch.int32),
            first_chunk.to(torch.int32),
            chunk_window.to(torch.int32),
            columns.view(total, width),
            _as_int32(bits).view(shape),
            starts.view(shape),
            survey.order,
        )


class Survey:
    """The owned positions of stacked weights in the order of their windows, and what each window height would visit.

    Attributes:
        shape: ``(stacks, rows, cols)``.
        run: columns that are kept or left out together; the kernels read them with one wide load.
        row_order: int32 ``[stacks, places]``, rows by falling count, padded to a multiple of the tallest window.
        slot: int64 ``[nnz]``; where in ``row_order``, flattened, the row of each owned position stands.
        col: int64 ``[nnz]``; its column.
        order: int32 ``[nnz]``, or empty; see :attr:`Plan.order`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        row: Tensor,
        col: Tensor,
        order: Tensor | None = None,
        run: int = 1,
        rows_together: int = 1,
    ):
        """Look at owned positions given in row-major order.

        Args:
            shape: ``(stacks, rows, cols)``.
            row: int ``[nnz]``, ``stack * rows + row``, ascending.
            col: int ``[nnz]``, ascending within a row.
            order: int32 ``[nnz]``, where the value of each stands; None if they stand in this order.
            run: see the class; a divisor of ``cols`` is not needed, the last run is cut short.
            rows_together: neighbouring rows that stay neighbours; a divisor of the smallest window.
        """
        stacks, rows, cols = shape
        device = row.device
        places = -(-rows // _TALLEST) * _TALLEST
        row = row.to(torch.int64)
        counts = torch.zeros(stacks, places, dtype=torch.int64, device=device)
        local = row // rows * places + row % rows
        counts.view(-1).index_add_(0, local, torch.ones_like(local))
        # Padding rows come last even behind rows that own nothing.
        counts[:, rows:] = -1
        together = counts.view(stacks, -1, rows_together).sum(2)
        ranked = together.argsort(dim=1, descending=True, stable=True)
        within = torch.arange(rows_together, device=device)
        row_order = (ranked[:, :, None] * rows_together + within).view(stacks, places)
        place = torch.empty_like(row_order)
        place.scatter_(1, row_order, torch.arange(places, device=device).expand(stacks, places))
        self.shape = shape
        self.run = run
        self.row_order = row_order.to(torch.int32)
        self.slot = (place + places * torch.arange(stacks, device=device)[:, None]).flatten()[local]
        self.col = col.to(torch.int64)
        self.order = torch.empty(0, dtype=torch.int32, device=device) if order is None else order
        smallest = HEIGHTS[0]
        self._present = torch.zeros(stacks * places // smallest, -(-cols // run), dtype=torch.bool, device=device)
        self._present[self.slot // smallest, self.col // run] = True

    @property
    def nnz(self) -> int:
        """Owned positions."""
        return self.col.shape[0]

    def present(self, height: int) -> Tensor:
        """Bool ``[windows, runs]``: the runs of columns in which a row of the window owns a weight."""
        return self._present.view(-1, height // HEIGHTS[0], self._present.shape[1]).any(1)

    @cached_property
    def visited(self) -> dict[int, int]:
        """Positions that windows of each height visit, over all stacks; one transfer to the host."""
        counts = [self.present(height).sum() * (self.run * height) for height in HEIGHTS]
        return dict(zip(HEIGHTS, torch.stack(counts).tolist(), strict=True))

    @property
    def height(self) -> int:
        """The window height that costs least, the tallest of equals."""
        return min(reversed(HEIGHTS), key=lambda height: self.visited[height] * traffic(height))

    @property
    def cost(self) -> float:
        """Operand elements that a product with one column moves, and as much again per step for runs of 16."""
        overhead = 1.0 if self.run == 1 else 1 + RUNS[0] / self.run
        return self.visited[self.height] * traffic(self.height) * overhead


def traffic(height: int) -> float:
    """Operand elements that a tile of ``height`` by 128 reads per multiplication: what bounds a tile that is too low.

    A step over k reads ``(height + 128) k`` elements for ``128 height k`` multiplications, through the second-level
    cache. On an H200, windows of 64, 32 and 16 rows took 1.4, 2.4 and 4.4 times as long per visited position as those
    of 128; this says 1.5, 2.5 and 4.5.
    """
    return 1 / height + 1 / _ACROSS


def survey_linear(stacks: int, crow: Tensor, col: Tensor, cols: int, order: Tensor | None = None) -> Survey:
    """Look at weights ``[rows, cols]`` stacked in one row-major (CSR) index.

    Args:
        stacks: how many.
        crow: int32 ``[stacks * rows + 1]``.
        col: int32 ``[nnz]``.
        cols: of each weight.
        order: where the value of each owned weight stands, if not in row-major order.
    """
    return Survey((stacks, (crow.shape[0] - 1) // stacks, cols), row_of_each_value(crow, col), col, order)


def survey_conv(crow: Tensor, col: Tensor, cols: int, taps: int, groups: int, transposed: bool) -> Survey:
    """Look at the filters of a convolution, one stack per group, with their columns counted tap by tap.

    The runs are as long as costs least; the channels of every tap are padded to whole runs.

    Args:
        crow: int32 ``[rows + 1]``.
        col: int32 ``[nnz]``; channel times ``taps`` plus tap.
        cols: of the weight.
        taps: positions of the kernel.
        groups: of the convolution.
        transposed: look at the weight whose rows are the channels, and whose columns are the filters of every tap.
    """
    filters, channels = (crow.shape[0] - 1) // groups, cols // taps
    row, col = row_of_each_value(crow, col).to(torch.int64), col.to(torch.int64)
    group, row, channel, tap = row // filters, row % filters, col // taps, col % taps
    rows, per_tap = (channels, filters) if transposed else (filters, channels)
    row, within_tap = (channel, row) if transposed else (row, channel)
    # Every way of sorting by run sorts by tap and channel.
    order = torch.argsort((group * rows + row) * cols * filters + tap * per_tap + within_tap)

    def with_runs_of(run: int) -> Survey:
        padded = -(-per_tap // run) * run
        key = (tap * padded + within_tap)[order]
        shape = (groups, rows, taps * padded)
        return Survey(shape, (group * rows + row)[order], key, order.to(torch.int32), run, ROWS_TOGETHER)

    surveys = [with_runs_of(run) for run in RUNS if run < 2 * max(per_tap, RUNS[0])]
    return min(surveys, key=lambda survey: survey.cost)


def _as_int32(words: Tensor) -> Tensor:
    """The low 32 bits of non-negative int64 numbers below 2**32, as int32 of the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
