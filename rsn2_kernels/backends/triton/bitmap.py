"""Reading a plan's bitmaps inside a kernel."""

import triton
import triton.language as tl


@triton.jit
def owned_position(
    bits, starts, order, chunk, row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """Whether the places (row, column) of a chunk are owned, and where their values stand.

    Args:
        bits, starts, order: of the plan; ``order`` is read only if ORDERED.
        chunk: number of the chunk, int64.
        row, column: int32, broadcastable to one block.

    Returns:
        inside: int1 block.
        position: int32 block; 0 where not inside.
    """
    WORDS: tl.constexpr = (WIDTH + 31) // 32
    cell = (chunk * WORDS + column // 32) * HEIGHT + row
    bit = (column % 32).to(tl.uint32)
    word = tl.load(bits + cell).to(tl.uint32, bitcast=True)
    inside = ((word >> bit) & 1) != 0
    before = _popcount(word & ((1 << bit) - 1).to(tl.uint32))
    position = tl.load(starts + cell) + before.to(tl.int32)
    if ORDERED:
        position = tl.load(order + position, mask=inside, other=0)
    return inside, position


@triton.jit
def _popcount(word):
    """Number of ones in each uint32, by adding neighbours: runs in the interpreter too."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24
