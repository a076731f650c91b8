"""Tasks that share a slot: one set of values, trained by all of its tasks at once or by none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.ownership import own_tensors

CLASSES = {"age": 5, "gender": 2, "origin": 4}
LOSS = nn.functional.cross_entropy


def plain_network() -> nn.Sequential:
    """Two convolutions that face tasks share, and linear layers of each task's own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


def samples(task: str, count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.randint(
        CLASSES.get(task, 5), (count,), generator=generator
    )


def faces(*tasks: str) -> nn.Module:
    """The tasks, the convolutions of all of them those of the first; and another task with everything its own."""
    model = rsn2.convert(plain_network())
    rsn2.allocate(model, "other", 0.25, LOSS, [samples("other")])
    for number, task in enumerate(tasks):
        share = {tasks[0]: ["0", "3"]} if number else None
        rsn2.allocate(model, task, 0.25, LOSS, [samples(task)], share=share)
    return model


def test_a_shared_slot_is_one_tensor_and_costs_no_density() -> None:
    model = faces("age", "gender", "origin")
    for layer in (model[0], model[3]):
        assert layer.slots == {"other": 0, "age": 1, "gender": 1, "origin": 1}
        assert layer.holders(1) == ("age", "gender", "origin")
        assert sum(layer.densities.values()) == 0.5
    assert len(set(model[6].slots.values())) == 4
    assert all(count == 0.25 * 128 * 32 for count in [model[6].owners.count(slot) for slot in range(4)])
    report = rsn2.report(model)
    assert report.layers[0].owned["age"] == report.layers[0].owned["origin"] == 54
    assert report.layers[0].free == 108


def test_allocate_returns_what_a_task_shares_too_and_chooses_through_it() -> None:
    model = faces("age")
    with rsn2.use_task(model, "age"):
        features = model[:6](samples("age")[0])
    counts = rsn2.allocate(model, "gender", 0.25, LOSS, [samples("gender")], share={"age": ["0", "3"]})
    assert counts == {"0": 54, "3": 144, "6": 1024, "8": 40}
    # The layer behind the shared ones sees what they put out for "age": its choice is that of a network of its own.
    torch.manual_seed(0)
    alone = rsn2.convert(nn.Sequential(*plain_network()[6:]))
    for name, owner in (("0", model[6]), ("2", model[8])):
        layer = alone.get_submodule(name)
        layer.pool.copy_(owner.pool)
        layer.initial_bias.copy_(owner.initial_bias)
        for task in ("other", "age"):
            layer.add_task(task, owner.owners.mask(owner.slots[task]), 0.25)
    rsn2.allocate(alone, "gender", 0.25, LOSS, [(features.detach(), samples("gender")[1])])
    assert torch.equal(alone[0].owners.mask(2), model[6].owners.mask(2))


def test_parameters_hold_a_shared_slot_only_for_all_of_its_tasks() -> None:
    model = faces("age", "gender")
    shared = {id(model[0].values["1"]), id(model[0].biases["1"]), id(model[3].values["1"]), id(model[3].biases["1"])}
    one = {id(parameter) for parameter in rsn2.parameters(model, "gender")}
    both = {id(parameter) for parameter in rsn2.parameters(model, ["age", "gender"])}
    assert not shared & one and shared < both
    assert not {id(parameter) for parameter in rsn2.parameters(model, ["age", "other"])} & shared
    assert not both & {id(parameter) for parameter in rsn2.parameters(model, "other")}


def test_a_slot_is_its_first_task_s_own_until_another_joins() -> None:
    model = faces("age")
    assert model[0].values["1"] in set(rsn2.parameters(model, "age"))
    rsn2.allocate(model, "gender", 0.25, LOSS, [samples("gender")], share={"age": ["0", "3"]})
    assert model[0].values["1"] not in set(rsn2.parameters(model, "age"))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fit_of_one_task_changes_no_bit_of_the_others(weight_decay: float) -> None:
    model = faces("age", "gender", "origin")
    before = {task: {n: t.detach().clone() for n, t in own_tensors(model, task).items()} for task in rsn2.tasks(model)}

    def adamw(own: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(own, lr=1e-2, weight_decay=weight_decay)

    with pytest.warns(UserWarning, match=r"does not train \['0', '3'\], which \['age', 'origin'\] answer with too"):
        rsn2.fit(model, "gender", samples("gender"), loss=LOSS, epochs=2, optimizer=adamw)
    for task in ("age", "origin", "other"):
        assert_same(before[task], own_tensors(model, task))
    moved = {
        name for name, tensor in own_tensors(model, "gender").items() if not torch.equal(tensor, before["gender"][name])
    }
    assert moved == {"6.values.2", "6.biases.2", "8.values.2", "8.biases.2"}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_fit_together_trains_the_shared_slot_and_no_bit_of_another_task() -> None:
    model = faces("age", "gender")
    before = {task: {n: t.detach().clone() for n, t in own_tensors(model, task).items()} for task in rsn2.tasks(model)}
    rsn2.fit_together(model, {task: samples(task) for task in ("age", "gender")}, loss=LOSS, epochs=2, batch_size=8)
    assert_same(before["other"], own_tensors(model, "other"))
    for task in ("age", "gender"):
        now = own_tensors(model, task)
        assert all(not torch.equal(tensor, before[task][name]) for name, tensor in now.items())


def test_a_step_adds_the_gradients_of_the_tasks_that_share() -> None:
    model, expected = faces("age", "gender"), faces("age", "gender")
    data = {task: samples(task) for task in ("age", "gender")}

    def sgd(own: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(own, lr=0.1)

    rsn2.fit_together(model, data, loss=LOSS, epochs=1, batch_size=24, optimizer=sgd)
    optimizer = sgd(rsn2.parameters(expected, ["age", "gender"]))
    for task, (x, target) in data.items():
        with rsn2.use_task(expected, task):
            LOSS(expected(x), target).backward()
    optimizer.step()
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)  # samples come in another order


def test_a_checkpoint_and_a_state_dict_keep_what_is_shared(tmp_path: Path) -> None:
    model = faces("age", "gender")
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", plain_network())
    assert_same(snapshot(model), snapshot(again))
    assert again[0].slots == model[0].slots
    fresh = rsn2.convert(plain_network())
    fresh.load_state_dict(model.state_dict())
    assert fresh[3].holders(1) == ("age", "gender")


@pytest.mark.parametrize(
    ("share", "error", "message"),
    [
        ({"age": ["conv*"]}, ValueError, r"share\['age'\]: no multitask layer is named 'conv\*'"),
        ({"age": "0"}, ValueError, "expected a sequence of names. Got '0'"),
        (["0"], ValueError, "share: expected task -> names of layers"),
        ({"nobody": ["0"]}, rsn2.TaskError, "task 'nobody', with which 'new' is to share layer '0'"),
        ({"age": ["0"], "other": ["?"]}, ValueError, "layer '0' is named for 'age' and for 'other'"),
        ({"new": ["0"]}, rsn2.TaskError, "task 'new', with which 'new'"),
    ],
)
def test_what_cannot_be_shared_is_named_and_nothing_changes(
    share: object, error: type[Exception], message: str
) -> None:
    model = faces("age")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        rsn2.allocate(model, "new", 0.25, LOSS, [samples("new")], share=share)  # type: ignore[arg-type]
    assert_same(before, snapshot(model))


def test_an_error_behind_the_sharing_takes_it_back() -> None:
    model = faces("age")
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match="expected at least one"):
        rsn2.allocate(model, "new", 0.25, LOSS, [], share={"age": ["0", "3"]})
    assert_same(before, snapshot(model))
    assert rsn2.tasks(model) == ["other", "age"]


def test_a_task_that_shares_everything_can_only_be_trained_with_the_others() -> None:
    model = faces("age")
    assert rsn2.allocate(model, "twin", 0.25, LOSS, [samples("age")], share={"age": ["*"]})["0"] == 54
    with pytest.raises(ValueError, match=r"task 'twin': all its parameters are shared.* rsn2\.fit_together"):
        rsn2.fit(model, "twin", samples("age"), loss=LOSS, epochs=1)
    rsn2.fit_together(model, {"age": samples("age"), "twin": samples("age")}, loss=LOSS, epochs=1)
