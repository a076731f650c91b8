"""The weights with the largest saliency, chosen by `largest` and by torch's own operators: time and memory.

    python benchmarks/selection.py [--device cuda] [--out results/selection.json]

Each way and size runs in a process of its own, so that its peak of memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rsn2 import machine
from rsn2.selection import largest

SIZES = (10**6, 10**7, 10**8)
SHARE = 0.2


def by_topk(saliency: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The same mask: the least of the chosen is the threshold, and the first that are equal to it fill up."""
    scores = saliency.masked_fill(~candidates, -1).flatten()
    threshold = torch.topk(scores, count, sorted=False).values.min()
    above = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)[: count - int(above.sum())]
    return above.index_fill(0, ties, True).view(saliency.shape)


def by_kthvalue(saliency: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The threshold alone."""
    return torch.kthvalue(saliency.flatten(), saliency.numel() - count + 1).values


WAYS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "largest": largest,
    "topk": by_topk,
    "kthvalue": by_kthvalue,
}


def peak(device: str) -> int:
    """Bytes that the process had at most."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(way: str, size: int, device: str, threads: int) -> dict[str, float]:
    """Least seconds of several runs, and bytes per weight beside the operands."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    saliency = torch.randn(size // 1000, 1000, device=device).abs_()
    candidates = torch.ones_like(saliency, dtype=torch.bool)
    before, seconds = peak(device), []
    # On a CPU the time that the process got: others may be running.
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(5 if device == "cuda" or size < SIZES[-1] else 2):
        start = clock()
        WAYS[way](saliency, candidates, int(SHARE * size))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {"seconds": min(seconds), "bytes per weight": (peak(device) - before) / size}


def main() -> None:
    """Print a line per way and size, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SIZE"), help="measure this alone, and print it as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], int(options.one[1]), options.device, options.threads)))
        return
    rows = []
    for size in SIZES:
        for way in WAYS:
            command = [sys.executable, __file__, "--device", options.device, "--threads", str(options.threads)]
            done = subprocess.run([*command, "--one", way, str(size)], check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"way": way, "weights": size, **json.loads(done.stdout)})
            print("{way:9} {weights:10} {seconds:8.4f} s {bytes per weight:6.1f} bytes per weight".format(**rows[-1]))
    if options.out:
        options.out.write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
