"""Packed values to dense and back: whole weights for the vendor's library, tiles for the kernels beside this file."""

import triton
import triton.language as tl
from torch import Tensor

from rsn2_kernels.backends.triton.bitmap import owned_position
from rsn2_kernels.plan import Plan

_ROWS = 16


def expand(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The dense ``[rows, cols]`` weight of packed ``values [nnz]``."""
    rows = crow.shape[0] - 1
    dense = values.new_empty(rows, cols)
    _expand[(rows,)](values, crow, col, dense, cols, BLOCK=1024)
    return dense


def gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The packed values ``[nnz]`` of a dense ``[rows, cols]`` weight with any strides."""
    values = dense.new_empty(col.shape[0])
    _gather[(dense.shape[0],)](dense, crow, col, values, dense.stride(0), dense.stride(1), BLOCK=1024)
    return values


def expand_tiles(values: Tensor, plan: Plan, depth: int) -> Tensor:
    """The condensed windows, dense: ``[chunks * width / depth, height, depth]``, what one step of a product reads.

    Args:
        values: ``[nnz]``.
        plan: where they stand.
        depth: condensed columns per step, a divisor of the plan's width.
    """
    tiles = values.new_empty(plan.chunks * plan.width // depth, plan.height, depth)
    if plan.chunks:
        _expand_tiles[(plan.chunks, plan.height // _ROWS)](
            values, plan.bits, plan.starts, plan.order, tiles,
            HEIGHT=plan.height, WIDTH=plan.width, DEPTH=depth, ROWS=_ROWS, ORDERED=plan.order.shape[0] > 0,
        )  # fmt: skip
    return tiles


@triton.jit
def _expand(values, crow, col, dense, cols, BLOCK: tl.constexpr):
    """One row per program: zeros, then what is owned."""
    row = tl.program_id(0)
    target = dense + row.to(tl.int64) * cols
    lane = tl.arange(0, BLOCK)
    for start in range(0, cols, BLOCK):
        tl.store(target + start + lane, tl.zeros((BLOCK,), dense.dtype.element_ty), mask=start + lane < cols)
    # The zeros and the values are stored by different threads.
    tl.debug_barrier()
    first, last = tl.load(crow + row), tl.load(crow + row + 1)
    for start in range(first, last, BLOCK):
        owned = start + lane < last
        column = tl.load(col + start + lane, mask=owned, other=0)
        tl.store(target + column, tl.load(values + start + lane, mask=owned, other=0.0), mask=owned)


@triton.jit
def _gather(dense, crow, col, values, stride_row, stride_col, BLOCK: tl.constexpr):
    """One row per program."""
    row = tl.program_id(0)
    source = dense + row.to(tl.int64) * stride_row
    lane = tl.arange(0, BLOCK)
    first, last = tl.load(crow + row), tl.load(crow + row + 1)
    for start in range(first, last, BLOCK):
        owned = start + lane < last
        column = tl.load(col + start + lane, mask=owned, other=0).to(tl.int64)
        value = tl.load(source + column * stride_col, mask=owned, other=0.0)
        tl.store(values + start + lane, value, mask=owned)


@triton.jit
def _expand_tiles(
    values, bits, starts, order, tiles,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one chunk per program."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside, position = owned_position(bits, starts, order, chunk, row, column, HEIGHT, WIDTH, ORDERED)
    value = tl.load(values + position, mask=inside, other=0.0)  # [ROWS, WIDTH]
    step = chunk * (WIDTH // DEPTH) + column // DEPTH
    tl.store(tiles + (step * HEIGHT + row) * DEPTH + column % DEPTH, value)
