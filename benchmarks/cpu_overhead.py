"""What a call costs beside its kernel: a layer so small that its product takes no time, on one thread.

python benchmarks/cpu_overhead.py --out results/overhead-cpu.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import rsn2_kernels as rk
from rsn2 import machine

SIZE, BATCH, DENSITY = 16, 2, 0.3
ROUNDS = 301
# Read between two calls: more than the caches hold.
EVICTING_BYTES = 64 << 20


def calls() -> dict[str, Callable[[], object]]:
    """What is timed."""
    torch.manual_seed(0)
    pattern = rk.SparsePattern.from_mask(torch.rand(SIZE, SIZE) < DENSITY)
    x, weight = torch.randn(BATCH, SIZE), torch.randn(SIZE, SIZE)
    values, dy = pattern.pack(weight), torch.randn(BATCH, SIZE)
    own_x, own_weight, own_values = (each.clone().requires_grad_() for each in (x, weight, values))
    dense, packed = [own_x, own_weight], [own_x, own_values]
    return {
        "F.linear": lambda: F.linear(x, weight),
        "rk.linear": lambda: rk.linear(x, values, pattern, backend="cpu"),
        "F.linear and both gradients": lambda: torch.autograd.grad(F.linear(*dense), dense, dy),
        "rk.linear and both gradients": lambda: torch.autograd.grad(
            rk.linear(*packed, pattern, backend="cpu"), packed, dy
        ),
    }


def seconds(evict: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each call, in turn, with ``evict`` before each."""
    timed = calls()
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, call in timed.items():
            call()
            evict()
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    large = torch.ones(EVICTING_BYTES // 4)
    found = {"in the caches": seconds(lambda: None), "out of the caches": seconds(large.sum)}
    for where, each in found.items():
        for name, taken in each.items():
            print(f"{name:30} {where:18} {1e6 * taken:8.1f} us")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        layer = {"size": SIZE, "batch": BATCH, "density": DENSITY}
        arguments.out.write_text(
            json.dumps({"machine": machine.facts(), "layer": layer, "seconds": found}, indent=1) + "\n"
        )
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
