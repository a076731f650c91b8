"""The gradient of the packed values: dy @ x.T at the owned positions, written straight into the packed order.

One program per chunk of a window (and part of the batch): a dense product of the window's rows with the chunk's
columns, of which the owned entries are kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsn2_kernels.backends.triton.bitmap import owned_position
from rsn2_kernels.backends.triton.gemm import precision
from rsn2_kernels.backends.triton.layout import Groups
from rsn2_kernels.backends.triton.schedule import MULTIPROCESSORS, added, empty_parts, part_of
from rsn2_kernels.plan import Plan


def most_registers(dtype: torch.dtype) -> int | None:
    """A limit that keeps ptxas from stopping at 80 registers and spilling, as it does for some float32 tiles."""
    return None if dtype.itemsize == 2 else 240


def sample(dy: Tensor, x: Tensor, nnz: int, plan: Plan, groups: Groups | None = None) -> Tensor:
    """The owned entries of ``dy @ x.T``, packed ``[nnz]``, the same bits in every run.

    Args:
        dy: ``[rows, slots]``, feature-major; zeros at padding slots of one of the two.
        x: ``[cols, slots]``, likewise.
        nnz: owned weights of all stacks.
        plan: of the weight; with ``groups`` one stack per task.
        groups: which slots belong to which task.
    """
    rows, slots = dy.shape
    # One program fits on a multiprocessor. Parts cost more than a second wave saves.
    dvalues = empty_parts(x, nnz, plan.chunks, slots, MULTIPROCESSORS)
    narrow = x.dtype.itemsize == 2
    if plan.chunks:
        _sample[(plan.chunks, dvalues.shape[0])](
            dy, x, dvalues, plan.columns, plan.bits, plan.starts, plan.order, plan.row_order, plan.chunk_window,
            None if groups is None else groups.first_slot,
            slots, dy.stride(0), x.stride(0), rows, nnz, triton.cdiv(rows, plan.height), dvalues.shape[0],
            HEIGHT=plan.height, WIDTH=plan.width, DEPTH=64 if narrow else 16, GROUPED=groups is not None,
            ORDERED=plan.order.shape[0] > 0, PRECISION=precision(x.dtype),
            num_warps=8 if plan.height * plan.width >= 64 * 128 else 4, num_stages=5 if narrow else 2,
            maxnreg=most_registers(x.dtype),
        )  # fmt: skip
    return added(dvalues, x.dtype)


@triton.jit
def _sample(
    dy, x, dvalues, columns, bits, starts, order, row_order, chunk_window, first_slot,
    slots, pitch_dy, pitch_x, rows, nnz, windows, parts,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, GROUPED: tl.constexpr, ORDERED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    part = tl.program_id(1)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    window = tl.load(chunk_window + chunk)
    place = tl.arange(0, HEIGHT)
    at = tl.arange(0, WIDTH)
    # Places without a row own nothing; they read any row.
    row = tl.minimum(tl.load(row_order + window * HEIGHT + place), rows - 1)
    column = tl.load(columns + chunk * WIDTH + at)

    start = 0
    end = slots
    if GROUPED:
        task = window // windows
        # Every task starts at a multiple of layout.ALIGNMENT.
        start = tl.multiple_of(tl.load(first_slot + task), 16)
        end = tl.multiple_of(tl.load(first_slot + task + 1), 16)
    start, end = part_of(start, end, part, parts, DEPTH)

    k = tl.arange(0, DEPTH)
    left = dy + row.to(tl.int64)[:, None] * pitch_dy + k[None, :]
    right = x + column.to(tl.int64)[:, None] * pitch_x + k[None, :]
    sums = tl.zeros((HEIGHT, WIDTH), SUM)
    for slot in range(start, end, DEPTH):
        inside = (slot + k < end)[None, :]
        a = tl.load(left + slot, mask=inside, other=0.0)  # [HEIGHT, DEPTH]
        b = tl.load(right + slot, mask=inside, other=0.0)  # [WIDTH, DEPTH]
        sums = tl.dot(a, tl.trans(b), sums, input_precision=PRECISION, out_dtype=SUM)

    owned, position = owned_position(
        bits, starts, order, chunk.to(tl.int64), place[:, None], at[None, :], HEIGHT, WIDTH, ORDERED
    )
    target = dvalues + part.to(tl.int64) * nnz + position
    tl.store(target, sums.to(dvalues.dtype.element_ty), mask=owned)
