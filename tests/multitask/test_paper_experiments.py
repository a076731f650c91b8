"""The paper's six experiments, whole, on few made-up samples: what is trained, and what their results say."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import rsn2
from rsn2.checkpoint import read_metadata
from rsn2.cli import app
from rsn2.experiments import page, paper, reload, runner
from rsn2.experiments.data import Source, load
from rsn2.experiments.experiment import Problem
from rsn2.experiments.paper import Options, experiment3, problems
from rsn2.experiments.paper.networks import Jitter, Transformer
from rsn2.experiments.settings import Training
from rsn2.sealed import CheckpointError
from rsn2.tasks import multitask_layers
from tiny_data import write_data

ONE_EPOCH = Options(epochs=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """All data sets, tiny."""
    return Source(write_data(tmp_path_factory.mktemp("data")), hub=False, accept_unknown=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module are, and the controls that they share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(source: Source, folder: Path) -> Mapping[int, dict[str, Any]]:
    """Every experiment, run for one epoch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            number: paper.run(number, ONE_EPOCH, source, folder / str(number), result=folder / f"{number}.json")
            for number in paper.EXPERIMENTS
        }
    finally:
        torch.set_num_threads(threads)


def reloaded(folder: Path, number: int) -> torch.nn.Module:
    checkpoint = folder / str(number) / "net.safetensors"
    return rsn2.load(checkpoint, paper.rebuild(read_metadata(checkpoint)))


@pytest.mark.parametrize("number", paper.EXPERIMENTS)
def test_every_row_of_the_papers_table_has_figures(
    number: int, results: Mapping[int, dict[str, Any]], folder: Path
) -> None:
    result = results[number]
    assert json.loads((folder / f"{number}.json").read_text()) == json.loads(json.dumps(result))
    assert {row["name"] for row in result["rows"]} == set(paper.EXPERIMENTS[number].PAPER)
    for row in result["rows"]:
        assert row["rsn2"] is not None and row["control"] is not None
        assert (row["paper_rsn2"], row["paper_control"]) == paper.EXPERIMENTS[number].PAPER[row["name"]]
        assert row["epochs"] >= 1 and row["control_epochs"] == 1
        assert row["seconds"] > 0 and row["control_seconds"] > 0
    assert result["notes"][-1] == "At most 1 epochs of each training."


@pytest.mark.parametrize("number", paper.EXPERIMENTS)
def test_nothing_is_forgotten_and_the_file_answers_alike(number: int, results: Mapping[int, dict[str, Any]]) -> None:
    result = results[number]
    assert all(row["values_changed"] == 0 for row in result["rows"])
    assert result["predictions_unchanged"] is True
    assert result["reload_bitwise_equal"] is True
    assert result["continual"]["backward_transfer"] in (0.0, None)
    for losses in zip(*[stage["losses"].items() for stage in result["task_losses"][-2:]], strict=False):
        assert len({loss for _, loss in losses}) == 1


@pytest.mark.parametrize("number", paper.EXPERIMENTS)
def test_pictures_are_drawn(number: int, results: Mapping[int, dict[str, Any]], folder: Path) -> None:
    for name in ("ownership", "curves", "losses"):
        assert (folder / str(number) / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_1_holds_five_subnetworks_and_their_ensemble(results: Mapping[int, dict[str, Any]], folder: Path) -> None:
    names = [row["name"] for row in results[1]["rows"]]
    assert names == [*(f"subnetwork_{number}" for number in range(1, 6)), "ensemble"]
    assert len({row["control"] for row in results[1]["rows"]}) == 1
    for layer in multitask_layers(reloaded(folder, 1)).values():
        assert len(layer.densities) == 5
        assert layer.owners.free().sum() <= 5 * layer.owners.shape[1]  # what rounding leaves of each column


def test_1_counts_the_time_of_the_five_trained_at_once_once(results: Mapping[int, dict[str, Any]]) -> None:
    *members, ensemble = results[1]["rows"]
    for key in ("epochs", "seconds", "epoch_seconds"):
        assert {row[key] for row in members} == {ensemble[key]}
    assert len(ensemble["trained_with"]) == len(members) - 1


def test_in_bfloat16_a_run_keeps_its_promises_too(source: Source, tmp_path: Path) -> None:
    options = replace(ONE_EPOCH, precision="bfloat16")
    result = paper.run(6, options, source, tmp_path / "run")
    assert all(row["values_changed"] == 0 for row in result["rows"])
    assert result["predictions_unchanged"] and result["reload_bitwise_equal"]
    assert "bfloat16" in result["notes"][-1]
    # A control in another type, or on other threads, is another control.
    (kept,) = (tmp_path / "controls").iterdir()
    exact = paper.EXPERIMENTS[6].experiment(load(["reuters"], source), ONE_EPOCH).controls["reuters"].file
    assert kept.stem != f"{exact}-cpu-{torch.get_num_threads()}"
    assert kept.stem.endswith(f"-cpu-{torch.get_num_threads()}")


def test_the_rate_of_an_experiment_is_said_unless_another_was_asked_for(source: Source, tmp_path: Path) -> None:
    said = {lr: paper.run(2, replace(ONE_EPOCH, lr=lr), source, tmp_path / str(lr))["notes"] for lr in (None, 0.002)}
    assert "The paper gives no learning rate: 0.001." in said[None]
    assert not any("learning rate" in note for note in said[0.002])


def test_a_control_is_kept_for_its_data_and_no_other_of_the_same_size(source: Source) -> None:
    def file(of: Problem) -> str | None:
        return ONE_EPOCH.control("network", "mnist", of, ONE_EPOCH.training(), nn.Identity).file

    found = problems.problem(load(["mnist"], source)["mnist"])
    x, target = found.train
    assert file(found) == file(replace(found, train=(x.clone(), target.clone())))
    assert file(found) != file(replace(found, train=(x.flip(0), target.flip(0))))
    assert file(found) != file(replace(found, train=(x.flip(-1), target)))
    assert file(found) != file(replace(found, train=found.val, val=found.train))


def test_3_gives_each_half_of_the_classes_by_the_controls_f1(
    results: Mapping[int, dict[str, Any]], folder: Path
) -> None:
    result = results[3]
    f1 = dict(zip(result["classes"]["fashion_mnist"], result["f1"]["control"]["fashion_mnist"], strict=True))
    easy, hard = result["classes"]["easy"], result["classes"]["hard"]
    assert sorted([*easy, *hard]) == sorted(f1)
    assert min(f1[name] for name in easy) >= max(f1[name] for name in hard)
    # One control for both experiments, trained once.
    assert [row["control"] for row in result["rows"]] == [results[1]["rows"][0]["control"]] * 2
    assert len([path for path in (folder / "controls").iterdir() if path.name.startswith("convolutional")]) == 1


def test_4_gives_tasks_of_other_widths_a_first_layer_of_their_own(
    results: Mapping[int, dict[str, Any]], folder: Path
) -> None:
    layers = multitask_layers(reloaded(folder, 4))
    assert list(layers["first.784"].slots) == ["mnist", "fashion_mnist"]
    assert list(layers["first.13"].slots) == ["boston"]
    assert list(layers["first.256"].slots) == ["imdb"]
    assert list(layers["hidden.3"].slots) == ["mnist", "fashion_mnist", "boston", "imdb"]
    metrics = {row["name"]: row["metric"] for row in results[4]["rows"]}
    assert metrics == {"mnist": "accuracy", "fashion_mnist": "accuracy", "boston": "mse", "imdb": "accuracy"}
    rows = {row["name"]: row for row in results[4]["rows"]}
    assert rows["mnist"]["trained_with"] == ["fashion_mnist"]
    assert [stage["trained"] for stage in results[4]["task_losses"]] == [
        ["mnist", "fashion_mnist"],
        ["boston"],
        ["imdb"],
    ]
    assert rows["mnist"]["control"] == results[2]["rows"][0]["control"]


def test_5_shares_the_convolutions_of_the_faces(results: Mapping[int, dict[str, Any]], folder: Path) -> None:
    layers = multitask_layers(reloaded(folder, 5))
    faces = ("utkface_age", "utkface_gender", "utkface_ethnicity")
    assert len({layers["convolutions.0"].slots[task] for task in faces}) == 1
    assert len(layers["convolutions.0"].densities) == 2
    assert len(layers["connected.1"].densities) == 4
    size = results[5]["bytes"]
    assert size["network"]["weights"] <= 0.4 * size["controls"]["weights"]
    assert size["network"]["with_optimizer"] <= 0.4 * size["controls"]["with_optimizer"]


def test_6_prunes_all_but_the_embeddings_after_two_epochs(results: Mapping[int, dict[str, Any]], folder: Path) -> None:
    model = reloaded(folder, 6)
    assert set(multitask_layers(model)) == {
        *(f"encoder.self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "encoder.linear1",
        "encoder.linear2",
        "output",
    }
    assert results[6]["rows"][0]["warm_up_epochs"] == 2
    layers = results[6]["bytes"]["multitask_layers"]
    assert layers["weights"] <= 0.16 * layers["dense"]
    dense = results[6]["bytes"]["controls"]["weights"] / 4
    assert 34e6 < dense < 36e6


# What the experiments are made of


def test_a_transformer_takes_padding_and_groups_for_nothing() -> None:
    torch.manual_seed(0)
    net = Transformer("news", 50, 16, 8, 2, 12, 0.0, 3, group=2)
    net.words.active = "news"
    x = torch.randint(2, 50, (5, 16))
    for row, length in enumerate((16, 3, 7, 1, 5)):
        x[row, length:] = 0
    whole = net(x)
    torch.testing.assert_close(whole, torch.cat([net(row.unsqueeze(0)) for row in x]))
    torch.testing.assert_close(whole[1], net(x[1:2, :3])[0])


def test_classes_are_numbered_anew(source: Source) -> None:
    whole = problems.problem(load(["fashion_mnist"], source)["fashion_mnist"])
    part = problems.of_classes(whole, [7, 2])
    x, target = whole.train
    assert part.classes == (whole.classes[7], whole.classes[2])
    assert torch.equal(part.train[0][part.train[1] == 0], x[target == 7])
    assert torch.equal(part.train[0][part.train[1] == 1], x[target == 2])
    assert len(part.train[1]) == int(((target == 7) | (target == 2)).sum())


def test_fewer_samples_shrink_all_parts_alike(source: Source) -> None:
    data = load(["mnist"], source)["mnist"]
    part = problems.problem(data, 20)
    share = 20 / len(data.train[0])
    assert [len(x) for x, _ in (part.train, part.val, part.test)] == [
        20,
        max(1, round(share * len(data.val[0]))),
        round(share * len(data.test[0])),
    ]
    rows = {tuple(row.flatten().tolist()) for row in data.train[0]}
    assert all(tuple(row.flatten().tolist()) in rows for row in part.train[0])


def test_options_take_the_place_of_the_experiments_settings() -> None:
    asked = Options(density=0.3, scope="global", rescale="none", flip=False, granularity=(16, 16), lr=0.1)
    default = paper.EXPERIMENTS[1].ALLOCATION
    assert Options().allocation(default) == default
    assert asked.allocation(default) == replace(default, scope="global", rescale=None, flip=False, granularity=(16, 16))
    assert asked.share(0.2) == 0.3
    assert asked.training().lr == 0.1
    assert (Options().training().patience, Options().training().min_delta) == (3, 0.01)
    own, other = Options().training(weight_decay=0.5), Options(optimizer="sgd").training(weight_decay=0.5)
    assert (own.optimizer, own.weight_decay) == ("adamw", 0.5)
    assert (other.optimizer, other.weight_decay) == ("sgd", 0.0)


def test_jitter_mirrors_by_chance_while_a_network_trains() -> None:
    x = torch.rand(200, 2, 3, 4)
    jitter = Jitter(0.0, 0.0, 0.0)
    torch.manual_seed(0)
    seen = jitter.train()(x)
    as_it_is, mirrored = ((seen - each).abs().amax((1, 2, 3)) < 1e-5 for each in (x, x.flip(3)))
    assert bool((as_it_is ^ mirrored).all()) and 70 <= int(mirrored.sum()) <= 130
    assert jitter.eval()(x) is x


@pytest.mark.parametrize(
    ("amount", "most"),
    [((0.2, 0.0, 0.0), 0.2 * 10), ((0.0, 0.1, 0.0), 0.1 * 10), ((0.0, 0.0, 0.125), 0.125 * 32)],
    ids=["turn", "zoom", "shift"],
)
def test_jitter_moves_a_spot_no_farther_than_it_is_told(amount: tuple[float, float, float], most: float) -> None:
    side, spot = 32, 25
    x = torch.zeros(500, 1, side, side)
    x[:, :, 15:17, spot : spot + 2] = 1.0  # ten pixels right of the middle
    torch.manual_seed(0)
    seen = Jitter(*amount).train()(x)
    place = torch.arange(side) - (side - 1) / 2
    weight = seen.sum((1, 2, 3))
    down, right = (seen * place[:, None]).sum((1, 2, 3)) / weight, (seen * place).sum((1, 2, 3)) / weight
    moved = torch.hypot((right.abs() - 10) if not amount[2] else torch.zeros(()), down)
    assert moved.max() <= 1.2 * most
    assert moved.max() >= 0.8 * most


def test_the_learning_rate_falls_behind_epochs_without_progress() -> None:
    training = Training(lr=1.0, lr_patience=2, lr_factor=0.5, min_delta=0.1)
    optimizer = training.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert training.scheduler is not None
    scheduler, rates = training.scheduler(optimizer), []
    for loss in (3.0, 2.0, 2.0, 1.95, 1.7, 1.65, 1.8):
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert Training().scheduler is None


def test_an_experiment_needs_its_controls_to_know_its_tasks(source: Source, tmp_path: Path) -> None:
    made = experiment3.experiment(load(experiment3.DATA, source), ONE_EPOCH)
    report = runner.run(replace(made, settings={"n": 3}), tmp_path / "run", controls=False)
    assert all(task["control"] is not None for task in report["tasks"])


def test_a_checkpoint_of_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match="rsn2 experiment"):
        paper.rebuild({"experiment": "tabular"})


# The command


def test_the_command_runs_two_seeds_and_goes_on(source: Source, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    arguments = ["experiment", "2", "--data-dir", str(source.folder), "--accept-unknown", "--quick", "--seeds", "2"]
    arguments += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    try:
        first = CliRunner().invoke(app, arguments)
        assert first.exit_code == 0, first.output
        assert "bitwise equal to those right after" in first.output
        again = CliRunner().invoke(app, arguments)
    finally:
        torch.set_num_threads(threads)
    assert again.output.count("holds this run, finished") == 2
    files = sorted((tmp_path / "results").iterdir())
    assert [file.name for file in files] == ["experiment-2-seed-0.json", "experiment-2-seed-1.json"]
    one, two = (json.loads(file.read_text()) for file in files)
    assert one["rows"][0]["epochs"] <= 2
    assert one["losses"] != two["losses"]


def asked(source: Source, folder: Path, *more: str) -> Result:
    """`rsn2 experiment 2` for an epoch, its results in ``folder / "results"``."""
    arguments = ["experiment", "2", "--data-dir", str(source.folder), "--accept-unknown", "--epochs", "1"]
    arguments += ["--out", str(folder / "runs"), "--results", str(folder / "results"), *more]
    return CliRunner().invoke(app, arguments)


def test_a_results_file_of_other_settings_is_replaced_by_a_fresh_run_alone(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "results" / "experiment-2-seed-0.json"
    assert asked(source, tmp_path).exit_code == 0
    assert asked(source, tmp_path).exit_code == 0
    written = file.read_bytes()
    for name, change, said in (
        ("density", ("--density", "0.3"), "options, there and here: density None and 0.3"),
        ("optimizer", ("--optimizer", "sgd"), "training, there and here: mnist optimizer 'adam' and 'sgd'"),
    ):
        done = asked(source, tmp_path, *change, "--out", str(tmp_path / name))
        assert done.exit_code == 2 and f"{file} holds a run with other settings ({said}" in done.output, done.output
        assert not (tmp_path / name / "experiment-2-seed-0").exists()
    assert asked(source, tmp_path, "--density", "0.6", "--fresh").exit_code == 2  # no room
    assert file.read_bytes() == written
    with monkeypatch.context() as patch:
        patch.setattr(runner, "fit_together", interrupted)
        done = asked(source, tmp_path, "--density", "0.3", "--fresh")
    assert (done.exit_code, done.stderr) == (130, "interrupted: the same command without --fresh goes on from here\n")
    assert asked(source, tmp_path, "--density", "0.3").exit_code == 0
    assert json.loads(file.read_text())["options"]["density"] == 0.3
    file.write_text("{}")
    assert "no results file of `rsn2 experiment`" in asked(source, tmp_path).output


def test_a_mistake_in_the_arguments_leaves_the_folder_free(source: Source, tmp_path: Path) -> None:
    for mistake in (("--density", "0.6"), ("--device", "foo"), ("--device", "meta")):
        assert asked(source, tmp_path, *mistake).exit_code == 2
        assert not (tmp_path / "runs" / "experiment-2-seed-0").exists()


def test_a_run_that_fails_its_audit_is_a_result_and_other_seeds_run(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "predict_elsewhere", lambda *_: {})
    done = asked(source, tmp_path, "--seeds", "2")
    assert done.exit_code == 1 and done.stderr.count("answers differently in a new process") == 2
    files = sorted((tmp_path / "results").iterdir())
    assert [json.loads(file.read_text())["reload_bitwise_equal"] for file in files] == [False, False]
    assert "**In 2 runs (seed 0, 1) the saved network answered otherwise" in page.render(tmp_path / "results")


def test_data_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["experiment", "4", "--data-dir", str(tmp_path), "--out", str(tmp_path / "runs")])
    assert shown.exit_code == 2
    assert "boston" in shown.output or "mnist" in shown.output


def test_losses_and_scores_go_to_tensorboard_of_a_finished_run_too(source: Source, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulators: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    paper.run(2, Options(epochs=2), source, tmp_path / "run")
    result = paper.run(2, Options(epochs=2), source, tmp_path / "run", tensorboard=True)
    events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss/train/mnist")]
    assert losses == pytest.approx(result["losses"]["rsn2"]["mnist"]["train"])
    assert len(events.Scalars("loss/val/fashion_mnist (control)")) == 2
    scores = [event.value for event in events.Scalars("accuracy/mnist")]
    assert scores == pytest.approx([result["rows"][0]["rsn2"]] * 2)  # after each of the two stages
