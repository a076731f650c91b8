"""What `fit`, `predict` and `evaluate` promise: one task moves alone, and resuming changes no bit."""

import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rsn2
from rsn2.tasks import own_tensors
from rsn2.training import TrainingError, evaluate, fit, predict

LOSS = nn.functional.cross_entropy
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "sgd-momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(*tasks: str, dropout: float = 0.3) -> nn.Module:
    """A small network with dropout and per-task batch norm; the same weights at every call."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(10, 33),
        nn.BatchNorm1d(33),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(33, 32),
        nn.Linear(32, 3),
    )
    model = rsn2.convert(plain, per_task=["5"])
    for task in tasks:
        rsn2.allocate(model, task, 0.3, criterion="random", seed=len(task))
    return model


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(dim=1)


TRAIN, VAL = samples(130), samples(70, seed=1)


def bits(model: nn.Module, task: str) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in own_tensors(model, task).items()}


# What is trained, and what is not


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_fit_changes_its_task_and_no_bit_of_another(optimizer: partial[torch.optim.Optimizer]) -> None:
    model = network("a", "other")
    fit(model, "other", TRAIN, loss=LOSS, epochs=1, optimizer=optimizer, batch_size=50)
    mine, others = bits(model, "a"), bits(model, "other")
    history = fit(model, "a", TRAIN, loss=LOSS, epochs=12, optimizer=optimizer, batch_size=50)
    assert bits(model, "other") == others
    assert all(bits(model, "a")[name] != before for name, before in mine.items())
    assert history.train_loss[-1] < 0.9 * history.train_loss[0]


def test_fit_restores_the_mode_of_every_module_and_leaves_no_gradient() -> None:
    model = network("a").eval()
    model.get_submodule("3").train()
    before = [module.training for module in model.modules()]
    fit(model, "a", TRAIN, VAL, loss=LOSS, epochs=1)
    predict(model, "a", TRAIN[0])
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fit_leaves_what_all_tasks_share_alone_and_says_so() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    model = rsn2.convert(plain, exclude=["1", "3"])
    rsn2.allocate(model, "a", 0.5, criterion="random")
    before = {
        name: tensor.clone() for part in ("1", "3") for name, tensor in model.state_dict().items() if name[0] == part
    }
    with pytest.warns(UserWarning, match=r"'1\.bias', '1\.weight', '3\.bias', '3\.weight'") as caught:
        fit(model, "a", TRAIN, loss=LOSS, epochs=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    head = model.get_parameter("3.weight")
    assert head.requires_grad
    assert head.grad is None


def test_fit_leaves_the_global_generator_where_it_was() -> None:
    model = network("a")
    before = torch.get_rng_state()
    fit(model, "a", TRAIN, loss=LOSS, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = network("a")
        fit(model, "a", TRAIN, loss=LOSS, epochs=2, batch_size=50, seed=seed)
        runs.append(bits(model, "a"))
    assert runs[0] == runs[1] != runs[2]


def test_fit_takes_a_data_loader_and_repeats_its_shuffling() -> None:
    runs = []
    for _ in range(2):
        model = network("a")
        loader = DataLoader(TensorDataset(*TRAIN), batch_size=50, shuffle=True)
        history = fit(model, "a", loader, loader, loss=LOSS, epochs=2)
        runs.append((bits(model, "a"), history.train_loss, history.val_loss))
    assert runs[0] == runs[1]


# The optimizer


def test_an_optimizer_over_exactly_the_parameters_is_used() -> None:
    model = network("a")
    optimizer = torch.optim.SGD(rsn2.parameters(model, "a"), lr=0.0)
    before = [parameter.clone() for parameter in rsn2.parameters(model, "a")]
    fit(model, "a", TRAIN, loss=LOSS, epochs=1, optimizer=optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, rsn2.parameters(model, "a"), strict=True))


def _too_early(model: nn.Module) -> list[nn.Parameter]:
    return list(network("a").parameters())


def _of_another(model: nn.Module) -> list[nn.Parameter]:
    return [*rsn2.parameters(model, "a"), *rsn2.parameters(model, "other")]


def _too_few(model: nn.Module) -> list[nn.Parameter]:
    return rsn2.parameters(model, "a")[1:]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (_too_early, "a tensor not in this network"),
        (_of_another, r"0\.values\.1 of task 'other'"),
        (_too_few, r"lacks \[\"0\.values\.0 of task 'a'\"\]"),
    ],
)
def test_an_optimizer_over_other_parameters_is_refused_before_any_step(choose, message) -> None:  # type: ignore[no-untyped-def]
    model = network("a", "other")
    before = bits(model, "a")
    with pytest.raises(ValueError, match=message):
        fit(model, "a", TRAIN, loss=LOSS, epochs=1, optimizer=torch.optim.SGD(choose(model), lr=0.1))
    assert bits(model, "a") == before


def test_an_optimizer_with_shared_parameters_is_refused() -> None:
    plain = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 3))
    model = rsn2.convert(plain, exclude=["1"])
    rsn2.allocate(model, "a", 0.5, criterion="random")
    optimizer = torch.optim.SGD([*rsn2.parameters(model, "a"), *model.get_submodule("1").parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"1\.weight, shared by all tasks"):
        fit(model, "a", TRAIN, loss=LOSS, epochs=1, optimizer=optimizer)


# Stopping and the best epoch


class Scripted:
    """A loss that gives the validation the values of a script, and the training its true loss."""

    def __init__(self, model: nn.Module, values: list[float]):
        self.model, self.values = model, iter(values)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if not self.model.training:
            return torch.tensor(next(self.values))
        return LOSS(output, target)


def test_fit_stops_after_patience_epochs_without_progress_of_min_delta() -> None:
    model = network("a")
    loss = Scripted(model, [1.0, 0.5, 0.45, 0.41, 9.0])
    history = fit(model, "a", TRAIN, VAL, loss=loss, epochs=9, patience=2, min_delta=0.1)
    # 0.45 and 0.41 are below 0.5 by less than 0.1; the lowest of all is still the best epoch.
    assert history.val_loss == pytest.approx((1.0, 0.5, 0.45, 0.41))
    assert history.stopped_early
    assert history.best_epoch == 4
    assert history.resumed_from is None
    assert len(history.train_loss) == len(history.seconds) == 4


@pytest.mark.parametrize("restore_best", [True, False])
def test_restore_best_brings_back_parameters_and_batch_norm_statistics(restore_best: bool) -> None:
    model, until_best = network("a"), network("a")
    history = fit(
        model,
        "a",
        TRAIN,
        VAL,
        loss=Scripted(model, [3.0, 1.0, 2.0, 2.0]),
        epochs=4,
        restore_best=restore_best,
    )
    fit(until_best, "a", TRAIN, loss=LOSS, epochs=2)
    assert history.best_epoch == 2
    assert not history.stopped_early
    assert any("running_mean" in name for name in bits(model, "a"))
    assert (bits(model, "a") == bits(until_best, "a")) is restore_best


def test_without_validation_data_there_is_no_best_epoch() -> None:
    history = fit(network("a"), "a", TRAIN, loss=LOSS, epochs=2)
    assert history.best_epoch is None
    assert history.val_loss == ()


# Errors


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"patience": 0}, "patience"),
        ({"patience": 2, "val": None}, "patience"),
        ({"min_delta": -0.1}, "min_delta"),
        ({"resume": "no/such/folder/fit.safetensors"}, "resume"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        fit(network("a"), "a", TRAIN, **{"val": VAL, "loss": LOSS, "epochs": 1, **arguments})  # type: ignore[arg-type]


def test_a_task_without_allocation_is_an_error() -> None:
    with pytest.raises(rsn2.TaskError, match="nothing allocated"):
        fit(network("a"), "b", TRAIN, loss=LOSS, epochs=1)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch() -> None:
    model = network("a")
    x = TRAIN[0].clone()
    batches = [(x[:50], TRAIN[1][:50]), (x[50:] * float("nan"), TRAIN[1][50:])]
    with pytest.raises(TrainingError, match="task 'a', epoch 1, batch 2: the loss is nan"):
        fit(model, "a", batches, loss=LOSS, epochs=3)
    assert all(torch.isfinite(value).all() for value in rsn2.parameters(model, "a"))
    with pytest.raises(TrainingError, match="epoch 1: the validation loss is inf"):
        fit(model, "a", TRAIN, VAL, loss=Scripted(model, [float("inf")]), epochs=3)


def test_a_generator_that_is_used_up_is_an_error() -> None:
    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield TRAIN

    with pytest.raises(TrainingError, match="epoch 2 has no samples"):
        fit(network("a"), "a", once(), loss=LOSS, epochs=2)


# Progress, predict, evaluate


def test_nothing_is_printed_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=1, progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_the_losses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=2)
    shown = capfd.readouterr().err
    assert "2/2" in shown
    assert "val " in shown
    fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=2, progress=False)
    assert capfd.readouterr() == ("", "")


def test_predict_gives_the_outputs_of_eval_mode_in_order() -> None:
    model = network("a").train()
    whole = predict(model, "a", TRAIN[0])
    assert whole.shape == (130, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(model, "a", TRAIN[0], batch_size=7), whole)
    assert predict(model, "a", TRAIN[0][:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"^batch_size: "):
        predict(model, "a", TRAIN[0], batch_size=0)


def test_evaluate_weights_the_loss_by_samples_and_calls_metrics_once() -> None:
    model = network("a")
    calls = []

    def worst(outputs: Tensor, target: Tensor) -> float:
        calls.append(len(target))
        return LOSS(outputs, target, reduction="none").max().item()

    result = evaluate(model, "a", TRAIN, loss=LOSS, metrics={"worst": worst}, batch_size=50)
    outputs = predict(model, "a", TRAIN[0])
    assert calls == [130]
    assert result["loss"] == pytest.approx(LOSS(outputs, TRAIN[1]).item())
    assert result["worst"] == pytest.approx(LOSS(outputs, TRAIN[1], reduction="none").max().item())


def test_evaluate_needs_something_to_compute_and_samples() -> None:
    model = network("a")
    with pytest.raises(ValueError, match=r"^loss, metrics: "):
        evaluate(model, "a", TRAIN)
    with pytest.raises(ValueError, match=r"^loss, metrics: "):
        evaluate(model, "a", TRAIN, metrics={"loss": lambda *_: 0.0})
    with pytest.raises(ValueError, match=r"^data: "):
        evaluate(model, "a", [], loss=LOSS)
