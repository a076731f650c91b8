"""Patterns and owner maps that are copied or pickled, alone or in a module, say and compute the same."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rsn2_kernels as rk

from .cases import SMALL, random_mask

COPIED = pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["deepcopy", "pickle"],
)


class Network(nn.Module):
    """A module of a map, one of its tasks' pattern, and that task's values."""

    def __init__(self) -> None:
        super().__init__()
        self.owners = rk.OwnerMap.empty((3, 5))
        self.owners.claim(0, random_mask(3, 5, 0.5, 0))
        self.pattern = rk.SparsePattern.from_mask(self.owners.mask(0))
        self.values = nn.Parameter(torch.randn(self.pattern.nnz))

    def forward(self, x: Tensor) -> Tensor:
        return rk.linear(x, self.values, self.pattern)


@COPIED
@pytest.mark.parametrize("with_columns", [False, True], ids=["rows", "columns"])
def test_a_copied_pattern_computes_the_same(
    copied: Callable[[Any], Any], with_columns: bool, operator: str, backend: str
) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    operands.pattern.index(with_columns)
    twin = replace(operands, patterns=copied(operands.patterns))
    inputs = list(operands.inputs.values())
    for call in (operands, twin):
        assert call.pattern.nnz == operands.pattern.nnz
    gradients = [torch.autograd.grad(case.call(each, backend), inputs, operands.dy) for each in (operands, twin)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@COPIED
def test_a_pattern_copied_in_inference_mode_serves_training(
    copied: Callable[[Any], Any], operator: str, backend: str
) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    with torch.inference_mode():
        twin = replace(operands, patterns=copied(operands.patterns))
    inputs = list(operands.inputs.values())
    gradients = [torch.autograd.grad(case.call(each, backend), inputs, operands.dy) for each in (operands, twin)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_can_be_made_again_is_not_stored() -> None:
    pattern = SMALL["linear"].operands(torch.float32).pattern
    before = len(pickle.dumps(pattern))
    pattern.by_column()
    pattern.words()
    assert len(pickle.dumps(pattern)) == before


@COPIED
def test_a_copied_owner_map_answers_the_same(copied: Callable[[Any], Any]) -> None:
    owners = rk.OwnerMap.empty((5, 70))
    owners.claim(4, torch.rand(5, 70) < 0.3)
    owners.claim(1, owners.free() & (torch.rand(5, 70) < 0.3))
    twin = copied(owners)
    assert twin.tasks == owners.tasks and twin.shape == owners.shape and twin.nbytes == owners.nbytes
    assert torch.equal(twin.codes(), owners.codes()) and twin.count(4) == owners.count(4)


def test_a_module_that_holds_a_map_and_a_pattern_can_be_saved_whole() -> None:
    network = Network()
    held = io.BytesIO()
    torch.save(network, held)
    held.seek(0)
    again: Network = torch.load(held, weights_only=False)
    x = torch.randn(2, 5)
    assert torch.equal(again(x), network(x)) and again.owners.tasks == (0,)
