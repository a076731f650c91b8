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


def served(operator: str, backend: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
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
@pytest.mark.parametrize("more", [-1, 1], ids=["fewer", "more"])
def test_a_captured_graph_refuses_an_x_of_other_features(
    capture: Callable[..., Any], more: int, operator: str, backend: str
) -> None:
    function, x = served(operator, backend)
    graph = capture(function, x)
    features = x.shape[1]
    with pytest.raises((ValueError, RuntimeError), match=f"rsn2::{operator}, x: expected {features} features"):
        graph(x.new_zeros(x.shape[0], features + more, *x.shape[2:]))


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
