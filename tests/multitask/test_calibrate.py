"""`rsn2 calibrate`: costs fitted to what products take, in a file that the choice of a backend reads."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rsn2_kernels as rk
from rsn2.bench import calibrate
from rsn2.cli import app
from rsn2_kernels import cpu_cost

pytestmark = pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="no C++ operators to choose")


def test_costs_that_explain_all_times_are_found_again() -> None:
    known = {"dense": (9000.0, 0.1, 0.2, 0.15, 0.05, 0.02), "cpu": (7000.0, 0.3, 0.15, 0.1, 0.02)}
    timed = []
    for rows, cols, density, batch in [
        (64, 80, 0.1, 8),
        (300, 100, 0.3, 64),
        (50, 900, 0.05, 16),
        (500, 500, 0.5, 128),
        (800, 900, 0.1, 1),
    ]:
        for more in (1, 2, 3):
            pattern = rk.SparsePattern.from_mask(torch.rand(rows * more, cols) < density)
            amounts = cpu_cost.features(pattern, batch)
            taken = {name: 1e-9 * float(np.dot(known[name], amounts[name])) for name in known}
            timed.append(calibrate._Timed(density, amounts, taken))
    found = calibrate._fitted(timed)
    for name, costs in known.items():
        assert found["nanoseconds"][name] == pytest.approx(costs, rel=1e-2)
    assert found["share_within_5_percent_of_best"] == 1.0 and found["worst_best_over_chosen"] == 1.0
    assert set(found["median_dense_over_cpu_by_density"]) == {"0.05", "0.1", "0.3", "0.5"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few and small products."""
    monkeypatch.setattr(calibrate, "LINEAR", ((16, 24),))
    monkeypatch.setattr(calibrate, "BATCHES", (1, 8))
    monkeypatch.setattr(calibrate, "LARGE", (24, 16))
    monkeypatch.setattr(calibrate, "CONVOLUTIONS", ((4, 2, 6, 2),))
    monkeypatch.setattr(calibrate, "DENSITIES", (0.1, 0.5))
    yield


@pytest.mark.usefixtures("few")
def test_the_command_writes_what_the_choice_of_a_backend_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "costs.json"
    monkeypatch.setenv("RSN2_CPU_COSTS", str(file))
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, ["calibrate", "--seconds", "0.001"])
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    assert "conv2d float16, dvalues" in done.output and f"written to {file}" in done.output.replace("\n", "")
    about, table = cpu_cost.read(file)
    assert about == cpu_cost.machine() and set(table) == set(cpu_cost.KINDS)
    assert "cpu by bits" in table["linear", torch.float32, "dx"], "one row of x at density 0.5"
    said = subprocess.run(
        [sys.executable, "-c", "from rsn2_kernels import cpu_cost; print(cpu_cost.COSTS.origin)"],
        env=os.environ | {"RSN2_CPU_COSTS": str(file)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"measured here, {file}"


def test_nothing_is_measured_where_there_is_nothing_to_choose_or_no_place_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*args: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(calibrate, "_timed", measure)
    done = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "cannot be written" in done.stderr
    monkeypatch.setattr(calibrate.cpu, "unavailable", "it was not built")
    done = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "costs.json")])
    assert done.exit_code == 2 and "nothing to choose: it was not built" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_out_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSN2_CPU_COSTS", "")
    done = CliRunner().invoke(app, ["calibrate", "--seconds", "0.001"])
    assert done.exit_code == 2 and "give --out" in done.stderr
    file = tmp_path / "costs.json"
    done = CliRunner().invoke(app, ["calibrate", "--seconds", "0.001", "--out", str(file), "--quiet"])
    assert done.exit_code == 0 and done.output == ""
    assert json.loads(file.read_text())["machine"]["cpu"] == cpu_cost.processor()
