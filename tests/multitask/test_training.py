"""What `fit` promises: one task moves alone, and training stops at the best epoch."""

import warnings
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rsn2
from classifiers import LOSS, OPTIMIZERS, TRAIN, VAL, Scripted, bits, network, samples
from rsn2.data import batches_of
from rsn2.training import fit, fit_together, predict

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


class Frozen(nn.Sequential):
    """A part of which train mode leaves nothing but its own flag in train mode, as pretrained ones are often made."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for part in self:
            part.eval()
        return self


def test_a_part_that_stays_in_eval_mode_does_so_in_a_fit() -> None:
    torch.manual_seed(0)
    model = rsn2.convert(nn.Sequential(Frozen(nn.Dropout(0.5)), nn.Dropout(0.5), nn.Linear(10, 3))).train()
    rsn2.allocate(model, "a", 0.5, criterion="random")
    before, seen = [module.training for module in model.modules()], []
    for dropout in (model[0][0], model[1]):
        dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    fit(model, "a", TRAIN, VAL, loss=LOSS, epochs=1)
    assert seen == [False, True, False, False]
    assert [module.training for module in model.modules()] == before


def test_a_single_sample_that_is_left_over_joins_the_batch_before_it() -> None:
    model = network("a")
    data = samples(101)
    fit(model, "a", data, data, loss=LOSS, epochs=2, batch_size=50)  # batch norm would refuse one
    sizes = {seed: [len(x) for x, _ in batches_of(data, 50, seed)] for seed in (None, 0)}
    assert sizes == {None: [50, 50, 1], 0: [50, 51]}
    for size, batches in ((100, [101]), (101, [101]), (200, [101]), (99, [99, 2]), (1, [1] * 101)):
        assert [len(x) for x, _ in batches_of(data, size, 0)] == batches
    assert [len(x) for x, _ in batches_of(samples(1), 50, 0)] == [1]


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


# The optimizer and its scheduler


def test_a_scheduler_steps_behind_each_epoch() -> None:
    model = network("a")
    optimizer = torch.optim.SGD(rsn2.parameters(model, "a"), lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    with warnings.catch_warnings(action="error"):
        fit(model, "a", TRAIN, loss=LOSS, epochs=5, optimizer=optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_plateau_is_one_of_the_validation_loss_of_all_tasks() -> None:
    model = network("a", "b")
    rates: list[float] = []

    def plateau(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        made = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.0)
        optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return made

    fit_together(
        model,
        dict.fromkeys("ab", TRAIN),
        dict.fromkeys("ab", VAL),
        loss={"a": Scripted(model, [3.0, 1.0, 2.0, 2.0]), "b": Scripted(model, [1.0, 2.0, 2.0, 1.0])},
        epochs=4,
        optimizer=partial(torch.optim.SGD, lr=0.4),
        scheduler=plateau,
    )
    assert rates == [0.4, 0.4, 0.4, 0.2], "the sum is 4, 3, 4 and 3"


def test_an_optimizer_over_exactly_the_parameters_is_used() -> None:
    model = network("a")
    optimizer = torch.optim.SGD(rsn2.parameters(model, "a"), lr=0.0)
    before = [parameter.clone() for parameter in rsn2.parameters(model, "a")]
    fit(model, "a", TRAIN, loss=LOSS, epochs=1, optimizer=optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, rsn2.parameters(model, "a"), strict=True))


def test_an_optimizer_may_leave_out_what_is_frozen() -> None:
    for choose in (lambda each: each.requires_grad, lambda each: True):
        model = network("a")
        head = model.get_submodule("5").of("a").requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        own = [each for each in rsn2.parameters(model, "a") if choose(each)]
        history = fit(model, "a", TRAIN, loss=LOSS, epochs=3, optimizer=torch.optim.AdamW(own, lr=0.01))
        assert history.train_loss[-1] < history.train_loss[0]
        assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_groups_may_be_told_apart_by_name() -> None:
    model = network("a")
    named = rsn2.named_parameters(model, "a")
    groups = [
        {"params": [each for name, each in named.items() if "bias" not in name]},
        {"params": [each for name, each in named.items() if "bias" in name], "lr": 0.0},
    ]
    before = {name: each.detach().clone() for name, each in named.items()}
    fit(model, "a", TRAIN, loss=LOSS, epochs=1, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert {name for name, each in named.items() if torch.equal(each, before[name])} == {
        name for name in named if "bias" in name
    }


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


# Progress


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


def test_a_fit_inside_autocast_computes_with_the_weights_that_it_trains() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2)), per_task=["0", "1"])
    rsn2.allocate(model, "a", 1.0, criterion="magnitude")
    x, y = torch.randn(64, 8), torch.randint(2, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        fit(model, "a", (x, y), (x, y), loss=LOSS, epochs=3, lr=0.1, batch_size=16, progress=False)
        inside = predict(model, "a", x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(model, "a", x), inside)
