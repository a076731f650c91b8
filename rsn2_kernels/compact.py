"""Compact: the owned positions of a weight in as few bits as a small-batch product can read at full speed.

With a small batch a product takes as long as the bytes of its weight take to arrive, so what counts is the bits per
owned weight. Eight neighbouring ones, in the order of the values, are an octet: 16 bits say where its first one stands,
a byte each how many columns further the others do. Where they are further than a byte tells, or of two rows, the
columns of the pattern are read instead.

A bitmap would take fewer bits above density 1/8, and the kernel that read one was slower than this one's (docs/gpu.md):
the values that a thread meets in its part of a bitmap are no whole load, and differ in number from thread to thread.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rsn2_kernels.csr import CsrIndex, row_of_each_value

SEGMENT = 256
"""Columns of a segment: a product takes its weights up to where one of them begins."""

OCTET = 8
"""Weights of an octet."""


class Compact(NamedTuple):
    """The index tensors of a compact weight, of one matrix or of several stacked; beside them the pattern's columns.

    Attributes:
        starts: int32 ``[stacks * rows * segments + 1]``; where the values of each segment of each row begin.
        bases: int16 ``[octets]``; the last 16 bits of the column of each octet's first weight.
        offsets: uint8 ``[octets * 8]``; how many columns further each weight stands, 0 for the first of an octet, and
            for what fills up the last one. In an octet whose columns are not told, the first is not 0.
    """

    starts: Tensor
    bases: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, weight: CsrIndex) -> Self:
        """The compact form of a pattern or group, on its device, without waiting for the device."""
        rows, cols = weight.shape
        segments = segments_per_row(cols)
        column = weight.col
        segment = row_of_each_value(weight.crow, column).to(torch.int64) * segments + column // SEGMENT
        bounds = torch.arange(weight.stacks * rows * segments + 1, device=column.device)
        starts = torch.searchsorted(segment, bounds, out_int32=True)
        filled = F.pad(column, (0, -weight.nnz % OCTET), value=-1).view(-1, OCTET)
        bases = filled[:, :1]
        offsets = torch.where(filled < 0, 0, filled - bases)
        far = ((offsets < 0) | (offsets >= 256)).any(1)
        offsets[:, 0] = far
        return cls(starts, bases.flatten().to(torch.int16), offsets.to(torch.uint8).flatten())


def segments_per_row(cols: int) -> int:
    """Segments that hold ``cols`` columns."""
    return -(-cols // SEGMENT)


def compact_bits(weight: CsrIndex, value_bits: int = 16) -> float:
    """Bits that a product reads per position of the matrices, those of the values included."""
    rows, cols = weight.shape
    of_rows = 2 * 32 * weight.stacks * rows
    return ((value_bits + 8 + 16 / OCTET) * weight.nnz + of_rows) / (weight.stacks * rows * cols)
