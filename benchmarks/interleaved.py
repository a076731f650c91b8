"""Ratios that survive a noisy machine: all candidates are timed in turn, round after round, and medians compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def medians(candidates: Mapping[str, Callable[[], object]], seconds: float = 0.2, rounds: int = 5) -> dict[str, float]:
    """Median seconds of one call of each candidate.

    Each candidate is warmed up, then all of them run in turn in every round, in one process.

    Args:
        candidates: name -> what to time.
        seconds: time to spend on each candidate, about.
        rounds: at least this many calls of each.
    """
    fastest = {}
    for name, call in candidates.items():
        call()
        start = time.perf_counter()
        call()
        fastest[name] = time.perf_counter() - start
    count = max(rounds, min(200, int(seconds / max(*fastest.values(), 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(count):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def machine() -> dict[str, object]:
    """What a results file says of the machine and the versions."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    """The processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
