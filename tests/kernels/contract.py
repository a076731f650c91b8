"""The check at the heart of the contract: a call and its gradients against the oracle."""

import torch

from . import oracle
from .cases import Case
from .precision import assert_within_roundoff


def assert_keeps_contract(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Fail unless y, dx, dvalues and dbias of ``case`` are exact up to roundoff."""
    operands = case.operands(dtype)
    exact = oracle.products(case.function(operands.mask), operands.x, operands.values, operands.bias, operands.dy)
    y = case.call(operands, backend)
    assert_within_roundoff("y", y, exact["y"], dtype)
    gradients = torch.autograd.grad(y, list(operands.inputs.values()), operands.dy)
    for name, gradient in zip(operands.inputs, gradients, strict=True):
        assert_within_roundoff(name, gradient, exact[name], dtype)
