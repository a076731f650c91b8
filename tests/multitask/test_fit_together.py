"""What `fit_together` promises: several tasks in one loop, to the bit what a reader of its docstring would compute."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from classifiers import LOSS, OPTIMIZERS, TRAIN, VAL, bits, network, samples


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_tasks_that_share_nothing_end_where_their_own_fits_end(optimizer: partial[torch.optim.Optimizer]) -> None:
    together, alone = network("a", "bb", dropout=0.0), network("a", "bb", dropout=0.0)
    data = {"a": TRAIN, "bb": samples(300, seed=3)}  # one task has more batches than the other
    options = {"loss": LOSS, "epochs": 3, "batch_size": 50, "optimizer": optimizer}
    found = rsn2.fit_together(together, data, **options)
    for task, train in data.items():
        expected = rsn2.fit(alone, task, train, **options)
        assert found[task].train_loss == expected.train_loss
        assert bits(together, task) == bits(alone, task)


def test_one_task_together_is_fit() -> None:
    together, alone = network("a"), network("a")
    options = {"loss": LOSS, "epochs": 3, "batch_size": 50, "patience": 2}
    found = rsn2.fit_together(together, {"a": TRAIN}, {"a": VAL}, **options)["a"]
    expected = rsn2.fit(alone, "a", TRAIN, VAL, **options)
    assert (found.train_loss, found.val_loss, found.best_epoch) == (
        expected.train_loss,
        expected.val_loss,
        expected.best_epoch,
    )
    assert bits(together, "a") == bits(alone, "a")


def test_no_bit_of_a_task_that_is_not_named_changes() -> None:
    model = network("a", "bb", "other")
    before = bits(model, "other")
    rsn2.fit_together(model, {"a": TRAIN, "bb": VAL}, loss=LOSS, epochs=2, batch_size=50)
    assert bits(model, "other") == before


def test_every_task_has_its_own_loss_and_its_own_history() -> None:
    model = network("a", "bb")
    called: dict[str, int] = {"a": 0, "bb": 0}

    def counting(task: str) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(output: Tensor, target: Tensor) -> Tensor:
            called[task] += 1
            return LOSS(output, target)

        return loss

    found = rsn2.fit_together(
        model,
        {"a": TRAIN, "bb": samples(60)},
        {"a": VAL, "bb": VAL},
        loss={"a": counting("a"), "bb": counting("bb")},
        epochs=2,
        batch_size=50,
    )
    assert called == {"a": 2 * (3 + 2), "bb": 2 * (2 + 2)}
    assert found["a"].seconds == found["bb"].seconds
    assert all(len(history.train_loss) == len(history.val_loss) == 2 for history in found.values())
    assert found["a"].val_loss != found["bb"].val_loss


def test_early_stopping_and_the_best_epoch_go_by_the_sum_of_the_validation_losses() -> None:
    model = network("a", "bb", dropout=0.0)
    kept: list[dict[str, bytes]] = []
    falling = iter([3.0, 2.0, 1.0, 0.5, 0.4])
    rising = iter([1.0, 1.5, 3.5, 9.0, 9.0])

    def scripted(values: object) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(output: Tensor, target: Tensor) -> Tensor:
            if output.requires_grad:
                return LOSS(output, target)
            if values is rising:
                kept.append(bits(model, "a"))
            return torch.tensor(next(values))  # type: ignore[call-overload]

        return loss

    found = rsn2.fit_together(
        model,
        {"a": TRAIN, "bb": TRAIN},
        {"a": VAL, "bb": VAL},
        loss={"a": scripted(falling), "bb": scripted(rising)},
        epochs=9,
        patience=2,
    )
    # Sums: 4, 3.5, 4.5, 9.5: the second epoch is the best, and two without progress follow.
    assert all(history.best_epoch == 2 and history.stopped_early for history in found.values())
    assert len(found["a"].val_loss) == 4
    assert bits(model, "a") == kept[1]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_resumed_fit_is_bitwise_the_uninterrupted_one(tmp_path: Path, after: int) -> None:
    data, val = {"a": TRAIN, "bb": samples(60)}, {"a": VAL, "bb": VAL}
    options = {"loss": LOSS, "batch_size": 50, "lr": 1e-2}
    whole, first, second = (network("a", "bb") for _ in range(3))
    expected = rsn2.fit_together(whole, data, val, epochs=5, **options)
    rsn2.fit_together(first, data, val, epochs=after, resume=tmp_path / "fit", **options)
    found = rsn2.fit_together(second, data, val, epochs=5, resume=tmp_path / "fit", **options)
    for task in data:
        assert found[task].resumed_from == after
        assert (found[task].train_loss, found[task].val_loss) == (expected[task].train_loss, expected[task].val_loss)
        assert bits(second, task) == bits(whole, task)


def test_a_file_of_other_tasks_or_data_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    options = {"loss": LOSS, "epochs": 1, "resume": file}
    rsn2.fit_together(network("a", "bb"), {"a": TRAIN, "bb": TRAIN}, **options)
    with pytest.raises(rsn2.CheckpointError, match="another task"):
        rsn2.fit(network("a", "bb"), "a", TRAIN, **options)
    with pytest.raises(rsn2.CheckpointError, match="another train"):
        rsn2.fit_together(network("a", "bb"), {"a": TRAIN, "bb": VAL}, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": {}}, ValueError, "train: expected task -> data"),
        ({"train": TRAIN}, ValueError, "train: expected task -> data, of one task or more. Got tuple"),
        ({"val": {"a": VAL}}, ValueError, r"val: expected the tasks of train, \['a', 'bb'\]. Got \['a'\]"),
        ({"loss": {"a": LOSS}}, ValueError, r"loss: expected the tasks of train"),
        ({"loss": {"a": LOSS, "bb": None}}, TypeError, "loss: expected a function"),
        ({"patience": 1}, ValueError, "patience: early stopping needs validation data"),
        ({"train": {"a": TRAIN, "bb": (TRAIN[0], VAL[1])}}, ValueError, r"train\['bb'\]: expected as many targets"),
        ({"train": {"a": TRAIN, "nobody": TRAIN}}, rsn2.TaskError, "task 'nobody' has nothing allocated"),
        ({"optimizer": "other"}, ValueError, r"expected exactly rsn2\.parameters\(model, \['a', 'bb'\]\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named_before_any_step(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    model = network("a", "bb")
    if arguments.get("optimizer") == "other":
        arguments = {"optimizer": torch.optim.Adam(rsn2.parameters(model, "a"))}
    before = [bits(model, task) for task in ("a", "bb")]
    with pytest.raises(error, match=message):
        rsn2.fit_together(model, **{"train": {"a": TRAIN, "bb": TRAIN}, "loss": LOSS, "epochs": 1, **arguments})  # type: ignore[arg-type]
    assert [bits(model, task) for task in ("a", "bb")] == before


def test_a_loss_that_is_not_finite_names_its_task_and_makes_no_step() -> None:
    model = network("a", "bb")
    before = [bits(model, task) for task in ("a", "bb")]

    def infinite(output: Tensor, target: Tensor) -> Tensor:
        return output.sum() * torch.inf

    with pytest.raises(rsn2.TrainingError, match="task 'bb', epoch 1, batch 1: the loss is"):
        rsn2.fit_together(model, {"a": TRAIN, "bb": TRAIN}, loss={"a": LOSS, "bb": infinite}, epochs=1)
    parameters = {"a": before[0], "bb": before[1]}
    for task, expected in parameters.items():
        found = bits(model, task)
        assert {n: b for n, b in found.items() if "running" not in n and "num_batches" not in n} == {
            n: b for n, b in expected.items() if "running" not in n and "num_batches" not in n
        }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_generator_that_is_used_up_is_an_error_of_its_task() -> None:
    once = (batch for batch in [TRAIN])
    with pytest.raises(rsn2.TrainingError, match=r"train\['bb'\]: epoch 2 has no samples"):
        rsn2.fit_together(network("a", "bb"), {"a": TRAIN, "bb": once}, loss=LOSS, epochs=2)


def test_a_mean_of_several_tasks_is_an_ensemble() -> None:
    model = network("a", "bb").eval()
    one, other = (rsn2.predict(model, task, VAL[0]) for task in ("a", "bb"))
    torch.testing.assert_close(rsn2.predict(model, ["a", "bb"], VAL[0], batch_size=32), (one + other) / 2)
    softmax = partial(torch.softmax, dim=-1)
    torch.testing.assert_close(
        rsn2.predict(model, ["a", "bb"], VAL[0], activation=softmax), (softmax(one) + softmax(other)) / 2
    )
    assert torch.equal(rsn2.predict(model, ["a"], VAL[0]), one)
    with pytest.raises(ValueError, match="expected one or more tasks"):
        rsn2.predict(model, [], VAL[0])


def test_an_ensemble_of_outputs_of_other_shapes_is_refused() -> None:
    heads = rsn2.nn.PerTask({"a": nn.Linear(4, 2), "b": nn.Linear(4, 1)})
    model = rsn2.convert(nn.Sequential(nn.Linear(4, 4), heads))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.5, criterion="magnitude")
    with pytest.raises(ValueError, match=r"outputs of one shape.*'a': \(3, 2\), 'b': \(3, 1\)"):
        rsn2.predict(model, ["a", "b"], torch.zeros(3, 4))
