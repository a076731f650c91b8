"""Training one task cannot change another: a property of the memory layout, proved bit by bit."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import rsn2
from networks import allocated, assert_same, network, samples, snapshot, train
from rsn2.nn import PerTask

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Factory] = {
    "adam": lambda own: torch.optim.Adam(own, lr=0.01),
    "adamw-decay-0.1": lambda own: torch.optim.AdamW(own, lr=0.01, weight_decay=0.1),
    "sgd-momentum-decay": lambda own: torch.optim.SGD(own, lr=0.01, momentum=0.9, weight_decay=0.1),
}


def own_tensors(model: nn.Module, task: str) -> list[torch.Tensor]:
    """Copies of everything that decides a task's predictions."""
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, rsn2.nn.PerTask)
        for buffer in module.of(task).buffers()
    ]
    masks = [
        layer.owners.mask(layer.slot(task)) for layer in model.modules() if isinstance(layer, rsn2.nn.MultitaskLayer)
    ]
    return [tensor.detach().clone() for tensor in (*rsn2.parameters(model, task), *buffers, *masks)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_a_later_task_changes_no_bit_of_an_earlier_one(make: Factory) -> None:
    model = allocated("shapes")
    train(model, "shapes", make(rsn2.parameters(model, "shapes")))
    x = samples("shapes")[0]
    with rsn2.use_task(model.eval(), "shapes"):
        before, prediction = own_tensors(model, "shapes"), model(x)
    model.train()
    rsn2.allocate(model, "sizes", 0.5, nn.functional.mse_loss, [samples("sizes")])
    untrained = own_tensors(model, "sizes")
    train(model, "sizes", make(rsn2.parameters(model, "sizes")), steps=20)
    assert any(not torch.equal(*pair) for pair in zip(untrained, own_tensors(model, "sizes"), strict=True))
    for old, new in zip(before, own_tensors(model, "shapes"), strict=True):
        assert torch.equal(old, new)
    with rsn2.use_task(model.eval(), "shapes"):
        assert torch.equal(prediction, model(x))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_one_optimizer_over_all_tasks_leaves_idle_tasks_alone(make: Factory) -> None:
    # Parameters without a gradient are skipped by every optimizer, momentum and decay included.
    model = allocated("shapes", "sizes")
    optimizer = make(list(model.parameters()))
    train(model, "shapes", optimizer)
    before = own_tensors(model, "shapes")
    train(model, "sizes", optimizer)
    for old, new in zip(before, own_tensors(model, "shapes"), strict=True):
        assert torch.equal(old, new)


def test_training_moves_only_values_never_owners_or_pool() -> None:
    model = allocated("shapes", "sizes")
    before = snapshot(model)
    train(model, "sizes", torch.optim.AdamW(rsn2.parameters(model, "sizes"), weight_decay=0.1))
    changed = {key for key, tensor in snapshot(model).items() if not torch.equal(tensor, before[key])}
    assert changed and all(
        key.partition(".")[2].startswith(("values.1", "biases.1", "by_task.task_sizes")) for key in changed
    )


def test_optimizer_state_is_proportional_to_owned_weights() -> None:
    model = allocated("shapes", density=0.1)
    optimizer = torch.optim.Adam(rsn2.parameters(model, "shapes"))
    train(model, "shapes", optimizer)
    layer = model[2]
    state = optimizer.state[layer.values["0"]]
    assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == round(0.1 * layer.owners.numel)


def test_an_optimizer_cannot_be_made_before_allocation() -> None:
    model = network()
    with pytest.raises(rsn2.TaskError, match=r"call rsn2.allocate\(model, 'shapes'"):
        torch.optim.Adam(rsn2.parameters(model, "shapes"))


def test_statistics_of_a_norm_that_all_tasks_share_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)).train()
    rsn2.convert(model, exclude=("1",))
    before = model[1].running_mean.clone()
    rsn2.allocate(model, "sizes", 0.5, nn.functional.mse_loss, [samples("sizes")])
    train(model, "sizes", torch.optim.Adam(rsn2.parameters(model, "sizes")))
    assert torch.equal(model[1].running_mean, before) and model[1].training


class Centred(nn.Module):
    """Subtracts a running mean, which train mode moves: in place, or by another tensor."""

    def __init__(self, features: int, in_place: bool):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            moved = self.mean.lerp(x.detach().mean(0), 0.1)
            if self.in_place:
                self.mean.copy_(moved)
            else:
                self.mean = moved
        return x - self.mean


class Whole(Centred):
    """The same around other modules, so that its mode is also theirs."""

    def __init__(self, features: int, in_place: bool):
        super().__init__(features, in_place)
        self.inner = nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(super().forward(x))  # type: ignore[no-any-return]


SHARED: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "spectral norm by a hook": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "in place": lambda: Centred(8, in_place=True),
    "another tensor": lambda: Centred(8, in_place=False),
    "around others": lambda: Whole(8, in_place=True),
    "another tensor around others": lambda: Whole(8, in_place=False),
}


@pytest.mark.filterwarnings("ignore:fit does not train", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("made", SHARED.values(), ids=SHARED)
def test_buffers_that_all_tasks_share_stay_as_they_are(made: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), made(), nn.ReLU(), nn.Linear(8, 1)).train()
    rsn2.convert(model, exclude=("1",))
    loss, data = nn.functional.mse_loss, samples("sizes")
    rsn2.allocate(model, "a", 0.4, loss, [data])
    before, answers = snapshot(model[1]), rsn2.predict(model, "a", data[0])
    rsn2.allocate(model, "b", 0.4, loss, [data])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rsn2.fit(model, "b", data, data, loss=loss, epochs=2)
    assert_same(before, snapshot(model[1]))
    assert torch.equal(rsn2.predict(model, "a", data[0]), answers)
    moved = [str(each.message) for each in caught if "put" in str(each.message)]
    assert bool(moved) is isinstance(model[1], Whole)
    assert all(re.match(r"fit put \['1\.mean'\] back, .* per_task", each) for each in moved)


def test_buffers_of_any_type_are_compared() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()
            for number, dtype in enumerate((torch.bool, torch.int64, torch.bfloat16, torch.complex64, torch.uint8)):
                self.register_buffer(f"kept{number}", torch.ones(3, dtype=dtype))
            self.register_buffer("empty", torch.full((3,), torch.nan))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(x)  # type: ignore[no-any-return]

    model = rsn2.convert(nn.Sequential(Kept(), nn.Linear(5, 1)))
    rsn2.allocate(model, "a", 0.5, nn.functional.mse_loss, [samples("sizes")])
    with warnings.catch_warnings(action="error"):
        rsn2.fit(model, "a", samples("sizes"), loss=nn.functional.mse_loss, epochs=1)


def test_parameters_go_by_their_names() -> None:
    model = allocated("shapes", "sizes")
    for task in ("shapes", ["sizes", "shapes"]):
        named = rsn2.named_parameters(model, task)
        assert all(model.get_parameter(name) is each for name, each in named.items())
        pairs = zip(named.values(), rsn2.parameters(model, task), strict=True)
        assert all(one is other for one, other in pairs)
    assert {"2.values.0", "2.biases.0", "10.by_task.task_shapes.weight"} <= set(rsn2.named_parameters(model, "shapes"))
    with pytest.raises(rsn2.TaskError, match="nothing allocated"):
        rsn2.named_parameters(network(), "shapes")


def test_tasks_do_not_share_parameters() -> None:
    model = allocated("shapes", "sizes")
    ids = [{id(parameter) for parameter in rsn2.parameters(model, task)} for task in ("shapes", "sizes")]
    assert not ids[0] & ids[1]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert ids[0] | ids[1] == trainable


class TiedHead(nn.Module):
    """A language model whose head for task "a" is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 8)
        own = nn.Linear(8, 20, bias=False)
        own.weight = self.embedding.weight
        self.head = PerTask({"a": own, "b": nn.Linear(8, 20)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(torch.relu(self.hidden(self.embedding(tokens))))
        return output


def test_a_tensor_of_a_task_s_own_is_nobody_else_s() -> None:
    with pytest.raises(ValueError, match=r"^embedding\.weight: .* of task 'a' and what all tasks share: "):
        rsn2.convert(TiedHead())
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    crossed = nn.Sequential(PerTask({"a": first, "b": second}), PerTask({"a": second, "b": first}), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"of task 'a' and task 'b'"):
        rsn2.convert(crossed)
    model = rsn2.convert(nn.Sequential(PerTask({"a": nn.Linear(4, 4)}), nn.Linear(4, 4), PerTask({})))
    norm = nn.BatchNorm1d(4)
    model[2].add_task("a", norm)
    model.append(norm)
    for call in (
        lambda: rsn2.allocate(model, "a", 0.5, criterion="magnitude"),
        lambda: rsn2.warm_up(model, "a", (torch.ones(4, 4), torch.ones(4, 4)), loss=nn.functional.mse_loss, epochs=1),
    ):
        with pytest.raises(ValueError, match=r"^2\.by_task\.task_a\.weight"):
            call()
    assert rsn2.tasks(model) == []


def test_a_frozen_tensor_may_be_anybody_s() -> None:
    model = TiedHead()
    model.embedding.requires_grad_(False)
    rsn2.convert(model)
    tokens = torch.randint(20, (32,))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.3, nn.functional.cross_entropy, [(tokens, tokens)])
    before = rsn2.predict(model, "b", tokens)
    rsn2.fit(model, "a", (tokens, tokens), loss=nn.functional.cross_entropy, epochs=2, lr=0.01)
    assert torch.equal(rsn2.predict(model, "b", tokens), before)
