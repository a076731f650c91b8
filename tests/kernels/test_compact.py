"""The compact form of a weight says where it owns something, in as few bits as promised."""

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import plans
from rsn2_kernels.compact import OCTET, SEGMENT, Compact, compact_bits, segments_per_row
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.group import PatternGroup

from .cases import random_mask

SHAPES = [(1, 1), (3, 255), (4, 256), (5, 257), (7, 1000), (2, 4100), (1, 70000)]


def masks_of(weight: CsrIndex, compact: Compact) -> Tensor:
    """The bool ``[stacks, rows, cols]`` masks, read off the compact form one weight at a time."""
    rows, cols = weight.shape
    segments = segments_per_row(cols)
    found = torch.zeros(weight.stacks, rows, cols, dtype=torch.bool)
    for cell, (start, end) in enumerate(zip(compact.starts, compact.starts[1:], strict=False)):
        row, segment = cell // segments, cell % segments
        for k in range(int(start), int(end)):
            octet = k // OCTET
            if compact.offsets[octet * OCTET] == 0:
                # The base knows the last 16 bits; the segment, about where it is.
                around = segment * SEGMENT
                column = around + (int(compact.bases[octet]) + int(compact.offsets[k]) - around) % 2**16
            else:
                column = int(weight.col[k])
            assert not found[row // rows, row % rows, column], "told twice"
            found[row // rows, row % rows, column] = True
    return found


@pytest.mark.parametrize("density", [0.0, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_tells_the_positions_of_a_pattern(shape: tuple[int, int], density: float) -> None:
    mask = random_mask(*shape, density, 0)
    pattern = rk.SparsePattern.from_mask(mask)
    compact = Compact.of(pattern)
    assert torch.equal(masks_of(pattern, compact)[0], mask)
    assert compact.starts.dtype == torch.int32 and compact.starts[-1] == pattern.nnz


def test_it_tells_the_positions_of_stacked_patterns() -> None:
    masks = [random_mask(5, 300, density, seed) for seed, density in enumerate((0.02, 0.0, 0.2, 0.05))]
    for chosen in (masks, masks[2:3] * 3):
        group = PatternGroup.of([rk.SparsePattern.from_mask(mask) for mask in chosen])
        assert torch.equal(masks_of(group, Compact.of(group)), torch.stack(chosen))


def test_columns_are_told_by_bytes_unless_a_byte_is_too_few() -> None:
    mask = torch.zeros(3, 1000, dtype=torch.bool)
    mask[0, 0:64:8] = True  # an octet
    mask[0, [100, 200, 300, 355, 356, 400, 401, 402]] = True  # the last one is too far
    mask[1, [100, 200, 300, 355]] = True  # the row ends within an octet
    mask[2, 996:] = True
    compact = Compact.of(rk.SparsePattern.from_mask(mask))
    assert compact.bases.tolist() == [0, 100, 100]
    assert compact.offsets.view(-1, OCTET)[:, 0].tolist() == [0, 1, 1]
    assert compact.offsets[:OCTET].tolist() == list(range(0, 64, 8))


@pytest.mark.parametrize(("density", "most"), [(0.05, 1.4), (0.1, 2.7), (0.2, 5.3), (0.25, 6.6)])
def test_bits_read_per_position_stay_below_the_bound(density: float, most: float) -> None:
    """With 16-bit values: what a small-batch product reads, counted from the tensors that it reads."""
    rows, cols = 512, 28672
    count = round(density * rows * cols)
    flat = torch.zeros(rows * cols, dtype=torch.bool)
    flat[torch.randperm(rows * cols, generator=torch.Generator().manual_seed(0))[:count]] = True
    pattern = rk.SparsePattern.from_mask(flat.view(rows, cols))
    compact = Compact.of(pattern)
    # Of the starts, those of the rows.
    bits = 8 * (2 * pattern.nnz + 8 * rows + compact.bases.nbytes + compact.offsets.nbytes) / (rows * cols)
    assert bits == pytest.approx(compact_bits(pattern), rel=1e-4)
    assert bits <= most


def test_it_is_made_once() -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(9, 300, 0.1, 0))
    assert plans.compact(pattern) is plans.compact(pattern)
    before = pattern.crow.nbytes + pattern.col.nbytes
    assert pattern.nbytes == before + sum(each.nbytes for each in plans.compact(pattern))
