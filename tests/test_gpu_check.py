"""`make gpu-check`: without a GPU one line; its steps end in time and say how they went; what ours is compared with."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rsn2_kernels as rk

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_check.py"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the folder, by name."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the script defines."""
    return runpy.run_path(str(SCRIPT))


def test_without_a_gpu_it_says_so_in_one_line_and_fails(tmp_path: Path) -> None:
    for module in ("torch", "rich", "numpy"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} was imported first')")
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out)]
    environment = os.environ | NO_GPU | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1 and "no GPU" in done.stdout
    assert not out.exists()


def test_make_passes_the_line_and_the_failure_on() -> None:
    command = ["make", "--no-print-directory", "gpu-check", "OUT=/nowhere/out.json"]
    environment = os.environ | NO_GPU
    done = subprocess.run(
        command, cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0 and len(done.stdout.splitlines()) == 1 and "no GPU" in done.stdout


def test_every_step_ends_in_time_and_is_in_the_file(names: dict[str, Any], tmp_path: Path) -> None:
    check = names["Check"](tmp_path / "out.json", 60)
    sleeping = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(50)"]
    assert check.step("stuck", sleeping, 1)["status"].startswith("out of time")
    assert check.step("good", [sys.executable, "-c", "print('done')"], 20)["status"] == "ok"
    assert check.step("bad", [sys.executable, "-c", "raise SystemExit(3)"], 20)["exit_status"] == 3
    assert "FileNotFoundError" in check.step("absent", [tmp_path / "nothing"], 20)["error"]
    text = (tmp_path / "out.json").read_text()
    assert all(f'"{name}"' in text for name in ("stuck", "good", "bad", "absent")) and "begun" in text


@pytest.mark.parametrize(
    ("status", "output", "found"),
    [
        (0, "20 passed, 3 skipped in 9.1s", "ok"),
        (0, "3 skipped in 0.1s", "failed"),
        (1, "FAILED tests/a.py::b - boom\n1 failed, 2 passed in 9.1s", "failed"),
        (4, "ERROR: usage", "failed"),
    ],
)
def test_tests_are_judged_by_what_passed(names: dict[str, Any], status: int, output: str, found: str) -> None:
    assert names["of_pytest"](status, output)[0] == found


@pytest.mark.parametrize(
    ("status", "output", "found"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "ok"),
        (99, "========= ERROR SUMMARY: 12 errors", "failed"),
        (99, "========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)", "failed"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "ok"),
        (1, "========= Error: Device not supported\n========= ERROR SUMMARY: 1 error", "refused"),
        (1, "nothing that is known", "failed"),
    ],
)
def test_the_sanitizer_is_judged_by_its_summary(names: dict[str, Any], status: int, output: str, found: str) -> None:
    assert names["of_sanitizer"](status, output)[0].startswith(found)


def test_dense_gradients_of_a_convolution_are_those_of_autograd(benchmark_of: Any) -> None:
    conv = benchmark_of("gpu_operators").ConvSet
    x, w, dy = (
        torch.randn(size).contiguous(memory_format=torch.channels_last)
        for size in ((2, 6, 5, 5), (4, 6, 3, 3), (2, 4, 5, 5))
    )
    operands = SimpleNamespace(x=x.requires_grad_(), w=w.requires_grad_(), dy=dy)
    expected = conv.dense_step(operands)
    with torch.no_grad():
        found = [conv.dense_gradient(operands, place) for place in (0, 1)]
    torch.testing.assert_close(found, list(expected))


def test_one_dense_product_over_stacked_weights_gives_what_one_per_task_does(benchmark_of: Any) -> None:
    counts = [1, 4, 2]
    patterns = [rk.SparsePattern.from_mask(torch.rand(8, 8) < 0.3) for _ in counts]
    grouped = benchmark_of("gpu_operators").GroupedSet(patterns, counts, torch.float32)

    def unpadded(found: torch.Tensor) -> list[torch.Tensor]:
        return [each[:count] for each, count in zip(found, counts, strict=True)]

    torch.testing.assert_close(unpadded(grouped.batched()), grouped.dense())
    dx, dw = grouped.batched_step()
    torch.testing.assert_close([*unpadded(dx), *dw], list(grouped.dense_step()))
    bench = benchmark_of("gpu_bench").Bench(dry=True, data_dir=None, report=print)
    served = benchmark_of("gpu_small_batch").Served(bench, tasks=5, size=16, density=0.3)
    # In float16, summed in another order.
    torch.testing.assert_close(served.batched(), served.one_by_one(), rtol=1e-2, atol=1e-2)


def test_ours_is_measured_by_the_faster_dense_product(benchmark_of: Any) -> None:
    row = {"what": "forward", "mask": "m", "seconds": {"dense": 4e-6, "bmm": 3e-6, "triton": 2e-6}}
    assert benchmark_of("gpu_bench").over_dense(row, "triton") == 1.5
    cells = ["grouped", "forward, m", "triton", "bmm", "3.0", "2.0", "1.50"]
    assert list(benchmark_of("gpu_tables").against_the_fastest("grouped", row)) == [cells]


def test_a_choice_is_listed_unless_its_backend_is(benchmark_of: Any) -> None:
    tables = benchmark_of("gpu_tables")
    row = {"what": "step", "mask": "m", "chosen": "dense", "seconds": {"dense": 2e-6, "triton": 8e-6, "chosen": 4e-6}}
    assert [cells[2] for cells in tables.against_the_fastest("c", row)] == ["triton", "dense, chosen"]
    assert [cells[2] for cells in tables.against_the_fastest("c", row | {"chosen": "triton"})] == ["triton"]


def test_bars_that_were_not_met_are_counted_and_listed(benchmark_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, bench = benchmark_of("gpu_tables"), benchmark_of("gpu_bench")
    every = [{"case": "c", "bars": [bench.bar("a", 2, 1.5), bench.bar("b", 0.95, 0.96)]}, {"case": "d", "skipped": ""}]
    monkeypatch.setattr(tables, "checked", lambda: {"benchmarks": {"cases": every}})
    said = tables.bars()
    assert said.startswith("Met: 1 of 2.") and "| c | a | 1.50 | 2 | no |\n| c | b | 0.96 | 0.95 | yes |" in said


def test_batches_whose_masks_differ_in_the_last_digits_are_one_line(
    benchmark_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = benchmark_of("gpu_tables")
    weight = {"rows": 8, "cols": 4}
    one, two, sparser = (
        weight | {"batch": batch, "density": density, "seconds": {"cuda": 2e-6}, "times_as_fast": {"cuda": times}}
        for batch, density, times in ((1, 0.1001, 3.0), (2, 0.0999, 0.5), (1, 0.05, 4.0))
    )
    name = "small batches, where which backend wins"
    monkeypatch.setattr(tables, "cases", lambda: {name: [one, two, sparser]})
    lines = tables.small_batches().splitlines()[2:]
    assert lines == ["| 8 x 4 | 0.1 | 2.0 | 3.00 | 0.50 |", "| 8 x 4 | 0.05 | 2.0 | 4.00 |  |"]
