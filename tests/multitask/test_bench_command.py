"""`rsn2 bench`: what it prints and writes, its exit codes, and what it says of wrong results and files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from bench_records import PEAKS, TINY, results, with_wrong_gradient
from rsn2.bench import baselines, cases, command, operators
from rsn2.bench.command import bench
from rsn2.bench.measure import Settings
from rsn2.bench.products import Candidate, Problem
from rsn2.bench.results import FILE

pytestmark = pytest.mark.usefixtures("small_machine")

app = Typer()
app.command()(bench)


def test_the_command_measures_compares_and_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "quick", lambda: TINY[:2])
    runner = CliRunner()
    done = runner.invoke(app, ["--quick", "--out", str(tmp_path / "a"), "--seconds", "0"])
    assert done.exit_code == 0, done.output
    assert "rsn2 beside its baseline" in done.output and "written to" in done.output
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {FILE, "tables.md", "speed-one-density.png", "roofline.png"}
    old = str(tmp_path / "a" / FILE)
    # A call that another program held up is not sampled.
    records = json.loads(Path(old).read_text())["records"]
    calls = sum(name.startswith("rsn2") for record in records for name in record["seconds"])
    done = runner.invoke(app, ["--compare", old, "--with", old])
    assert 2 <= calls <= 6
    assert done.exit_code in (0, 3) and f"{calls} calls compared: 0 slower, 0 faster" in done.output
    for arguments, said in (
        (["--quick", "--only", "nothing"], "no case's name holds 'nothing'"),
        (["--with", old], "--with: expected --compare"),
        (["--compare", str(tmp_path / "none.json")], "none.json"),
        (["--device", "nowhere"], "Invalid value for '--device'"),
        (["--device", "meta"], "Invalid value for '--device'"),
    ):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 2 and said in done.output, done.output


def test_a_finished_run_of_other_settings_is_not_replaced_unless_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "quick", lambda: [case for case in TINY if case.op in ("conv2d", "memory")])
    words = ["--quick", "--out", str(tmp_path), "--seconds", "0", "--quiet"]
    runner = CliRunner()
    assert runner.invoke(app, words).exit_code == 0
    assert runner.invoke(app, words).exit_code == 0
    written, pictures = (tmp_path / FILE).read_bytes(), {path.name for path in tmp_path.glob("*.png")}
    done = runner.invoke(app, [*words, "--only", "conv2d"])
    assert done.exit_code == 2 and f"{tmp_path / FILE}: a finished run with other settings (only '')" in done.output
    assert (tmp_path / FILE).read_bytes() == written
    assert runner.invoke(app, [*words, "--only", "conv2d", "--fresh"]).exit_code == 0
    assert {path.name for path in tmp_path.glob("*.png")} < pictures, "pictures of other cases are gone"


def test_interrupted_says_without_what_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupt)
    for more, said in (([], "the same command goes"), (["--fresh"], "the same command without --fresh goes")):
        done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path), *more])
        assert (done.exit_code, done.stderr) == (130, f"interrupted: {said} on from here\n")


@pytest.mark.parametrize(
    "records",
    [
        3,
        [3],
        [{}],
        [{"key": "a"}],
        [{"key": "a", "case": 3}],
        [{"key": "a", "case": {"op": "linear"}}],
        [{"key": "a", "case": TINY[0].as_dict(), "seconds": {"rsn2": [1.0]}}],
        None,
    ],
    ids=str,
)
def test_no_results_file_is_read_with_a_record_that_is_none(records: object, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    whole = results().about | {"format": 1, "peaks": [PEAKS], "loads": []}
    path.write_text(json.dumps({} if records is None else whole | {"records": records}))
    done = CliRunner().invoke(app, ["--compare", str(path), "--with", str(path)])
    assert done.exit_code == 2 and f"{path}: no results file of `rsn2 bench`" in done.output


def test_the_help_says_the_seconds_and_the_limit_that_are_taken() -> None:
    said = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    for name in ("seconds", "limit"):
        assert f"Default: {getattr(Settings(), name):g}, quick {command._QUICK[name]:g}." in said


@pytest.mark.parametrize("training", [False, True], ids=["result", "gradient"])
@pytest.mark.parametrize("of", [None, "dense"], ids=["chosen", "named"])
def test_a_wrong_result_of_this_package_is_no_missing_figure(
    of: str | None, training: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, case = baselines.ours, replace(TINY[0], training=training)

    def wrong(problem: Problem, backend: str | None = None) -> Candidate:
        candidate = right(problem, backend)
        if backend != of:
            return candidate
        return (
            with_wrong_gradient(candidate)
            if training
            else replace(candidate, forward=lambda: 1.1 * candidate.forward())
        )

    monkeypatch.setattr(operators, "ours", wrong)
    monkeypatch.setattr(cases, "quick", lambda: [case])
    done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path), "--seconds", "0"])
    place = f"{'rsn2' if of is None else f'rsn2 {of}'} in {case.key}"
    assert done.exit_code == 1 and f"wrong results:\n{place}" in done.output, done.output
    assert f"WRONG RESULT: {place}" in (tmp_path / "tables.md").read_text()
