"""Masks as words, against loops over single positions: by torch operators, and by the kernels of a GPU.

The kernels run with `--device cuda`, or on the CPU where RSN2_CUDA_EMULATED names their library.
"""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import bits
from rsn2_kernels.backends import cuda

from . import cases
from .cases import LAYOUTS, laid_out, random_mask

SHAPES = [(rows, cols) for rows in (1, 2, 7, 65) for cols in (1, 2, 15, 16, 17, 63, 64, 65, 129, 1000)]
DENSITIES = (0.0, 0.02, 0.5, 1.0)
TASKS = 200

needs_a_gpu = pytest.mark.skipif("cases.device.type != 'cuda'", reason="needs a GPU and --device cuda")


@pytest.fixture(params=["operators", "kernels"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test both ways, whatever the package would choose."""
    kernels = request.param == "kernels"
    if kernels and not (hasattr(torch.ops.rsn2_cuda, "pack_bits") and (cases.device.type == "cuda" or cuda.emulated)):
        pytest.skip("needs the CUDA library and a GPU, or RSN2_CUDA_EMULATED")
    monkeypatch.setattr(bits, "_has_kernels", lambda operand: kernels)


def masks(shape: tuple[int, int]) -> list[Tensor]:
    """Masks of one shape, empty to full, on the device under test."""
    return [random_mask(*shape, density, seed).to(cases.device) for seed, density in enumerate(DENSITIES)]


def packed(mask: Tensor) -> list[list[int]]:
    """The words of a mask, as non-negative numbers."""
    return [
        [
            sum(1 << bit for bit, owned in enumerate(row[start : start + 64]) if owned)
            for start in range(0, len(row), 64)
        ]
        for row in mask.tolist()
    ]


def unsigned(words: Tensor) -> list[list[int]]:
    return [[word % 2**64 for word in row] for row in words.tolist()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_has_its_place_and_padding_is_clean(shape: tuple[int, int]) -> None:
    for mask in masks(shape):
        words = bits.pack_bits(mask)
        assert words.dtype == torch.int64 and words.shape == (shape[0], bits.words_per_row(shape[1]))
        assert unsigned(words) == packed(mask)
        assert bool(bits.padding_is_zero(words, shape[1]))
        assert torch.equal(bits.unpack_bits(words, shape[1]), mask)
        assert torch.equal(bits.unpack_bits(~words, shape[1]), ~mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_may_have_any_strides(layout: str) -> None:
    mask = laid_out(random_mask(6, 77, 0.4, 0).to(cases.device).float(), layout) != 0
    view = mask if layout == "contiguous" else mask.t().contiguous().t()
    assert unsigned(bits.pack_bits(view)) == packed(mask)


@pytest.mark.parametrize("cols", [64, 77])
@pytest.mark.parametrize("true", [2, 128, 255])
def test_true_may_be_any_byte_but_0(true: int, cols: int) -> None:
    """As in a mask that was read from bytes."""
    mask = random_mask(5, cols, 0.4, 0).to(cases.device)
    bytes_of_mask = mask.to(torch.uint8) * true
    assert unsigned(bits.pack_bits(bytes_of_mask.view(torch.bool))) == packed(mask)


@pytest.mark.parametrize("cols", [64, 77])
@pytest.mark.parametrize("offset", range(0, 34, 3))
def test_a_mask_may_begin_at_any_byte(offset: int, cols: int) -> None:
    holder = random_mask(1, 34 + 5 * cols, 0.4, offset).to(cases.device).flatten()
    mask = holder[offset : offset + 5 * cols].view(5, cols)
    assert unsigned(bits.pack_bits(mask)) == packed(mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_set_bits_are_counted_and_listed(shape: tuple[int, int]) -> None:
    for mask in masks(shape):
        words = bits.pack_bits(mask)
        counts = bits.count_bits(words)
        assert counts.dtype == torch.int32
        assert counts.tolist() == [[word.bit_count() for word in row] for row in packed(mask)]
        assert int(bits.total_bits(words)) == int(mask.sum())
        ends = bits.ends_of_words(words)
        assert ends.dtype == torch.int64 and ends[:, -1].tolist() == mask.sum(1).cumsum(0).tolist()
        col = bits.columns_of_bits(words, ends, int(mask.sum()), shape[1])
        assert col.dtype == torch.int32 and col.tolist() == mask.nonzero()[:, 1].tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_set_padding_bit_shows(shape: tuple[int, int]) -> None:
    rows, cols = shape
    for bit in range(cols % 64 or 64, 64):
        words = bits.pack_bits(masks(shape)[1])
        words[rows // 2, -1] |= 1 << bit if bit < 63 else -(1 << 63)
        assert not bool(bits.padding_is_zero(words, cols))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pattern_lists_what_its_mask_owns(shape: tuple[int, int]) -> None:
    for mask in masks(shape):
        pattern = rk.SparsePattern.from_mask(mask)
        assert pattern.crow.dtype == pattern.col.dtype == torch.int32
        assert pattern.crow.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
        assert pattern.col.tolist() == mask.nonzero()[:, 1].tolist()
        dense = torch.arange(mask.numel(), dtype=torch.float32, device=mask.device).view(shape) + 1
        values = pattern.pack(dense)
        assert torch.equal(values, dense[mask])
        assert torch.equal(pattern.unpack(values), dense * mask)


def claimed(shape: tuple[int, int], tasks: int) -> tuple[rk.OwnerMap, Tensor]:
    """A map of as many tasks, some of which own nothing, and the codes it should hold."""
    codes = torch.randint(0, tasks + 1, shape, generator=torch.Generator().manual_seed(0)).to(cases.device)
    owners = rk.OwnerMap.empty(shape, device=cases.device)
    for task in range(tasks):
        owners.claim(task, codes == task + 1)
    return owners, codes


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (65, 63), (7, 64), (65, 65)], ids=str)
@pytest.mark.parametrize("tasks", [1, 5, TASKS])
def test_a_map_of_owners_holds_what_was_claimed(shape: tuple[int, int], tasks: int) -> None:
    owners, codes = claimed(shape, tasks)
    again = rk.OwnerMap.from_planes(owners.planes, shape, owners.tasks)
    for each in (owners, again):
        assert torch.equal(each.codes().long(), codes)
        assert torch.equal(each.free(), codes == 0)
        assert [each.count(task) for task in range(tasks)] == [int((codes == task + 1).sum()) for task in range(tasks)]
        assert all(torch.equal(each.mask(task), codes == task + 1) for task in range(tasks))
    owners.release(tasks - 1)
    assert torch.equal(owners.free(), (codes == 0) | (codes == tasks))


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (65, 63), (7, 64), (65, 65)], ids=str)
def test_an_overlap_is_named_by_its_first_position_and_changes_nothing(shape: tuple[int, int]) -> None:
    owners, codes = claimed(shape, 9)
    planes = [plane.clone() for plane in owners.planes]
    mask = random_mask(*shape, 0.3, 1).to(cases.device)
    mask |= codes == codes.max()
    taken = mask & (codes > 0)
    row, col = taken.nonzero()[0].tolist()
    message = (
        f"mask: position ({row}, {col}) is owned by task {int(codes[row, col]) - 1}; {int(taken.sum())} of the "
        f"{int(mask.sum())} claimed positions are not free."
    )
    with pytest.raises(rk.OverlapError, match=f"^{re.escape(message)}$"):
        owners.claim(20, mask)
    assert owners.tasks == tuple(range(9))
    assert all(torch.equal(plane, before) for plane, before in zip(owners.planes, planes, strict=True))


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the GPU in a call."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


@needs_a_gpu
def test_the_host_waits_for_counts_and_nothing_else(request: pytest.FixtureRequest) -> None:
    owners, codes = claimed((300, 400), 5)
    mask, nothing = codes == 3, torch.zeros_like(codes, dtype=torch.bool)
    pattern = rk.SparsePattern.from_mask(mask)
    dense = torch.randn(mask.shape, device=mask.device)
    values = pattern.pack(dense)
    for call in (owners.free, owners.codes, lambda: owners.mask([0, 3]), lambda: owners.count(2)):
        assert waits(call) == 0
    assert waits(lambda: pattern.pack(dense)) == 0
    assert waits(lambda: pattern.unpack(values)) == 0
    assert waits(lambda: owners.claim(2, nothing)) == 1
    assert waits(lambda: rk.OwnerMap.from_planes(owners.planes, owners.shape, owners.tasks)) == 1
    # Without kernels torch counts once more.
    assert waits(lambda: rk.SparsePattern.from_mask(mask)) == 1 + ("operators" in request.node.name)


@needs_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_packing_on_a_gpu_gives_what_a_cpu_gives_with_and_without_gradients(dtype: torch.dtype) -> None:
    mask = random_mask(70, 130, 0.2, 0)
    here, there = rk.SparsePattern.from_mask(mask), rk.SparsePattern.from_mask(mask.to(cases.device))
    dense = torch.randn(mask.shape).to(dtype)
    for needs_gradient in (False, True):
        given = dense.to(cases.device).requires_grad_(needs_gradient)
        values = there.pack(given)
        assert torch.equal(values.cpu(), here.pack(dense))
        assert torch.equal(there.unpack(values).cpu(), here.unpack(here.pack(dense)))
        if needs_gradient:
            there.unpack(values).sum().backward()
            assert given.grad is not None and torch.equal(given.grad.cpu(), mask.to(dtype))
    mapped = torch.vmap(there.pack)(dense.to(cases.device).expand(3, -1, -1))
    assert torch.equal(mapped.cpu(), here.pack(dense).expand(3, -1))
