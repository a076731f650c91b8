"""`make gpu-check`: without a GPU one line; its steps end in time, and say how they went."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_check.py"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


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
