"""The command line: what each command writes and prints, and how it fails."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import rsn2
from rsn2 import cli
from rsn2.checkpoint import read_metadata
from rsn2.experiments import runner, tabular
from rsn2.experiments.reload import AuditError
from rsn2.ownership import own_tensors

CONFIG = """
[network]
hidden = [16]

[training]
optimizer = "adamw"
weight_decay = 0.1
lr = 0.02
epochs = 12
batch_size = 16

[[tasks]]
name = "shapes"
data = "shapes.csv"
target = "shape"
kind = "classification"
density = 0.5

[[tasks]]
name = "sizes"
data = "sizes.csv"
target = "size"
kind = "regression"
density = 0.5
"""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """`rsn2 train` sets the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_data(folder: Path) -> Path:
    steps = [(number * 0.37 % 2 - 1, number * 0.73 % 2 - 1) for number in range(80)]
    write_csv(folder / "shapes.csv", ["a", "b", "shape"], [[a, b, "round" if a > 0 else "flat"] for a, b in steps])
    write_csv(folder / "sizes.csv", ["width", "size"], [[a, 100 + 20 * a] for a, _ in steps])
    (folder / "config.toml").write_text(CONFIG)
    return folder / "config.toml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with data and, in ``run``, what a real process of `rsn2 train` left there."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [sys.executable, "-m", "rsn2.cli", "train", str(write_data(folder)), "--out", str(folder / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return folder, done


@pytest.fixture
def checkpoint(trained: tuple[Path, object]) -> Path:
    return trained[0] / "run" / "net.safetensors"


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def assert_one_line(result: Result, code: int, pattern: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(f"{pattern}\n", result.stderr), result.stderr


# train


def test_train_runs_as_a_process_and_prints_the_table(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads((folder / "run" / "report.json").read_text())
    for task in report["tasks"]:
        assert f"{task['name']} " in done.stdout
        assert task["values_changed"] == 0
    assert report["threads"] == 1
    assert f"{report['bits_per_weight']:.1f}, all tasks in one network" in done.stdout
    assert "predictions bitwise equal to those before" in done.stdout
    assert f"written to {folder / 'run'}" in done.stdout.replace("\n", "")
    written = {"report.json", "net.safetensors", "ownership.png", "curves.png", "losses.png", "run.json", "resume"}
    assert {file.name for file in (folder / "run").iterdir()} == written


def test_train_again_shows_the_finished_run(trained: tuple[Path, object]) -> None:
    folder = trained[0]
    before = (folder / "run" / "report.json").read_bytes()
    result = call("train", folder / "config.toml", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "finished; --fresh runs it anew" in result.output.replace("\n", " ")
    assert "shapes" in result.output
    assert (folder / "run" / "report.json").read_bytes() == before
    quiet = call("train", folder / "config.toml", "--out", folder / "run", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_train_without_out_writes_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {}

    def run(experiment: runner.Experiment, path: Path, **options: Any) -> None:
        asked.update(options, path=path, threads=torch.get_num_threads())

    monkeypatch.setattr(runner, "run", run)
    result = call("train", write_data(tmp_path), "--quiet", "--no-controls", "--fresh", "--threads", 2)
    assert result.exit_code == 0, result.output
    expected = {"path": Path("runs/config"), "controls": False, "fresh": True, "console": None, "threads": 2}
    assert asked == expected


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        (
            "lr = 0.02",
            "lr = -1",
            r"error: .*config\.toml: \[training\] lr: expected a number above 0\. Got -1\.",
        ),
        ("[network]", "[nets]", r"error: .*config\.toml: unknown table \[nets\]\. There are .*"),
        ('data = "sizes.csv"', 'data = "none.csv"', r"error: .*none\.csv: No such file or directory"),
    ],
)
def test_train_names_a_users_mistake_in_one_line(tmp_path: Path, old: str, new: str, pattern: str) -> None:
    config = write_data(tmp_path)
    config.write_text(config.read_text().replace(old, new))
    assert_one_line(call("train", config, "--out", tmp_path / "run"), 2, pattern)
    assert not (tmp_path / "run").exists()


def test_train_names_a_missing_configuration(tmp_path: Path) -> None:
    assert_one_line(call("train", tmp_path / "none.toml"), 2, r"error: .*none\.toml: No such file or directory")


def test_train_refuses_the_folder_of_another_run(trained: tuple[Path, object], tmp_path: Path) -> None:
    config = write_data(tmp_path)
    config.write_text(config.read_text().replace("epochs = 12", "epochs = 13"))
    result = call("train", config, "--out", trained[0] / "run")
    changed = r"\(controls, stages, tasks, training\)"
    assert_one_line(result, 2, rf"error: .*/run holds a run with other settings {changed}: .*--fresh\.")


def test_train_does_not_show_a_finished_run_of_other_data(tmp_path: Path) -> None:
    config = write_data(tmp_path)
    config.write_text(config.read_text().replace("epochs = 12", "epochs = 1"))
    words = ("train", config, "--out", tmp_path / "run", "--no-controls", "--quiet")
    assert call(*words).exit_code == 0
    assert call(*words).exit_code == 0
    with (tmp_path / "shapes.csv").open("a") as file:
        file.write("0.5,0.5,round\n")
    assert_one_line(call(*words), 2, r"error: .*/run holds a run with other settings \(data\): .*--fresh\.")
    assert call(*words, "--fresh").exit_code == 0


def test_train_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn.model_selection", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            result = call("train", write_data(tmp_path), "--out", tmp_path / "run")
        assert_one_line(result, 2, rf"error: {package} is not installed: pip install 'rsn2-kernels\[experiments\]' .*")


@pytest.mark.parametrize(
    ("error", "code", "pattern"),
    [
        (
            AuditError("3 values of task 'shapes' changed\nafter its training"),
            1,
            r"audit failed: 3 values .* training",
        ),
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from here"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
    ],
)
def test_train_tells_failures_apart_by_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, pattern: str
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runner, "run", run)
    assert_one_line(call("train", write_data(tmp_path)), code, pattern)


def test_interrupted_says_how_to_go_on_where_something_was_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((runner, "run"), (cli, "describe"), (tabular, "predict_csv"), (cli, "measure_costs")):
        monkeypatch.setattr(module, name, interrupt)
    goes_on = "interrupted: the same command without --fresh goes on from here"
    assert_one_line(call("train", write_data(tmp_path), "--fresh"), 130, goes_on)
    assert_one_line(call("report", checkpoint), 130, "interrupted")
    assert_one_line(call("predict", checkpoint, "--task", "a", "--input", "b"), 130, "interrupted")
    assert_one_line(call("calibrate", "--out", tmp_path / "costs.json"), 130, "interrupted")


# report


def test_report_needs_the_checkpoint_alone(checkpoint: Path) -> None:
    result = call("report", checkpoint)
    assert result.exit_code == 0, result.output
    assert "hidden.0" in result.output
    assert "128 (0.500)" in result.output
    assert "bits per shared weight" in result.output


def test_report_takes_any_architecture(tmp_path: Path) -> None:
    model = rsn2.convert(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    rsn2.allocate(model, "pictures", 0.5, criterion="random")
    rsn2.save(model, tmp_path / "net.safetensors")
    result = call("report", tmp_path / "net.safetensors")
    assert result.exit_code == 0, result.output
    assert "pictures" in result.output


def test_report_refuses_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:-5])
    assert_one_line(call("report", damaged), 2, "error: .*damaged.*")
    assert_one_line(call("report", tmp_path / "none"), 2, "error: .*none.*")


# predict


def test_predict_answers_with_names_of_classes(checkpoint: Path, tmp_path: Path) -> None:
    rows: list[list[object]] = [[0.3, 0.9], [-0.1, -0.9], [0.6, -0.8]]
    file = write_csv(tmp_path / "rows.csv", ["b", "a"], rows)  # in another order than in training
    result = call("predict", checkpoint, "--task", "shapes", "--input", file)
    assert (result.exit_code, result.output) == (0, "prediction\nround\nflat\nflat\n")


def test_predict_answers_in_the_units_of_the_target(checkpoint: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", ["width"], [[-0.5], [0.5]])
    out = tmp_path / "answers.csv"
    result = call("predict", checkpoint, "--task", "sizes", "--input", file, "--output", out)
    assert (result.exit_code, result.output) == (0, "")
    header, *answers = out.read_text().splitlines()
    assert header == "prediction"
    assert [float(answer) for answer in answers] == pytest.approx([90, 110], abs=5)


def test_a_reader_that_has_enough_is_no_error(checkpoint: Path, tmp_path: Path) -> None:
    for count in (1, 50_000):  # held back until the end, and not
        file = write_csv(tmp_path / "rows.csv", ["a", "b"], [[0.3, 0.9]] * count)
        command = [sys.executable, "-m", "rsn2", "predict", checkpoint, "--task", "shapes", "--input", file]
        with subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""


def test_predict_of_no_rows_is_no_answers(checkpoint: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", ["width"], [])
    assert call("predict", checkpoint, "--task", "sizes", "--input", file).output == "prediction\n"


@pytest.mark.parametrize(
    ("task", "content", "pattern"),
    [
        ("shapes", "a\n1\n", r"error: .*rows\.csv: columns missing: \['b'\]; .*: \[\]\."),
        ("shapes", "a,b,shape\n1,2,flat\n", r"error: .*columns missing: \[\]; .* no features: \['shape'\]\."),
        ("shapes", "a,b\n1,x\n", r"error: .*line 2, column 'b': expected a number\. Got 'x'\."),
        (
            "shapes",
            "b,a\n1,2\n3,1e300\n",
            r"error: .*line 3, column 'a': .* float32 can hold after scaling\. Got 1e\+300\.",
        ),
        ("shapes", "a,b\n1,2\n1e39,1e38\n", r"error: .*line 3, column 'a': .*"),
        ("colours", "a,b\n1,2\n", r"error: task: .* no task 'colours'\. There are \['shapes', 'sizes'\]\."),
    ],
)
def test_predict_names_a_users_mistake_in_one_line(
    checkpoint: Path, tmp_path: Path, task: str, content: str, pattern: str
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    result = call("predict", checkpoint, "--task", task, "--input", tmp_path / "rows.csv")
    assert_one_line(result, 2, pattern)


def test_predict_gives_no_answer_from_outputs_that_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    metadata = read_metadata(checkpoint)
    model = rsn2.load(checkpoint, tabular.rebuild(metadata))
    with torch.no_grad():
        for name, tensor in own_tensors(model, "shapes").items():
            if name.startswith("head."):
                tensor.fill_(torch.nan)
    broken = tmp_path / "broken.safetensors"
    rsn2.save(model, broken, metadata)
    file = write_csv(tmp_path / "rows.csv", ["a", "b"], [[0.3, 0.9]])
    result = call("predict", broken, "--task", "shapes", "--input", file)
    assert_one_line(result, 2, r"error: .*rows\.csv: line 2: the network's outputs are not finite: \[nan, nan\]\.")


def test_predict_refuses_a_checkpoint_without_data_description(checkpoint: Path, tmp_path: Path) -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(2, 2)))
    rsn2.allocate(model, "a", 0.5, criterion="random")
    rsn2.save(model, tmp_path / "net.safetensors")
    result = call("predict", tmp_path / "net.safetensors", "--task", "a", "--input", tmp_path / "rows.csv")
    assert_one_line(result, 2, "error: checkpoint: expected one of `rsn2 train`.*")


# The page on tables


def test_the_example_of_the_page_on_tables_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/train.md").read_text()
    (config,), (rows,) = (re.findall(f"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("toml", "csv"))
    commands = re.findall(r"^rsn2 (.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("trees.toml").write_text(config)
    leaves = [line.split(",") for line in rows.splitlines()]
    write_csv(Path("leaves.csv"), leaves[0], leaves[1:] * 15)
    write_csv(Path("heights.csv"), ["age", "metres"], [[age, 2 + age / 3] for age in range(60)])
    write_csv(Path("new.csv"), leaves[0][:-1], [row[:-1] for row in leaves[1:]])
    for command in commands:
        done = call(*command.split())
        assert done.exit_code == 0, done.output
    assert done.output.split() == ["prediction", *(row[-1] for row in leaves[1:])]
    assert [command.split()[0] for command in commands] == ["train", "report", "predict"]


# help and version


@pytest.mark.parametrize("command", ["train", "report", "predict"])
def test_help_teaches_by_example_and_names_the_exit_codes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example:  rsn2 {command} " in result.output
    assert "Exit codes:" in result.output
    assert re.search(r"^\s*2\s+\w", result.output, re.MULTILINE), "one exit code per line"


def test_version_names_the_package_and_torch() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert re.fullmatch(rf"rsn2-kernels .+, torch {re.escape(torch.__version__)}\n", result.output)


def test_a_mistake_in_the_arguments_exits_with_2() -> None:
    assert call("train").exit_code == 2
    assert call("train", "x.toml", "--threads", "0").exit_code == 2
