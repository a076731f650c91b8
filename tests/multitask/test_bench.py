"""A run of the benchmark: every sample is kept, what cannot be measured is told, an interrupted run goes on."""

import importlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench_records import FAST, PEAKS, TINY
from rsn2 import machine
from rsn2.bench import measure, networks, noise, operators, plots, report
from rsn2.bench.analysis import rows
from rsn2.bench.cases import Case
from rsn2.bench.measure import merged, record
from rsn2.bench.results import FILE, UNFINISHED, BenchError, Results, run

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture(scope="module")
def tiny(small_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A whole run over the tiny grid."""
    return run(TINY, FAST, tmp_path_factory.mktemp("bench"))


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
            assert sum(found["rounds"]) == len(found["seconds"]["rsn2"])
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
    names = ["speed", "speed-one-density", "roofline", "winners", "memory", "growth"]
    assert [path.stem for path in written] == names
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in written)


def test_the_docs_are_written_from_committed_files(
    tiny: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    made = importlib.import_module("tables")
    monkeypatch.setattr(made, "ROOT", tmp_path)
    assert made.benchmarks() == "There is no such file yet."
    path = tmp_path / "results/bench-here.json"
    for grid, says in (("quick", "rsn2 beside its baseline"), ("full", "Speed over the baseline by density")):
        replace(tiny, about=tiny.about | {"settings": tiny.about["settings"] | {"grid": grid}}).write(path)
        text = made.benchmarks()
        assert text.startswith("### here") and says in text and "#### Dispatch" in text
        assert text == made.benchmarks()
        assert f"| {TINY[0].key} | dense |" in text or grid == "full"


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

    def is_unsure(record: dict[str, Any], of: str) -> bool:
        asked.append(len(record["seconds"][of]))
        return record is found.of(unsure) and len(record["seconds"][of]) < 5

    found = Results({})
    monkeypatch.setattr("rsn2.bench.results.Results", lambda about: found)
    monkeypatch.setattr("rsn2.bench.results.is_unsure", is_unsure)
    run([unsure, sure], replace(FAST, further=4), tmp_path)
    # One round a pass: three at first, then two more until the case is no longer unsure.
    assert [record["passes"] for record in found.records] == [5, 3]
    assert [record["rounds"] for record in found.records] == [[1] * 5, [1] * 3]
    assert max(asked) == 5


def test_long_calls_have_all_rounds_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsn2.bench.measure.LONG", 0.0)
    (found,) = run(TINY[:1], replace(FAST, rounds=12), tmp_path).records
    assert found["passes"] == FAST.passes and found["rounds"] == [1] * 6
    assert {len(samples) for samples in found["seconds"].values()} == {6}


def test_passes_of_a_case_have_all_other_cases_between(tmp_path: Path) -> None:
    order: list[str] = []
    run(TINY[:3], FAST, tmp_path, tell=lambda key, number, count: order.append(key))
    assert order == [case.key for case in TINY[:3]] * FAST.passes


def test_results_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later pass makes the calls that the first one made, and compares none."""
    case = TINY[0]
    first = record(case, FAST, PEAKS)
    monkeypatch.setattr(operators, "checked", lambda *_: pytest.fail("compared again"))
    later = record(case, FAST, PEAKS, known=first)
    assert {*later["seconds"]} == {*first["seconds"]} and later["unavailable"] == first["unavailable"]
    # Whatever the first pass took for them: what it sampled is sampled again.
    seconds = {
        name: [1.0 if name.startswith("rsn2 ") else each for each in of] for name, of in first["seconds"].items()
    }
    slow = record(case, FAST, PEAKS, known=first | {"seconds": seconds})
    assert {*slow["seconds"]} == {*first["seconds"]}
    assert merged(first, later)["error"] == first["error"] and not later["error"]
    assert merged(first, later)["rounds"] == [1, 1]


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

    def no_memory(case: Case, device: object, missing: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.undo()
    assert "does not divide" in record(Case("conv2d", (8, 3, 6), 2, mask="blocks"), FAST, PEAKS)["skipped"]
    monkeypatch.setattr(operators, "work", no_memory)
    assert record(TINY[0], FAST, PEAKS)["skipped"] == "CUDA out of memory"


def test_a_product_whose_baseline_takes_longer_than_predicted_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = operators.work(TINY[0], "cpu", None)
    slow.calls[slow.baseline] = lambda: time.sleep(0.03)
    monkeypatch.setattr(operators, "work", lambda case, device, missing: slow)
    assert record(TINY[0], replace(FAST, limit=0.02), PEAKS)["skipped"].startswith("a dense call takes ")
    assert "seconds" in record(TINY[0], replace(FAST, limit=60.0), PEAKS)


def test_a_baseline_far_behind_is_not_sampled_and_this_package_always(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = networks.inference(Case("inference", (8, 1), 2), "cpu")
    for name in ("masked", "rsn2"):
        slow.calls[name] = lambda: time.sleep(0.002)
    monkeypatch.setitem(measure._NETWORKS, "inference", lambda case, device: slow)
    found = record(Case("inference", (8, 1), 2), FAST, PEAKS)
    assert {*found["seconds"]} == {"dense", "rsn2", "dense again"}
    assert found["slow"]["masked"] > 0.001 and "not sampled" in found["unavailable"]["masked"]
