"""ReLU and GELU behind an operator: what torch's own give, with their gradients, on every backend."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rsn2_kernels as rk

from . import oracle
from .cases import SMALL, Case, ConvCase, LinearCase, Operands, widest
from .contract import assert_nearly
from .precision import assert_within_roundoff
from .test_torch_integration import index_of, rest_of

OPERATORS = ("linear", "conv2d")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
LARGER: dict[str, Case] = {
    "linear": LinearCase(37, 50, (21,), 0.3, x_layout="reversed"),
    "conv2d": ConvCase(2, 20, 18, (5, 6), (3, 3), padding=(1, 1), density=0.3),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> str:
    """An operator that takes an activation."""
    return str(request.param)


@pytest.fixture(params=sorted(ACTIVATIONS))
def activation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(case: Case, operands: Operands, backend: str, activation: str | None, **changed: Tensor) -> Tensor:
    """The operator of the case with an activation."""
    x, values = changed.get("x", operands.x), changed.get("values", operands.values)
    rest: dict[str, Any] = {"backend": backend, "activation": activation}
    if isinstance(case, ConvCase):
        rest |= {name: getattr(case, name) for name in ("stride", "padding", "dilation", "groups", "kernel_size")}
    return (rk.conv2d if isinstance(case, ConvCase) else rk.linear)(
        x, values, operands.pattern, changed.get("bias", operands.bias), **rest
    )


def exact_y(case: Case, operands: Operands) -> Tensor:
    """What the activation is applied to, in float64 by torch's own operators."""
    x, values, bias = (each.detach().double() for each in operands.inputs.values())
    return case.function(operands.mask)(x, values, bias)


@pytest.mark.parametrize("recorded", [False, True], ids=["inference", "training"])
def test_the_result_is_that_of_torchs_own_activation(
    operator: str, activation: str, recorded: bool, backend: str
) -> None:
    case = LARGER[operator]
    operands = case.operands(widest(backend))
    with torch.set_grad_enabled(recorded):
        y = call(case, operands, backend, activation)
    assert y.requires_grad == recorded
    assert_nearly(y.detach(), ACTIVATIONS[activation](exact_y(case, operands)).to(y.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_relu_in_a_narrow_type_is_as_exact_as_the_product(operator: str, dtype: torch.dtype, backend: str) -> None:
    """ReLU moves no sum farther from the exact one than it was."""
    case = LARGER[operator]
    operands = case.operands(dtype)
    exact = oracle.products(case.function(operands.mask), operands.x, operands.values, operands.bias, operands.dy)["y"]
    y = call(case, operands, backend, "relu")
    assert_within_roundoff("y", y.cpu(), replace(exact, value=F.relu(exact.value)), dtype)


def test_gradients_are_those_of_the_composed_expression(operator: str, activation: str, backend: str) -> None:
    case = LARGER[operator]
    operands = case.operands(widest(backend))
    inputs = list(operands.inputs.values())
    expected = ACTIVATIONS[activation](case.function(operands.mask)(*inputs))
    assert_nearly(
        torch.autograd.grad(call(case, operands, backend, activation), inputs, operands.dy),
        [each.to(operands.x.dtype) for each in torch.autograd.grad(expected, inputs, operands.dy.to(expected.device))],
    )


@pytest.mark.parametrize("first", ["dx", "dvalues", "dbias"])
def test_second_derivatives_are_those_of_the_composed_expression(
    operator: str, activation: str, first: str, backend: str
) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    inputs = list(operands.inputs.values())
    dy = operands.dy.requires_grad_()

    def second(y: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(y, operands.inputs[first], dy.to(y.device), create_graph=True)
        wanted = [*inputs, dy]
        return torch.autograd.grad(gradient.square().sum(), wanted, allow_unused=True, materialize_grads=True)

    composed = ACTIVATIONS[activation](case.function(operands.mask)(*inputs))
    assert_nearly(second(call(case, operands, backend, activation)), second(composed))


@pytest.mark.parametrize("wanted", ["dx", "dvalues", "dbias"])
def test_each_gradient_behind_relu_comes_alone_as_well(operator: str, wanted: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    y = call(case, operands, backend, "relu")
    every = dict(zip(operands.inputs, torch.autograd.grad(y, list(operands.inputs.values()), operands.dy), strict=True))
    for name, each in operands.inputs.items():
        each.requires_grad_(name == wanted)
    y = call(case, operands, backend, "relu")
    assert torch.equal(torch.autograd.grad(y, operands.inputs[wanted], operands.dy)[0], every[wanted])


def test_nothing_negative_passes_relu_and_no_gradient_where_it_cut(operator: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    assert operands.bias is not None
    with torch.no_grad():
        operands.bias.fill_(-1000)
    y = call(case, operands, backend, "relu")
    assert not y.any()
    assert not any(each.any() for each in torch.autograd.grad(y, list(operands.inputs.values()), operands.dy))


def test_nan_passes_as_it_does_in_torch(operator: str, activation: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    assert operands.bias is not None
    with torch.no_grad():
        operands.bias[1] = torch.nan
        y = call(case, operands, backend, activation)
    channel = torch.arange(operands.mask.shape[0], device=y.device) == 1
    expected = channel.view(-1, 1, 1) if operator == "conv2d" else channel
    assert torch.equal(y.isnan(), expected.expand(y.shape))


def test_relu_passes_the_gradient_of_nan_as_torch_does(backend: str) -> None:
    case = SMALL["linear"]
    operands = case.operands(torch.float32)
    assert operands.bias is not None
    with torch.no_grad():
        operands.bias[1] = torch.nan
    fused, composed = (
        torch.autograd.grad(y, operands.bias, operands.dy)[0]
        for y in (call(case, operands, backend, "relu"), F.relu(call(case, operands, backend, None)))
    )
    assert_nearly(fused, composed)


def test_an_infinite_sum_passes_relu(backend: str) -> None:
    case = SMALL["linear"]
    operands = case.operands(torch.float32)
    assert operands.bias is not None
    with torch.no_grad():
        operands.bias[0], operands.bias[1] = torch.inf, -torch.inf
        y = call(case, operands, backend, "relu")
    assert (y[:, 0] == torch.inf).all() and not y[:, 1].any()


@pytest.mark.parametrize("name", [None, "none"])
def test_no_activation_changes_nothing(operator: str, name: str | None, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    assert torch.equal(call(case, operands, backend, name), case.call(operands, backend))


def test_an_activation_is_applied_to_what_has_no_batch_and_no_bias(activation: str, backend: str) -> None:
    pattern = SMALL["linear"].operands(torch.float32).pattern
    x, values = (torch.randn(length, device=pattern.device) for length in (pattern.shape[1], pattern.nnz))
    y = rk.linear(x, values, pattern, backend=backend, activation=activation)
    assert_nearly(y, ACTIVATIONS[activation](rk.linear(x, values, pattern, backend=backend)))
    assert y.shape == pattern.shape[:1]


@pytest.mark.parametrize("name", ["swish", "ReLU", ""])
def test_an_unknown_activation_is_named(operator: str, name: str, backend: str) -> None:
    case = SMALL[operator]
    with pytest.raises(ValueError, match=rf"activation: expected .*'relu'.*'gelu'.* Got '{name}'"):
        call(case, case.operands(torch.float32), backend, name)


def test_opcheck_passes_with_relu(operator: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    rest = ("relu", *rest_of(case))
    arguments = (*operands.inputs.values(), index_of(case, operands, backend, with_columns=True), *rest, backend)
    torch.library.opcheck(getattr(torch.ops.rsn2, operator).default, arguments)


def test_the_operator_itself_refuses_gelu_under_gradients(operator: str, backend: str) -> None:
    """Its gradient needs the sum, which nobody kept: a wrong gradient would be worse than none."""
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    rest = ("gelu", *rest_of(case))
    index = index_of(case, operands, backend, with_columns=True)
    with pytest.raises(NotImplementedError, match="gelu"):
        getattr(torch.ops.rsn2, operator)(*operands.inputs.values(), index, *rest, backend)
