"""Seconds that survive a noisy machine: all candidates are timed in turn, round after round, in one process."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
Clock = Callable[[Call, int], float]

# A sample takes at least this long, so that the clock's own time and resolution do not count.
_SAMPLE_SECONDS = 1e-4
_MOST_CALLS = 1000
_MOST_ROUNDS = 200


def clock(device: torch.device | str) -> Clock:
    """What times calls on a device: ``clock(call, calls) -> seconds of one call``, waiting for the device."""
    return _gpu_seconds if torch.device(device).type == "cuda" else _cpu_seconds


def interleaved(
    calls: Mapping[str, Call],
    seconds: float = 0.2,
    rounds: int = 5,
    *,
    device: torch.device | str = "cpu",
    before: Mapping[str, Call] | None = None,
    warmed: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of one call of each candidate, a sample per round.

    Each candidate is warmed up, then all of them run in turn in every round, in an order that is drawn anew for each
    (and is the same in every run), so that nobody always finds the caches as the same neighbour left them.

    Args:
        calls: name -> what to time.
        seconds: time to spend on each candidate, about.
        rounds: at least this many.
        device: where the calls compute.
        before: name -> what makes a candidate ready for each call, or empties the caches; it is not timed, and a sample
            of this candidate is a single call. Others find what the caches kept, and short ones run several times per
            sample.
        warmed: what :func:`warm` said of these calls, if it was asked already.
    """
    measure, before = clock(device), before or {}
    once = warmed or warm(calls, device=device, before=before)
    calls_per_sample = {
        name: 1 if name in before else min(_MOST_CALLS, math.ceil(_SAMPLE_SECONDS / once[name])) for name in calls
    }
    longest = max(once[name] * calls_per_sample[name] for name in calls)
    count = max(rounds, min(_MOST_ROUNDS, int(seconds / longest)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    draw, order = random.Random(0), list(calls)
    for _ in range(count):
        draw.shuffle(order)
        for name in order:
            if name in before:
                before[name]()
            samples[name].append(measure(calls[name], calls_per_sample[name]))
    return samples


def warm(
    calls: Mapping[str, Call], *, device: torch.device | str = "cpu", before: Mapping[str, Call] | None = None
) -> dict[str, float]:
    """Call each candidate three times. Seconds of the faster of the last two: the first builds what these find."""
    measure, before = clock(device), before or {}
    found = {}
    for name, call in calls.items():
        taken = []
        for _ in range(3):
            if name in before:
                before[name]()
            taken.append(measure(call, 1))
        found[name] = max(min(taken[1:]), 1e-9)
    return found


def medians(
    calls: Mapping[str, Call], seconds: float = 0.2, rounds: int = 5, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Median seconds of one call of each candidate; the arguments are those of :func:`interleaved`."""
    found = interleaved(calls, seconds, rounds, device=device)
    return {name: statistics.median(samples) for name, samples in found.items()}


def _cpu_seconds(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _gpu_seconds(call: Call, calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return 1e-3 * milliseconds / calls
