"""Operators on packed weights against the dense library, interleaved in one process: `make bench`.

    python benchmarks/operators.py --out results/operators-cpu.json

Each problem is timed on a dense weight, on weight times mask (how sparse multitask networks ran before), with
torch.sparse CSR where it has the operator, and by `rk.linear` / `rk.conv2d` as they choose for themselves. Ratios above
1 are faster than dense.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import rsn2_kernels as rk
from interleaved import machine, medians

COLUMNS = (
    "problem",
    "density",
    "forward: x dense",
    "torch.sparse: x dense",
    "training: x dense",
    "training: x masked",
)
DENSITIES = (0.05, 0.1, 0.2, 0.5)
PROBLEMS = {
    "linear 512 x 1000 x 1000": ((512, 1000), (1000, 1000), torch.float32),
    "linear 64 x 1000 x 1000": ((64, 1000), (1000, 1000), torch.float32),
    "linear 1 x 4096 x 4096": ((1, 4096), (4096, 4096), torch.float32),
    "linear 512 x 1000 x 1000, bf16": ((512, 1000), (1000, 1000), torch.bfloat16),
    "conv 3x3, 64 -> 64, 28 x 28, batch 16": ((16, 64, 28, 28), (64, 576), torch.float32),
}


def runners(x: Tensor, weight: Tensor, mask: Tensor) -> tuple[dict[str, Callable[[], Tensor]], dict[str, list[Tensor]]]:
    """What to time, and the tensors that each takes gradients of."""
    convolution = x.dim() == 4
    pattern = rk.SparsePattern.from_mask(mask)
    values = pattern.pack(weight).requires_grad_()
    weight = weight.requires_grad_()

    def dense(w: Tensor) -> Tensor:
        return F.conv2d(x, w.view(64, 64, 3, 3), padding=1) if convolution else F.linear(x, w)

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


def cells(found: dict[str, Any]) -> list[str]:
    """A result as the row under COLUMNS."""
    forward, both = found["forward_seconds"], found["forward_backward_seconds"]
    ratios = [
        forward["dense"] / forward["packed"],
        forward["dense"] / forward["torch.sparse"] if "torch.sparse" in forward else None,
        both["dense"] / both["packed"],
        both["masked"] / both["packed"],
    ]
    shown = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return [found["problem"], str(found["density"]), *shown]


def measure(problem: str, density: float, seconds: float) -> dict[str, Any]:
    """One problem at one density."""
    shape, (rows, cols), dtype = PROBLEMS[problem]
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).requires_grad_()
    calls, inputs = runners(x, torch.randn(rows, cols).to(dtype), torch.rand(rows, cols) < density)
    with torch.no_grad():
        forward = medians(calls, seconds)
    dy = torch.randn_like(calls["packed"]())
    both = medians({name: training_step(calls[name], inputs[name], dy) for name in inputs}, seconds)
    return {
        "problem": problem,
        "density": density,
        "forward_seconds": forward,
        "forward_backward_seconds": both,
    }


def main() -> None:
    """Measure all, print a table, write a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="time per candidate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"times as fast as the other, {arguments.threads} thread(s)")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "problem" else "right", no_wrap=column == "problem")
    results = []
    for problem in PROBLEMS:
        for density in DENSITIES:
            results.append(measure(problem, density, arguments.seconds))
            table.add_row(*cells(results[-1]))
    Console().print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
