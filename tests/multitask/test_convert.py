"""convert replaces what it says, leaves the rest, and refuses what it cannot do before it changes anything."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import rsn2
from networks import plain_network
from rsn2.nn import MultitaskConv2d, MultitaskLinear, PerTask


def test_linear_conv_and_norm_are_replaced_in_place() -> None:
    plain = plain_network()
    model = rsn2.convert(plain)
    assert model is plain
    kinds = [type(module) for module in model]
    assert kinds[2] is MultitaskLinear and kinds[8] is MultitaskConv2d and kinds[3] is PerTask and kinds[6] is PerTask
    assert type(model[0].of("shapes")) is nn.Linear, "what belongs to one task stays dense"


def test_excluded_modules_stay_and_belong_to_no_task() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))})
    rsn2.convert(model, exclude=("head",))
    assert type(model["body"]) is MultitaskLinear and type(model["head"][0]) is nn.Linear
    rsn2.allocate(model, "a", 0.5, criterion="magnitude")
    own = rsn2.parameters(model, "a")
    assert {id(parameter) for parameter in own} == {id(parameter) for parameter in model["body"].parameters()}
    assert set(rsn2.shared_parameters(model)) == {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}


def test_per_task_names_give_every_task_its_own_dense_copy() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    rsn2.convert(model, per_task=("head",))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.5, criterion="magnitude")
    heads = [model["head"].of(task) for task in ("a", "b")]
    assert heads[0].weight is not heads[1].weight and torch.equal(heads[0].weight, heads[1].weight)
    assert any(parameter is heads[0].weight for parameter in rsn2.parameters(model, "a"))


def test_a_single_layer_is_returned_converted() -> None:
    assert type(rsn2.convert(nn.Linear(3, 2))) is MultitaskLinear


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.LayerNorm(3)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_a_single_layer_stays_in_its_mode(layer: nn.Module, training: bool) -> None:
    converted = rsn2.convert(layer.train(training))
    assert all(module.training is training for module in converted.modules())


def test_converting_twice_changes_nothing() -> None:
    model = rsn2.convert(plain_network())
    parts = list(model.modules())
    assert list(rsn2.convert(model).modules()) == parts


def test_a_module_under_two_names_stays_one_module() -> None:
    shared = nn.Linear(4, 4)
    model = rsn2.convert(nn.ModuleDict({"first": shared, "second": shared}))
    assert model["first"] is model["second"] and type(model["first"]) is MultitaskLinear


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.output = nn.Linear(4, 10, bias=False)
        self.output.weight = self.embedding.weight


class OwnNorm(nn.BatchNorm1d):
    """A subclass may do anything; only exact types are replaced."""


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {"exclude": ("nope",)}, "no module is named 'nope'"),
        (nn.Sequential(nn.Linear(2, 2)), {"exclude": "0"}, "expected a sequence of names"),
        (nn.Sequential(nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3)), {}, "1: ConvTranspose2d has no multitask form"),
        (TiedWeights(), {}, "output: a parameter of it is used by another module"),
        (TiedWeights(), {"per_task": ("output",)}, "output: a parameter of it is used by another module"),
        (nn.Sequential(OwnNorm(2)), {}, "0: OwnNorm has no multitask form"),
        (nn.TransformerDecoderLayer(4, 2), {}, "TransformerDecoderLayer has no multitask form"),
        (hooked(), {}, "0: it has hooks"),
        (nn.Sequential(weight_norm(nn.Linear(2, 2))), {}, "0: it is parametrized"),
        (nn.Sequential(nn.Linear(2, 2).requires_grad_(False)), {}, "0: it is frozen"),
        (rsn2.convert(nn.Sequential(nn.Linear(2, 2))), {"per_task": ("0",)}, "'0' is a MultitaskLinear already"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_converted_is_named_and_nothing_changes(
    model: nn.Module, arguments: dict[str, object], message: str
) -> None:
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        rsn2.convert(model, **arguments)
    assert list(model.modules()) == before


def test_a_network_with_tasks_is_not_converted_further() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    rsn2.convert(model, exclude=("head",))
    rsn2.allocate(model, "a", 0.5, criterion="magnitude")
    with pytest.raises(rsn2.TaskError, match=r"\['head'\] can only be converted before"):
        rsn2.convert(model)
    assert type(model["head"]) is nn.Linear
