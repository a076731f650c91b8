"""float16 on the cpu backend: every value is read exactly, and results are rounded as torch rounds them."""

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk

pytestmark = pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="needs the native library")

EVERY_HALF = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
ONE_WEIGHT = rk.SparsePattern.from_mask(torch.ones(1, 1, dtype=torch.bool))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x times one weight, through the operator: widened, multiplied in float32, narrowed."""
    return rk.linear(x.unsqueeze(1), weight.reshape(1), ONE_WEIGHT, backend="cpu").squeeze(1)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal bits, but for the sign of zero (a sum starts at +0) and the payload of NaN."""
    same = (got.view(torch.int16) == expected.view(torch.int16)) | (got.isnan() & expected.isnan())
    same |= (got == 0) & (expected == 0)
    assert same.all(), (got[~same], expected[~same])


def test_every_half_survives() -> None:
    assert_same(product(EVERY_HALF, torch.ones(1, dtype=torch.float16)), EVERY_HALF)


@pytest.mark.parametrize("exponent", range(-24, 16))
def test_products_are_rounded_as_torch_rounds_them(exponent: int) -> None:
    # The product of two halves is exact in float32, so that only the last rounding is left.
    weight = torch.tensor((1 + 341 / 1024) * 2.0**exponent).half()
    assert_same(product(EVERY_HALF, weight), (EVERY_HALF.float() * weight.float()).half())
