"""Graphs that torch captured call the registered operators, which refuse operands that do not fit their weight.

No function of this package has looked at what such a graph is called with.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .cases import SMALL
from .test_torch_integration import operator_calls

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

CAPTURE: dict[str, Callable[..., Any]] = {
    "make_fx": lambda function, x: make_fx(function)(x),
    "jit.trace": torch.jit.trace,
}
HOW = pytest.mark.parametrize("capture", CAPTURE.values(), ids=CAPTURE)


def served(operator: str, backend: str | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A small call as a function of x, behind the one eager call that derives what it reads of a pattern; and an x."""
    operands = SMALL[operator].operands(torch.float32)
    assert operands.bias is not None
    held = replace(operands, values=operands.values.detach(), bias=operands.bias.detach())

    def function(x: Tensor) -> Tensor:
        return SMALL[operator].call(replace(held, x=x), backend)

    x = operands.x.detach()
    function(x)
    return function, x


@HOW
def test_a_captured_graph_gives_what_the_call_gives(capture: Callable[..., Any], operator: str, backend: str) -> None:
    function, x = served(operator, backend)
    graph, other = capture(function, x), torch.randn_like(x)
    assert torch.equal(graph(other), function(other))


@HOW
def test_a_graph_captured_of_a_call_without_a_backend_s_name_gives_the_same(
    capture: Callable[..., Any], operator: str
) -> None:
    function, x = served(operator, None)
    torch.testing.assert_close(capture(function, x)(x), function(x))


@HOW
@pytest.mark.parametrize("more", [-1, 1], ids=["fewer", "more"])
def test_a_captured_graph_refuses_an_x_of_other_features(
    capture: Callable[..., Any], more: int, operator: str, backend: str
) -> None:
    function, x = served(operator, backend)
    graph = capture(function, x)
    features = x.shape[1]
    with pytest.raises((ValueError, RuntimeError), match=f"rsn2::{operator}, x: expected {features} features"):
        graph(x.new_zeros(x.shape[0], features + more, *x.shape[2:]))


def changed(operand: Tensor) -> dict[str, Tensor]:
    """Operands that a kernel would read past, or as what they are not."""
    fewer = operand.new_zeros(operand.shape[0] - 1, *operand.shape[1:])
    return {"fewer": fewer, "longer": torch.cat([operand, operand]), "wider": operand.double()}


@pytest.mark.parametrize("how", ["fewer", "longer", "wider"])
@pytest.mark.parametrize(
    ("product", "place", "name"),
    [("", 1, "values"), ("", 2, "bias(es)?"), ("_dx", 1, "values"), ("_dvalues", 1, "x")],
)
def test_every_product_refuses_operands_that_do_not_fit_each_other(
    product: str, place: int, name: str, how: str, operator: str, backend: str
) -> None:
    arguments = list(operator_calls(operator, backend, "contiguous")[operator + product])
    arguments[place] = changed(arguments[place].detach())[how]
    error = TypeError if how == "wider" else ValueError
    with pytest.raises(error, match=rf"rsn2::{operator}{product}, {name}: expected .*\. Got"):
        getattr(torch.ops.rsn2, operator + product)(*arguments)


@pytest.mark.parametrize(("product", "operand"), [("", "x"), ("_dx", "dy"), ("_dvalues", "dy")])
def test_a_grouped_product_refuses_a_batch_of_other_rows_than_have_tasks(
    product: str, operand: str, backend: str
) -> None:
    arguments = list(operator_calls("grouped_linear", backend, "contiguous")["grouped_linear" + product])
    arguments[0] = arguments[0][:-1]
    if product == "_dvalues":
        arguments[1] = arguments[1][:-1]
    with pytest.raises(ValueError, match=rf"rsn2::grouped_linear{product}, {operand}: expected 7 rows.*Got 6"):
        getattr(torch.ops.rsn2, "grouped_linear" + product)(*arguments)


def test_a_graph_captured_without_gradients_gives_that_of_x(operator: str, backend: str) -> None:
    """What it holds of the weight has no column order."""
    function, x = served(operator, backend)
    graph = make_fx(function)(x)
    found, expected = (torch.autograd.grad(call(x.requires_grad_()).square().sum(), x) for call in (graph, function))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("product", "operand", "place"), [("", "x", 0), ("_dx", "dy", 0), ("_dvalues", "dy", 0), ("_dvalues", "x", 1)]
)
def test_every_product_refuses_operands_of_other_features(
    product: str, operand: str, place: int, operator: str, backend: str
) -> None:
    arguments = list(operator_calls(operator, backend, "contiguous")[operator + product])
    arguments[place] = arguments[place][:, 1:]
    got = str(tuple(arguments[place].shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"rsn2::{operator}{product}, {operand}: expected \d+ features.*{got}"):
        getattr(torch.ops.rsn2, operator + product)(*arguments)
