"""Compact: the owned positions of a weight in as few bits as a small-batch product can read at full speed.

With a small batch a product takes as long as the bytes of its weight take to arrive, so what counts is the bits per
position of the matrix. A row is cut into segments of 256 columns; one pointer per segment says where its values begin.
Within a segment, a weight is either one byte, its column there, or one bit of a bitmap: bytes cost 8 bits per owned
weight, the bitmap 1 bit per position, and the cheaper of the two is taken (bytes below density 1/8).
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from rsn2_kernels.csr import CsrIndex, row_of_each_value

SEGMENT = 256
"""Columns of a segment: as many as one byte tells apart."""

WORD_BITS = 32
_WORDS = SEGMENT // WORD_BITS


class Compact(NamedTuple):
    """The index tensors of a compact weight, of one matrix or of several stacked.

    Attributes:
        starts: int32 ``[stacks * rows * segments + 1]``; where the values of each segment of each row begin.
        positions: uint8 ``[nnz]``, the column of each value within its segment; or int32
            ``[stacks * rows * segments * 8]``, where bit ``c % 32`` of word ``c // 32`` of a row tells whether column c
            is owned, 0 past the last column.
    """

    starts: Tensor
    positions: Tensor

    @classmethod
    def of(cls, weight: CsrIndex) -> Self:
        """The compact form of a pattern or group, on its device, without waiting for the device."""
        rows, cols = weight.shape
        segments = segments_per_row(cols)
        cells = weight.stacks * rows * segments
        column = weight.col
        segment = row_of_each_value(weight.crow, column).to(torch.int64) * segments + column // SEGMENT
        bounds = torch.arange(cells + 1, device=column.device)
        starts = torch.searchsorted(segment, bounds, out_int32=True)
        if takes_bytes(weight):
            return cls(starts, (column % SEGMENT).to(torch.uint8))
        words = torch.zeros(cells * _WORDS, dtype=torch.int32, device=column.device)
        word = segment * _WORDS + column % SEGMENT // WORD_BITS
        bit = torch.ones_like(column) << (column % WORD_BITS)
        # Different bits: their sum is their union, in any order.
        return cls(starts, words.index_add_(0, word, bit))


def segments_per_row(cols: int) -> int:
    """Segments that hold ``cols`` columns."""
    return -(-cols // SEGMENT)


def takes_bytes(weight: CsrIndex) -> bool:
    """Whether a byte per owned weight is less than a bit per position."""
    rows, cols = weight.shape
    return 8 * weight.nnz < weight.stacks * rows * segments_per_row(cols) * SEGMENT


def compact_bits(weight: CsrIndex, value_bits: int = 16) -> float:
    """Bits that a product reads per position of the matrices, those of the values included."""
    rows, cols = weight.shape
    cells = weight.stacks * rows * segments_per_row(cols)
    positions = 8 * weight.nnz if takes_bytes(weight) else cells * SEGMENT
    return (value_bits * weight.nnz + positions + 32 * (cells + 1)) / (weight.stacks * rows * cols)
