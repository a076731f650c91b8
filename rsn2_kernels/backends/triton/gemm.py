"""The product of a sparse weight with a feature-major batch: dense tiles of the windows, and nothing between them.

Each program holds one window of the weight's rows and one block of the batch. A step takes `depth` condensed columns:
their tile of the weight, and of the operand the rows those columns point to.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsn2_kernels.backends.triton.expansion import expand_tiles
from rsn2_kernels.backends.triton.layout import Groups
from rsn2_kernels.backends.triton.schedule import BLOCKS_TOGETHER, window_and_block
from rsn2_kernels.plan import ALIGNMENT, Plan


class Tiling(NamedTuple):
    """Sizes of one program: ``block`` slots of the batch, ``depth`` condensed columns a step, and its launch."""

    block: int
    depth: int
    num_warps: int
    num_stages: int


def tiling(dtype: torch.dtype, height: int, batch: int, plain: bool) -> Tiling:
    """The tiles of a product: as wide as the batch and the registers allow, which the compile tests check.

    Of 16-bit tiles, 128 x 128 float32 sums in three stages are 96 KiB: two programs share a multiprocessor of compute
    capability 9.0. Measured on an H200, that was faster than 128 x 256 sums or more stages, which leave room for one
    (docs/gpu.md). float32 without TF32 runs on the ordinary cores, where 64 columns do, or half of it where erf or
    unaligned results (not ``plain``) take registers too.
    """
    at_least = max(16, triton.next_power_of_2(batch))
    if dtype.itemsize > 2:
        block = min(64 if plain else 32, at_least)
        return Tiling(block, 32, 8 if height * block >= 64 * 128 else 4, 3)
    block = min(128, at_least)
    return Tiling(block, 64, 4 if plain or height * block < 128 * 128 else 8, 3)


def multiply(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    plan: Plan,
    rows: int,
    batch: int,
    activation: str = "none",
    groups: Groups | None = None,
    without_task: float = 0.0,
) -> Tensor:
    """``activation(W @ x + bias)``, feature-major.

    Args:
        x: ``[cols, slots]``, rows of aligned addresses; see `layout.py`.
        values: ``[nnz]``.
        bias: ``[stacks, rows]`` or None.
        plan: of the weight; one stack without ``groups``, one per task with them.
        rows: of the weight.
        batch: columns of the result; all slots, with ``groups``.
        activation: "none", "relu" or "gelu" (with erf).
        groups: which task each block of slots belongs to.
        without_task: what stands in the columns of slots that have no task.

    Returns:
        ``[rows, batch]``.
    """
    slots = x.shape[1]
    y = x.new_empty(rows, batch)
    # Slots of a block have one task.
    together = slots if groups is None else slots // max(1, groups.block_task.shape[0])
    # Rows of the result that start unaligned are written element by element, which takes registers too.
    sizes = tiling(x.dtype, plan.height, together, plain=activation != "gelu" and batch % ALIGNMENT == 0)
    tiles = expand_tiles(values, plan, sizes.depth)
    blocks = triton.cdiv(slots, sizes.block) if sizes.block else 0
    windows = triton.cdiv(rows, plan.height)
    if blocks:
        _multiply[(blocks * windows,)](
            x, tiles, bias, y, plan.columns, plan.used, plan.first_chunk, plan.row_order,
            None if groups is None else groups.block_task,
            slots, x.stride(0), batch, rows, windows, plan.windows // windows, blocks, without_task,
            HEIGHT=plan.height, WIDTH=plan.width, BLOCK=sizes.block, DEPTH=sizes.depth, TOGETHER=BLOCKS_TOGETHER,
            BIAS=bias is not None, GROUPED=groups is not None, ACTIVATION=activation, PRECISION=precision(x.dtype),
            num_warps=sizes.num_warps, num_stages=sizes.num_stages,
            # Left alone, ptxas stops at 64 registers for TF32 on compute capability 10.0, and spills.
            maxnreg=240 if precision(x.dtype) == "tf32" else None,
        )  # fmt: skip
    return y


def precision(dtype: torch.dtype) -> str:
    """How the tensor cores may take float32: exactly, unless torch allows TF32 for its own products."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


@triton.jit
def _multiply(
    x, tiles, bias, y, columns, used, first_chunk, row_order, block_task,
    slots, pitch, batch, rows, windows, tasks, blocks, without_task,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr,
    BIAS: tl.constexpr, GROUPED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    window, block = window_and_block(tl.program_id(0), windows, blocks, TOGETHER)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32

    task = 0
    has_task = True
    if GROUPED:
        task = tl.load(block_task + block)
        if task < 0:
            return
        has_task = task < tasks
        # Rows without a task take the windows of the first one, for where they write.
        task = tl.where(has_task, task, 0)
        window += task * windows

    slot = block * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, HEIGHT)
    k = tl.arange(0, DEPTH)
    first = tl.load(first_chunk + window).to(tl.int64)
    steps = tl.cdiv(tl.load(used + window), DEPTH)
    tile = tiles + first * (HEIGHT * WIDTH) + place[:, None] * DEPTH + k[None, :]
    column = columns + first * WIDTH + k
    operand = x + slot[None, :]
    sums = tl.zeros((HEIGHT, BLOCK), SUM)
    # The columns of a step are loaded one step ahead: the loads of the step wait for them.
    following = tl.load(column, mask=k < steps * DEPTH, other=0)
    for step in range(0, steps):
        source = following.to(tl.int64)  # [DEPTH]
        following = tl.load(column + (step + 1) * DEPTH, mask=(step + 1) * DEPTH + k < steps * DEPTH, other=0)
        a = tl.load(tile + step * (HEIGHT * DEPTH))  # [HEIGHT, DEPTH]
        b = tl.load(operand + source[:, None] * pitch, mask=(slot < slots)[None, :], other=0.0)  # [DEPTH, BLOCK]
        sums = tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=SUM)

    row = tl.load(row_order + window * HEIGHT + place)
    inside = row < rows
    if BIAS:
        sums += tl.load(bias + task * rows + row, mask=inside, other=0.0).to(SUM)[:, None]
    sums = activated(sums, ACTIVATION)
    if GROUPED:
        sums = tl.where(has_task, sums, without_task)
    where = y + row.to(tl.int64)[:, None] * batch + slot[None, :]
    tl.store(where, sums.to(y.dtype.element_ty), mask=inside[:, None] & (slot < batch)[None, :])


@triton.jit
def activated(sums, ACTIVATION: tl.constexpr):
    """The activation of a block of sums: "none", "relu" or "gelu"."""
    if ACTIVATION == "relu":
        # NaN stays NaN, as in torch.
        sums = tl.where(sums < 0, 0.0, sums)
    if ACTIVATION == "gelu":
        sums = 0.5 * sums * (1 + tl.erf(sums * 0.7071067811865476))
    return sums
