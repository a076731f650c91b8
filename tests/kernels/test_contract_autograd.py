"""The operators as autograd sees them: which gradients are computed, when, and what is refused."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import rsn2_kernels as rk
from rsn2_kernels.group import PatternGroup

from . import oracle
from .cases import SMALL, ConvCase, LinearCase, Operands, lazily_negated, widest
from .contract import assert_nearly


class RecordedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operators of this package that ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "rsn2":
            self.names.append(func.name().removeprefix("rsn2::"))
        return func(*args, **(kwargs or {}))


def gradients(operator: str, backend: str, operands: Operands, wanted: tuple[str, ...]) -> list[Tensor | None]:
    """Gradients of the small problem by ``backward()``, for all inputs, after asking only for ``wanted``."""
    for name, each in operands.inputs.items():
        each.requires_grad_(name in wanted)
    torch.autograd.backward(SMALL[operator].call(operands, backend), operands.dy)
    return [each.grad for each in operands.inputs.values()]


SUBSETS = [set_ for size in (1, 2) for set_ in itertools.combinations(("dx", "dvalues", "dbias"), size)]


@pytest.mark.parametrize("wanted", SUBSETS, ids="+".join)
def test_gradients_come_only_for_the_inputs_that_require_them(
    operator: str, backend: str, wanted: tuple[str, ...]
) -> None:
    names = ("dx", "dvalues", "dbias")
    every = gradients(operator, backend, SMALL[operator].operands(widest(backend)), names)
    some = gradients(operator, backend, SMALL[operator].operands(widest(backend)), wanted)
    for name, full, partial in zip(names, every, some, strict=True):
        if name in wanted:
            assert partial is not None and full is not None and torch.equal(partial, full), name
        else:
            assert partial is None, name


@pytest.mark.parametrize("wanted", SUBSETS, ids="+".join)
def test_products_that_nobody_asked_for_are_not_computed(operator: str, backend: str, wanted: tuple[str, ...]) -> None:
    with RecordedOperators() as ran:
        gradients(operator, backend, SMALL[operator].operands(widest(backend)), wanted)
    expected = {operator} | {f"{operator}_{each}" for each in wanted if each != "dbias"}
    # A copy in another layout is no product.
    assert sorted(name for name in ran.names if name != "feature_major") == sorted(expected)


@pytest.mark.parametrize("with_x", [False, True], ids=["values", "values+x"])
def test_the_column_order_is_built_only_for_the_gradient_of_x(operator: str, backend: str, with_x: bool) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    operands.x.requires_grad_(with_x)
    index = PatternGroup.of(operands.patterns) if operator == "grouped_linear" else operands.pattern
    torch.autograd.backward(case.call(operands, backend), operands.dy)
    assert index.remembers("by column") == with_x


def test_the_gradient_of_an_x_that_requires_none_until_after_the_call_is_right(operator: str, backend: str) -> None:
    """The products of its call have no column order, which the gradient of a gradient then asks for."""
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    x = operands.x.detach()
    # No call lays this one out anew, so that what autograd keeps is x itself.
    x = x.contiguous(memory_format=torch.channels_last) if operator == "conv2d" else x.t().contiguous().t()
    y = case.call(replace(operands, x=x), backend)
    x.requires_grad_()
    exact = case.function(operands.mask)(x, operands.values, operands.bias)
    found = []
    for each in (y, exact):
        (dvalues,) = torch.autograd.grad(each, operands.values, operands.dy.to(each.device), create_graph=True)
        found += torch.autograd.grad(dvalues.square().sum(), x)
    assert_nearly(*found)


def test_numerical_gradients_agree(operator: str, backend: str) -> None:
    # Every element of every Jacobian is computed twice: smaller still.
    case = ConvCase(1, 2, 2, (3, 4), (2, 2), (1, 2), (0, 1), groups=2) if operator == "conv2d" else SMALL[operator]
    if widest(backend) != torch.float64:
        pytest.skip("numerical differences need float64")
    operands = case.operands(torch.float64)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return case.call(replace(operands, x=x, values=values, bias=bias), backend)

    # Interpreted, one direction through all elements instead of each alone.
    assert torch.autograd.gradcheck(call, tuple(operands.inputs.values()), fast_mode=backend == "triton")


def test_operands_and_gradients_that_torch_left_to_negate_are_read_so(operator: str, backend: str) -> None:
    """As the imaginary part of a conjugate is, or a gradient through one."""
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    inputs = operands.inputs
    y = case.call(operands, backend)
    expected = [y, *torch.autograd.grad(y, list(inputs.values()), operands.dy)]
    lazy = [lazily_negated(each).requires_grad_() for each in inputs.values()]
    assert all(each.is_neg() for each in lazy)
    y = case.call(replace(operands, **dict(zip(("x", "values", "bias"), lazy, strict=True))), backend)
    for got, wanted in zip([y, *torch.autograd.grad(y, lazy, lazily_negated(operands.dy))], expected, strict=True):
        assert_nearly(got, wanted)


def test_no_grad_records_nothing(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(widest(backend))
    with torch.no_grad():
        y = SMALL[operator].call(operands, backend)
    assert not y.requires_grad and y.grad_fn is None


def test_inference_mode_gives_the_same_result(operator: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    with torch.inference_mode():
        y = case.call(operands, backend)
    assert torch.equal(y, case.call(operands, backend))


def test_gradients_of_values_used_twice_add_up(backend: str) -> None:
    operands = LinearCase(9, 9, (4,), 0.4).operands(widest(backend))
    exact = oracle.linear(operands.mask)
    inputs = list(operands.inputs.values())

    once = rk.linear(operands.x, operands.values, operands.pattern, operands.bias, backend=backend)
    twice = rk.linear(once.tanh(), operands.values, operands.pattern, operands.bias, backend=backend)
    expected = exact(exact(operands.x, operands.values, operands.bias).tanh(), operands.values, operands.bias)

    actual_gradients = torch.autograd.grad(twice, inputs, operands.dy)
    expected_gradients = torch.autograd.grad(expected, inputs, operands.dy.to(expected.device))
    assert_nearly(actual_gradients, expected_gradients)


def test_backward_can_run_twice_on_a_retained_graph(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(widest(backend))
    y = SMALL[operator].call(operands, backend)
    inputs = list(operands.inputs.values())
    first = torch.autograd.grad(y, inputs, operands.dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, operands.dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("changed", ["x", "values"])
def test_an_operand_changed_before_backward_is_refused(operator: str, backend: str, changed: str) -> None:
    if (operator, changed) == ("grouped_linear", "values"):
        pytest.skip("the operator keeps the values in a tensor of its own")
    if backend == "triton" and operator != "grouped_linear" and changed == "x":
        pytest.skip("the operator keeps x in a layout of its own")
    operands = SMALL[operator].operands(widest(backend))
    y = SMALL[operator].call(operands, backend)
    with torch.no_grad():
        getattr(operands, changed).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(y, operands.dy)


@pytest.mark.parametrize(("wanted", "changed"), [("dx", "x"), ("dvalues", "values")])
def test_an_operand_that_no_gradient_needs_may_change(operator: str, backend: str, wanted: str, changed: str) -> None:
    """It is not kept alive for the backward pass either."""
    expected = gradients(operator, backend, SMALL[operator].operands(widest(backend)), (wanted,))
    operands = SMALL[operator].operands(widest(backend))
    for name, each in operands.inputs.items():
        each.requires_grad_(name == wanted)
    y = SMALL[operator].call(operands, backend)
    with torch.no_grad():
        getattr(operands, changed).add_(1)
    torch.autograd.backward(y, operands.dy)
    for name, each, full in zip(operands.inputs, operands.inputs.values(), expected, strict=True):
        if name == wanted:
            assert each.grad is not None and full is not None and torch.equal(each.grad, full)


@pytest.mark.parametrize("first", ["dx", "dvalues"])
@pytest.mark.parametrize("second", ["dx", "dvalues"])
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_right(operator: str, backend: str, first: str, second: str, power: int) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    operands.dy.requires_grad_()
    exact = case.function(operands.mask)(operands.x, operands.values, operands.bias)
    expected = _second_derivative(exact, operands, first, second, power)
    actual = _second_derivative(case.call(operands, backend), operands, first, second, power)
    assert_nearly(actual, expected)


def _second_derivative(y: Tensor, operands: Operands, first: str, second: str, power: int) -> Tensor:
    """Gradient for one input, and for dy, of a sum of powers of a first gradient; power 1 makes its own expanded."""
    (gradient,) = torch.autograd.grad(y, operands.inputs[first], operands.dy.to(y.device), create_graph=True)
    inputs = (operands.inputs[second], operands.dy)
    found = torch.autograd.grad((gradient**power).sum(), inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])


def test_a_forward_mode_derivative_is_right_or_refused(operator: str, backend: str) -> None:
    case = SMALL[operator]
    operands = case.operands(widest(backend))
    bias = None if operands.bias is None else operands.bias.detach()
    values, tangent = operands.values.detach(), torch.ones_like(operands.values)

    def call(values: Tensor) -> Tensor:
        return case.call(replace(operands, x=operands.x.detach(), values=values, bias=bias), backend)

    try:
        derivative = torch.func.jvp(call, (values,), (tangent,))[1]
    except (RuntimeError, NotImplementedError):
        return
    # The operator is linear in its values: its derivative along a direction is itself on that direction.
    assert_nearly(derivative, case.function(operands.mask)(operands.x.detach(), tangent, None))


@pytest.mark.parametrize("wanted", ["dx", "dvalues"])
def test_a_backward_product_refuses_a_forward_mode_derivative(operator: str, backend: str, wanted: str) -> None:
    operands = SMALL[operator].operands(widest(backend))
    for name, each in operands.inputs.items():
        each.requires_grad_(name == wanted)
    y = SMALL[operator].call(operands, backend)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(operands.dy, torch.ones_like(operands.dy))
        with pytest.raises(NotImplementedError, match=f"rsn2::{operator}_{wanted}, dy: forward-mode derivatives"):
            torch.autograd.grad(y, operands.inputs[wanted], dy)


def test_a_call_beside_forward_mode_derivatives_is_served(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(widest(backend))
    y = SMALL[operator].call(operands, backend)
    with forward_ad.dual_level():
        assert torch.equal(SMALL[operator].call(operands, backend), y)


def test_many_gradients_at_once_are_those_of_single_calls(operator: str, backend: str) -> None:
    if operator != "linear" and backend != "cpu":
        pytest.skip("promised of the cpu backend alone")
    if backend in ("cuda", "triton"):
        pytest.skip("not promised")
    operands = SMALL[operator].operands(widest(backend))
    inputs = list(operands.inputs.values())
    y = SMALL[operator].call(operands, backend)
    dys = torch.stack([operands.dy, 2 * operands.dy, operands.dy.square()])
    together = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))
