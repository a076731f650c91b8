"""convert replaces what it says, leaves the rest, and refuses what it cannot do before it changes anything."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import rsn2
from networks import plain_network
from rsn2.nn import MultitaskConv2d, MultitaskLinear, MultitaskTransformerEncoderLayer, PerTask


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


def test_of_two_names_the_more_specific_counts() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model = rsn2.convert(nn.Sequential(backbone, nn.Linear(4, 2)), exclude=("0",), per_task=("0.1", "0.2.1"))
    assert [type(part) for part in (*backbone[:2], *backbone[2])] == [nn.Linear, PerTask, nn.Linear, PerTask]
    assert type(model[1]) is MultitaskLinear
    every = rsn2.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), exclude=("",), per_task=("1",))
    assert [type(layer) for layer in every] == [nn.Linear, PerTask]


def test_an_excluded_encoder_takes_a_norm_of_each_task(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))

    model = rsn2.convert(build(), exclude=("1",), per_task=("1.norm1",))
    assert type(model[1]) is MultitaskTransformerEncoderLayer
    parts = (model[1].self_attn, model[1].linear1, model[1].norm1, model[1].norm2)
    assert [type(part) for part in parts] == [nn.MultiheadAttention, nn.Linear, PerTask, nn.LayerNorm]
    rsn2.allocate(model, "a", 1.0, criterion="magnitude")
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(rsn2.predict(model, "a", x), build().eval()(x))
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", build())
    assert torch.equal(rsn2.predict(again, "a", x), rsn2.predict(model, "a", x))


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_module_is_excluded_or_copied_under_any_of_its_names(name: str) -> None:
    def build() -> nn.ModuleDict:
        inner = nn.Linear(4, 4)
        return nn.ModuleDict({"first": nn.Sequential(inner), "second": nn.Sequential(inner), "last": nn.Linear(4, 4)})

    for excluded in (name, f"{name}.0"):
        model = rsn2.convert(build(), exclude=(excluded,))
        assert model["first"][0] is model["second"][0] and type(model["first"][0]) is nn.Linear
        assert type(model["last"]) is MultitaskLinear
    model = rsn2.convert(build(), per_task=(f"{name}.0",))
    assert model["first"][0] is model["second"][0] and type(model["first"][0]) is PerTask


def test_what_is_frozen_in_a_per_task_module_is_frozen_in_every_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    rsn2.convert(model, per_task=("2",))
    data = torch.randn(8, 4), torch.randint(2, (8,))
    rsn2.allocate(model, "a", 0.5, nn.functional.cross_entropy, [data])
    norm, head = model[1].of("a"), model[2].of("a")
    before = [each.detach().clone() for each in (norm.weight, norm.bias, head.weight, head.bias)]
    rsn2.fit(model, "a", data, loss=nn.functional.cross_entropy, epochs=1)
    after = norm.weight, norm.bias, head.weight, head.bias
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, True, False]


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


class OwnEncoderLayer(nn.TransformerEncoderLayer):
    """Torch's forward, in evaluation, reads the weights of its parts itself."""


class OwnEncoder(nn.TransformerEncoder):
    """Likewise where it is given padding."""


def encoder_layer(kind: type[nn.TransformerEncoderLayer] = nn.TransformerEncoderLayer) -> nn.TransformerEncoderLayer:
    return kind(8, 2, 16, batch_first=True)


def twice(layer: nn.Module) -> nn.Module:
    return nn.ModuleDict({"first": layer, "second": layer})


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
        (nn.Sequential(encoder_layer(OwnEncoderLayer)), {}, "0: OwnEncoderLayer has no multitask form"),
        (nn.Sequential(OwnEncoder(encoder_layer(), 2)), {}, "0: OwnEncoder has no multitask form"),
        (nn.Sequential(nn.Linear(2, 2)), {"exclude": ("0",), "per_task": ("0",)}, "exclude: expected nothing of '0'"),
        (twice(nn.Linear(2, 2)), {"exclude": ("first",), "per_task": ("second",)}, "expected nothing of 'second'"),
        (nn.Sequential(encoder_layer()), {"exclude": ("0.linear1",), "per_task": ("0",)}, "Got '0.linear1'"),
        (
            nn.Sequential(encoder_layer()),
            {"exclude": ("0.self_attn.q_proj",), "per_task": ("0",)},
            "no module is named",
        ),
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


def test_a_forward_of_its_own_is_not_dropped() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = lambda x: x  # as wrappers do
    with pytest.raises(ValueError, match=r"^0: it has hooks, or a forward of its own"):
        rsn2.convert(model)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 4), nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.back(self.there(x))
        return result


@pytest.mark.parametrize("part", [Tied, lambda: weight_norm(nn.Linear(4, 4))], ids=["tied", "parametrized"])
def test_a_task_s_own_copy_is_made_as_the_module_was(part: Callable[[], nn.Module]) -> None:
    plain = nn.Sequential(part(), nn.Linear(4, 4))
    model = rsn2.convert(copy.deepcopy(plain), per_task=["0"])
    rsn2.allocate(model, "a", 1.0, criterion="magnitude")
    x = torch.randn(3, 4)
    torch.testing.assert_close(rsn2.predict(model, "a", x), plain(x))
    count = sum(parameter.numel() for parameter in plain[0].parameters())
    assert sum(parameter.numel() for parameter in model[0].of("a").parameters()) == count


def test_what_a_task_brought_along_is_not_taken_apart() -> None:
    parts = {"a": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "b": nn.Identity()}
    template = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = rsn2.convert(nn.Sequential(PerTask(parts), PerTask(template=template), nn.Linear(8, 3)))
    assert type(model[0].of("a")) is nn.TransformerEncoderLayer
    assert type(model[1].template) is nn.TransformerEncoderLayer
    rsn2.allocate(model, "a", 0.5, criterion="magnitude")
    model[0].add_task("c", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    assert rsn2.convert(model) is model


@pytest.mark.parametrize("names", [("dropout1", "dropout2"), ("norm1", "norm2")])
def test_parts_of_an_encoder_layer_may_be_one_module(names: tuple[str, str]) -> None:
    layer = encoder_layer().eval()
    setattr(layer, names[1], getattr(layer, names[0]))
    plain = copy.deepcopy(layer)
    model = rsn2.convert(nn.Sequential(layer))
    rsn2.allocate(model, "a", 1.0, criterion="magnitude")
    x = torch.randn(2, 3, plain.linear1.in_features)
    torch.testing.assert_close(rsn2.predict(model, "a", x), plain(x), rtol=1e-4, atol=1e-5)


def parts_compiled(*, whole: bool) -> nn.Module:
    """A network with a compiled layer, or in a compiled whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    if whole:
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    model[2] = torch.compile(model[2], backend="eager")
    return model


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_compiled_runs_what_replaced_it(whole: bool) -> None:
    x = torch.randn(5, 4)
    model = rsn2.convert(parts_compiled(whole=whole))
    rsn2.allocate(model, "a", 0.5, criterion="magnitude")
    assert not torch.allclose(rsn2.predict(model, "a", x), parts_compiled(whole=whole)(x))
    expected = rsn2.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    expected.load_state_dict({key.replace("_orig_mod.", ""): value for key, value in model.state_dict().items()})
    torch.testing.assert_close(rsn2.predict(model, "a", x), rsn2.predict(expected, "a", x))


def test_a_compiled_layer_and_names_inside_of_a_compiled_network() -> None:
    layer = rsn2.convert(torch.compile(nn.Linear(4, 2), backend="eager"))
    rsn2.allocate(layer, "a", 0.5, criterion="magnitude")
    x = torch.randn(3, 4)
    torch.testing.assert_close(rsn2.predict(layer, "a", x), rsn2.predict(layer._orig_mod, "a", x))
    model = rsn2.convert(parts_compiled(whole=True), exclude=["2"])
    assert type(model._orig_mod[2]) is nn.Linear and type(model._orig_mod[0]) is MultitaskLinear
