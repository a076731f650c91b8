"""Predicted seconds of one product on an NVIDIA GPU: bytes over bandwidth plus operations over rate.

The constants are those of an H200, fitted to results/gpu-check.json and the runs before it; a test compares them.
What decides between backends is their ratio, which differs less from chip to chip.
"""

from typing import NamedTuple

import torch

from rsn2_kernels.compact import compact_bits
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.plan import Survey, traffic

# A copy, and the vendor's products of large matrices.
_BYTES_PER_SECOND = 4.3e12
_FLOPS_PER_SECOND = {torch.bfloat16: 820e12, torch.float16: 790e12, torch.float32: 51e12}
# A launch in a stream that is never empty.
_SECONDS_PER_LAUNCH = 3e-6
# Expanding a weight: packed values and columns read, dense ones written; and the same window by window.
_EXPANDED_BYTES_PER_SECOND = 2.8e12
_EXPANDED_WINDOWS_BYTES_PER_SECOND = 2.2e12
# Rate of the kernels that skip over that of the vendor's library on the same work, for windows of 128 rows; and where
# they sample a product, for the gradient of the values.
_SHARE_OF_DENSE = 0.8
_SHARE_OF_DENSE_SAMPLED = {torch.bfloat16: 0.8, torch.float16: 0.8, torch.float32: 0.33}
_SAMPLED_PER_SECOND = 70e9
# However few columns of the batch there are, each window goes over its condensed columns, so many at a step.
_STEP = 64
_SECONDS_PER_STEP = 0.4e-6

# The kernels for small batches: a launch and what precedes the first weight, x for each of its columns and rows, ...
_SECONDS_BEFORE = 5e-6
_SECONDS_PER_ELEMENT = 2.5e-10
# ... then reading the weight, or multiplying it with several rows.
_COMPACT_BYTES_PER_SECOND = 3.6e12
_PRODUCTS_PER_SECOND = 6.4e12
# With a task per row, rows of the batch share nothing; half of that rate is what was measured.
_GROUPED_BYTES_PER_SECOND = 1.8e12
# On the tensor cores: before, positions cleared and read, owned weights scattered, operations of the products.
_SECONDS_BEFORE_TILES = 11e-6
_TILE_POSITIONS_PER_SECOND = 3.6e12
_SCATTERED_PER_SECOND = 0.8e12
_TILE_FLOPS_PER_SECOND = 210e12
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
    expanded = (visits.nnz + weights) * dtype.itemsize + 4 * visits.nnz
    moved = (weights + visits.operands * batch) * dtype.itemsize
    product = max(2 * weights * batch / _FLOPS_PER_SECOND[dtype], moved / _BYTES_PER_SECOND)
    return launches * _SECONDS_PER_LAUNCH + expanded / _EXPANDED_BYTES_PER_SECOND + product


def visiting_seconds(visits: Visits, batch: int, dtype: torch.dtype, feature_major: bool = False) -> float:
    """Expand the windows, lay the operand out for the kernels, then the product over the windows.

    Args:
        visits: of the weight.
        batch: columns that each stack is multiplied with.
        dtype: one of DTYPES.
        feature_major: whether the operand has its layout already.
    """
    # Each visited position is written once, and has a bit and its share of a start.
    expanded = (visits.nnz + visits.visited) * dtype.itemsize + visits.visited / 4
    laid_out = 0 if feature_major else 2 * visits.stacks * visits.cols / visits.taps * batch
    moved = (laid_out + visits.operands * batch) * dtype.itemsize
    rate = _SHARE_OF_DENSE * _rate(visits, dtype)
    places = visits.stacks * -(-visits.rows // visits.height) * visits.height
    steps = visits.visited / (places * _STEP)
    product = max(2 * visits.visited * batch / rate, steps * _SECONDS_PER_STEP)
    launching = (2 if feature_major else 3) * _SECONDS_PER_LAUNCH
    return launching + expanded / _EXPANDED_WINDOWS_BYTES_PER_SECOND + moved / _BYTES_PER_SECOND + product


def sampling_seconds(visits: Visits, batch: int, dtype: torch.dtype, feature_major: bool = False) -> float:
    """The gradient of the values: lay both operands out, then products over the windows, of which the owned are kept.

    Args:
        visits: of the weight.
        batch: columns that each stack is multiplied with.
        dtype: one of DTYPES.
        feature_major: whether the operands have their layout already.
    """
    moved = (1 if feature_major else 3) * visits.operands * batch * dtype.itemsize
    rate = _SHARE_OF_DENSE_SAMPLED[dtype] * _rate(visits, dtype)
    product = 2 * visits.visited * batch / rate + visits.nnz / _SAMPLED_PER_SECOND
    launching = (1 if feature_major else 3) * _SECONDS_PER_LAUNCH
    return launching + moved / _BYTES_PER_SECOND + product


def _rate(visits: Visits, dtype: torch.dtype) -> float:
    """Of the vendor's library on large products, as far as windows of this height allow it."""
    return _FLOPS_PER_SECOND[dtype] * traffic(128) / traffic(visits.height)


def compact_seconds(weight: CsrIndex, batch: int, dtype: torch.dtype, grouped: bool) -> float:
    """Read the compact weight, once for several rows of the batch, or grouped for each.

    Args:
        weight: a pattern or group.
        batch: rows of the batch, of all tasks together.
        dtype: one of DTYPES.
        grouped: whether each row has its own task.
    """
    rows, cols = weight.shape
    positions = rows * cols
    # Each row of a grouped batch reads its own matrix.
    nnz = weight.nnz / weight.stacks
    moved = positions * compact_bits(weight, 8 * dtype.itemsize) / 8
    if grouped:
        return _SECONDS_BEFORE + cols * _SECONDS_PER_ELEMENT + batch * moved / _GROUPED_BYTES_PER_SECOND
    if dtype.itemsize == 2 and batch > 8:
        readings = -(-batch // _ROWS_PER_TILE)
        reading = _SECONDS_BEFORE_TILES + positions / _TILE_POSITIONS_PER_SECOND + nnz / _SCATTERED_PER_SECOND
        return readings * reading + 2 * positions * batch / _TILE_FLOPS_PER_SECOND
    readings = -(-batch // 8)
    each = batch / max(readings, 1)
    products = max(moved / _COMPACT_BYTES_PER_SECOND, each * nnz / _PRODUCTS_PER_SECOND)
    return readings * (_SECONDS_BEFORE + each * cols * _SECONDS_PER_ELEMENT + products)
