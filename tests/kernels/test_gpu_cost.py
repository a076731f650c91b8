"""The predicted times of a GPU choose as they should, and change the way that work does. No GPU is needed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import cost, plans
from rsn2_kernels.backends import cuda, triton
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.gpu_cost import DTYPES, Visits, compact_seconds, dense_seconds, sampling_seconds, visiting_seconds
from rsn2_kernels.group import PatternGroup

from .cases import random_mask

SIZE = 4096
DTYPE = torch.bfloat16


RESULTS = json.loads((Path(__file__).parents[2] / "results/gpu-check.json").read_text())
MEASURED = {case["case"]: case["rows"] for case in RESULTS["benchmarks"]["cases"]}


def in_blocks(rows: int, cols: int, side: int, density: float, seed: int = 0) -> Tensor:
    """A mask of whole blocks, of which the given share is owned."""
    coarse = random_mask(rows // side, cols // side, density, seed)
    return coarse.repeat_interleave(side, 0).repeat_interleave(side, 1)


def visits_of(mask: Tensor) -> Visits:
    return plans.visits(rk.SparsePattern.from_mask(mask), None)


@pytest.fixture(scope="module")
def unstructured() -> Visits:
    """What a random mask of density 0.1 makes the kernels visit."""
    return visits_of(random_mask(SIZE, SIZE, 0.1, 0))


@pytest.fixture(scope="module")
def blocked() -> Visits:
    """The same of 64 x 64 blocks."""
    return visits_of(in_blocks(SIZE, SIZE, 64, 0.1))


IN_USE = {"block": 128, "depth": 64, "num_warps": 4, "num_stages": 3}


@pytest.mark.parametrize(
    "row", [row for row in MEASURED["tiles of the product"] if row.items() >= IN_USE.items()], ids=lambda r: r["mask"]
)
def test_a_product_is_predicted_near_what_an_h200_measured(row: dict[str, Any]) -> None:
    visits = Visits(1, SIZE, SIZE, 1, round(0.1 * SIZE**2), round(row["visited"] * SIZE**2), 128)
    assert visiting_seconds(visits, SIZE, DTYPE, feature_major=True) == pytest.approx(row["seconds"], rel=0.15)


@pytest.mark.parametrize(
    "row",
    MEASURED["small batches, where which backend wins"],
    ids=lambda r: f"{r['rows']} x {r['cols']}, density {r['density']}, batch {r['batch']}",
)
def test_a_small_batch_is_predicted_near_what_an_h200_measured(row: dict[str, Any]) -> None:
    rows, cols, nnz = row["rows"], row["cols"], round(row["density"] * row["rows"] * row["cols"])
    weight = SimpleNamespace(shape=(rows, cols), stacks=1, nnz=nnz)
    predicted = compact_seconds(cast(CsrIndex, weight), row["batch"], DTYPE, False)
    assert predicted == pytest.approx(row["seconds"]["cuda"], rel=0.35)


LAYERS = [row for name, rows in MEASURED.items() for row in rows if name.startswith(("real", "64 x", "16 x"))]


def measured_visits(row: dict[str, Any]) -> Visits:
    nnz, visited = (round(row[name] * SIZE**2) for name in ("density", "visited"))
    return Visits(1, SIZE, SIZE, 1, nnz, visited, row["visited_height"])


@pytest.mark.parametrize(
    "row",
    [row for row in LAYERS if row["what"] == "dW"],
    ids=lambda r: f"{r['visited']:.3f} visited, density {r['density']:.2f}, {r['dtype']}",
)
def test_a_gradient_of_values_is_predicted_near_what_an_h200_measured(row: dict[str, Any]) -> None:
    dtype = getattr(torch, row["dtype"].removeprefix("torch."))
    for kernels, feature_major in (("triton", False), ("triton, feature-major", True)):
        predicted = sampling_seconds(measured_visits(row), SIZE, dtype, feature_major)
        assert predicted == pytest.approx(row["seconds"][kernels], rel=0.2)


@pytest.mark.parametrize(
    "row",
    [row for row in LAYERS if row["what"] == "forward and backward" and row["dtype"] == str(DTYPE)],
    ids=lambda r: f"{r['visited']:.3f} visited, density {r['density']:.2f}",
)
def test_a_training_step_runs_on_what_took_less_time_on_an_h200(row: dict[str, Any]) -> None:
    # What expands the weight takes as long for any mask.
    dense = next(row for row in MEASURED["unstructured"] if row["what"] == "forward and backward")["seconds"]["chosen"]
    visits = measured_visits(row)
    visiting, sampling = visiting_seconds(visits, SIZE, DTYPE), sampling_seconds(visits, SIZE, DTYPE)
    chooses_triton = 2 * visiting + sampling < 3 * dense_seconds(visits, SIZE, DTYPE)
    assert chooses_triton == (row["seconds"]["triton"] < dense)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_random_mask_runs_dense(unstructured: Visits, dtype: torch.dtype) -> None:
    assert unstructured.occupancy > 0.75
    assert dense_seconds(unstructured, SIZE, dtype) < visiting_seconds(unstructured, SIZE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_blocks_run_on_the_kernels_that_skip(blocked: Visits, dtype: torch.dtype) -> None:
    assert blocked.occupancy == pytest.approx(0.1, abs=0.02)
    assert visiting_seconds(blocked, SIZE, dtype) < 0.5 * dense_seconds(blocked, SIZE, dtype)


def test_a_full_mask_runs_dense_at_every_batch() -> None:
    full = visits_of(torch.ones(512, 1024, dtype=torch.bool))
    assert full.occupancy == 1
    for batch in (1, 100, 10**5):
        assert dense_seconds(full, batch, DTYPE) < visiting_seconds(full, batch, DTYPE)


@pytest.mark.parametrize("seconds", [dense_seconds, visiting_seconds, sampling_seconds])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_batch_or_more_weights_never_cost_less(seconds: object, dtype: torch.dtype, blocked: Visits) -> None:
    assert callable(seconds)
    times = [seconds(blocked, batch, dtype) for batch in (0, 1, 64, 4096, 10**6)]
    assert times == sorted(times) and times[0] > 0 and times[-1] > 100 * times[0]
    grown = blocked._replace(rows=2 * blocked.rows, nnz=2 * blocked.nnz, visited=2 * blocked.visited)
    assert seconds(grown, 4096, dtype) > seconds(blocked, 4096, dtype)


def test_what_is_not_visited_costs_the_dense_product_alone(blocked: Visits) -> None:
    fewer = blocked._replace(visited=blocked.visited // 2)
    assert visiting_seconds(fewer, SIZE, DTYPE) < visiting_seconds(blocked, SIZE, DTYPE)
    assert dense_seconds(fewer, SIZE, DTYPE) == dense_seconds(blocked, SIZE, DTYPE)


def test_lower_windows_cost_more_for_the_same_work(blocked: Visits) -> None:
    times = [visiting_seconds(blocked._replace(height=height), SIZE, DTYPE) for height in (128, 64, 32, 16)]
    assert times == sorted(times) and times[0] < times[-1]


def test_an_operand_that_has_the_layout_already_saves_its_copy(blocked: Visits) -> None:
    assert visiting_seconds(blocked, SIZE, DTYPE, feature_major=True) < visiting_seconds(blocked, SIZE, DTYPE)


def test_float32_takes_longer_than_half_of_its_bits(blocked: Visits) -> None:
    for seconds in (dense_seconds, visiting_seconds):
        assert seconds(blocked, SIZE, torch.float32) > 2 * seconds(blocked, SIZE, DTYPE)


def test_a_large_product_is_predicted_within_reach_of_the_chip(unstructured: Visits) -> None:
    """4096 x 4096 x 4096 at the 790 TFLOP/s that the vendor's bf16 product was measured at, expansion besides."""
    least = 2 * SIZE**3 / 790e12
    assert least < dense_seconds(unstructured, SIZE, DTYPE) < 1.5 * least


def test_the_visits_of_a_convolution_count_its_channels_once_and_its_groups_apart() -> None:
    mask = random_mask(64, 9 * 32, 0.2, 0)
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 2)
    visits = plans.visits(rk.SparsePattern.from_mask(mask), geometry)
    assert (visits.stacks, visits.rows, visits.cols, visits.taps) == (2, 32, 9 * 32, 9)
    # An image moves 64 channels in and 64 filters out per pixel, whatever the kernel's size.
    assert visits.operands == 64 + 64
    assert visits.nnz == int(mask.sum()) <= visits.visited


def test_the_visits_of_a_group_are_those_of_its_tasks() -> None:
    masks = [in_blocks(256, 256, 64, 0.3, seed) for seed in (0, 1)]
    patterns = [rk.SparsePattern.from_mask(mask) for mask in masks]
    group = plans.visits(PatternGroup.of(patterns), None)
    alone = [plans.visits(pattern, None) for pattern in patterns]
    assert (group.stacks, group.nnz) == (2, sum(each.nnz for each in alone))
    assert group.visited == sum(int(mask.sum()) for mask in masks)


@pytest.mark.skipif(triton._status() is None and not triton.interpreted, reason="a GPU is here: triton can run")
@pytest.mark.parametrize("op", ["linear", "grouped_linear"])
def test_explaining_for_a_gpu_that_is_not_here_names_dense_and_says_why_not_triton(op: str) -> None:
    pattern = rk.SparsePattern.from_mask(in_blocks(256, 256, 64, 0.1))
    said = rk.explain(op, pattern, 4096, DTYPE, "cuda")
    assert said.backend == "dense"
    assert "triton" not in said.seconds and len(said.unavailable["triton"].split()) > 3
    assert any(word in said.unavailable["triton"] for word in ("GPU", "interpreted", "Triton is not installed"))


@pytest.mark.parametrize(
    ("mask", "chosen"),
    [(in_blocks(2048, 2048, 64, 0.1), "triton"), (random_mask(2048, 2048, 0.3, 0), "dense")],
    ids=["blocks", "random"],
)
def test_explaining_for_a_gpu_chooses_by_what_the_mask_makes_it_visit(
    mask: Tensor, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backend taken to be able to run, its cost is predicted from the pattern, on the CPU."""
    monkeypatch.setattr(triton, "unavailable", None)
    monkeypatch.setattr(triton, "why_not", lambda device, dtype: None)
    said = rk.explain("linear", rk.SparsePattern.from_mask(mask), 4096, DTYPE, "cuda")
    assert said.backend == chosen == min(said.seconds, key=said.seconds.__getitem__)
    assert set(said.seconds) == {"dense", "triton"}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends with GPU kernels are taken to be able to run."""
    monkeypatch.setattr(triton, "unavailable", None)
    monkeypatch.setattr(triton, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(cuda, "unavailable", None)
    monkeypatch.setattr(cuda, "why_not", lambda op, device, dtype: None if op in cuda.OPERATORS else f"it has no {op}")


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.25])
def test_small_batches_read_the_compact_weight_and_large_ones_do_not(density: float) -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(SIZE, SIZE, density, 0))
    for batch in (1, 8, 16, 64):
        assert rk.explain("linear", pattern, batch, DTYPE, "cuda").backend == "cuda"
    for batch in (2048, 8192):
        said = rk.explain("linear", pattern, batch, DTYPE, "cuda")
        assert said.backend != "cuda"
        assert said.seconds["cuda"] > said.seconds[said.backend] and "on cuda" in said.reason


@pytest.mark.usefixtures("able")
def test_a_step_that_trains_is_judged_with_its_gradients() -> None:
    """Which the cuda backend leaves to dense: blocks, which triton skips in all three products, it trains on triton."""
    pattern = rk.SparsePattern.from_mask(in_blocks(SIZE, SIZE, 64, 0.05))
    serving, training = (rk.explain("linear", pattern, 4, DTYPE, "cuda", training=each) for each in (False, True))
    assert (serving.backend, training.backend) == ("cuda", "triton")
    assert training.seconds["cuda"] > serving.seconds["cuda"]


@pytest.mark.usefixtures("able")
def test_explaining_says_that_the_small_batch_kernels_have_no_convolution() -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(64, 576, 0.1, 0))
    said = rk.explain("conv2d", pattern, 1, DTYPE, "cuda", kernel_size=3)
    assert "cuda" not in said.seconds and said.unavailable["cuda"] == "it has no conv2d"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grouped", [False, True], ids=["one task", "a task per row"])
def test_a_compact_product_costs_more_with_more_rows_and_more_weights(dtype: torch.dtype, grouped: bool) -> None:
    patterns = [rk.SparsePattern.from_mask(random_mask(1024, 2048, density, 0)) for density in (0.02, 0.1, 0.3, 0.9)]
    by_weights = [compact_seconds(pattern, 1, dtype, grouped) for pattern in patterns]
    assert by_weights == sorted(by_weights)
    for pattern in patterns:
        by_batch = [compact_seconds(pattern, batch, dtype, grouped) for batch in (1, 8, 128, 1024, 8192)]
        assert by_batch == sorted(by_batch) and by_batch[-1] > 5 * by_batch[0]


@pytest.mark.usefixtures("able")
def test_thirty_tasks_with_a_row_each_run_in_one_launch() -> None:
    group = PatternGroup.of([rk.SparsePattern.from_mask(random_mask(512, 512, 0.1, seed)) for seed in range(30)])
    seconds = cost.predicted("grouped_linear", group, 30, DTYPE, torch.device("cuda"), None)
    assert cost.cheapest(seconds) == "cuda"


def test_one_launch_for_many_small_tasks_beats_a_dense_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unavailable", None)
    monkeypatch.setattr(triton, "why_not", lambda device, dtype: None)
    patterns = [rk.SparsePattern.from_mask(random_mask(64, 64, 0.3, seed)) for seed in range(10)]
    for weight, op in ((PatternGroup.of(patterns), "grouped_linear"), (patterns[0], "linear")):
        seconds = cost.predicted(op, weight, 320, DTYPE, torch.device("cuda"), None)
        assert (cost.cheapest(seconds) == "triton") == (op == "grouped_linear")
