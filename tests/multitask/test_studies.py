"""The studies: what they vary, what they write, and that an interrupted one goes on."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

import rsn2
from rsn2.cli import app
from rsn2.experiments import page, paper, plots
from rsn2.experiments.data import Source
from rsn2.experiments.paper import Options, studies
from rsn2.experiments.paper.networks import Permutation
from tiny_data import write_data


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """All data sets, tiny."""
    return Source(write_data(tmp_path_factory.mktemp("data")), hub=False, accept_unknown=True)


def test_sparsity_varies_density_and_blocks(source: Source, tmp_path: Path) -> None:
    file = studies.sparsity(
        2,
        [Options(epochs=1)],
        source,
        tmp_path / "runs",
        tmp_path / "results",
        densities=(0.3,),
        blocks=((16, 16),),
    )
    content = json.loads(file.read_text())
    points = content["points"]
    assert {(point["varied"], point["density"], *point["blocks"]) for point in points} == {
        ("density", 0.3, 1, 1),
        ("blocks", 0.1, 16, 16),
    }
    assert {point["task"] for point in points} == {"mnist", "fashion_mnist"}
    # The controls are trained once for all of them.
    assert len(list((tmp_path / "runs" / "controls").iterdir())) == 2
    assert imread(file.with_suffix(".png")).ndim == 3
    shown = page.render(file.parent)
    for point in points:
        setting = "| 0.3 |" if point["varied"] == "density" else "| 16 x 16 |"
        (line,) = (line for line in shown.splitlines() if line.startswith(setting))
        assert f" {100 * point['value']:.1f} % (1) |" in line


def test_a_density_that_does_not_fit_is_left_out(source: Source, tmp_path: Path) -> None:
    options = [Options(epochs=1)]
    folders = (tmp_path / "runs", tmp_path / "results")
    file = studies.sparsity(1, options, source, *folders, densities=(0.1, 0.5), blocks=((1, 1), (16, 16)))
    points = json.loads(file.read_text())["points"]
    together = {point["varied"]: point["density"] for point in points if point["task"] == "ensemble"}
    assert together == {"density": 0.1, "blocks": pytest.approx(1.0)}
    with pytest.raises(rsn2.AllocationError, match="density"):
        studies.sparsity(1, options, source, *folders, densities=(0.5,), blocks=())


def test_a_quick_study_is_no_result(source: Source, tmp_path: Path) -> None:
    file = studies.tasks([0.5], [Options().as_quick()], source, tmp_path / "runs", tmp_path / "results")
    with pytest.raises(ValueError, match=r"study-tasks\.json.*--quick"):
        page.render(file.parent)


def test_a_network_is_filled_with_tasks(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["study", "tasks", "--density", "0.3", "--epochs", "1"]
    arguments += ["--accept-unknown", "--data-dir", str(source.folder)]
    arguments += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    threads = torch.get_num_threads()
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(paper.runner, "fit_together", never)
    again = CliRunner().invoke(app, arguments)
    torch.set_num_threads(threads)
    assert again.exit_code == 0, again.output
    content = json.loads((tmp_path / "results" / "study-tasks.json").read_text())
    (run,) = content["runs"]
    assert len(run["accuracies"]) == 3
    assert run["capacity"] == pytest.approx(0.9, abs=0.01)
    assert run["values_changed"] == 0
    assert run["held"] == studies.held(run["accuracies"])
    assert imread(tmp_path / "results" / "study-tasks.png").ndim == 3
    assert f"| 0.3 | 0 | {run['held']} of 3 |" in page.render(tmp_path / "results")


@pytest.mark.filterwarnings("ignore:task")
def test_equal_tasks_are_trained_in_turn_for_each_way_to_choose_weights(source: Source, tmp_path: Path) -> None:
    forms = {name: studies.FORMS[name] for name in ("paper", "fan_in, flip, column")}
    file = studies.allocation([Options(epochs=1)], source, tmp_path / "runs", tmp_path / "results", forms=forms)
    runs = json.loads(file.read_text())["runs"]
    assert [(run["form"], len(run["accuracies"]), run["values_changed"]) for run in runs] == [
        ("paper", 5, 0),
        ("fan_in, flip, column", 5, 0),
    ]
    assert imread(file.with_suffix(".png")).ndim == 3
    shown = page.render(file.parent)
    for run in runs:
        scores = " | ".join(f"{100 * accuracy:.1f} % (1)" for accuracy in run["accuracies"])
        assert f"| {run['form']} | {scores} | 0 |" in shown


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["allocation", "--density", "0.3"], "--density"),
        (["allocation", "--experiment", "1"], "--experiment"),
        (["tasks", "--experiment", "2"], "--experiment"),
        (["tasks", "--device", "foo"], "--device"),
    ],
)
def test_options_that_do_nothing_in_a_study_are_refused(words: list[str], option: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["study", *words, "--out", str(tmp_path / "runs")])
    assert done.exit_code == 2 and f"Invalid value for {option}" in done.output.replace("'", ""), done.output
    assert not (tmp_path / "runs").exists()


def test_a_fresh_study_trains_anew(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    def study(fresh: bool = False) -> None:
        folders = (tmp_path / "runs", tmp_path / "results")
        studies.sparsity(2, [Options(epochs=1)], source, *folders, densities=(0.3,), blocks=(), fresh=fresh)

    study()
    monkeypatch.setattr(paper.runner, "fit_together", never)
    study()
    with pytest.raises(AssertionError, match="something was trained"):
        study(fresh=True)


def test_held_counts_up_to_the_first_that_falls() -> None:
    assert studies.held([0.97, 0.96, 0.951, 0.94, 0.97]) == 3
    assert studies.held([0.9, 0.95, 0.96]) == 3


def test_a_permutation_moves_pixels_and_keeps_them() -> None:
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(Permutation(16, 0)(x), x.flatten(1))
    moved = Permutation(16, 5)(x)
    assert not torch.equal(moved, x.flatten(1))
    assert torch.equal(moved.sort(1).values, x.flatten(1).sort(1).values)
    assert torch.equal(moved, Permutation(16, 5)(x))


def test_pictures_want_something_to_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="points: expected at least one"):
        plots.sparsity([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="runs: expected at least one"):
        plots.in_order([], tmp_path / "a.png")
