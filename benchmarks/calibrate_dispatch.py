"""Measure the constants of the cost model in rsn2_kernels/dispatch.py, and how well it chooses with them.

    python benchmarks/calibrate_dispatch.py --out results/dispatch-cpu.json

Times one forward product of the `dense` and `cpu` backends on one thread, over shapes, densities, batches and dtypes,
and fits non-negative costs by least squares on relative error. Prints the table to paste into dispatch.py.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

import rsn2_kernels as rk
from rsn2 import machine
from rsn2.bench.timing import medians
from rsn2_kernels import dispatch
from rsn2_kernels.backends import cpu
from rsn2_kernels.ops.linear import _LINEAR

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
LINEAR = ((64, 64), (256, 256), (1000, 1000), (128, 2048), (2048, 512))
BATCHES = (1, 8, 64, 512)
# Filters, channels, image side, images; kernels of 3 x 3.
CONVOLUTIONS = (
    (16, 8, 28, 4),
    (32, 1, 28, 64),
    (16, 3, 48, 64),
    (32, 32, 14, 8),
    (64, 64, 28, 4),
    (128, 64, 7, 16),
    (64, 64, 28, 64),
)


def cases(op: str, dtype: torch.dtype) -> list[tuple[rk.SparsePattern, int, dict[str, object]]]:
    """Patterns, batches and the calls that time them."""
    generator = torch.Generator().manual_seed(0)
    made = []
    if op == "linear":
        for (rows, cols), density, batch in itertools.product(LINEAR, DENSITIES, BATCHES):
            pattern = rk.SparsePattern.from_mask(torch.rand(rows, cols, generator=generator) < density)
            values = torch.randn(pattern.nnz, generator=generator).to(dtype)
            x = torch.randn(batch, cols, generator=generator).to(dtype)
            calls = {"dense": call_linear(x, values, pattern, "dense")}
            if batch == 1 and dtype != torch.float64 and cpu.is_worth_bits(pattern):
                calls["cpu by bits"] = call_by_bits(x, values, pattern)
            else:
                calls["cpu"] = call_linear(x, values, pattern, "cpu")
            made.append((pattern, batch, calls))
        return made
    for (rows, channels, side, images), density in itertools.product(CONVOLUTIONS, DENSITIES):
        pattern = rk.SparsePattern.from_mask(torch.rand(rows, channels * 9, generator=generator) < density)
        values = torch.randn(pattern.nnz, generator=generator).to(dtype)
        x = torch.randn(images, channels, side, side, generator=generator).to(dtype)
        calls = {name: call_conv(x, values, pattern, name) for name in ("dense", "cpu")}
        made.append((pattern, images * side * side, calls))
    return made


def call_linear(x: Tensor, values: Tensor, pattern: rk.SparsePattern, backend: str) -> Callable[[], Tensor]:
    """One forward product."""
    return lambda: rk.linear(x, values, pattern, backend=backend)


def call_by_bits(x: Tensor, values: Tensor, pattern: rk.SparsePattern) -> Callable[[], Tensor]:
    """One forward product of the cpu backend as it is where nobody asked for it by name."""
    index = dispatch.index("cpu", pattern, with_columns=False, single=True)
    return lambda: _LINEAR(x, values, None, index, "none", "cpu")


def call_conv(x: Tensor, values: Tensor, pattern: rk.SparsePattern, backend: str) -> Callable[[], Tensor]:
    """One forward product."""
    return lambda: rk.conv2d(x, values, pattern, padding=1, kernel_size=3, backend=backend)


def calibrate(op: str, dtype: torch.dtype, seconds: float) -> dict[str, object]:
    """Fitted costs of both backends, and how the resulting choices do on the same cases."""
    features: dict[str, list[tuple[float, ...]]] = {name: [] for name in dispatch.FEATURES}
    times: dict[str, list[float]] = {name: [] for name in dispatch.FEATURES}
    place: list[tuple[str, int]] = []  # of each case: the name of its other backend, and where in that one's lists
    with torch.no_grad():
        for pattern, batch, calls in cases(op, dtype):
            measured = medians(calls, seconds)
            place += [(name, len(times[name])) for name in calls if name != "dense"]
            for name, row in dispatch.features(pattern, batch, "cpu by bits" in calls).items():
                features[name].append(row)
                times[name].append(measured[name])
    costs, predicted = {}, {}
    for name, rows in features.items():
        if rows:
            table, taken = np.array(rows), np.array(times[name])
            costs[name] = nnls(table / taken[:, None], np.ones(len(taken)))[0]
            predicted[name] = table @ costs[name]
    dense, other = np.array(times["dense"]), np.array([times[name][at] for name, at in place])
    best = np.minimum(dense, other)
    chosen = np.where(predicted["dense"] <= [predicted[name][at] for name, at in place], dense, other)
    return {
        "nanoseconds": {name: [float(f"{1e9 * cost:.3g}") for cost in found] for name, found in costs.items()},
        "cases": len(best),
        "share_within_5_percent_of_best": float(np.mean(best / chosen >= 0.95)),
        "worst_best_over_chosen": float(np.min(best / chosen)),
        "median_dense_over_cpu_by_density": {
            str(density): float(np.median((dense / other)[number_of_density(op) == number]))
            for number, density in enumerate(DENSITIES)
        },
    }


def number_of_density(op: str) -> np.ndarray:
    """Which entry of DENSITIES each case has, in the order that `cases` makes them."""
    if op == "linear":
        return np.tile(np.repeat(np.arange(len(DENSITIES)), len(BATCHES)), len(LINEAR))
    return np.tile(np.arange(len(DENSITIES)), len(CONVOLUTIONS))


def main() -> None:
    """Calibrate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0.05, help="time per case and backend")
    parser.add_argument("--only", default="", help="rows whose name holds this; others stay as the file has them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = json.loads(arguments.out.read_text()) if arguments.only else {}
    results |= {"machine": machine.facts(), "features": dispatch.FEATURES}
    for op, dtype in itertools.product(("linear", "conv2d"), DTYPES):
        name = f"{op} {str(dtype).removeprefix('torch.')}"
        if arguments.only not in name:
            continue
        results[name] = calibrate(op, dtype, arguments.seconds)
        print(name, json.dumps(results[name], indent=1), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
