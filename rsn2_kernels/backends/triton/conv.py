"""Convolution as an implicit product, channels last: the runs of channels that a window of filters owns, tap by tap.

The columns of a convolution's plan are counted tap by tap, each tap's channels padded to whole runs. So a chunk is one
run of channels at one tap: one wide load per pixel. The gradient of the input is the same product over the transposed
weight, with taps that lead back from a pixel to the outputs it took part in.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from rsn2_kernels.backends.triton.bitmap import owned_position
from rsn2_kernels.backends.triton.expansion import expand_tiles
from rsn2_kernels.backends.triton.gemm import activated, precision
from rsn2_kernels.backends.triton.schedule import (
    BLOCKS_TOGETHER,
    MULTIPROCESSORS,
    added,
    empty_parts,
    part_of,
    window_and_block,
)
from rsn2_kernels.backends.triton.sddmm import most_registers
from rsn2_kernels.geometry import ConvGeometry, Pair
from rsn2_kernels.plan import ROWS_TOGETHER, RUNS, Plan


class _Tiling(NamedTuple):
    block: int
    num_warps: int
    num_stages: int


def _tiling(dtype: torch.dtype, height: int) -> _Tiling:
    """Pixels per program, so few that several programs share a multiprocessor: their loops are short."""
    if dtype.itemsize > 2:
        return _Tiling(32 if height > 64 else 64, 8 if height >= 64 else 4, 2)
    # Measured on an H200 for windows of 64 rows (docs/gpu.md).
    return _Tiling(128, 8, 3) if height > 64 else _Tiling(64, 4, 2)


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    plan: Plan,
    rows: int,
    size: Pair,
    geometry: ConvGeometry,
    transposed: bool,
    activation: str = "none",
) -> Tensor:
    """The convolution, or with ``transposed`` the gradient of its input.

    Args:
        x: ``[N, C, H, W]``; read channels-last, copied if it is not.
        values: ``[nnz]``.
        bias: ``[groups * rows]`` or None.
        plan: one stack per group.
        rows: of the plan's weight, per group.
        size: height and width of the result.
        geometry: of the convolution.
        transposed: whether the plan is that of the transposed weight.

    Returns:
        ``[N, groups * rows, *size]`` in channels-last memory.
    """
    x = _channels_last(x, geometry.groups)
    images, height, width, channels = x.shape
    y = x.new_empty(images, *size, rows * geometry.groups)
    pixels = images * size[0] * size[1]
    tiles = expand_tiles(values, plan, plan.width)
    sizes = _tiling(x.dtype, plan.height)
    blocks = triton.cdiv(pixels, sizes.block)
    if blocks:
        _convolve[(blocks * plan.windows,)](
            x, tiles, bias, y, plan.columns, plan.first_chunk, plan.row_order,
            pixels, height, width, channels, channels // geometry.groups, *size, rows, plan.windows, blocks,
            plan.windows // geometry.groups, *_constants(geometry), geometry.groups,
            HEIGHT=plan.height, RUN=plan.width, BLOCK=sizes.block, TOGETHER=BLOCKS_TOGETHER,
            WHOLE=channels // geometry.groups % plan.width == 0, WHOLE_ROWS=rows % ROWS_TOGETHER == 0,
            BIAS=bias is not None, TRANSPOSED=transposed, ACTIVATION=activation, PRECISION=precision(x.dtype),
            num_warps=sizes.num_warps, num_stages=sizes.num_stages, maxnreg=most_registers(x.dtype),
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def sample_conv(dy: Tensor, x: Tensor, nnz: int, plan: Plan, geometry: ConvGeometry) -> Tensor:
    """The gradient of the packed values ``[nnz]``, the same bits in every run.

    Args:
        dy: ``[N, groups * rows, OH, OW]``; read channels-last, copied if it is not.
        x: ``[N, C, H, W]``, likewise.
        nnz: owned weights.
        plan: of the weight, one stack per group.
        geometry: of the convolution.
    """
    dy, x = _channels_last(dy, geometry.groups), _channels_last(x, geometry.groups)
    images, height, width, channels = x.shape
    pixels = images * dy.shape[1] * dy.shape[2]
    rows = dy.shape[3] // geometry.groups
    dvalues = empty_parts(x, nnz, plan.chunks, pixels, 2 * MULTIPROCESSORS)
    narrow = x.dtype.itemsize == 2
    if plan.chunks:
        _sample_conv[(plan.chunks, dvalues.shape[0])](
            dy, x, dvalues, plan.columns, plan.bits, plan.starts, plan.order, plan.row_order, plan.chunk_window,
            pixels, height, width, channels, channels // geometry.groups, dy.shape[1], dy.shape[2], rows, nnz,
            dvalues.shape[0], plan.windows // geometry.groups, *_constants(geometry), geometry.groups,
            HEIGHT=plan.height, RUN=plan.width, DEPTH=64 if narrow else 16,
            WHOLE=channels // geometry.groups % plan.width == 0,
            ORDERED=plan.order.shape[0] > 0, PRECISION=precision(x.dtype),
            num_warps=8 if plan.height > 64 else 4, num_stages=3 if narrow else 2, maxnreg=most_registers(x.dtype),
        )  # fmt: skip
    return added(dvalues, x.dtype)


def _channels_last(x: Tensor, groups: int) -> Tensor:
    """``x [N, C, H, W]`` as ``[N, H, W, C]``, the channels of each group padded with zeros to a multiple of 16.

    So every run starts at an aligned address. Not copied where ``x`` is channels-last and needs no padding.
    """
    x = x.permute(0, 2, 3, 1)
    missing = -(x.shape[3] // groups) % RUNS[0]
    if missing:
        x = F.pad(x.unflatten(3, (groups, -1)), (0, missing)).flatten(3)
    return x.contiguous()


def _constants(geometry: ConvGeometry) -> tuple[int, ...]:
    """Kernel width, then stride, padding and dilation, as the kernels take them."""
    return (geometry.kernel_size[1], *geometry.stride, *geometry.padding, *geometry.dilation)


@triton.jit
def _convolve(
    x, tiles, bias, y, columns, first_chunk, row_order,
    pixels, height, width, channels, per_group, out_height, out_width, rows, windows, blocks, windows_per_group,
    KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, GROUPS: tl.constexpr,
    HEIGHT: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
    WHOLE: tl.constexpr, WHOLE_ROWS: tl.constexpr, BIAS: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One window of filters and one block of output pixels per program; sums are [pixels, filters]."""
    window, block = window_and_block(tl.program_id(0), windows, blocks, TOGETHER)
    group = window // windows_per_group
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32

    pixel = block * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, HEIGHT)
    k = tl.arange(0, RUN)
    padded = tl.cdiv(per_group, RUN) * RUN
    first = tl.load(first_chunk + window)
    steps = tl.load(first_chunk + window + 1) - first
    tile = tiles + first.to(tl.int64) * (HEIGHT * RUN) + place[:, None] * RUN + k[None, :]
    columns += first.to(tl.int64) * RUN
    sums = tl.zeros((BLOCK, HEIGHT), SUM)
    # The column of a step is loaded one step ahead: the loads of the step wait for it.
    following = tl.load(columns, mask=steps > 0, other=0)
    for step in range(0, steps):
        column = following
        following = tl.load(columns + (step + 1) * RUN, mask=step + 1 < steps, other=0)
        source, inside = _source(
            pixel, column // padded, pixels, height, width, channels, out_height, out_width,
            KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, TRANSPOSED,
        )  # fmt: skip
        channel = tl.multiple_of(column % padded, RUN)
        taken = inside[:, None]
        if not WHOLE:
            taken = taken & (channel + k < per_group)[None, :]
        a = tl.load(x + (source + group * per_group)[:, None] + (channel + k)[None, :], mask=taken, other=0.0)
        b = tl.load(tile + step * (HEIGHT * RUN))  # [HEIGHT, RUN]
        sums = tl.dot(a, tl.trans(b), sums, input_precision=PRECISION, out_dtype=SUM)

    row = tl.load(row_order + window * HEIGHT + place)
    if WHOLE_ROWS:
        row = tl.max_contiguous(tl.multiple_of(row, 16), 16)
    inside_rows = row < rows
    if BIAS:
        sums += tl.load(bias + group * rows + row, mask=inside_rows, other=0.0).to(SUM)[None, :]
    sums = activated(sums, ACTIVATION)
    target = y + pixel.to(tl.int64)[:, None] * (rows * GROUPS) + (group * rows + row)[None, :]
    tl.store(target, sums.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None] & inside_rows[None, :])


@triton.jit
def _sample_conv(
    dy, x, dvalues, columns, bits, starts, order, row_order, chunk_window,
    pixels, height, width, channels, per_group, out_height, out_width, rows, nnz, parts, windows_per_group,
    KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, GROUPS: tl.constexpr,
    HEIGHT: tl.constexpr, RUN: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, ORDERED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk, a run of channels at one tap, and one part of the output pixels per program."""
    chunk = tl.program_id(0)
    part = tl.program_id(1)
    SUM: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    window = tl.load(chunk_window + chunk)
    group = window // windows_per_group
    place = tl.arange(0, HEIGHT)
    k = tl.arange(0, RUN)
    padded = tl.cdiv(per_group, RUN) * RUN
    column = tl.load(columns + chunk.to(tl.int64) * RUN)
    tap = column // padded
    channel = tl.multiple_of(column % padded, RUN)
    row = tl.max_contiguous(tl.multiple_of(tl.load(row_order + window * HEIGHT + place), 16), 16)

    start, end = part_of(0, pixels, part, parts, DEPTH)
    sums = tl.zeros((HEIGHT, RUN), SUM)
    for at in range(start, end, DEPTH):
        pixel = at + tl.arange(0, DEPTH)
        source, inside = _source(
            pixel, tap, end, height, width, channels, out_height, out_width,
            KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, False,
        )  # fmt: skip
        taken = inside[:, None]
        if not WHOLE:
            taken = taken & (channel + k < per_group)[None, :]
        b = tl.load(x + (source + group * per_group)[:, None] + (channel + k)[None, :], mask=taken, other=0.0)
        filters = dy + pixel.to(tl.int64)[:, None] * (rows * GROUPS) + (group * rows + row)[None, :]
        a = tl.load(filters, mask=(pixel < end)[:, None] & (row < rows)[None, :], other=0.0)  # [DEPTH, HEIGHT]
        sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION, out_dtype=SUM)

    owned, position = owned_position(
        bits, starts, order, chunk.to(tl.int64), place[:, None], k[None, :], HEIGHT, RUN, ORDERED
    )
    tl.store(dvalues + part.to(tl.int64) * nnz + position, sums.to(dvalues.dtype.element_ty), mask=owned)


@triton.jit
def _source(
    pixel, tap, pixels, height, width, channels, out_height, out_width,
    KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Where the channels begin that each result pixel sees through a tap, and whether it sees any.

    Results have out_height x out_width pixels, operands height x width.
    """
    image = pixel // (out_height * out_width)
    rest = pixel % (out_height * out_width)
    down = tap // KERNEL_W * DILATION_H
    right = tap % KERNEL_W * DILATION_W
    if TRANSPOSED:
        scaled_y = rest // out_width + PAD_H - down
        scaled_x = rest % out_width + PAD_W - right
        inside = (scaled_y >= 0) & (scaled_y % STRIDE_H == 0) & (scaled_x >= 0) & (scaled_x % STRIDE_W == 0)
        in_y = scaled_y // STRIDE_H
        in_x = scaled_x // STRIDE_W
    else:
        in_y = rest // out_width * STRIDE_H - PAD_H + down
        in_x = rest % out_width * STRIDE_W - PAD_W + right
        inside = (in_y >= 0) & (in_x >= 0)
    inside = inside & (in_y < height) & (in_x < width) & (pixel < pixels)
    return ((image.to(tl.int64) * height + in_y) * width + in_x) * channels, inside
