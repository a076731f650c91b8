"""What `fit` refuses and stops at: the argument, epoch or batch is named, and the task is left as it was."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import rsn2
from classifiers import LOSS, OPTIMIZERS, TRAIN, VAL, Scripted, bits, network
from rsn2.training import TrainingError, evaluate, fit


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
    ("scheduler", "message"),
    [
        ("cosine", r"expected a scheduler of torch\.optim\.lr_scheduler.* Got 'cosine'\.$"),
        (lambda optimizer: optimizer, "which makes Adam"),
    ],
)
def test_what_is_no_scheduler_is_named(scheduler: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^scheduler: .*{message}"):
        fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=1, scheduler=scheduler)


def test_a_scheduler_of_another_optimizer_or_of_losses_that_are_not_there_is_refused() -> None:
    model = network("a")
    before = bits(model, "a")
    other = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"^scheduler: expected one of the optimizer that is used"):
        fit(model, "a", TRAIN, VAL, loss=LOSS, epochs=1, scheduler=other)
    with pytest.raises(ValueError, match=r"^scheduler: .* Got val=None"):
        fit(model, "a", TRAIN, loss=LOSS, epochs=1, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
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


@pytest.mark.parametrize(
    "call",
    [
        lambda model, task: fit(model, task, TRAIN, loss=LOSS, epochs=1),
        lambda model, task: evaluate(model, task, TRAIN, loss=LOSS),
        lambda model, task: rsn2.use_task(model, task).__enter__(),
        rsn2.extract,
    ],
    ids=["fit", "evaluate", "use_task", "extract"],
)
@pytest.mark.parametrize("task", [["a", "b"], ("a",), None])
def test_where_one_task_is_meant_several_are_refused_with_what_takes_them(
    call: Callable[[nn.Module, Any], object], task: object
) -> None:
    with pytest.raises(
        TypeError, match=r"^task: expected the name of one task\. Got .* rsn2\.fit_together, rsn2\.use_t"
    ):
        call(network("a", "b"), task)


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
