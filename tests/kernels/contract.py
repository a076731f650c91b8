"""The check at the heart of the contract: a call and its gradients against the oracle."""

from typing import Any

import torch
from torch import Tensor

from . import cases, oracle
from .cases import Case, ConvCase
from .precision import Exact, assert_within_roundoff

# What a vendor's convolution on a GPU may be off by, relative to the norm of the whole result: it may transform the
# image first (Winograd), or add partial sums in 16 bits.
OF_VENDOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def assert_keeps_contract(case: Case, dtype: torch.dtype, backend: str | None) -> None:
    """Fail unless y, dx, dvalues and dbias of ``case`` are exact up to roundoff."""
    operands = case.operands(dtype)
    exact = oracle.products(case.function(operands.mask), operands.x, operands.values, operands.bias, operands.dy)
    y = case.call(operands, backend)
    vendor = isinstance(case, ConvCase) and backend == "dense" and cases.device.type == "cuda"
    check = assert_near_in_norm if vendor else assert_within_roundoff
    check("y", y.to(exact["y"].value.device), exact["y"], dtype)
    gradients = torch.autograd.grad(y, list(operands.inputs.values()), operands.dy)
    for name, gradient in zip(operands.inputs, gradients, strict=True):
        check(name, gradient.to(exact[name].value.device), exact[name], dtype)


def assert_near_in_norm(name: str, actual: Tensor, exact: Exact, dtype: torch.dtype) -> None:
    """Fail unless ``actual`` is ``exact`` up to OF_VENDOR of its norm."""
    assert actual.dtype == dtype and actual.shape == exact.value.shape, f"{name}: got {actual.dtype} {actual.shape}."
    error = float((actual.detach().double() - exact.value).norm())
    allowed = OF_VENDOR[dtype] * float(exact.value.norm())
    assert error <= allowed, f"{name}: off by {error:.3g} in norm, {allowed:.3g} allowed."


def assert_nearly(actual: Any, expected: Any) -> None:
    """Fail unless tensors, or sequences of them, agree: float64 up to torch's tolerance, float32 up to 1e-3.

    The looser one is for a second derivative in float32, whose sums cancel; a wrong one is off by its own size.
    """
    for a, b in zip(*(each if isinstance(each, tuple | list) else [each] for each in (actual, expected)), strict=True):
        near = {} if a.dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(a.to(b.device), b, **near)
