"""GPU benchmarks of small batches: bytes of compact weights against those of dense ones, by cuBLAS."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rsn2_kernels as rk
from gpu_bench import Bench, Call, Record, bar, over_dense, release
from gpu_operators import ALLOWED_ERROR, bound, graphed, relative_error
from rsn2_kernels.compact import compact_bits

DENSITIES = (0.05, 0.1, 0.2, 0.25)
BARS = {1: (7.0, 4.5, 3.0, 2.5), 16: (3.5, 2.5, 2.0, 1.7)}
"""How many times as fast as cuBLAS, by batch, at each of DENSITIES: 8192 x 28672."""


class Weights:
    """One weight, dense and packed, with one batch."""

    def __init__(self, pattern: rk.SparsePattern, batch: int, dtype: torch.dtype):
        self.pattern = pattern
        self.values = (torch.randn(pattern.nnz, device=pattern.device) / 16).to(dtype)
        self.dense = pattern.unpack(self.values)
        self.x = torch.randn(batch, pattern.shape[1], device=pattern.device).to(dtype)


CANDIDATES: dict[str, Callable[[Weights], Tensor]] = {
    "dense": lambda s: F.linear(s.x, s.dense),
    "cuda": lambda s: rk.linear(s.x, s.values, s.pattern, backend="cuda"),
    "triton": lambda s: rk.linear(s.x, s.values, s.pattern, backend="triton"),
}


def sets_of(bench: Bench, rows: int, cols: int, density: float, batch: int) -> list[Weights]:
    """Weights that rotate through more than the cache, dense or compact."""
    moved = int(rows * cols * density * 2.5)
    patterns = [
        rk.SparsePattern.from_mask(torch.rand(rows, cols, device=bench.device) < density)
        for _ in range(min(8, bench.sets(moved)))
    ]
    return [Weights(pattern, batch, bench.dtype) for pattern in patterns]


def compared(
    bench: Bench, what: str, sets: Sequence[Weights], graphs: bool = False, names: Sequence[str] = tuple(CANDIDATES)
) -> Record:
    """One row: every candidate on the same weights."""
    first = sets[0]
    batch, bits = len(first.x), compact_bits(first.pattern)
    found = rk.linear(first.x, first.values, first.pattern, backend="cuda")
    error = relative_error(found, first.x.double() @ first.dense.double().t())
    bench.check(f"small batch, {what}", error, ALLOWED_ERROR[bench.dtype])
    said = rk.explain("linear", first.pattern, batch, bench.dtype, bench.device)
    calls: dict[str, list[Call]] = {name: [bound(CANDIDATES[name], each) for each in sets] for name in names}
    if graphs:
        calls = {name: [graphed(bench, call) for call in every] for name, every in calls.items()}
    row = bench.compared(
        what,
        calls,
        batch=batch,
        rows=first.pattern.shape[0],
        cols=first.pattern.shape[1],
        density=first.pattern.density,
        bits_per_position=bits,
        chosen=said.backend,
        predicted_seconds=said.seconds,
        relative_error=error,
    )
    moved = bits / 8 * first.pattern.shape[0] * first.pattern.shape[1]
    row["bytes_per_second"] = moved / row["seconds"]["cuda"]
    return row


@torch.no_grad()
def small_batch(bench: Bench) -> Record:
    """A large layer at batch 1 and 16, and a middle one at batch 1 under a CUDA graph."""
    rows, cols = (64, 512) if bench.dry else (8192, 28672)
    found, bars = [], []
    for place, density in enumerate(DENSITIES):
        for batch, wanted in BARS.items():
            row = compared(bench, f"{rows} x {cols}", sets_of(bench, rows, cols, density, batch))
            found.append(row)
            bars.append(bar(f"batch {batch}, density {density}", wanted[place], row["times_as_fast"]["cuda"]))
            release()
    size = 128 if bench.dry else 4096
    for density in DENSITIES:
        sets = sets_of(bench, size, size, density, 1)
        row = compared(bench, f"{size} x {size}, CUDA graph", sets, graphs=True, names=("dense", "cuda"))
        found.append(row)
        if density == 0.1:
            bars.append(bar(f"{size} x {size}, batch 1, CUDA graph", 2.5, row["times_as_fast"]["cuda"]))
        release()
    return {"bars": bars, "rows": found}


@torch.no_grad()
def batches(bench: Bench) -> Record:
    """Where which backend wins, by batch."""
    found = []
    large, middle = ((64, 512), (128, 128)) if bench.dry else ((8192, 28672), (4096, 4096))
    for (rows, cols), every in ((large, (1, 2, 8, 16, 32)), (middle, (1, 4, 8, 16, 64, 256))):
        for density in DENSITIES:
            for batch in every:
                sets = sets_of(bench, rows, cols, density, batch)
                found.append(compared(bench, f"{rows} x {cols}", sets, names=("dense", "cuda")))
                release()
    return {"rows": found}


class Served:
    """Tasks of one layer, and a batch with one row of each."""

    def __init__(self, bench: Bench, tasks: int, size: int, density: float):
        self.patterns = [
            rk.SparsePattern.from_mask(torch.rand(size, size, device=bench.device) < density) for _ in range(tasks)
        ]
        self.values = [(torch.randn(each.nnz, device=bench.device) / 16).to(bench.dtype) for each in self.patterns]
        self.stacked = torch.stack([pattern.unpack(v) for pattern, v in zip(self.patterns, self.values, strict=True)])
        self.dense = self.stacked.unbind()
        self.x = torch.randn(tasks, size, device=bench.device).to(bench.dtype)
        self.task_of_row = torch.randperm(tasks, device=bench.device)
        self.rows = self.task_of_row.tolist()
        self.row_of_task = self.task_of_row.argsort()

    def one_by_one(self) -> Tensor:
        """Thirty dense products, whose rows the host knows."""
        return torch.cat([F.linear(self.x[row : row + 1], self.dense[task]) for row, task in enumerate(self.rows)])

    def batched(self) -> Tensor:
        """One dense product over all weights: every task has one row, brought in the order of the tasks and back."""
        products = torch.bmm(self.x[self.row_of_task].unsqueeze(1), self.stacked.mT).squeeze(1)
        return products[self.task_of_row]

    def together(self, backend: str) -> Tensor:
        return rk.grouped_linear(self.x, self.values, self.patterns, self.task_of_row, backend=backend)


@torch.no_grad()
def serving(bench: Bench) -> Record:
    """Thirty tasks, one row each, in one launch."""
    tasks, size = (3, 64) if bench.dry else (30, 4096)
    found, bars = [], []
    candidates: dict[str, Callable[[Any], Tensor]] = {
        "dense": lambda s: s.one_by_one(),
        "bmm": lambda s: s.batched(),
        "cuda": lambda s: s.together("cuda"),
        "triton": lambda s: s.together("triton"),
    }
    for density in (0.03, 0.1):
        sets = [Served(bench, tasks, size, density) for _ in range(2)]
        expected = sets[0].one_by_one()
        error = max(relative_error(each, expected) for each in (sets[0].together("cuda"), sets[0].batched()))
        bench.check(f"serving, density {density}", error, 2 * ALLOWED_ERROR[bench.dtype])
        calls: dict[str, list[Call]] = {name: [bound(call, s) for s in sets] for name, call in candidates.items()}
        graphs = {name: [graphed(bench, call) for call in every] for name, every in calls.items()}
        for mode, measured in (("in a full stream", calls), ("CUDA graphs", graphs)):
            row = bench.compared(f"{tasks} tasks x 1 row, {mode}", measured, density=density, relative_error=error)
            found.append(row)
            bars.append(bar(f"{row['what']}, density {density}", 4, over_dense(row, "cuda")))
        del graphs, calls
        release()
    return {"bars": bars, "rows": found}
