"""What the resume file of `fit` promises: no bit is another after an interruption, and no other fit takes it."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import rsn2
from classifiers import LOSS, OPTIMIZERS, TRAIN, VAL, bits, network, samples
from rsn2.training import fit


def fit_resumable(model: nn.Module, file: Path | None, **changes: object):  # type: ignore[no-untyped-def]
    arguments = {"loss": LOSS, "epochs": 6, "batch_size": 50, "lr": 1e-2, "resume": file, **changes}
    return fit(model, "a", TRAIN, VAL, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_resumed_fit_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, optimizer: partial[torch.optim.Optimizer], after: int
) -> None:
    whole, first, second = network("a"), network("a"), network("a")
    expected = fit_resumable(whole, None, optimizer=optimizer)
    fit_resumable(first, tmp_path / "fit", optimizer=optimizer, epochs=after)
    torch.manual_seed(99)  # where the generators stand must not matter
    history = fit_resumable(second, tmp_path / "fit", optimizer=optimizer)
    assert history.resumed_from == after
    assert history.train_loss == expected.train_loss
    assert history.val_loss == expected.val_loss
    assert history.best_epoch == expected.best_epoch
    assert bits(second, "a") == bits(whole, "a")


SCHEDULERS = {
    "exponential": partial(ExponentialLR, gamma=0.6),
    "cosine": partial(CosineAnnealingLR, T_max=4),
    "plateau": partial(ReduceLROnPlateau, factor=0.3, patience=0, threshold=0.5),
    "warm-up": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=2), ExponentialLR(optimizer, 0.5)], milestones=[2]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_scheduler_goes_on_where_it_was(
    tmp_path: Path, scheduler: Callable[[torch.optim.Optimizer], LRScheduler], after: int
) -> None:
    whole, first, second, constant = (network("a") for _ in range(4))
    settings = {"optimizer": OPTIMIZERS["adam"], "scheduler": scheduler}
    expected = fit_resumable(whole, None, **settings)
    fit_resumable(first, tmp_path / "fit", **settings, epochs=after)
    history = fit_resumable(second, tmp_path / "fit", **settings)
    assert history.val_loss == expected.val_loss
    assert bits(second, "a") == bits(whole, "a")
    fit_resumable(constant, None, optimizer=OPTIMIZERS["adam"])
    assert bits(constant, "a") != bits(whole, "a")


def test_another_scheduler_does_not_go_on(tmp_path: Path) -> None:
    fit_resumable(network("a"), tmp_path / "fit", scheduler=SCHEDULERS["exponential"], epochs=1)
    for scheduler in (None, SCHEDULERS["cosine"], partial(ExponentialLR, gamma=0.7)):
        with pytest.raises(rsn2.CheckpointError, match="another scheduler"):
            fit_resumable(network("a"), tmp_path / "fit", scheduler=scheduler)


def test_early_stopping_counts_on_where_it_was_interrupted(tmp_path: Path) -> None:
    # The rate is so high that the validation loss never falls: patience ends the fit.
    settings = {"optimizer": partial(torch.optim.SGD, lr=1e-9), "patience": 3, "min_delta": 1.0, "epochs": 9}
    whole, first, second = network("a"), network("a"), network("a")
    expected = fit_resumable(whole, None, **settings)
    fit_resumable(first, tmp_path / "fit", **{**settings, "epochs": 2})
    history = fit_resumable(second, tmp_path / "fit", **settings)
    assert expected.stopped_early
    assert history.stopped_early
    assert history.val_loss == expected.val_loss
    assert bits(second, "a") == bits(whole, "a")


def test_a_finished_file_gives_the_result_without_a_step(tmp_path: Path) -> None:
    first, second = network("a"), network("a")
    done = fit_resumable(first, tmp_path / "fit")

    def never(output: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("a step was made")

    again = fit_resumable(second, tmp_path / "fit", loss=never)
    assert again.resumed_from == 6
    assert (again.train_loss, again.val_loss, again.seconds) == (done.train_loss, done.val_loss, done.seconds)
    assert bits(first, "a") == bits(second, "a")


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_an_interrupted_fit_leaves_a_usable_file(tmp_path: Path, steps: int) -> None:
    countdown = iter(range(steps))

    def interrupted(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad and next(countdown, None) is None:
            raise KeyboardInterrupt
        return LOSS(output, target)

    whole, model = network("a"), network("a")
    fit_resumable(whole, None)
    with pytest.raises(KeyboardInterrupt):
        fit_resumable(model, tmp_path / "fit", loss=interrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["fit"]
    assert fit_resumable(model, tmp_path / "fit").resumed_from == steps // 3
    assert bits(model, "a") == bits(whole, "a")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 49}, "batch_size"),
        ({"patience": 5}, "patience"),
        ({"min_delta": 0.5}, "min_delta"),
        ({"restore_best": False}, "restore_best"),
        ({"lr": 2e-2}, r"lr \(group 0\): 0\.01; this fit has 0\.02"),
        ({"optimizer": torch.optim.AdamW}, "optimizer"),
    ],
)
def test_a_file_with_other_settings_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    fit_resumable(network("a"), tmp_path / "fit", epochs=1)
    model = network("a")
    before = bits(model, "a")
    with pytest.raises(rsn2.CheckpointError, match=f"another {field}"):
        fit_resumable(model, tmp_path / "fit", **changes)
    assert bits(model, "a") == before


def test_a_file_of_another_task_data_or_allocation_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    fit(network("a", "other"), "a", TRAIN, loss=LOSS, epochs=1, resume=file)
    with pytest.raises(rsn2.CheckpointError, match=r"another (task|allocation)"):
        fit(network("a", "other"), "other", TRAIN, loss=LOSS, epochs=1, resume=file)
    with pytest.raises(rsn2.CheckpointError, match="another train"):
        fit(network("a"), "a", samples(129), loss=LOSS, epochs=1, resume=file)
    with pytest.raises(rsn2.CheckpointError, match=r"holds 1 epochs\. Asked for: 0"):
        fit(network("a"), "a", TRAIN, loss=LOSS, epochs=0, resume=file)
    elsewhere = network()
    rsn2.allocate(elsewhere, "a", 0.3, criterion="random", seed=7)
    with pytest.raises(rsn2.CheckpointError, match="another allocation"):
        fit(elsewhere, "a", TRAIN, loss=LOSS, epochs=1, resume=file)


def test_other_values_of_the_same_shape_are_other_data(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    fit(network("a"), "a", TRAIN, VAL, loss=LOSS, epochs=1, resume=file)
    moved = TRAIN[0].clone()
    moved[7, 3] = torch.nextafter(moved[7, 3], torch.tensor(9.0))
    model = network("a")
    before = bits(model, "a")
    for train, val, name in (
        ((moved, TRAIN[1]), VAL, "train"),
        ((TRAIN[0], TRAIN[1].flip(0)), VAL, "train"),
        (TRAIN, samples(70, seed=2), "val"),
    ):
        with pytest.raises(rsn2.CheckpointError, match=f"another {name}"):
            fit(model, "a", train, val, loss=LOSS, epochs=2, resume=file)
    assert bits(model, "a") == before
    equal = TRAIN[0].t().contiguous().t(), TRAIN[1].clone()  # the strides are no part of the data
    assert fit(model, "a", equal, VAL, loss=LOSS, epochs=2, resume=file).resumed_from == 1


OF_THEIR_OWN: dict[str, Callable[[torch.Generator], dict[str, object]]] = {
    "loader": lambda generator: {"shuffle": True, "generator": generator},
    "sampler": lambda generator: {"sampler": RandomSampler(TRAIN[0], generator=generator)},
}


@pytest.mark.parametrize("options", OF_THEIR_OWN.values(), ids=OF_THEIR_OWN)
def test_a_loader_that_draws_from_a_generator_of_its_own_goes_on_with_the_same_bits(
    tmp_path: Path, options: Callable[[torch.Generator], dict[str, object]]
) -> None:
    runs, file = [], tmp_path / "fit"
    for calls in ([(3, None)], [(1, file), (3, file)]):
        model = network("a")
        for epochs, resume in calls:
            generator = torch.Generator().manual_seed(5)
            before = generator.get_state()
            loader = DataLoader(TensorDataset(*TRAIN), batch_size=50, **options(generator))  # type: ignore[arg-type]
            fit(model, "a", loader, loss=LOSS, epochs=epochs, resume=resume)
            assert torch.equal(generator.get_state(), before)
        runs.append(bits(model, "a"))
    assert runs[0] == runs[1]
    other = network("a")
    fit(other, "a", loader, loss=LOSS, epochs=3, seed=1)
    assert bits(other, "a") != runs[0]


class Drifting(nn.Module):
    """Adds a number that train mode moves, around another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(10, 10)
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.offset += 0.1
        return self.inner(x) + self.offset  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:fit ")
def test_buffers_that_training_moves_and_tasks_share_are_no_state_of_a_fit(tmp_path: Path) -> None:
    runs, file = [], tmp_path / "fit"
    torch.manual_seed(0)
    plain = nn.Sequential(Drifting(), nn.Linear(10, 3))
    for calls in ([(3, None)], [(1, file), (3, file)]):
        for epochs, resume in calls:
            model = rsn2.convert(copy.deepcopy(plain), exclude=["0"])
            rsn2.allocate(model, "a", 0.5, criterion="random")
            fit(model, "a", TRAIN, VAL, loss=LOSS, epochs=epochs, batch_size=50, resume=resume)
        runs.append(bits(model, "a"))
    assert runs[0] == runs[1]


def test_iterables_of_batches_are_not_compared(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    fit(network("a"), "a", [TRAIN], loss=LOSS, epochs=1, resume=file)
    assert fit(network("a"), "a", [VAL], loss=LOSS, epochs=2, resume=file).resumed_from == 1
    with pytest.raises(rsn2.CheckpointError, match="another train: 'batches'; this fit has"):
        fit(network("a"), "a", TRAIN, loss=LOSS, epochs=2, resume=file)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    fit_resumable(network("a"), file, epochs=1)
    sound = file.read_bytes()
    for damaged in (
        b"",
        sound[:100],
        sound[:-7],
        sound[:-1] + bytes([sound[-1] ^ 1]),
        sound.replace(b'\\"seed', b'\\"sead'),
    ):
        file.write_bytes(damaged)
        with pytest.raises(rsn2.CheckpointError):
            fit_resumable(network("a"), file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(rsn2.CheckpointError, match=r"not one that rsn2\.fit wrote"):
        fit_resumable(network("a"), file)


def test_the_file_holds_tensors_and_json(tmp_path: Path) -> None:
    file = tmp_path / "fit"
    fit_resumable(network("a"), file, epochs=1)
    names = set(load_file(file))
    assert {"own.0.values.0", "best.0.values.0", "optimizer.0.exp_avg", "optimizer.0.step"} <= names
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    record = json.loads(header["__metadata__"]["rsn2.fit"])
    assert record["settings"]["task"] == "a"
    assert record["groups"][0]["lr"] == 1e-2


def test_state_of_an_optimizer_comes_back_in_its_own_dtype(tmp_path: Path) -> None:
    """torch would bring NAdam's float32 product of momenta to the bfloat16 of its parameter."""
    data = tuple(part.bfloat16() if part.is_floating_point() else part for part in TRAIN)

    def trained(epochs: int, file: Path | None) -> nn.Module:
        model = network("a").bfloat16()
        fit(model, "a", data, loss=LOSS, optimizer=torch.optim.NAdam, epochs=epochs, batch_size=50, resume=file)
        return model

    trained(1, tmp_path / "fit")
    assert bits(trained(4, tmp_path / "fit"), "a") == bits(trained(4, None), "a")
