"""What `fit`, `predict` and `evaluate` promise: one task moves alone, and errors leave it as it was."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rsn2
from classifiers import LOSS, OPTIMIZERS, TRAIN, VAL, bits, network
from rsn2.training import TrainingError, evaluate, fit, predict

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


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """An iterable of single samples, without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*VAL, strict=True)


def test_validation_data_needs_no_length() -> None:
    loader = DataLoader(Stream(), batch_size=len(VAL[1]))
    streamed = fit(network("a"), "a", TRAIN, loader, loss=LOSS, epochs=2)
    assert streamed.val_loss == fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=2).val_loss


def test_the_default_device_makes_no_difference() -> None:
    sgd = OPTIMIZERS["sgd-momentum"]
    expected, model = network("a"), network("a")
    fit(expected, "a", TRAIN, VAL, loss=LOSS, epochs=2, batch_size=50, optimizer=sgd)
    with torch.device("meta"):
        fit(model, "a", TRAIN, VAL, loss=LOSS, epochs=2, batch_size=50, optimizer=sgd)
    assert bits(model, "a") == bits(expected, "a")


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


@pytest.mark.parametrize(("epochs", "early"), [(2, False), (3, True)])
def test_a_fit_that_runs_all_its_epochs_did_not_stop_early(epochs: int, early: bool) -> None:
    model = network("a")
    history = fit(model, "a", TRAIN, VAL, loss=Scripted(model, [1.0, 2.0]), epochs=epochs, patience=1)
    assert len(history.val_loss) == 2
    assert history.stopped_early is early


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 1.5}, r"epochs: expected an int\. Got 1\.5"),
        ({"epochs": True}, r"epochs: expected an int\. Got True"),
        ({"batch_size": 32.0}, r"batch_size: expected an int\. Got 32\.0"),
        ({"batch_size": True}, "batch_size: "),
        ({"patience": 2.0}, "patience: "),
        ({"patience": True}, "patience: "),
        ({"seed": 0.5}, "seed: "),
        ({"min_delta": "0.1"}, "min_delta: expected a number"),
        ({"loss": "cross_entropy"}, "loss: expected a function"),
        ({"optimizer": "adam"}, r"optimizer: expected .*torch\.optim\.Adam.* Got 'adam'\.$"),
        ({"optimizer": lambda own: None}, r"optimizer: .* which makes None\.$"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer: .* no closure. The step of LBFGS"),
        ({"train": TensorDataset(*TRAIN)}, r"train: .* TensorDataset.* wrap it in a torch\.utils\.data\.DataLoader"),
        ({"val": TensorDataset(*TRAIN)}, r"val: .* TensorDataset"),
        ({"train": (TRAIN[0].numpy(), TRAIN[1].numpy())}, r"train: .* Got tuple \(ndarray, ndarray\)"),
    ],
)
def test_an_argument_of_another_type_is_named_before_any_step(arguments: dict[str, Any], message: str) -> None:
    model = network("a")
    before = bits(model, "a")
    with pytest.raises(TypeError, match=f"^{message}"):
        fit(model, "a", **{"train": TRAIN, "val": VAL, "loss": LOSS, "epochs": 1, **arguments})
    assert bits(model, "a") == before


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (partial(LOSS, reduction="none"), r"loss: expected a scalar tensor.* shape \(130,\)"),
        (lambda output, target: LOSS(output, target).item(), r"loss: expected a scalar tensor.* Got float"),
        (lambda output, target: (LOSS(output, target), output), r"loss: expected a scalar tensor.* Got tuple"),
    ],
)
def test_a_loss_that_is_no_scalar_is_named(loss: Callable[..., Any], message: str) -> None:
    model = network("a")
    before = [parameter.clone() for parameter in rsn2.parameters(model, "a")]
    with pytest.raises(TypeError, match=message):
        fit(model, "a", TRAIN, loss=loss, epochs=1)
    with pytest.raises(TypeError, match=message):
        evaluate(model, "a", TRAIN, loss=loss)
    assert all(torch.equal(*pair) for pair in zip(before, rsn2.parameters(model, "a"), strict=True))


def test_samples_that_are_not_there_are_named() -> None:
    nothing = TRAIN[0][:0], TRAIN[1][:0]
    for train, val, name in ((nothing, None, "train"), (TRAIN, nothing, "val"), ([nothing], None, "train")):
        with pytest.raises(ValueError, match=f"^{name}: expected at least one sample"):
            fit(network("a"), "a", train, val, loss=LOSS, epochs=1)
    with pytest.raises(ValueError, match=r"^data: expected at least one sample"):
        evaluate(network("a"), "a", nothing, loss=LOSS)


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


class Poisoned(torch.autograd.Function):
    """The identity, with a gradient of ``value``: a finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradients[0], ctx.value), None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_its_step(value: float) -> None:
    model = network("a")
    after_two_steps: list[list[Tensor]] = []
    losses = iter(range(9))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(losses) < 2:
            return LOSS(output, target)
        after_two_steps.append([parameter.detach().clone() for parameter in rsn2.parameters(model, "a")])
        result: Tensor = Poisoned.apply(LOSS(output, target), value)
        return result

    with pytest.raises(TrainingError, match=r"task 'a', epoch 1, batch 3: the largest gradient is (nan|inf)"):
        fit(model, "a", TRAIN, loss=loss, epochs=1, batch_size=50)
    assert all(torch.equal(*pair) for pair in zip(after_two_steps[0], rsn2.parameters(model, "a"), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_whose_squares_overflow_are_finite() -> None:
    model = network("a")
    history = fit(model, "a", TRAIN, loss=lambda *pair: 1e30 * LOSS(*pair), epochs=1, optimizer=OPTIMIZERS["adam"])
    assert math.isfinite(history.train_loss[0])
    assert all(torch.isfinite(value).all() for value in rsn2.parameters(model, "a"))


def test_a_task_that_owns_nothing_in_a_layer_can_be_trained() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(10, 64), nn.Linear(64, 3), nn.Linear(3, 3)), per_task=["2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # allocate may say so
        owned = rsn2.allocate(model, "a", 0.002, criterion="random")
    assert owned["1"] == 0
    assert len(fit(model, "a", TRAIN, loss=LOSS, epochs=1).train_loss) == 1


def test_sparse_gradients_are_looked_at_too() -> None:
    plain = nn.Sequential(nn.Embedding(7, 10, sparse=True), nn.Flatten(), nn.Linear(20, 3))
    model = rsn2.convert(plain, per_task=["0"])
    rsn2.allocate(model, "a", 0.5, criterion="random")
    x = torch.arange(60).remainder(7).view(30, 2)
    batch = x, x[:, 0].remainder(3)
    sgd = OPTIMIZERS["sgd-momentum"]
    assert len(fit(model, "a", batch, loss=LOSS, epochs=1, optimizer=sgd).train_loss) == 1
    with pytest.raises(TrainingError, match="the largest gradient is"):
        fit(model, "a", batch, loss=lambda *pair: Poisoned.apply(LOSS(*pair), math.nan), epochs=1, optimizer=sgd)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError])
@pytest.mark.parametrize("restore_best", [True, False])
def test_a_fit_that_ends_with_an_error_leaves_the_best_epoch(error: type[BaseException], restore_best: bool) -> None:
    model, until_best = network("a"), network("a")
    epochs = iter(range(9))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if model.training and next(epochs) == 3:
            if error is KeyboardInterrupt:
                raise KeyboardInterrupt
            return LOSS(output, target) * math.nan
        return script(output, target)

    script = Scripted(model, [3.0, 1.0, 2.0])
    with pytest.raises(error):
        fit(model, "a", TRAIN, VAL, loss=loss, epochs=9, restore_best=restore_best)
    fit(until_best, "a", TRAIN, loss=LOSS, epochs=2)
    assert (bits(model, "a") == bits(until_best, "a")) is restore_best


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


def test_predict_and_evaluate_name_what_is_of_another_type() -> None:
    model = network("a")
    with pytest.raises(TypeError, match=r"^x: expected a tensor\. Got ndarray"):
        predict(model, "a", TRAIN[0].numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batch_size: expected an int\. Got 2\.5"):
        predict(model, "a", TRAIN[0], batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batch_size: "):
        evaluate(model, "a", TRAIN, loss=LOSS, batch_size=True)


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
