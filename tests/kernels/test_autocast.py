"""The operators under autocast: they compute in its type, and gradients come in the operands' own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import rsn2_kernels as rk
from rsn2_kernels.backends import registry

from . import oracle
from .cases import SMALL, LinearCase
from .precision import assert_within_roundoff


def test_autocast_computes_in_its_own_type_and_returns_gradients_in_the_operands(operator: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    dy = operands.dy.bfloat16()
    x, values = operands.x.detach().bfloat16(), operands.values.detach().bfloat16()
    bias = None if operands.bias is None else operands.bias.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case.call(operands, backend)
    exact = oracle.products(case.function(operands.mask), x, values, bias, dy)
    assert_within_roundoff("y", y, exact["y"], torch.bfloat16)
    for name, each in operands.inputs.items():
        (gradient,) = torch.autograd.grad(y, each, dy, retain_graph=True)
        assert gradient.dtype == torch.float32, name
        assert_within_roundoff(name, gradient.bfloat16(), exact[name], torch.bfloat16)


def test_a_backward_pass_inside_autocast_keeps_the_operands_precision(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    inputs = list(operands.inputs.values())
    outside = torch.autograd.grad(SMALL[operator].call(operands, backend), inputs, operands.dy)
    y = SMALL[operator].call(operands, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(y, inputs, operands.dy)
    for name, got, wanted in zip(operands.inputs, inside, outside, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, wanted), name


def test_autocast_leaves_float64_alone_as_it_does_for_torchs_own_linear(backend: str) -> None:
    if (why := registry.why_not(backend, torch.device("cpu"), torch.float64)) is not None:
        pytest.skip(why)
    operands = LinearCase(5, 7, (3,)).operands(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = nn.functional.linear(operands.x, torch.zeros(5, 7, dtype=torch.float64))
        assert rk.linear(operands.x, operands.values, operands.pattern, backend=backend).dtype == own.dtype


def test_a_device_that_has_no_autocast_is_served_inside_that_of_another(operator: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    meta = replace(
        operands,
        patterns=tuple(each.to("meta") for each in operands.patterns),
        x=operands.x.to("meta"),
        values=operands.values.to("meta"),
        bias=None,
    )
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = SMALL[operator].call(meta, None)
        assert y.is_meta and y.dtype == torch.float32 and y.shape == operands.dy.shape


def test_an_error_on_a_device_that_has_no_autocast_is_told() -> None:
    pattern = SMALL["linear"].operands(torch.float32).pattern.to("meta")
    x, values = torch.zeros(3, 7, device="meta"), torch.zeros(pattern.nnz, device="meta", dtype=torch.float64)
    with pytest.raises(TypeError, match=r"values: expected torch\.float32"):
        rk.linear(x, values, pattern)


def test_autocast_that_is_off_changes_nothing(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        y = SMALL[operator].call(operands, backend)
    assert torch.equal(y, SMALL[operator].call(operands, backend))
