"""`extract`: the copy answers as the task does, holds nothing else, and has no hidden unit that is of no use to it."""

import copy
import io
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2
from rsn2.nn import MultitaskLayer, MultitaskLinear, PerTask
from rsn2.tasks import multitask_layers

LOSS = nn.functional.cross_entropy


def perceptron(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths, in float64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [activation()] * (number > 0) + [nn.Linear(before, after, bias)]
    return nn.Sequential(*layers).double()


def answer(model: nn.Module, task: str, *inputs: Tensor) -> Tensor:
    with torch.no_grad(), rsn2.use_task(model.eval(), task):
        output: Tensor = model(*inputs)
    return output


def masked(model: nn.Module, **masks: Tensor) -> nn.Module:
    """The converted network with one task, "a", which owns these positions of the layers; all of those not named."""
    model = rsn2.convert(model)
    for name, layer in multitask_layers(model).items():
        mask = masks.get(f"layer_{name}", torch.ones(layer.owners.shape, dtype=torch.bool))
        layer.add_task("a", mask, 1.0)
    return model


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [layer.weight_shape for layer in multitask_layers(model).values()]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.last(torch.tanh(hidden + self.second(hidden)))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Two layers read the same units, behind different functions; methods and functions stand for modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.left(hidden.relu()) + self.right(F.leaky_relu(hidden, 0.1)).sigmoid()  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.again(self.first(x))))  # type: ignore[no-any-return]


class Undecided(nn.Module):
    """A forward that no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) if x.sum() > 0 else -self.first(x))  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """An activation writes over what it reads; ``skip`` reads it too, before or behind."""

    def __init__(self, activation: Callable[[Tensor], Tensor], behind: bool) -> None:
        super().__init__()
        self.first, self.last, self.skip = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.same = nn.Dropout()
        self.activation, self.behind = activation, behind

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        active = self.activation(self.same(hidden))
        return self.last(active) + self.skip(active if self.behind else hidden)  # type: ignore[no-any-return]


class Context(nn.Module):
    """What its last layer reads depends on an argument that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden) * self.other(hidden if context is None else context)  # type: ignore[no-any-return]


class Contexts(Context):
    """The same, however many are given."""

    def forward(self, x: Tensor, **context: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, context.get("context"))


class Stash(nn.Module):
    """Its forward keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.relu(self.first(x))
        return self.last(self.seen)  # type: ignore[no-any-return]


class Images(nn.Module):
    """Convolutions, norms, a head and an embedding that all tasks share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 12)
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2, bias=False)
        )
        self.line = nn.Conv1d(4, 4, 2)
        self.connected = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 3, 12), nn.LayerNorm(12), nn.Linear(12, 5))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = self.convolutions(x)
        hidden = self.line(F.pad(hidden.flatten(2), (0, 1))).unflatten(-1, (3, 3))
        return self.connected(hidden) + self.head(self.embedding(token))  # type: ignore[no-any-return]


def test_the_copy_answers_with_the_same_bits_and_needs_no_use_task() -> None:
    torch.manual_seed(0)
    model = rsn2.convert(Images(), per_task=["head"])
    for number, task in enumerate(("a", "b", "c")):
        rsn2.allocate(model, task, 0.3, criterion="random", seed=number)
    model.embedding.requires_grad_(False)
    x, token = torch.randn(6, 3, 5, 5), torch.randint(7, (6,))
    with rsn2.use_task(model.train(), "b"):
        model(x, token)  # moves the statistics of its norms
    for task in ("a", "b", "c"):
        alone = rsn2.extract(model, task)
        assert torch.equal(alone(x, token), answer(model, task, x, token))
        assert not any(isinstance(each, PerTask) for each in alone.modules())
        assert not alone.training and not any(each.requires_grad for each in alone.parameters())
        assert all(layer.owners.tasks == (0,) and layer.pool is None for layer in multitask_layers(alone).values())
        with rsn2.use_task(alone, task):
            assert torch.equal(alone(x, token), answer(model, task, x, token))


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_is_extracted(norm_first: bool) -> None:
    torch.manual_seed(0)
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first), 2)
    model = rsn2.convert(plain)
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.4, criterion="random")
    x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    alone = rsn2.extract(model, "b")
    with rsn2.use_task(model.eval(), "b"):
        expected = model(x, src_key_padding_mask=padding)
    assert torch.equal(alone(x, src_key_padding_mask=padding), expected)


def test_the_network_stays_as_it_is_and_shares_nothing_with_the_copy() -> None:
    model = rsn2.convert(perceptron(6, 12, 12, 3))
    x, y = torch.randn(20, 6).double(), torch.randint(3, (20,))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.4, LOSS, [(x, y)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    generator = torch.get_rng_state()
    alone = rsn2.extract(model, "b")
    assert torch.equal(torch.get_rng_state(), generator)
    mine = {each.data_ptr() for each in (*model.parameters(), *model.buffers()) if each.numel()}
    assert not mine & {each.data_ptr() for each in (*alone.parameters(), *alone.buffers())}
    assert rsn2.tasks(model) == ["a", "b"] and rsn2.tasks(alone) == ["b"]
    for parameter in alone.parameters():
        parameter.add_(1.0)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    rsn2.fit(model, "b", (x, y), loss=LOSS, epochs=1)
    with pytest.raises(rsn2.TaskError):
        answer(alone, "a", x)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Sigmoid, lambda: nn.LeakyReLU(0.2)])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_idle_units_go_and_the_answer_stays(density: float, activation: Callable[[], nn.Module]) -> None:
    model = rsn2.convert(perceptron(20, 60, 60, 60, 4, activation=activation))
    x, y = torch.randn(50, 20).double(), torch.randint(4, (50,))
    rsn2.allocate(model, "a", density, LOSS, [(x, y)])
    alone = rsn2.extract(model, "a")
    torch.testing.assert_close(alone(x), answer(model, "a", x), rtol=1e-12, atol=1e-12)
    layers = list(multitask_layers(alone).values())
    for made, read in itertools.pairwise(layers):
        assert made.weight_shape[0] == read.weight_shape[1]
        if made.weight_shape[0] > 1:
            assert read.owners.mask(0).any(0).all(), "each unit is read"
            assert made.owners.mask(0).any(1).all(), "each unit reads something"
    if density < 0.5:
        assert shapes(alone) < shapes(model)


def test_units_that_lead_nowhere_go_and_what_leads_to_them_alone() -> None:
    """Unit 1 of the second layer has no reader, so unit 0 of the first, which only it reads, has none either."""
    second, last = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    second[0, 0] = False
    last[:, 1] = False
    model = masked(perceptron(4, 3, 2, 2), layer_2=second, layer_4=last)
    x = torch.randn(5, 4).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(2, 4), (1, 2), (2, 1)]
    torch.testing.assert_close(alone(x), answer(model, "a", x), rtol=1e-13, atol=1e-13)


def test_units_that_nothing_enters_become_part_of_the_next_bias() -> None:
    """Unit 0 of the first layer is constant; so is then unit 1 of the second, which reads only that."""
    first, second = torch.ones(3, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    first[0] = False
    second[1, 1:] = False
    model = masked(perceptron(4, 3, 2, 2, activation=nn.Sigmoid), layer_0=first, layer_2=second)
    x = torch.randn(5, 4).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(2, 4), (1, 2), (2, 1)]
    torch.testing.assert_close(alone(x), answer(model, "a", x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("activation", "kept"), [(nn.Sigmoid, 3), (nn.ReLU, 2)])
def test_a_layer_without_bias_takes_over_no_constant_but_zero(activation: Callable[[], nn.Module], kept: int) -> None:
    first = torch.ones(3, 4, dtype=torch.bool)
    first[0] = False
    model = masked(perceptron(4, 3, 2, activation=activation, bias=False), layer_0=first)
    x = torch.randn(5, 4).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(kept, 4), (2, kept)]
    torch.testing.assert_close(alone(x), answer(model, "a", x), rtol=1e-13, atol=1e-13)


def test_a_task_that_owns_nothing_still_answers() -> None:
    nothing = {f"layer_{number}": torch.zeros(size, dtype=torch.bool) for number, size in ((0, (5, 4)), (2, (3, 5)))}
    model = masked(perceptron(4, 5, 3), **nothing)
    x = torch.randn(5, 4).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(1, 4), (3, 1)]
    torch.testing.assert_close(alone(x), answer(model, "a", x))


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (Residual(), [(8, 6), (8, 8), (3, 8)]),
        (Twice(), [(8, 6), (8, 8), (3, 8)]),
        (Undecided(), [(8, 6), (3, 8)]),
        (Branching(), [(5, 6), (4, 5), (4, 5)]),
        (InPlace(nn.ReLU(inplace=True), behind=False), [(8, 6), (3, 8), (3, 8)]),
        (InPlace(lambda hidden: F.leaky_relu(hidden, 0.1, True), behind=False), [(8, 6), (3, 8), (3, 8)]),
        (InPlace(nn.ReLU(), behind=False), [(5, 6), (3, 5), (3, 5)]),
        (InPlace(nn.ReLU(inplace=True), behind=True), [(5, 6), (3, 5), (3, 5)]),
        (Context(), [(8, 6), (3, 8), (3, 8)]),
        (Contexts(), [(8, 6), (3, 8), (3, 8)]),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_units_that_others_read_stay(plain: nn.Module, expected: list[tuple[int, ...]]) -> None:
    """Units 0 and 1 are constant; unit 7 is read by nobody, unit 6 of two readers by one."""
    masks = {"layer_first": torch.ones(8, 6, dtype=torch.bool)}
    masks["layer_first"][:2] = False
    for name in ("last", "left", "right", "skip", "other"):
        if hasattr(plain, name):
            masks[f"layer_{name}"] = torch.ones(getattr(plain, name).weight.shape, dtype=torch.bool)
            masks[f"layer_{name}"][:, 7] = False
    if "layer_left" in masks:
        masks["layer_left"][:, 6] = False
    model = masked(copy.deepcopy(plain).double(), **masks)
    x = torch.randn(5, 6).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == expected
    torch.testing.assert_close(alone(x), answer(model, "a", x), rtol=1e-13, atol=1e-13)


def idle_network(plain: nn.Module) -> nn.Module:
    """The converted network with one task, whose first layer has a constant unit."""
    first = torch.ones(8, 6, dtype=torch.bool)
    first[0] = False
    return masked(plain.double(), layer_first=first)


def test_nothing_of_the_search_for_units_stays_in_a_network_that_keeps_what_it_sees() -> None:
    model = idle_network(Stash())
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(7, 6), (3, 7)]
    assert alone.seen is None and model.seen is None
    x = torch.randn(5, 6).double()
    alone(x)
    file = io.BytesIO()
    torch.save(alone, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), alone(x))


@pytest.mark.filterwarnings("ignore")  # of torch's own exporter
def test_the_copy_is_exported_and_compiled_as_it_is() -> None:
    torch.manual_seed(0)
    model = rsn2.convert(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 12), nn.Linear(12, 3))
    )
    rsn2.allocate(model, "a", 0.1, criterion="random")
    x = torch.randn(4, 2, 5, 5)
    with torch.no_grad():
        exported = torch.export.export(rsn2.extract(model, "a"), (x,)).module()
        compiled = torch.compile(rsn2.extract(model, "a"), fullgraph=True, backend="eager")
        expected = rsn2.extract(model, "a")(x)
        assert torch.equal(exported(x), expected) and torch.equal(compiled(x), expected)


def test_a_compiled_network_is_extracted_as_the_network_it_compiles() -> None:
    model = idle_network(Residual())
    alone = rsn2.extract(torch.compile(model, backend="eager"), "a")
    assert type(alone) is Residual
    x = torch.randn(5, 6).double()
    assert torch.equal(alone(x), answer(model, "a", x))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_units_that_a_hook_sees_stay(place: int) -> None:
    first = torch.ones(3, 4, dtype=torch.bool)
    first[0] = False
    model = masked(perceptron(4, 3, 2), layer_0=first)
    model[place].register_forward_hook(lambda module, inputs, output: output * output.shape[-1])
    x = torch.randn(5, 4).double()
    alone = rsn2.extract(model, "a")
    assert shapes(alone) == [(3, 4), (2, 3)]
    assert torch.equal(alone(x), answer(model, "a", x))


def test_one_layer_is_extracted_too() -> None:
    layer = MultitaskLinear(6, 4)
    rsn2.allocate(layer, "a", 0.5, criterion="random")
    rsn2.allocate(layer, "b", 0.25, criterion="random")
    x = torch.randn(3, 6)
    alone = rsn2.extract(layer, "b")
    assert isinstance(alone, MultitaskLayer) and alone is not layer
    assert torch.equal(alone(x), answer(layer, "b", x))
    assert [each.shape[0] for each in alone.values.values()] == [6]


def test_layers_that_the_task_does_not_run_through_hold_nothing() -> None:
    model = rsn2.convert(nn.ModuleDict({"mine": nn.Linear(4, 3), "other": nn.Linear(9, 3)}))
    rsn2.allocate(model, "a", 0.5, criterion="random", layers=["mine"])
    rsn2.allocate(model, "b", 0.5, criterion="random", layers=["other"])
    alone = rsn2.extract(model, "a")
    assert not alone["other"].slots and not list(alone["other"].parameters()) and alone["other"].pool is None  # type: ignore[index]
    x = torch.randn(2, 4)
    assert torch.equal(alone["mine"](x), answer(model["mine"], "a", x))  # type: ignore[index]


def test_the_copy_is_saved_moved_and_finalized_networks_are_extracted() -> None:
    model = rsn2.convert(perceptron(6, 12, 3))
    x, y = torch.randn(20, 6).double(), torch.randint(3, (20,))
    rsn2.allocate(model, "a", 0.3, LOSS, [(x, y)])
    rsn2.allocate(model, "b", 0.3, LOSS, [(x, y)])
    first = rsn2.extract(model, "b")
    rsn2.finalize(model)
    second = rsn2.extract(model, "b")
    for parameter in second.parameters():
        parameter.zero_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), first(x))
    torch.testing.assert_close(copy.deepcopy(first).float()(x.float()), first(x).float())


def test_a_task_that_is_not_there_is_an_error() -> None:
    model = rsn2.convert(perceptron(6, 12, 3))
    rsn2.allocate(model, "a", 0.3, criterion="random")
    with pytest.raises(rsn2.TaskError, match="'b' has nothing allocated"):
        rsn2.extract(model, "b")
    with pytest.raises(rsn2.TaskError, match="expected a network with multitask layers"):
        rsn2.extract(nn.Linear(2, 2), "a")
