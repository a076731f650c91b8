"""A warm-up trains a copy of the free weights; the network changes with the allocation, and only where it must."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import rsn2
from classifiers import LOSS, TRAIN, bits, network
from networks import assert_same, snapshot

OPTIONS = {"loss": LOSS, "epochs": 2, "batch_size": 50, "lr": 1e-2}


@pytest.fixture
def model() -> nn.Module:
    """A network in which "old" owns weights, with dropout and per-task norms; "new" is to come."""
    return network("old")


def test_a_warm_up_leaves_the_network_as_it_is(model: nn.Module) -> None:
    before, generator, mode = snapshot(model), torch.get_rng_state(), [each.training for each in model.modules()]
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    assert_same(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [each.training for each in model.modules()] == mode
    assert rsn2.tasks(model) == ["old"]
    assert len(start.train_loss) == 2
    assert start.train_loss[1] < start.train_loss[0]


def test_it_trains_what_is_free_and_nothing_else_counts(model: nn.Module) -> None:
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS, optimizer=partial(torch.optim.AdamW, weight_decay=0.1))
    for name, weight in start.weights.items():
        layer = model.get_submodule(name)
        free = layer.owners.free()
        assert not bool(weight[~free].any()), "positions of others count as 0"
        assert int((weight != layer.pool)[free].sum()) > 0.9 * int(free.sum())
        assert not torch.equal(start.biases[name], layer.initial_bias)


def test_it_is_the_dense_training_of_the_network_without_the_owned_weights() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    model = rsn2.convert(nn.Sequential(*[nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)]))
    for name, layer in (("0", model[0]), ("2", model[2])):
        layer.pool.copy_(dense.get_submodule(name).weight.detach())
        layer.initial_bias.copy_(dense.get_submodule(name).bias.detach())
    start = rsn2.warm_up(model, "new", [TRAIN], loss=LOSS, epochs=3, optimizer=partial(torch.optim.SGD, lr=0.1))
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        LOSS(dense(TRAIN[0]), TRAIN[1]).backward()
        optimizer.step()
    for name in ("0", "2"):
        assert torch.equal(start.weights[name], dense.get_submodule(name).weight)
        assert torch.equal(start.biases[name], dense.get_submodule(name).bias)


def test_allocate_chooses_among_the_trained_weights_and_takes_them_over(model: nn.Module) -> None:
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    pools = {name: layer.pool.clone() for name, layer in model.named_modules() if name in start.weights}
    old = bits(model, "old")
    rsn2.allocate(model, "new", 0.2, criterion="magnitude", start=start)
    for name, weight in start.weights.items():
        layer = model.get_submodule(name)
        mask = layer.owners.mask(layer.slots["new"])
        free = layer.owners.free()
        assert weight[mask].abs().min() >= weight[free].abs().max(), "the largest trained weights"
        assert torch.equal(layer.dense_weight("new"), weight * mask)
        assert torch.equal(layer.biases[str(layer.slots["new"])], start.biases[name])
        assert torch.equal(layer.pool, pools[name]), "later tasks start from where they would have"
    for name, state in start.modules.items():
        assert_same(state, model.get_submodule(name).of("new").state_dict())
    assert bits(model, "old") == old


def test_the_gradient_is_that_of_the_trained_network(model: nn.Module) -> None:
    model.eval()
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    rsn2.allocate(model, "new", 0.2, LOSS, [TRAIN], start=start)
    other = network("old").eval()
    rsn2.allocate(other, "new", 0.2, LOSS, [TRAIN])
    layer, same = model.get_submodule("4"), other.get_submodule("4")
    assert not torch.equal(layer.owners.mask(1), same.owners.mask(1))


def test_a_warmed_up_task_begins_its_training_ahead(model: nn.Module) -> None:
    model.eval()
    cold = network("old").eval()
    start = rsn2.warm_up(model, "new", TRAIN, **{**OPTIONS, "epochs": 10})
    rsn2.allocate(model, "new", 0.5, LOSS, [TRAIN], start=start)
    rsn2.allocate(cold, "new", 0.5, LOSS, [TRAIN])
    losses = [rsn2.evaluate(each, "new", TRAIN, loss=LOSS)["loss"] for each in (model, cold)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("after", [0, 1])
def test_a_resumed_warm_up_is_bitwise_the_uninterrupted_one(model: nn.Module, tmp_path: Path, after: int) -> None:
    expected = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    file = tmp_path / "warm"
    countdown = iter(range(3 * after + 1))

    def interrupted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if next(countdown, None) is None:
            raise KeyboardInterrupt
        return LOSS(output, target)

    with pytest.raises(KeyboardInterrupt):
        rsn2.warm_up(model, "new", TRAIN, **{**OPTIONS, "loss": interrupted}, resume=file)
    found = rsn2.warm_up(model, "new", TRAIN, **OPTIONS, resume=file)
    assert found.train_loss == expected.train_loss
    assert_same(found.weights, expected.weights)
    assert_same(found.biases, expected.biases)
    for name, state in expected.modules.items():
        assert_same(state, found.modules[name])


def test_a_resumed_warm_up_may_go_on_for_more_epochs_and_not_with_other_settings(
    model: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    expected = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    rsn2.warm_up(model, "new", TRAIN, **{**OPTIONS, "epochs": 1}, resume=file)
    with pytest.raises(rsn2.CheckpointError, match="another flip: False; this fit has True"):
        rsn2.warm_up(model, "new", TRAIN, **OPTIONS, flip=True, resume=file)
    found = rsn2.warm_up(model, "new", TRAIN, **OPTIONS, resume=file)
    assert found.train_loss == expected.train_loss
    assert_same(found.weights, expected.weights)
    with pytest.raises(rsn2.CheckpointError, match=r"holds 2 epochs\. Asked for: 1"):
        rsn2.warm_up(model, "new", TRAIN, **{**OPTIONS, "epochs": 1}, resume=file)
    rsn2.allocate(model, "new", 0.2, criterion="random")
    with pytest.raises(rsn2.CheckpointError, match="another"):
        rsn2.fit(model, "new", TRAIN, loss=LOSS, epochs=3, resume=file)


def test_an_optimizer_that_does_not_hold_what_is_trained_is_refused(model: nn.Module) -> None:
    before = snapshot(model)
    elsewhere = torch.optim.SGD(model.parameters(), lr=0.1)
    for optimizer in (elsewhere, lambda own: elsewhere, lambda own: torch.optim.SGD(own[1:], lr=0.1)):
        with pytest.raises(ValueError, match=r"^optimizer: expected a function that makes one of all parameters"):
            rsn2.warm_up(model, "new", TRAIN, **OPTIONS, optimizer=optimizer)  # type: ignore[arg-type]
    assert_same(before, snapshot(model))


def test_shared_slots_run_in_a_warm_up_and_are_not_trained(model: nn.Module) -> None:
    before = bits(model, "old")
    share = {"old": ["0"]}
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS, share=share)
    assert set(start.weights) == {"4"}
    rsn2.allocate(model, "new", 0.2, LOSS, [TRAIN], share=share, start=start)
    assert bits(model, "old") == before
    with pytest.raises(ValueError, match=r"expected a weight \(33, 10\) for layer '0'. Got none"):
        rsn2.allocate(network("old"), "new", 0.2, LOSS, [TRAIN], start=start)


def test_a_start_of_another_task_or_kind_is_refused_and_nothing_changes(model: nn.Module) -> None:
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    before = snapshot(model)
    for task, arguments, message in (
        ("else", {"start": start}, "start: expected a warm-up of task 'else'. Got one of 'new'"),
        ("new", {"start": start.weights}, "start: expected what rsn2.warm_up returned"),
        ("new", {"start": start, "flip": True}, "flip: the weights of start are trained with their signs"),
    ):
        with pytest.raises(ValueError, match=message):
            rsn2.allocate(model, task, 0.2, LOSS, [TRAIN], **arguments)
    with pytest.raises(rsn2.AllocationError, match="expected at least one"):
        rsn2.allocate(model, "new", 0.2, LOSS, [], start=start)
    assert_same(before, snapshot(model))


def test_a_task_that_is_there_or_a_network_without_room_is_refused(model: nn.Module) -> None:
    with pytest.raises(rsn2.TaskError, match="task 'old' is allocated already"):
        rsn2.warm_up(model, "old", TRAIN, **OPTIONS)
    with pytest.raises(ValueError, match="epochs: expected at least 0"):
        rsn2.warm_up(model, "new", TRAIN, **{**OPTIONS, "epochs": -1})
    rsn2.finalize(model)
    with pytest.raises(rsn2.TaskError, match="is finalized"):
        rsn2.warm_up(model, "new", TRAIN, **OPTIONS)


def test_a_per_task_module_that_was_given_is_trained_in_the_copy_alone() -> None:
    torch.manual_seed(0)
    first = rsn2.nn.PerTask({"new": nn.Linear(10, 16)})
    model = rsn2.convert(nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3)))
    before = snapshot(model)
    start = rsn2.warm_up(model, "new", TRAIN, **OPTIONS)
    assert_same(before, snapshot(model))
    rsn2.allocate(model, "new", 0.5, LOSS, [TRAIN], start=start)
    assert torch.equal(first.of("new").weight, start.modules["0"]["weight"])
    assert not torch.equal(first.of("new").weight, before["0.by_task.task_new.weight"])
