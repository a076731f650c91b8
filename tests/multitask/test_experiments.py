"""What a run promises: controls, an audit that would notice, a network that reloads, and resuming."""

import dataclasses
import gzip
import importlib
import json
import runpy
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from safetensors.torch import load_file
from torch import Tensor, nn

import rsn2
from csv_runs import EXAMPLES, write_data
from rsn2 import extras
from rsn2.checkpoint import read_metadata
from rsn2.experiments import audit, plots, reload, runner, tabular
from rsn2.experiments.config import read_config
from rsn2.experiments.experiment import Experiment
from rsn2.experiments.folder import RunError
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import Allocation, Training
from rsn2.tasks import multitask_layers
from rsn2.training import History, fit_together, predict


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configuration, data, and a whole run in ``run``, reloaded in a real process."""
    folder = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runner.run(tabular.experiment(read_config(write_data(folder))), folder / "run")
    torch.set_num_threads(threads)
    return folder


def reload_here(
    checkpoint: Path, rebuild: str, samples: Mapping[str, Tensor], device: torch.device, precision: str
) -> dict[str, Tensor]:
    """`reload.predict_elsewhere` without the new process, for tests of something else."""
    model = rsn2.load(checkpoint, tabular.rebuild(read_metadata(checkpoint)))
    return {task: predict(model, task, x) for task, x in samples.items()}


def test_the_report_holds_every_promise(finished: Path) -> None:
    report = json.loads((finished / "run" / "report.json").read_text())
    shapes, sizes = report["tasks"]
    assert (shapes["name"], shapes["metric"], shapes["density"]) == ("shapes", "accuracy", 0.3)
    assert (sizes["name"], sizes["metric"], sizes["epochs"], sizes["test_samples"]) == ("sizes", "mse", 2, 36)
    for task in report["tasks"]:
        assert task["values_changed"] == 0
        assert task["value"] == task["value_after_training"]
        assert task["control"] is not None
        assert task["control_epochs"] <= 4
    assert report["reload_bitwise_equal"] is True
    assert report["threads"] == 1
    assert report["optimizer"] == {"shapes": "sgd", "sizes": "sgd"}
    assert report["control_training"] == report["training"]
    assert report["training_seconds"]["network"] == sum(task["seconds"] for task in report["tasks"])
    assert report["training_seconds"]["controls"] == sum(task["control_seconds"] for task in report["tasks"])
    assert report["available_backends"]["reference"] is True
    assert set(report["versions"]) == {"rsn2-kernels", "torch", "python", "numpy", "scikit-learn"}
    assert report["seconds"] >= sum(task["seconds"] + task["control_seconds"] for task in report["tasks"])


def test_bits_per_weight_are_those_of_the_finished_network_and_of_the_dense_ones(finished: Path) -> None:
    report = json.loads((finished / "run" / "report.json").read_text())
    checkpoint = finished / "run" / "net.safetensors"
    model = rsn2.load(checkpoint, tabular.rebuild(read_metadata(checkpoint)))
    assert report["bits_per_weight"] == rsn2.report(model).bits_per_weight
    positions = 24 * 24 + 20 * 24
    shared = positions + 24 + 20
    shapes, sizes = (3 + 1) * 24 + (20 + 1) * 2, (2 + 1) * 24 + (20 + 1) * 1
    assert report["bits_per_weight_dense"] == pytest.approx(32 * (2 * shared + shapes + sizes) / positions)


def test_the_checkpoint_is_finalized_and_holds_what_prediction_needs(finished: Path) -> None:
    checkpoint = finished / "run" / "net.safetensors"
    metadata = read_metadata(checkpoint)
    assert metadata["config"]["hidden"] == [24, 20]
    assert metadata["tasks"]["shapes"]["classes"] == ["flat", "round"]
    assert metadata["tasks"]["sizes"]["features"] == ["width", "k"]
    layers = multitask_layers(rsn2.load(checkpoint, tabular.rebuild(metadata)))
    assert all(layer.pool is None for layer in layers.values())
    assert layers["hidden.0"].owners.count(0) == round(0.3 * 24 * 24)


def test_sizes_with_an_optimizer_are_of_what_it_keeps(finished: Path) -> None:
    checkpoint = finished / "run" / "net.safetensors"
    model = rsn2.load(checkpoint, tabular.rebuild(read_metadata(checkpoint)))
    size = json.loads((finished / "run" / "report.json").read_text())["bytes"]
    # SGD with momentum: one copy.
    kept = sum(parameter.nbytes for parameter in rsn2.parameters(model, ["shapes", "sizes"]))
    assert size["network"]["with_optimizer"] - size["network"]["weights"] == kept
    assert 0 < size["controls"]["with_optimizer"] - size["controls"]["weights"] < size["controls"]["weights"]


@pytest.mark.parametrize(
    ("training", "copies"),
    [(Training(), 2), (Training("adamw"), 2), (Training("sgd"), 0), (Training("sgd", momentum=0.9), 1)],
)
def test_moments_are_the_copies_that_the_optimizer_keeps(training: Training, copies: int) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = training.make_optimizer([parameter])
    optimizer.step()
    state = optimizer.state_dict()["state"].get(0, {})
    kept = [each for each in state.values() if isinstance(each, Tensor) and each.shape == parameter.shape]
    assert len(kept) == training.moments == copies


def test_a_control_starts_from_the_same_weights(config: Path) -> None:
    experiment = tabular.experiment(read_config(config))
    first, second = experiment.build().state_dict(), experiment.build().state_dict()
    tensors = [name for name, value in first.items() if isinstance(value, Tensor)]
    assert "hidden.0.weight" in tensors
    assert all(torch.equal(first[name], second[name]) for name in tensors)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    config: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "predict_elsewhere", reload_here)
    folder = config.parent / "run"
    trainings = []

    def interrupted(model: nn.Module, train: Mapping[str, Any], *arguments: Any, **options: Any) -> dict[str, History]:
        trainings.extend(train)
        if len(trainings) == 4:  # the second task, after one of its epochs
            fit_together(model, train, *arguments, **{**options, "epochs": 1})
            raise KeyboardInterrupt
        return fit_together(model, train, *arguments, **options)

    monkeypatch.setattr(runner, "fit_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(tabular.experiment(read_config(config)), folder)
    assert trainings == ["shapes", "sizes", "shapes", "sizes"]
    result = runner.run(tabular.experiment(read_config(config)), folder)
    whole = json.loads((finished / "run" / "report.json").read_text())
    for task, expected in zip(result["tasks"], whole["tasks"], strict=True):
        assert {key: task[key] for key in task if "seconds" not in key} == {
            key: expected[key] for key in expected if "seconds" not in key
        }
    tensors, others = load_file(folder / "net.safetensors"), load_file(finished / "run" / "net.safetensors")
    assert audit.count_changed(tensors, others) == 0


def test_a_finished_run_is_not_run_again_and_fresh_runs_it_anew(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((finished / "run" / "report.json").read_text())
    experiment = tabular.experiment(read_config(finished / "config.toml"))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a task was trained")

    monkeypatch.setattr(runner, "fit_together", never)
    assert runner.run(experiment, finished / "run") == before
    with pytest.raises(AssertionError, match="a task was trained"):
        runner.run(experiment, finished / "run", fresh=True)
    assert not (finished / "run" / "net.safetensors").exists()
    monkeypatch.undo()
    # The module's other tests want the run back; the trainings that --fresh removed are done again.
    runner.run(experiment, finished / "run")


def test_controls_can_be_added_to_a_run_without(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "predict_elsewhere", reload_here)
    experiment, folder = tabular.experiment(read_config(config)), config.parent / "run"
    without = runner.run(experiment, folder, controls=False)
    assert [task["control"] for task in without["tasks"]] == [None, None]
    both = runner.run(experiment, folder)
    assert [task["value"] for task in both["tasks"]] == [task["value"] for task in without["tasks"]]
    assert all(task["control"] is not None for task in both["tasks"])


def test_a_folder_with_other_settings_is_refused(finished: Path, config: Path) -> None:
    config.write_text(config.read_text().replace("lr = 0.05", "lr = 0.06"))
    with pytest.raises(RunError, match=r"other settings \(.*training.*\).*--fresh"):
        runner.run(tabular.experiment(read_config(config)), finished / "run")


def test_a_folder_with_another_allocation_is_refused(finished: Path) -> None:
    made = tabular.experiment(read_config(finished / "config.toml"))
    with pytest.raises(RunError, match=r"other settings \(allocation\)"):
        runner.run(dataclasses.replace(made, allocation=Allocation(criterion="magnitude")), finished / "run")


@pytest.mark.parametrize("how", [Allocation(scope="column", granularity=(8, 8)), Allocation()])
def test_what_cannot_be_allocated_is_refused_before_any_training(
    how: Allocation, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(runner, "fit_together", never)
    made = tabular.experiment(read_config(config))
    assert not callable(made.stages)
    full = [
        dataclasses.replace(stage, tasks=tuple(dataclasses.replace(task, density=0.6) for task in stage.tasks))
        for stage in made.stages
    ]
    with pytest.raises(rsn2.AllocationError, match="granularity" if how.granularity else "density"):
        runner.run(dataclasses.replace(made, stages=full, allocation=how), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_none_leaves_no_run(config: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="foo"):
        runner.run(tabular.experiment(read_config(config)), tmp_path / "run", device="foo")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_data_is_refused(finished: Path, config: Path) -> None:
    def experiment() -> Experiment:
        return tabular.experiment(read_config(config))

    report = (finished / "run" / "report.json").read_bytes()
    assert runner.run(experiment(), finished / "run") == json.loads(report)  # the same bytes elsewhere are the same
    sizes = config.parent / "sizes.csv"
    sizes.write_text(sizes.read_text().replace(",7", ",8", 1))
    with pytest.raises(RunError, match=r"other settings \(data\): .*--fresh"):
        runner.run(experiment(), finished / "run")
    assert (finished / "run" / "report.json").read_bytes() == report


def test_the_audit_notices_one_changed_value(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "predict_elsewhere", reload_here)

    def forgetful(model: nn.Module, train: Mapping[str, Any], *arguments: Any, **options: Any) -> dict[str, History]:
        history = fit_together(model, train, *arguments, **options)
        if "sizes" in train:
            layer = multitask_layers(model)["hidden.1"]
            with torch.no_grad():
                value = layer.values[str(layer.slot("shapes"))][5:6]
                value.copy_(torch.nextafter(value, value + 1))
        return history

    monkeypatch.setattr(runner, "fit_together", forgetful)
    with pytest.raises(AuditError, match="1 values of task 'shapes' changed") as error:
        runner.run(tabular.experiment(read_config(config)), config.parent / "run", controls=False)
    report = json.loads((config.parent / "run" / "report.json").read_text())
    assert json.loads(json.dumps(error.value.report)) == report
    assert [task["values_changed"] for task in report["tasks"]] == [1, 0]


def test_a_reload_that_answers_differently_fails_loudly(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differently(*arguments: Any) -> dict[str, Tensor]:
        outputs = reload_here(*arguments)
        outputs["sizes"][3] = torch.nextafter(outputs["sizes"][3], torch.tensor(1e9))
        return outputs

    monkeypatch.setattr(reload, "predict_elsewhere", differently)
    with pytest.raises(AuditError, match="answers differently in a new process"):
        runner.run(tabular.experiment(read_config(config)), config.parent / "run", controls=False)
    assert json.loads((config.parent / "run" / "report.json").read_text())["reload_bitwise_equal"] is False


def test_a_new_process_that_fails_is_an_audit_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no file"):
        reload.predict_elsewhere(tmp_path / "none", "rsn2.experiments.tabular:rebuild", {}, torch.device("cpu"))


def test_count_changed_compares_bits() -> None:
    before = {"x": torch.tensor([0.0, float("nan"), 1.0]), "mask": torch.tensor([True, False])}
    assert audit.count_changed({name: tensor.clone() for name, tensor in before.items()}, before) == 0
    assert audit.count_changed({**before, "x": torch.tensor([-0.0, float("nan"), 2.0])}, before) == 2
    assert audit.count_changed({**before, "mask": torch.tensor([True])}, before) == 2
    assert audit.count_changed({"x": before["x"]}, before) == 2


# Extras, picture, examples


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_package_is_named_before_any_training(
    package: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.import_module

    def hidden(name: str) -> Any:
        if name.startswith(package):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(name)

    monkeypatch.setattr(importlib, "import_module", hidden)
    with pytest.raises(extras.MissingPackageError, match=r"pip install 'rsn2-kernels\[experiments\]'"):
        runner.run(tabular.experiment(read_config(config)), config.parent / "run")
    assert not (config.parent / "run").exists()


def test_the_picture_shows_every_owner_in_a_colour_of_its_own(tmp_path: Path) -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.4, criterion="random", seed=len(rsn2.tasks(model)))
    plots.ownership(model, tmp_path / "owners.png")
    picture = imread(tmp_path / "owners.png")[..., :3]
    assert picture.shape[1] > picture.shape[0] > 300
    shares = [
        (np.abs(picture - to_rgb(colour)).max(axis=2) < 0.02).mean() for colour in ("#f2f2f2", "tab:blue", "tab:orange")
    ]
    # 0.2, 0.4 and 0.4 of the panels, which fill most of the picture; pixels on an edge are mixtures.
    assert shares[1] > 0.2
    assert shares[2] > 0.2
    assert 0.07 < shares[0] < shares[1]


def test_the_mnist_example_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 96), ("t10k", 32)):
        labels = draw.integers(0, 10, count, dtype=np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        images[np.arange(count), labels] = 255
        for name, array in (
            (f"{part}-images-idx3-ubyte.gz", images),
            (f"{part}-labels-idx1-ubyte.gz", labels),
        ):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    options = {"--data-dir": str(tmp_path), "--epochs": "2", "--density": "0.05", "--threads": "1"}
    monkeypatch.setattr(sys, "argv", ["mnist.py", *(word for option in options.items() for word in option)])
    runpy.run_path(str(EXAMPLES / "mnist.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "39,200 (0.050)" in shown
    assert shown.count("runs on") == 6
    assert "epoch 2: train loss" in shown
