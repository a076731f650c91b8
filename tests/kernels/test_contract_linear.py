"""`linear` on every backend: y, dx, dvalues and dbias are those of the expanded weight, up to roundoff."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from .cases import LAYOUTS, LinearCase, widest
from .contract import assert_keeps_contract
from .precision import DTYPES

SIZES = (
    LinearCase(1, 1, (1,), 1.0),
    LinearCase(7, 96, (40,)),
    LinearCase(63, 65, (33,), 0.2),
    LinearCase(65, 63, (17,), 0.2),
    LinearCase(64, 64, (64,), 0.1),
    LinearCase(1, 130, (9,)),
    LinearCase(130, 1, (9,)),
    LinearCase(31, 33, (12,), holes=True),
    LinearCase(20, 30, (5,), 0.0),
    LinearCase(20, 30, (5,), 1.0),
    LinearCase(19, 23, (6,), bias=False),
)
# Long enough that no kernel holds the reduction, or the batch, in one block.
LONG = (LinearCase(37, 2500, (5,), 0.1), LinearCase(2500, 37, (5,), 0.1), LinearCase(29, 41, (700,), 0.1))
BATCHES = tuple(LinearCase(9, 14, batch) for batch in ((), (0,), (1,), (2, 3), (0, 3), (3, 0), (2, 1, 5)))
LINEAR_LAYOUTS = tuple(layout for layout in LAYOUTS if layout != "channels_last")


@st.composite
def linear_cases(draw: st.DrawFn) -> LinearCase:
    """Any small call, layouts included."""
    return LinearCase(
        rows=draw(st.integers(1, 80)),
        cols=draw(st.integers(1, 80)),
        batch=tuple(draw(st.lists(st.integers(0, 20), max_size=3))),
        density=draw(st.sampled_from((0.0, 0.02, 0.2, 0.6, 1.0))),
        holes=draw(st.booleans()),
        x_layout=draw(st.sampled_from(LINEAR_LAYOUTS)),
        dy_layout=draw(st.sampled_from(LINEAR_LAYOUTS)),
        bias=draw(st.booleans()),
        bias_layout=draw(st.sampled_from(LINEAR_LAYOUTS)),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SIZES + LONG, ids=str)
def test_awkward_sizes(case: LinearCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_any_number_of_batch_dimensions(case: LinearCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dy_layout", LINEAR_LAYOUTS)
@pytest.mark.parametrize("x_layout", LINEAR_LAYOUTS)
def test_any_strides(x_layout: str, dy_layout: str, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(LinearCase(21, 37, (50,), x_layout=x_layout, dy_layout=dy_layout), dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_layout", LINEAR_LAYOUTS)
def test_a_bias_of_any_strides(bias_layout: str, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(LinearCase(21, 37, (5,), bias_layout=bias_layout), dtype, backend)


@given(case=linear_cases(), dtype=st.sampled_from(DTYPES))
def test_any_call(backend: str, case: LinearCase, dtype: torch.dtype) -> None:
    assume(dtype != torch.float64 or widest(backend) == torch.float64)
    assert_keeps_contract(case, dtype, backend)
