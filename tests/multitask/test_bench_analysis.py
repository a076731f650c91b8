"""What is made of measurements: regressions, the choice of backends, peaks and bounds, exponents."""

import importlib
import math
import random
from pathlib import Path
from typing import Any

import pytest

from bench_records import PEAKS, TINY, fake, results
from rsn2.bench import report
from rsn2.bench.analysis import choices, fit, growths, rows
from rsn2.bench.cases import Case
from rsn2.bench.compare import compare


def test_a_slower_operator_is_a_regression_and_noise_is_none() -> None:
    case = TINY[0]
    old = results(fake(case, {"dense": 4.0, "rsn2": 1.0}))
    same = compare(old, results(fake(case, {"dense": 4.0, "rsn2": 1.0}, seed=1)))
    assert (same.exit_code, same.compared, same.slower, same.faster) == (0, 1, [], [])
    # Another machine, half as fast in everything.
    assert compare(old, results(fake(case, {"dense": 8.0, "rsn2": 2.0}, seed=1))).exit_code == 0
    worse = compare(old, results(fake(case, {"dense": 4.0, "rsn2": 1.3}, seed=1)))
    assert worse.exit_code == 1 and worse.slower[0].name == "rsn2" and worse.tables()[0].rows[0][0] == case.key
    better = compare(old, results(fake(case, {"dense": 4.0, "rsn2": 0.7}, seed=1)))
    assert better.exit_code == 0 and better.faster[0].name == "rsn2"
    # Slower by less than two runs of the same code may differ, and by more, but with intervals that meet.
    assert compare(old, results(fake(case, {"dense": 4.0, "rsn2": 1.05}, seed=1))).exit_code == 0
    spread = results(*(fake(each, {"dense": 4.0, "rsn2": 1.15}, 5, 0.3, seed=1) for each in TINY[:1]))
    assert not compare(old, spread).slower


def test_a_noisy_run_is_not_judged() -> None:
    old = results(fake(TINY[0], {"dense": 4.0, "rsn2": 1.0}))
    record_ = fake(TINY[0], {"dense": 4.0, "rsn2": 2.0})
    record_["seconds"]["dense again"] = [1.5 * each for each in record_["seconds"]["dense again"]]
    found = compare(old, results(record_))
    assert found.exit_code == 3 and any("TOO NOISY" in line for line in found.summary())
    assert compare(old, results(fake(TINY[1], {"dense": 4.0, "rsn2": 1.0}))).exit_code == 3


def test_more_memory_is_a_regression_and_lost_cases_are_told() -> None:
    case = Case("memory", (8, 1))
    quiet = fake(TINY[0], {"dense": 4.0, "rsn2": 1.0})

    def of(size: int) -> dict[str, Any]:
        return {"key": case.key, "case": case.as_dict(), "memory": {"rsn2": {"total": size}, "separate": {"total": 9}}}

    assert compare(results(quiet, of(1000)), results(quiet, of(1005))).exit_code == 0
    found = compare(results(quiet, of(1000)), results(quiet, of(1100)))
    assert found.exit_code == 1 and found.larger == [(case.key, "rsn2", "total", 1000, 1100)]
    skipped = {"key": case.key, "case": case.as_dict(), "skipped": "no room"}
    assert compare(results(quiet, of(1000)), results(quiet, skipped)).lost == [(case.key, "no room")]


def test_dispatch_is_judged_over_the_grid_and_what_it_misses_is_listed() -> None:
    good = fake(TINY[0], {"dense": 4.0, "rsn2": 1.0, "rsn2 cpu": 1.0, "rsn2 dense": 5.0})
    bad = fake(TINY[1], {"dense": 4.0, "rsn2": 2.0, "rsn2 cpu": 2.0, "rsn2 dense": 1.0})
    alone = fake(TINY[2], {"dense": 4.0, "rsn2": 2.0, "rsn2 dense": 1.0})
    against_slow = fake(TINY[3], {"dense": 4.0, "rsn2": 1.0, "rsn2 cpu": 1.0}) | {"slow": {"rsn2 dense": 50.0}}
    found = choices([good, bad, alone, against_slow])
    assert [(choice.case, choice.best, choice.good) for choice in found] == [
        (TINY[0], "cpu", True),
        (TINY[1], "dense", False),
        (TINY[3], "cpu", True),
    ]
    assert found[1].reached.value == pytest.approx(0.5, rel=0.05) and found[1].sure
    (table,) = (each for each in report.tables(results(good, bad)) if each.title == "Dispatch")
    assert [line[0] for line in table.rows] == [TINY[1].key] and "1 of 2 cases (50%, wanted 95%)" in table.note


def test_only_calls_whose_products_are_counted_exactly_are_a_peak() -> None:
    fast = {"dense": 1e-7, "rsn2": 1.0}
    others = (Case("conv2d", (8, 4, 6)), Case("epoch", (8, 2)), Case("layer", (8, 1)))
    assert results(*(fake(case, fast, jitter=0) for case in others)).peak == PEAKS
    assert results(fake(TINY[0], fast, jitter=0)).peak == {**PEAKS, "float32": pytest.approx(1e13)}


def test_losing_cases_are_shown() -> None:
    lost = fake(TINY[0], {"dense": 1.0, "rsn2": 2.0, "rsn2 cpu": 2.0, "rsn2 dense": 9.0})
    won = fake(TINY[1], {"dense": 4.0, "rsn2": 1.0, "rsn2 cpu": 1.0, "rsn2 dense": 9.0})
    (table,) = (each for each in report.tables(results(lost, won)) if each.title == "Where it loses")
    assert [line[:2] for line in table.rows] == [[TINY[0].key, "dense"]]


def test_figures_that_another_run_may_not_repeat_are_marked() -> None:
    sure, unsure, off = (fake(case, {"dense": 2e-3, "rsn2": 1e-3}, jitter=0) for case in TINY[:3])
    unsure["seconds"]["rsn2"] = [1e-3, 1.3e-3] * 10
    off["seconds"]["dense again"] = [1.8e-3] * 20
    table = report.tables(results(sure, unsure, off))[0]
    column = table.header.index("x baseline")
    assert [row[column] for row in table.rows] == ["2.00", "1.77~", "2.00!"]


def test_a_whole_grid_is_a_line_per_product_and_a_column_per_density() -> None:
    cases = [Case("linear", (8, 8), 4, density) for density in (0.1, 0.5)] + [Case("layer", (8, 1), 4, 0.1)]
    found = results(*(fake(case, {"dense": 2.0, "rsn2": 1.0}, jitter=0) for case in cases))
    first, second, *_ = report.tables(found, brief=True)
    assert first.header == ["case", "0.1", "0.5"] and first.rows == [["linear 8 x 8, batch 4", "2.00", "2.00"]]
    assert [row[0] for row in second.rows] == [cases[-1].key]


def test_exponents_are_those_of_the_power_law() -> None:
    xs = [1.0, 10.0, 100.0, 1000.0]
    exponent, factor, error = fit(xs, [3 * x**0.7 for x in xs])
    assert (exponent, factor) == pytest.approx((0.7, 3.0)) and error < 1e-6
    draw = random.Random(0)
    exponent, _, error = fit(xs, [x * math.exp(draw.gauss(0, 0.2)) for x in xs])
    assert error > 0 and abs(exponent - 1) < 4 * error
    for bad in ([1.0, 1.0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="two different x"):
            fit(bad, [1.0, 2.0])
    curve = [
        fake(Case("inference", (10, 1), tasks=tasks, axis="tasks"), {"dense": 1.0, "rsn2": float(tasks)}, jitter=0)
        for tasks in (1, 2, 4)
    ]
    found = {each.name: each for each in growths(curve)}
    assert [found[name].exponent for name in ("dense", "rsn2")] == pytest.approx([0, 1])
    assert found["rsn2"].last == pytest.approx(1)
    assert found["rsn2"].xs == (1, 2, 4)


def test_a_bound_is_what_must_be_moved_or_multiplied() -> None:
    found = fake(TINY[0], {"dense": 1.0, "rsn2": 0.5}, jitter=0)
    found["bytes"] = {"dense": 1e10, "rsn2": 1e9}
    found["macs"] = {"dense": 5e10, "rsn2": 2e10}
    dense, ours = rows([found], PEAKS)
    assert (dense.bound_by, dense.bound_seconds, dense.fraction) == ("memory", 1.0, 1.0)
    assert (ours.bound_by, ours.bound_seconds, ours.fraction) == ("arithmetic", 0.2, 0.4)


def test_a_call_timed_once_is_shown_over_the_median_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    operators = importlib.import_module("operators")
    record = {
        "baseline": "dense",
        "seconds": {"dense": [8.0] * 3, "rsn2": [1.0, 2.0, 10.0]},
        "slow": {"torch CSR": 80.0},
    }
    assert list(operators._speeds(record)) == ["4.00", "", "", "about 40"]
