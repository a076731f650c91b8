"""`conv2d` on every backend: y, dx, dvalues and dbias are those of the expanded filters, up to roundoff."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rsn2_kernels.backends import triton

from .cases import LAYOUTS, ConvCase, widest
from .contract import assert_keeps_contract
from .precision import DTYPES

SIZES = (
    ConvCase(1, 1, 1, (1, 1), (1, 1), density=1.0),
    ConvCase(2, 3, 5, (9, 7), (3, 3), padding=(1, 1)),
    ConvCase(2, 5, 3, (8, 8), (1, 1)),
    ConvCase(2, 3, 4, (7, 9), (2, 2)),
    ConvCase(2, 3, 4, (9, 7), (4, 3), padding=(1, 2)),
    ConvCase(3, 4, 6, (6, 6), (3, 3), holes=True),
    ConvCase(2, 3, 4, (6, 6), (3, 3), density=0.0),
    ConvCase(2, 3, 4, (6, 6), (3, 3), density=1.0, bias=False),
    ConvCase(2, 3, 4, (3, 3), (3, 3)),
    ConvCase(1, 1, 8, (1, 70), (1, 5)),
    ConvCase(1, 8, 1, (70, 1), (5, 1)),
)
# More pixels, channels and images than any kernel holds in one block.
LONG = (
    ConvCase(2, 20, 33, (28, 27), (3, 3), padding=(1, 1), density=0.1),
    ConvCase(70, 3, 5, (6, 6), (3, 3)),
)
GEOMETRIES = (
    ConvCase(2, 3, 4, (9, 8), (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvCase(2, 3, 4, (9, 8), (3, 3), stride=(1, 3), padding=(0, 1)),
    ConvCase(2, 3, 4, (5, 4), (2, 2), stride=(3, 3)),
    ConvCase(2, 3, 4, (4, 5), (3, 3), padding=(4, 5)),
    ConvCase(2, 3, 4, (4, 5), (1, 1), padding=(2, 1)),
    ConvCase(2, 3, 4, (11, 10), (3, 3), dilation=(2, 2), padding=(2, 2)),
    ConvCase(2, 3, 4, (11, 10), (3, 2), dilation=(1, 4), stride=(2, 1)),
    ConvCase(2, 4, 6, (7, 7), (3, 3), groups=2, padding=(1, 1)),
    ConvCase(2, 6, 6, (7, 7), (3, 3), groups=6, padding=(1, 1)),
    ConvCase(2, 3, 6, (7, 7), (3, 3), groups=3, padding=(1, 1), stride=(2, 2), dilation=(2, 1)),
)
BATCHES = tuple(ConvCase(images, 2, 3, (6, 5), (3, 3), padding=(1, 1)) for images in (None, 0, 1, 9))


@st.composite
def conv_cases(draw: st.DrawFn) -> ConvCase:
    """Any small call with at least one output position, layouts included."""
    groups = draw(st.integers(1, 4))
    pairs = {
        name: (draw(st.integers(smallest, largest)), draw(st.integers(smallest, largest)))
        for name, smallest, largest in (
            ("kernel_size", 1, 4),
            ("stride", 1, 3),
            ("padding", 0, 5),
            ("dilation", 1, 3),
        )
    }
    reach = [d * (k - 1) + 1 for d, k in zip(pairs["dilation"], pairs["kernel_size"], strict=True)]
    smallest = [max(1, extent - 2 * pad) for extent, pad in zip(reach, pairs["padding"], strict=True)]
    return ConvCase(
        images=draw(st.sampled_from((None, 0, 1, 2, 5))),
        channels=groups * draw(st.integers(1, 5)),
        filters=groups * draw(st.integers(1, 5)),
        size=(draw(st.integers(smallest[0], 12)), draw(st.integers(smallest[1], 12))),
        groups=groups,
        density=draw(st.sampled_from((0.0, 0.05, 0.3, 1.0))),
        holes=draw(st.booleans()),
        x_layout=draw(st.sampled_from(LAYOUTS)),
        dy_layout=draw(st.sampled_from(LAYOUTS)),
        bias=draw(st.booleans()),
        bias_layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 1000)),
        **pairs,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SIZES + LONG, ids=str)
def test_awkward_sizes(case: ConvCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_stride_padding_dilation_and_groups(case: ConvCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_any_number_of_images(case: ConvCase, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_any_strides(x_layout: str, dy_layout: str, dtype: torch.dtype, backend: str) -> None:
    # Interpreted, a program takes milliseconds: few pixels, whose strides are as different.
    images, size = (2, (4, 5)) if triton.interpreted else (3, (7, 9))
    case = ConvCase(images, 4, 6, size, (3, 3), padding=(1, 1), groups=2, x_layout=x_layout, dy_layout=dy_layout)
    assert_keeps_contract(case, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_layout", LAYOUTS)
def test_a_bias_of_any_strides(bias_layout: str, dtype: torch.dtype, backend: str) -> None:
    assert_keeps_contract(ConvCase(2, 4, 6, (7, 9), (3, 3), bias_layout=bias_layout), dtype, backend)


@given(case=conv_cases(), dtype=st.sampled_from(DTYPES))
def test_any_call(backend: str, case: ConvCase, dtype: torch.dtype) -> None:
    assume(dtype != torch.float64 or widest(backend) == torch.float64)
    assert_keeps_contract(case, dtype, backend)
