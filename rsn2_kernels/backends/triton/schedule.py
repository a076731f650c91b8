"""Which part of a product each program takes: windows and blocks of the batch, or chunks and parts of the batch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS_TOGETHER = 8
"""Blocks of the batch that programs in flight together share: eight of 256 bf16 rows of 4096 features are 16 MiB, so
that the operand stays in a second-level cache of 50 MB while all windows pass over it."""

MULTIPROCESSORS = 132
"""Of a large GPU, an H200: programs to have at least."""

# The least batch that is worth a part.
_SHORTEST_PART = 512


def parts_of(chunks: int, batch: int, programs: int) -> int:
    """How many parts of the batch are summed apart, so that few chunks still make about so many programs."""
    return max(1, min(programs // max(1, chunks), batch // _SHORTEST_PART))


def empty_parts(x: Tensor, nnz: int, chunks: int, batch: int, programs: int) -> Tensor:
    """Room for the value gradients of each part of the batch, ``[parts, nnz]``."""
    parts = parts_of(chunks, batch, programs)
    # Parts are added in the type the sums are taken in.
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(parts, nnz, dtype=x.dtype if parts == 1 else wide)


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The value gradients ``[nnz]`` of all parts of the batch, in a fixed order."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0).to(dtype)


@triton.jit
def window_and_block(program, windows, blocks, TOGETHER: tl.constexpr):
    """Windows from the fullest to the emptiest, each over TOGETHER blocks before the next window begins."""
    leading = program // (TOGETHER * windows) * TOGETHER
    together = tl.minimum(blocks - leading, TOGETHER)
    rest = program % (TOGETHER * windows)
    return rest // together, leading + rest % together


@triton.jit
def part_of(start, end, part, parts, DEPTH: tl.constexpr):
    """The part of ``start`` to ``end`` that one of ``parts`` programs takes, in whole steps of DEPTH."""
    length = tl.cdiv(tl.cdiv(end - start, DEPTH), parts) * DEPTH
    first = start + part * length
    return first, tl.minimum(end, first + length)
