"""Operators on packed weights against what a user would run instead, interleaved in one process.

    python benchmarks/operators.py --out results/operators-NAME.json

Each problem is timed on a dense weight (`F.linear`, `F.conv2d`), on weight times mask (how sparse multitask networks
ran before), with torch.sparse CSR where it has the operator, and by `rk.linear` / `rk.conv2d` as they choose for
themselves. Ratios above 1 are faster than the other. The peak is the best that this machine was measured to reach
during the run: in multiply-adds of a large dense product, or at batch 1 in bytes of a sum over more memory than its
caches hold.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import rsn2_kernels as rk
from rsn2 import machine
from rsn2.bench.timing import medians

COLUMNS = (
    "problem",
    "density",
    "backend",
    "forward: x dense",
    "x masked",
    "x torch.sparse",
    "of peak",
    "training: x dense",
    "x masked",
    "of peak",
)
DENSITIES = (0.05, 0.1, 0.2, 0.25, 0.5)
# Calls of each candidate, at least: on a shared machine some of them wait.
ROUNDS = 11


class Problem(NamedTuple):
    """Shapes of x and of the weight; a convolution has 3 x 3 filters and a padding of 1."""

    x: tuple[int, ...]
    weight: tuple[int, int]
    dtype: torch.dtype = torch.float32

    @property
    def positions(self) -> int:
        """How often each weight is multiplied."""
        return self.x[0] * (self.x[2] * self.x[3] if len(self.x) == 4 else 1)


PROBLEMS = {
    "linear 512 x 1000 x 1000": Problem((512, 1000), (1000, 1000)),
    "linear 512 x 4096 x 4096": Problem((512, 4096), (4096, 4096)),
    "linear 64 x 1000 x 1000": Problem((64, 1000), (1000, 1000)),
    "linear 1 x 4096 x 4096": Problem((1, 4096), (4096, 4096)),
    "linear 1 x 1000 x 1000": Problem((1, 1000), (1000, 1000)),
    "linear 512 x 1000 x 1000, bf16": Problem((512, 1000), (1000, 1000), torch.bfloat16),
    "conv 3x3, 64 -> 64, 28 x 28, batch 64": Problem((64, 64, 28, 28), (64, 576)),
}


def runners(x: Tensor, weight: Tensor, mask: Tensor) -> tuple[dict[str, Callable[[], Tensor]], dict[str, list[Tensor]]]:
    """What to time, and the tensors that each takes gradients of."""
    convolution = x.dim() == 4
    pattern = rk.SparsePattern.from_mask(mask)
    values = pattern.pack(weight).requires_grad_()
    weight = weight.requires_grad_()

    def dense(w: Tensor) -> Tensor:
        return F.conv2d(x, w.view(len(w), -1, 3, 3), padding=1) if convolution else F.linear(x, w)

    def packed() -> Tensor:
        return rk.conv2d(x, values, pattern, padding=1, kernel_size=3) if convolution else rk.linear(x, values, pattern)

    calls: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: dense(weight),
        "masked": lambda: dense(weight * mask),
        "packed": packed,
    }
    if not convolution and x.dtype == torch.float32:
        csr = (weight * mask).detach().to_sparse_csr()
        feature_major = x.detach().t()
        calls["torch.sparse"] = lambda: csr @ feature_major
    return calls, {"dense": [x, weight], "masked": [x, weight], "packed": [x, values]}


def training_step(call: Callable[[], Tensor], inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    """Forward and both gradients."""
    return lambda: torch.autograd.grad(call(), inputs, dy)


def peak(dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """What the machine reaches: multiply-adds per second of a large dense product, and bytes per second of a sum."""
    size, large = 1024, torch.ones(64 << 20)
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    found = medians({"product": lambda: F.linear(a, b), "sum": large.sum}, seconds, ROUNDS)
    return {"multiply_adds_per_second": size**3 / found["product"], "bytes_per_second": large.nbytes / found["sum"]}


def share_best_peak(results: list[dict[str, Any]]) -> None:
    """Give all results of one type and number of threads the best peak found beside any of them: less is contention."""
    best: dict[Any, dict[str, float]] = {}
    for found in results:
        kind = (PROBLEMS[found["problem"]].dtype, found["threads"])
        known = best.setdefault(kind, dict(found["peak"]))
        for name, reached in found["peak"].items():
            known[name] = max(known[name], reached)
        found["peak"] = known


def shares_of_peak(found: dict[str, Any]) -> tuple[float, float]:
    """Of the peak that bounds a problem, what the packed forward product reaches and what its training step does."""
    seconds = found["forward_seconds"]["packed"], found["forward_backward_seconds"]["packed"]
    owned, positions = found["nnz"], PROBLEMS[found["problem"]].positions
    if positions == 1:
        # A value of 4 bytes and an index of 2; the gradient of x reads them again, that of the values writes 4 and
        # reads 2.
        reached = (6 * owned / seconds[0], 18 * owned / seconds[1])
        bound = found["peak"]["bytes_per_second"]
    else:
        reached = (owned * positions / seconds[0], 3 * owned * positions / seconds[1])
        bound = found["peak"]["multiply_adds_per_second"]
    return reached[0] / bound, reached[1] / bound


def cells(found: dict[str, Any]) -> list[str]:
    """A result as the row under COLUMNS."""
    forward, both = found["forward_seconds"], found["forward_backward_seconds"]

    def times(seconds: dict[str, float], other: str) -> str:
        return f"{seconds[other] / seconds['packed']:.2f}" if other in seconds else ""

    of_peak = [f"{100 * share:.0f} %" for share in shares_of_peak(found)]
    return [
        found["problem"],
        str(found["density"]),
        found["backend"],
        *(times(forward, other) for other in ("dense", "masked", "torch.sparse")),
        of_peak[0],
        *(times(both, other) for other in ("dense", "masked")),
        of_peak[1],
    ]


def measure(name: str, density: float, seconds: float) -> dict[str, Any]:
    """One problem at one density."""
    problem = PROBLEMS[name]
    torch.manual_seed(0)
    x = torch.randn(problem.x).to(problem.dtype).requires_grad_()
    mask = torch.rand(problem.weight) < density
    calls, inputs = runners(x, torch.randn(problem.weight).to(problem.dtype), mask)
    with torch.no_grad():
        forward = medians(calls, seconds, ROUNDS)
    dy = torch.randn_like(calls["packed"]())
    both = medians({name: training_step(calls[name], inputs[name], dy) for name in inputs}, seconds, ROUNDS)
    kind = {"op": "conv2d", "kernel_size": 3} if len(problem.x) == 4 else {"op": "linear"}
    pattern = rk.SparsePattern.from_mask(mask)
    chosen = rk.explain(pattern=pattern, batch=problem.positions, dtype=problem.dtype, device="cpu", **kind)  # type: ignore[arg-type]
    return {
        "problem": name,
        "density": density,
        "threads": torch.get_num_threads(),
        "nnz": pattern.nnz,
        "backend": chosen.backend,
        "peak": peak(problem.dtype, seconds),
        "forward_seconds": forward,
        "forward_backward_seconds": both,
    }


def main() -> None:
    """Measure all, print a table per number of threads, write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="each of these numbers of threads")
    parser.add_argument("--seconds", type=float, default=0.3, help="time per candidate")
    arguments = parser.parse_args()
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        peak(torch.float32, arguments.seconds)  # what is measured first would otherwise find the processor asleep
        table = Table(title=f"times as fast as the other, {threads} thread(s)")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "problem" else "right", no_wrap=column == "problem")
        for name in PROBLEMS:
            for density in DENSITIES:
                results.append(measure(name, density, arguments.seconds))
        share_best_peak(results)
        for found in results:
            if found["threads"] == threads:
                table.add_row(*cells(found))
        Console(width=150).print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine.facts(), "results": results}, indent=1) + "\n")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
