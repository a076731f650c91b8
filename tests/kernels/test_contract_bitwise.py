"""The native CPU operators give each row of a batch the same bits, whatever runs beside it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk

from .cases import Case, ConvCase, LinearCase
from .precision import DTYPES

STATUS = rk.available_backends()["cpu"]
pytestmark = pytest.mark.skipif(STATUS is not True, reason=str(STATUS))

# The first of each kind is large enough for several threads.
CASES: tuple[Case, ...] = (
    LinearCase(310, 130, (101,), 0.2),
    LinearCase(33, 600, (50,), 0.05, x_layout="reversed", dy_layout="reversed"),
    ConvCase(9, 12, 48, (11, 13), (3, 3), padding=(1, 1), groups=2),
    ConvCase(5, 3, 4, (20, 20), (1, 1), stride=(2, 2)),
)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def forward_and_gradients(case: Case, dtype: torch.dtype, rows: slice = slice(None)) -> dict[str, Tensor]:
    """y, dx, dvalues and dbias of ``case``, run on a part of its batch."""
    whole = case.operands(dtype)
    part = replace(whole, x=whole.x.detach()[rows].requires_grad_(), dy=whole.dy[rows])
    y = case.call(part, "cpu")
    found = torch.autograd.grad(y, list(part.inputs.values()), part.dy)
    return {"y": y.detach(), **dict(zip(part.inputs, found, strict=True))}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 2), slice(3, None), slice(0, None, 2)], ids=str)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(case: Case, dtype: torch.dtype, rows: slice) -> None:
    whole = forward_and_gradients(case, dtype)
    part = forward_and_gradients(case, dtype, rows)
    for name in ("y", "dx"):
        assert torch.equal(part[name], whole[name][rows]), name


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_depends_on_the_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    alone = forward_and_gradients(case, dtype)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        together = forward_and_gradients(case, dtype)
        for name in ("y", "dx", "dvalues"):
            assert torch.equal(alone[name], together[name]), f"{name}, {threads} threads"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_second_run_gives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    first, second = forward_and_gradients(case, dtype), forward_and_gradients(case, dtype)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("cols", [5000, 8000, 20000])
def test_a_single_row_of_x_takes_rows_of_any_number_of_weights(cols: int) -> None:
    """Rows of many weights are taken a few at a time, in an order that their numbers decide."""
    pattern = rk.SparsePattern.from_mask(torch.rand(75, cols) < 0.95)
    values, x = torch.randn(pattern.nnz), torch.randn(3, cols)
    several = rk.linear(x, values, pattern, backend="cpu")
    expected = x.double() @ pattern.unpack(values.double()).t()
    torch.testing.assert_close(several.double(), expected, rtol=0, atol=1e-6 * cols)
    for row in range(3):
        assert torch.equal(rk.linear(x[row], values, pattern, backend="cpu"), several[row])
