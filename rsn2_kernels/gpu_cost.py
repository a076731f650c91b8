"""Predicted seconds of one product on an NVIDIA GPU: bytes over bandwidth plus operations over rate.

The constants are those of an H200. What decides between backends is their ratio, which differs less from chip to chip.
"""

from typing import NamedTuple

import torch

from rsn2_kernels.compact import compact_bits
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.plan import Survey, traffic

# Measured on an H200: a copy moves 4.3 TB/s, and the vendor's bf16 product of large matrices runs at 790 TFLOP/s. The
# float32 rate is the vendor's figure, not measured here.
_BYTES_PER_SECOND = 4.3e12
_FLOPS_PER_SECOND = {torch.bfloat16: 790e12, torch.float16: 790e12, torch.float32: 67e12}
# A launch in a stream that is never empty.
_SECONDS_PER_LAUNCH = 3e-6
# Rate of the kernels over that of the vendor's library on the same work, for windows of 128 rows. No GPU has run them
# yet: an assumption, to be replaced by what the GPU check measures.
_SHARE_OF_DENSE = 0.6

# The kernels for small batches, by counting the cycles of shared memory that they need at 1.75 GHz on 132
# multiprocessors; no GPU has run them yet. They are assumed to read at this share of a copy's rate, ...
_SHARE_OF_COPY = 0.7
# ... to look up x for so many owned weights a second, up to 4 rows of the batch at a time, ...
_LOOKUPS_PER_SECOND = 1.8e12
# ... or on the tensor cores to clear and multiply tiles of so many positions, and to scatter so many owned weights.
_TILE_POSITIONS_PER_SECOND = 6.5e12
_SCATTERED_PER_SECOND = 3e12
# where a warp's own products, which all chips since 8.0 have, run at this many operations a second.
_TILE_FLOPS_PER_SECOND = 300e12
_ROWS_PER_TILE = 128

DTYPES = tuple(_FLOPS_PER_SECOND)


class Visits(NamedTuple):
    """What a plan would make the kernels do, in numbers.

    Attributes:
        stacks: weights of one shape that are multiplied together: tasks, or the groups of a convolution.
        rows, cols: of each.
        taps: positions of a convolution's kernel that share an operand element, else 1.
        nnz: owned positions.
        visited: positions in condensed windows.
        height: rows per window.
    """

    stacks: int
    rows: int
    cols: int
    taps: int
    nnz: int
    visited: int
    height: int

    @classmethod
    def of(cls, survey: Survey, cols: int, taps: int = 1) -> "Visits":
        """The numbers of a survey, at the height that costs least."""
        stacks, rows, _ = survey.shape
        return cls(stacks, rows, cols, taps, survey.nnz, survey.visited[survey.height], survey.height)

    @property
    def occupancy(self) -> float:
        """Positions visited over all positions."""
        return self.visited / (self.stacks * self.rows * self.cols)

    @property
    def operands(self) -> float:
        """Elements of operand and result per column of the batch."""
        return self.stacks * (self.rows + self.cols / self.taps)


def dense_seconds(visits: Visits, batch: int, dtype: torch.dtype, launches: int = 2) -> float:
    """Expand every weight, then the vendor's product.

    Args:
        visits: of the weight.
        batch: columns that each stack is multiplied with.
        dtype: one of DTYPES.
        launches: kernels that run.
    """
    weights = visits.stacks * visits.rows * visits.cols
    elements = visits.nnz + 2 * weights + visits.operands * batch
    moved = elements * dtype.itemsize + visits.nnz * 4
    return _seconds(launches, moved, 2 * weights * batch / _FLOPS_PER_SECOND[dtype])


def visiting_seconds(visits: Visits, batch: int, dtype: torch.dtype, feature_major: bool = False) -> float:
    """Expand the windows, lay the operand out for the kernels, then the product over the windows.

    Args:
        visits: of the weight.
        batch: columns that each stack is multiplied with.
        dtype: one of DTYPES.
        feature_major: whether the operand has its layout already.
    """
    laid_out = 0 if feature_major else 2 * visits.stacks * visits.cols / visits.taps * batch
    # Each visited position is written once and read at least once, and has a bit and its share of a start.
    elements = visits.nnz + 2 * visits.visited + laid_out + visits.operands * batch
    moved = elements * dtype.itemsize + visits.visited / 4
    rate = _FLOPS_PER_SECOND[dtype] * _SHARE_OF_DENSE * traffic(128) / traffic(visits.height)
    return _seconds(2 if feature_major else 3, moved, 2 * visits.visited * batch / rate)


def compact_seconds(weight: CsrIndex, batch: int, dtype: torch.dtype, grouped: bool) -> float:
    """Read the compact weight, once for several rows of the batch, or grouped for each.

    Args:
        weight: a pattern or group.
        batch: rows of the batch, of all tasks together.
        dtype: one of DTYPES.
        grouped: whether each row has its own task.
    """
    rows, cols = weight.shape
    # Each row of a grouped batch reads its own matrix.
    share = 1 / weight.stacks if grouped else 1
    nnz, positions = share * weight.nnz, share * weight.stacks * rows * cols
    bits = compact_bits(weight, 8 * dtype.itemsize)
    tiles = not grouped and dtype.itemsize == 2 and batch > 8
    if tiles:
        readings = -(-batch // _ROWS_PER_TILE)
        computing = readings * (positions / _TILE_POSITIONS_PER_SECOND + nnz / _SCATTERED_PER_SECOND)
        computing += 2 * positions * batch / _TILE_FLOPS_PER_SECOND
    else:
        at_a_time = 1 if grouped else 8
        readings = -(-batch // at_a_time)
        lookups = readings if grouped or batch == 1 else -(-batch * dtype.itemsize // 8)
        computing = lookups * nnz / _LOOKUPS_PER_SECOND
    moved = readings * positions * bits / 8 / _SHARE_OF_COPY + batch * (rows + cols) * dtype.itemsize
    return max(_seconds(1, moved, 0.0), _seconds(1, 0.0, computing))


def _seconds(launches: int, moved: float, computing: float) -> float:
    return launches * _SECONDS_PER_LAUNCH + moved / _BYTES_PER_SECOND + computing
