"""The benchmark suite: baselines have the product that they stand for, noise is told, runs go on, changes are found."""

import importlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from typer import Typer
from typer.testing import CliRunner

from bench_records import PEAKS, TINY, results
from rsn2 import machine
from rsn2.bench import baselines, cases, command, measure, networks, noise, operators, peaks, plots, report
from rsn2.bench.analysis import rows
from rsn2.bench.cases import Case
from rsn2.bench.command import bench
from rsn2.bench.measure import Settings, record
from rsn2.bench.operators import TOLERANCE, checked, checked_gradient, work
from rsn2.bench.products import Candidate, Problem
from rsn2.bench.results import FILE, UNFINISHED, BenchError, Results, run
from rsn2.bench.work import UnavailableError

FAST = Settings(seconds=0.0, rounds=3, further=0, limit=10.0)

app = Typer()
app.command()(bench)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A whole run over the tiny grid."""
    return run(TINY, FAST, tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are those of a small copy and a small product."""
    _shrink(monkeypatch.setattr)


@pytest.fixture(scope="module", autouse=True)
def small_machine_of_the_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch.setattr)
        yield


def _shrink(setattr_: Callable[..., None]) -> None:
    setattr_(peaks, "_COPIED_BYTES", 1 << 20)
    setattr_(peaks, "_SIDE", {"cpu": 64})


# Baselines


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", (48, 32), 5, 0.3),
        Case("linear", (48, 32), 5, 0.3, "float64"),
        Case("linear", (48, 32), 5, 0.5, "bfloat16", mask="2:4"),
        Case("linear", (48, 32), 5, 0.3, mask="blocks"),
        Case("linear", (48, 32), 5, 0.3, mask="rsn2"),
        Case("conv2d", (6, 4, 5), 3, 0.3),
        Case("conv2d", (6, 4, 5), 3, 0.3, mask="rsn2"),
        Case("grouped_linear", (12, 20), 7, 0.3, tasks=3),
    ],
    ids=lambda case: case.key,
)
def test_no_baseline_measures_another_product(case: Case, training: bool) -> None:
    case = replace(case, training=training)
    found = work(case, "cpu")
    assert {"rsn2", "rsn2 dense", "masked", found.baseline} <= {*found.calls}
    assert {*found.calls} == {*found.facts["error"]} == {*found.amounts}
    assert all(error <= TOLERANCE[case.dtype] for error in found.facts["error"].values())
    assert all(found.unavailable.values()) and {*found.calls, *found.unavailable} >= {*baselines.BASELINES}
    for call in found.calls.values():
        call()


@pytest.mark.parametrize("op, shape", [("linear", (24, 16)), ("conv2d", (6, 4, 5))])
def test_gradients_of_baselines_are_those_of_the_dense_product(op: str, shape: tuple[int, ...]) -> None:
    problem = Problem(Case(op, shape, 4, 0.4, "float64", training=True))
    dy = torch.randn_like(problem.reference(4))
    reference = torch.autograd.grad(problem.dense(problem.x, problem.weights[0]), [problem.x, problem.weights[0]], dy)
    owned = problem.masks[0]
    for make in (baselines.ours, baselines.dense, baselines.masked):
        candidate = make(problem)
        dx, dw = torch.autograd.grad(candidate.forward(), candidate.inputs, dy)
        torch.testing.assert_close(dx, reference[0])
        torch.testing.assert_close(dw if dw.dim() == 1 else dw[owned], reference[1][owned])


def test_another_product_is_not_timed() -> None:
    problem = Problem(Case("linear", (8, 8), 4, 0.5))
    wrong = Candidate(lambda: 1.1 * problem.dense(problem.x, problem.weights[0]), [problem.x])
    with pytest.raises(UnavailableError, match="off by"):
        checked(wrong, problem.reference(4), "float32")


def with_wrong_gradient(candidate: Candidate) -> Candidate:
    """The same result, and 1.5 times its gradients."""

    def forward() -> torch.Tensor:
        y = candidate.forward()
        return y + 0.5 * (y - y.detach())

    return replace(candidate, forward=forward)


@pytest.mark.parametrize("op, shape", [("linear", (8, 12)), ("conv2d", (6, 4, 5)), ("grouped_linear", (8, 12))])
def test_another_gradient_of_x_is_not_timed(op: str, shape: tuple[int, ...]) -> None:
    problem = Problem(Case(op, shape, 5, 0.5, training=True, tasks=3 if op == "grouped_linear" else 1))
    dy = torch.randn_like(problem.reference(5)).float()
    expected = problem.reference_gradient(dy[:4])
    for make in (baselines.ours, baselines.masked):
        right = make(problem)
        assert checked_gradient(right, problem, dy, expected) <= TOLERANCE["float32"]
        wrong = with_wrong_gradient(right)
        checked(wrong, problem.reference(4), "float32")
        with pytest.raises(UnavailableError, match=r"gradient of x is off by 0\.5"):
            checked_gradient(wrong, problem, dy, expected)


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


def test_real_masks_are_exact_and_unlike_random_ones() -> None:
    (real,) = Problem(Case("linear", (64, 64), 1, 0.1, mask="rsn2")).masks
    (drawn,) = Problem(Case("linear", (64, 64), 1, 0.1)).masks
    assert int(real.sum()) == round(0.1 * 64 * 64)
    assert (real.sum(0) == 0).sum() > (drawn.sum(0) == 0).sum()


def test_cases_have_their_own_names_and_come_back_from_json() -> None:
    for grid in (cases.quick(), cases.full()):
        assert len({case.key for case in grid}) == len(grid)
        assert [Case.from_dict(json.loads(json.dumps(case.as_dict()))) for case in grid] == grid
    kinds = {case.op for case in cases.quick()}
    assert kinds == {*cases.PRODUCTS, *cases.NETWORKS, "memory"} == {case.op for case in cases.full()}


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", (12, 8), 5, 0.4),
        Case("conv2d", (6, 4, 5), 3, 0.3),
        Case("conv2d", (6, 4, 1), 3, 0.3),
        Case("grouped_linear", (12, 20), 7, 0.3, tasks=3),
    ],
    ids=lambda case: case.key,
)
def test_padding_and_rows_of_other_tasks_are_not_counted(case: Case, training: bool) -> None:
    problem = Problem(replace(case, training=training))
    problem.x = torch.ones_like(problem.x)
    for kind, masks in (("owned", problem.masks), ("all", [torch.ones_like(mask) for mask in problem.masks])):
        # A product of ones counts them.
        problem.weights = [mask.float() for mask in masks]
        count = float(problem.reference(case.batch).sum())
        assert problem.amount(kind).macs == (3 if training else 1) * count


@pytest.mark.parametrize("op", ["inference", "epoch", "allocate"])
def test_no_gradient_is_counted_that_nothing_takes(op: str) -> None:
    case = Case(op, (8, 3), 4, 0.5, tasks=2)
    found = measure._WORK[op](case, "cpu")
    with FlopCounterMode(display=False) as counter:
        found.calls[found.baseline]()
    assert 2 * found.amounts[found.baseline].macs == pytest.approx(counter.get_total_flops())


# A run


def test_every_sample_and_bound_is_in_the_file(tiny: Results, tmp_path: Path) -> None:
    tiny.write(tmp_path / FILE)
    again = Results.read(tmp_path / FILE)
    assert again.records == tiny.records and again.verdict == tiny.verdict and again.peak == tiny.peak
    content = json.loads((tmp_path / FILE).read_text())
    assert {"machine", "commit", "settings", "peaks", "verdict", "records"} <= {*content}
    for found in content["records"]:
        if "seconds" in found:
            assert {len(samples) for samples in found["seconds"].values()} == {len(found["seconds"]["rsn2"])}
            assert len(found["seconds"]["rsn2"]) >= FAST.rounds
            assert found["baseline"] + noise.CONTROL in found["seconds"]
    assert {case.key for case in TINY} == {found["key"] for found in content["records"]}
    for row in rows(tiny.records, tiny.peak):
        assert row.seconds > 0 and row.bound_seconds > 0 and math.isfinite(row.fraction)
        assert row.name != "dense" or row.speed == noise.Ratio(1, 1, 1)


def test_tables_and_plots_are_written(tiny: Results, tmp_path: Path) -> None:
    report.write(tiny, tmp_path / "tables.md")
    text = (tmp_path / "tables.md").read_text()
    assert all(case.key in text for case in TINY if case.op != "memory" or not case.axis)
    assert "Dispatch" in text and "How costs grow" in text and "Noise:" in text
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    report.show(tiny, console)
    assert "rsn2 beside its baseline" in console.export_text()
    written = plots.write(tiny, tmp_path)
    names = ["speed", "speed-types-and-masks", "roofline", "winners", "winners-types-and-masks", "memory", "growth"]
    assert [path.stem for path in written] == names
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in written)


def test_the_docs_are_written_from_committed_files(
    tiny: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    made = importlib.import_module("tables")
    monkeypatch.setattr(made, "ROOT", tmp_path)
    assert made.benchmarks() == "There is no such file yet."
    tiny.write(tmp_path / "results/bench-here.json")
    text = made.benchmarks()
    assert text.startswith("### here") and TINY[0].key in text and "#### Dispatch" in text
    assert text == made.benchmarks()


def test_memory_counts_what_is_there(tiny: Results) -> None:
    found = {record["key"]: record["memory"] for record in tiny.records if "memory" in record}
    one, three = found[Case("memory", (24, 2), 4, 0.2).key], found[Case("memory", (24, 2), 4, 0.2, tasks=3).key]
    weights = 2 * (24 * 24 + 24) * 4
    assert one["separate"]["weights"] == weights and three["separate"]["weights"] == 3 * weights
    # Two moments of each weight and bias, and a counter per tensor.
    assert one["separate"]["optimizer"] == 2 * weights + 4 * 4
    assert one["rsn2"]["optimizer"] == 2 * 4 * 2 * (round(0.2 * 576) + 24) + 4 * 4
    # All of these are alive at once: a gradient per parameter, and what the forward pass kept.
    for each in one.values():
        assert each["step peak"] >= each["activations"] > 0 and each["disk"] > 0
    assert three["rsn2"]["disk"] < three["masked"]["disk"] < three["separate"]["disk"]


def test_a_case_that_is_unsure_is_measured_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsure, sure = TINY[:2]
    asked: list[int] = []

    def is_unsure(seconds: dict[str, list[float]], *_: str) -> bool:
        asked.append(len(seconds["rsn2"]))
        return seconds is found.of(unsure)["seconds"] and len(seconds["rsn2"]) < 5

    found = Results({})
    monkeypatch.setattr("rsn2.bench.results.Results", lambda about: found)
    monkeypatch.setattr("rsn2.bench.results.is_unsure", is_unsure)
    run([unsure, sure], replace(FAST, further=4), tmp_path)
    # One round a pass: three at first, then two more until the case is no longer unsure.
    assert [record["passes"] for record in found.records] == [5, 3]
    assert max(asked) == 5


def test_long_calls_have_all_rounds_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsn2.bench.measure.LONG", 0.0)
    (found,) = run(TINY[:1], replace(FAST, rounds=12), tmp_path).records
    assert found["passes"] == FAST.passes
    assert {len(samples) for samples in found["seconds"].values()} == {6}


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    grid = TINY[:4]

    def interrupt(key: str, number: int, count: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid, FAST, tmp_path, tell=interrupt)
    kept = tmp_path / UNFINISHED
    before = [json.loads(line) for line in kept.read_text().splitlines()]
    kept.write_text(kept.read_text() + '{"record": {"key": "cut o')
    with pytest.raises(BenchError, match=r"another settings.*--fresh"):
        run(grid, replace(FAST, rounds=4), tmp_path)
    results = run(grid, FAST, tmp_path)
    assert [found["key"] for found in results.records] == [case.key for case in grid]
    assert all(found["passes"] == FAST.passes for found in results.records)
    replayed = Results({})
    for line in before:
        if "record" in line:
            replayed.add(line["record"])
    assert len(replayed.records) == len(grid) and replayed.records[0]["passes"] < FAST.passes
    for old, new in zip(replayed.records, results.records, strict=True):
        samples = old["seconds"]["rsn2"]
        assert new["seconds"]["rsn2"][: len(samples)] == samples
    assert len(results.peaks) == 3 and not kept.exists() and (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "broken",
    ["{", "3", "{}", '{"record": 3}', '{"record": {"key": "a"}}', '{"about": {}}', '{"peaks": 1, "load": 2}', "\xff"],
)
def test_a_broken_line_of_an_unfinished_run_is_named_and_nothing_is_lost(broken: str, tmp_path: Path) -> None:
    kept = tmp_path / UNFINISHED
    kept.write_bytes(f'{{"load": 0.1}}\n{broken}\n{{"load": 0.2}}\n'.encode("latin-1"))
    before = kept.read_bytes()
    with pytest.raises(BenchError, match=rf"{UNFINISHED}: line 2 .*--fresh"):
        run(TINY[:1], FAST, tmp_path)
    assert kept.read_bytes() == before


def test_what_does_not_fit_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Case("linear", (4096, 4096), 8192)
    assert "s, and the limit is 0.5 s" in record(large, replace(FAST, limit=0.5), PEAKS)["skipped"]
    monkeypatch.setattr(machine, "free_bytes", lambda device: 1 << 20)
    assert "GB are free" in record(TINY[0].__class__("linear", (4096, 4096)), FAST, PEAKS)["skipped"]

    def no_memory(case: Case, device: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.undo()
    monkeypatch.setitem(measure._WORK, "linear", no_memory)
    assert record(TINY[0], FAST, PEAKS)["skipped"] == "CUDA out of memory"
    assert "does not divide" in record(Case("conv2d", (8, 3, 6), 2, mask="blocks"), FAST, PEAKS)["skipped"]


def test_a_baseline_far_behind_is_not_sampled_and_this_package_always(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = networks.inference(Case("inference", (8, 1), 2), "cpu")
    for name in ("masked", "rsn2"):
        slow.calls[name] = lambda: time.sleep(0.002)
    monkeypatch.setitem(measure._WORK, "inference", lambda case, device: slow)
    found = record(Case("inference", (8, 1), 2), FAST, PEAKS)
    assert {*found["seconds"]} == {"dense", "rsn2", "dense again"}
    assert found["slow"]["masked"] > 0.001 and "not sampled" in found["unavailable"]["masked"]


# The command


def test_the_command_measures_compares_and_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "quick", lambda: TINY[:2])
    runner = CliRunner()
    done = runner.invoke(app, ["--quick", "--out", str(tmp_path / "a"), "--seconds", "0"])
    assert done.exit_code == 0, done.output
    assert "rsn2 beside its baseline" in done.output and "written to" in done.output
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {FILE, "tables.md", "speed.png", "roofline.png", "winners.png"} <= names
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
        (["--device", "nowhere"], "--device: "),
    ):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 2 and said in done.output, done.output


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
