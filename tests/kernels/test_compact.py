"""The compact form of a weight says where it owns something, in as few bits as promised."""

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import plans
from rsn2_kernels.compact import SEGMENT, Compact, compact_bits, segments_per_row, takes_bytes
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.group import PatternGroup

from .cases import random_mask

SHAPES = [(1, 1), (3, 255), (4, 256), (5, 257), (7, 1000), (2, 4100)]


def masks_of(weight: CsrIndex, compact: Compact) -> Tensor:
    """The bool ``[stacks, rows, cols]`` masks, read off the compact form one weight or bit at a time."""
    rows, cols = weight.shape
    cells = weight.stacks * rows * segments_per_row(cols)
    found = torch.zeros(cells, SEGMENT, dtype=torch.bool)
    if compact.positions.dtype == torch.uint8:
        for cell, (start, end) in enumerate(zip(compact.starts, compact.starts[1:], strict=False)):
            for position in compact.positions[start:end].tolist():
                assert not found[cell, position], "told twice"
                found[cell, position] = True
    else:
        for word, bits in enumerate(compact.positions.tolist()):
            for bit in range(32):
                found[word // 8, word % 8 * 32 + bit] = bool(bits >> bit & 1)
        assert torch.equal(compact.starts.diff(), found.sum(1).int())
    wide = found.view(weight.stacks, rows, -1)
    assert not wide[:, :, cols:].any(), "past the last column"
    return wide[:, :, :cols]


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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cheaper_form_is_taken(shape: tuple[int, int]) -> None:
    for density in (0.0, 0.1, 0.12, 0.13, 1.0):
        pattern = rk.SparsePattern.from_mask(random_mask(*shape, density, 0))
        bytes_bits = 8 * pattern.nnz
        bitmap_bits = shape[0] * segments_per_row(shape[1]) * SEGMENT
        compact = Compact.of(pattern)
        assert 8 * compact.positions.nbytes == min(bytes_bits, bitmap_bits)
        assert takes_bytes(pattern) == (compact.positions.dtype == torch.uint8)


@pytest.mark.parametrize(("density", "most"), [(0.05, 1.4), (0.1, 2.7), (0.2, 4.4), (0.25, 5.2)])
def test_bits_read_per_position_stay_below_the_bound(density: float, most: float) -> None:
    """With 16-bit values: what a small-batch product reads, counted from the tensors that it reads."""
    rows, cols = 512, 28672
    count = round(density * rows * cols)
    flat = torch.zeros(rows * cols, dtype=torch.bool)
    flat[torch.randperm(rows * cols, generator=torch.Generator().manual_seed(0))[:count]] = True
    pattern = rk.SparsePattern.from_mask(flat.view(rows, cols))
    compact = Compact.of(pattern)
    bits = 8 * (2 * pattern.nnz + compact.starts.nbytes + compact.positions.nbytes) / (rows * cols)
    assert bits == pytest.approx(compact_bits(pattern))
    assert bits <= most


def test_it_is_made_once() -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(9, 300, 0.1, 0))
    assert plans.compact(pattern) is plans.compact(pattern)
    before = pattern.crow.nbytes + pattern.col.nbytes
    assert pattern.nbytes == before + sum(each.nbytes for each in plans.compact(pattern))
