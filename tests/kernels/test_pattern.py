"""SparsePattern: exact packing, row-major and transposed order, and that it cannot be changed."""

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rsn2_kernels as rk

from .cases import LAYOUTS, laid_out, random_mask
from .precision import DTYPES

MASKS = st.builds(
    random_mask,
    rows=st.sampled_from((1, 2, 7, 63, 64, 65)),
    cols=st.sampled_from((1, 2, 37, 63, 64, 65, 129)),
    density=st.sampled_from((0.0, 0.01, 0.3, 1.0)),
    seed=st.integers(0, 1000),
    holes=st.booleans(),
)
MASK = random_mask(5, 7, 0.5, 0)


def numbered(mask: Tensor) -> Tensor:
    """Int64 ``[rows, cols]``: each owned position's number in row-major order, -1 elsewhere."""
    numbers = torch.full(mask.shape, -1)
    for number, (row, col) in enumerate(mask.nonzero().tolist()):
        numbers[row, col] = number
    return numbers


@given(mask=MASKS)
def test_the_values_stand_in_row_major_order(mask: Tensor) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    numbers = numbered(mask)
    assert pattern.pack(numbers).tolist() == list(range(int(mask.sum())))
    assert pattern.crow.dtype == pattern.col.dtype == torch.int32
    assert pattern.crow.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert pattern.col.tolist() == mask.nonzero()[:, 1].tolist()


@given(mask=MASKS)
def test_sizes_are_those_of_the_mask(mask: Tensor) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    assert pattern.shape == tuple(mask.shape) and pattern.nnz == int(mask.sum())
    assert pattern.density == pytest.approx(float(mask.double().mean()), rel=1e-12)
    assert pattern.device == mask.device
    assert torch.equal(pattern.mask(), mask) and pattern.mask().dtype == torch.bool


@given(mask=MASKS, dtype=st.sampled_from((*DTYPES, torch.int32, torch.bool)))
def test_pack_and_unpack_are_exact_inverses(mask: Tensor, dtype: torch.dtype) -> None:
    pattern = rk.SparsePattern.from_mask(mask)
    dense = (100 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    values = pattern.pack(dense)
    assert values.shape == (pattern.nnz,) and values.dtype == dtype
    again = pattern.unpack(values)
    assert again.dtype == dtype and torch.equal(again[mask], dense[mask])
    assert not again[~mask].any(), "unpack is 0 where nothing is owned"
    assert torch.equal(pattern.pack(again), values)


@given(mask=MASKS)
def test_the_column_order_is_the_row_major_order_of_the_transposed_mask(mask: Tensor) -> None:
    crow_t, row_t, perm = rk.SparsePattern.from_mask(mask).by_column()
    assert crow_t.dtype == row_t.dtype == perm.dtype == torch.int32
    assert crow_t.tolist() == [0, *mask.sum(0).cumsum(0).tolist()]
    assert row_t.tolist() == mask.t().nonzero()[:, 1].tolist()
    assert perm.tolist() == numbered(mask).t()[mask.t()].tolist()


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each not in ("strided", "channels_last", "expanded")])
def test_strides_do_not_matter(layout: str) -> None:
    mask = laid_out(MASK, layout)
    pattern = rk.SparsePattern.from_mask(mask)
    dense = laid_out(torch.randn(5, 7), layout)
    assert torch.equal(pattern.mask(), mask)
    assert torch.equal(pattern.pack(dense), dense.contiguous()[mask])
    values = torch.randn(2 * pattern.nnz)[::2]
    assert torch.equal(pattern.unpack(values)[mask], values)


def test_nbytes_counts_the_column_order_once_it_is_built() -> None:
    pattern = rk.SparsePattern.from_mask(MASK)
    before = pattern.nbytes
    assert before == 4 * (5 + 1) + 4 * pattern.nnz
    built = pattern.by_column()
    assert pattern.nbytes == before + 4 * (7 + 1) + 8 * pattern.nnz
    assert all(a is b for a, b in zip(pattern.by_column(), built, strict=True)), "it is built once"


def test_packing_and_unpacking_are_differentiable() -> None:
    pattern = rk.SparsePattern.from_mask(MASK)
    dense = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    values = torch.randn(pattern.nnz, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pattern.pack, (dense,))
    assert torch.autograd.gradcheck(pattern.unpack, (values,))


def test_the_pattern_of_a_map_is_that_of_its_mask() -> None:
    owners = rk.OwnerMap.empty((5, 7))
    owners.claim(3, MASK)
    assert torch.equal(rk.SparsePattern.from_mask(owners.mask(3)).mask(), MASK)


def test_changing_the_mask_afterwards_changes_no_pattern() -> None:
    mask = MASK.clone()
    pattern = rk.SparsePattern.from_mask(mask)
    mask.logical_not_()
    assert torch.equal(pattern.mask(), MASK)


def test_changing_the_dense_tensor_afterwards_changes_no_values() -> None:
    pattern = rk.SparsePattern.from_mask(torch.ones(2, 3, dtype=torch.bool))
    dense = torch.ones(2, 3)
    values = pattern.pack(dense)
    dense.zero_()
    assert values.tolist() == [1] * 6


@pytest.mark.parametrize("name", ["shape", "nnz", "crow", "col", "device", "nbytes", "density", "anything"])
def test_attributes_cannot_be_set(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(rk.SparsePattern.from_mask(MASK), name, 1)


def test_to_moves_the_index_and_returns_itself_where_it_is() -> None:
    pattern = rk.SparsePattern.from_mask(MASK)
    assert pattern.to("cpu") is pattern and pattern.to("cpu:0") is pattern
    moved = pattern.to("meta")
    assert moved.device.type == "meta" and moved.shape == pattern.shape and moved.nnz == pattern.nnz


def test_a_pattern_moved_in_inference_mode_serves_training() -> None:
    pattern = rk.SparsePattern.from_mask(MASK)
    with torch.inference_mode():
        moved = pattern.to("meta")
    assert not moved.crow.is_inference() and not moved.col.is_inference()


def test_a_deep_copy_holds_the_same_order() -> None:
    pattern = rk.SparsePattern.from_mask(MASK)
    pattern.by_column()
    twin = copy.deepcopy(pattern)
    assert torch.equal(twin.mask(), MASK)
    assert all(torch.equal(a, b) for a, b in zip(twin.by_column(), pattern.by_column(), strict=True))


def test_bytes_are_counted_while_another_thread_adds_to_them() -> None:
    pattern, numbers = rk.SparsePattern.from_mask(MASK), itertools.count()

    class Adding(tuple[Tensor, ...]):
        def __iter__(self) -> Iterator[Tensor]:
            pattern.derived(f"added {next(numbers)}", tuple)
            return super().__iter__()

    before = pattern.nbytes
    pattern.derived("made before", lambda: Adding((torch.zeros(2),)))
    assert pattern.nbytes == before + 8


def test_repr_shows_shape_and_nnz() -> None:
    text = repr(rk.SparsePattern.from_mask(MASK))
    assert "(5, 7)" in text and f"nnz={int(MASK.sum())}" in text


BAD_MASKS = {
    "dtype": (MASK.float(), r"float32.* \(5, 7\)"),
    "one dimension": (MASK[0], r"\(7,\)"),
    "three dimensions": (MASK[None], r"\(1, 5, 7\)"),
    "no rows": (MASK[:0], r"\(0, 7\)"),
    "no columns": (MASK[:, :0], r"\(5, 0\)"),
    "list": (MASK.tolist(), "list"),
    "None": (None, "NoneType"),
}


@pytest.mark.parametrize(("mask", "got"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_bad_mask_is_named(mask: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"mask: expected a non-empty bool tensor .*{got}"):
        rk.SparsePattern.from_mask(mask)


@pytest.mark.parametrize("dense", [torch.zeros(7, 5), torch.zeros(5), torch.zeros(1, 5, 7)], ids=lambda t: str(t.shape))
def test_packing_a_tensor_of_another_shape_is_refused(dense: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dense: expected shape \(5, 7\)"):
        rk.SparsePattern.from_mask(MASK).pack(dense)


def test_packing_from_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dense: expected .*cpu.*meta"):
        rk.SparsePattern.from_mask(MASK).pack(torch.zeros(5, 7, device="meta"))


@pytest.mark.parametrize("change", [-1, 1])
def test_unpacking_another_number_of_values_is_refused(change: int) -> None:
    nnz = int(MASK.sum())
    with pytest.raises(ValueError, match=rf"values: expected shape \({nnz},\).*\({nnz + change},\)"):
        rk.SparsePattern.from_mask(MASK).unpack(torch.zeros(nnz + change))


def test_unpacking_from_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values: expected .*cpu.*meta"):
        rk.SparsePattern.from_mask(MASK).unpack(torch.zeros(int(MASK.sum()), device="meta"))
