"""The cpu backend reads 16-bit indices where rows and columns fit, and 32-bit ones beyond; see `cpu.index`."""

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import dispatch

from .cases import random_mask

STATUS = rk.available_backends()["cpu"]
pytestmark = pytest.mark.skipif(STATUS is not True, reason=str(STATUS))

LIMIT = 1 << 16


def corners(rows: int, cols: int) -> rk.SparsePattern:
    """A pattern that owns what surrounds the limits of 16-bit numbers in its first and last row."""
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    for middle in (0, 1 << 15, LIMIT):
        columns = [place for place in range(middle - 2, middle + 3) if 0 <= place < cols]
        mask[0, columns] = True
        mask[-1, columns] = True
    mask[:, 0] = True
    return rk.SparsePattern.from_mask(mask)


@pytest.mark.parametrize("shape", [(2, LIMIT), (2, LIMIT + 1), (LIMIT, 2), (LIMIT + 1, 2), (3, 40_000)], ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_indices_are_as_narrow_as_fits_and_products_exact(shape: tuple[int, int], batch: int) -> None:
    pattern = corners(*shape)
    rows, cols = shape
    widths = [each.dtype for each in dispatch.index("cpu", pattern, with_columns=True)]
    narrow = {True: torch.int16, False: torch.int32}
    assert widths == [torch.int32, narrow[cols <= LIMIT], torch.int32, narrow[rows <= LIMIT], torch.int32]

    # Small integers: sums are exact in any order.
    x = torch.randint(-4, 5, (batch, cols)).float()
    values = torch.randint(-4, 5, (pattern.nnz,)).float()
    dy = torch.randint(-4, 5, (batch, rows)).float()
    for got, expected in zip(
        products(x, values, dy, pattern, "cpu"), products(x, values, dy, pattern, "dense"), strict=True
    ):
        assert torch.equal(got, expected)


def products(x: Tensor, values: Tensor, dy: Tensor, pattern: rk.SparsePattern, backend: str) -> list[Tensor]:
    """y, dx and dvalues."""
    inputs = [x.clone().requires_grad_(), values.clone().requires_grad_()]
    y = rk.linear(*inputs, pattern, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


@pytest.mark.parametrize(
    ("reads", "with_columns", "bits"),
    [("reference", False, 32), ("reference", True, 96), ("cpu", False, 48), ("cpu", True, 128)],
)
def test_an_index_costs_the_bits_per_owned_weight_that_docs_format_names(
    reads: str, with_columns: bool, bits: int
) -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(512, 512, 0.2, 0))
    dispatch.index(reads, pattern, with_columns)
    pointers = 32 * (512 + 1) * (1 + with_columns)
    assert 8 * pattern.nbytes == bits * pattern.nnz + pointers


def test_narrow_indices_are_made_once_and_counted() -> None:
    pattern = corners(3, 100)
    before = pattern.nbytes
    first = dispatch.index("cpu", pattern, with_columns=False)
    assert pattern.nbytes == before + 2 * pattern.nnz
    assert dispatch.index("cpu", pattern, with_columns=False)[1] is first[1]
