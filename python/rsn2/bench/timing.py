"""Seconds that survive a noisy machine: all candidates are timed in turn, round after round, in one process."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from rsn2.bench.quiet import Probe, shared_probe

Call = Callable[[], object]
Clock = Callable[[Call, int], float]

# A sample takes at least this long, so that neither the clock nor a single interruption counts for much.
_SAMPLE_SECONDS = 1e-3
_MOST_CALLS = 1000
_MOST_ROUNDS = 200
# Of a call that goes through 8 MB of weights, the first after other calls takes a third longer, the fourth 4 %.
_PRIMING_SECONDS = 1e-2
_MOST_PRIMING = 5

LONG = 0.05
"""Seconds of a call that is long: what caches and allocator were left with, or one interruption, counts for little."""


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
    primed: bool = True,
    probe: Probe | None = None,
    patience: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of one call of each candidate, a sample per round.

    Each candidate is warmed up, then all of them run in turn in every round, in an order that is drawn anew for each
    (and is the same in every run). What a call takes depends on what the caches and the allocator were left with, and
    two candidates may leave them very differently. So calls that are not timed go before each sample, unless a call is
    LONG.

    Args:
        calls: name -> what to time.
        seconds: time to spend on each candidate, about.
        rounds: at least this many.
        device: where the calls compute.
        before: name -> what makes a candidate ready for each call, or empties the caches; it is not timed, and a sample
            of this candidate is a single call. Others find what the caches kept, and short ones run several times per
            sample.
        warmed: what :func:`warm` said of these calls, if it was asked already.
        primed: whether calls of the same candidate go before each sample; not where ``before`` empties the caches.
        probe: says whether the core is quiet. A round that began or ended when it was not is taken again.
        patience: seconds that may go by with that, all rounds together; then rounds count as they are.
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

    def sample(name: str, number: int) -> float:
        if name in before:
            before[name]()
        return measure(calls[name], number)

    def take_round() -> dict[str, float]:
        draw.shuffle(order)
        found = {}
        for name in order:
            if primed and once[name] < LONG:
                for _ in range(min(_MOST_PRIMING, math.ceil(_PRIMING_SECONDS / once[name]))):
                    sample(name, 1)
            found[name] = sample(name, calls_per_sample[name])
        return found

    for _ in range(count):
        found, patience = probe.during(take_round, patience) if probe else (take_round(), patience)
        for name, taken in found.items():
            samples[name].append(taken)
    return samples


def warm(
    calls: Mapping[str, Call],
    *,
    device: torch.device | str = "cpu",
    before: Mapping[str, Call] | None = None,
    times: int = 2,
) -> dict[str, float]:
    """Call each candidate that often. Seconds of the last time: the first builds."""
    measure, before = clock(device), before or {}
    found = {}
    for name, call in calls.items():
        for _ in range(times):
            if name in before:
                before[name]()
            found[name] = max(measure(call, 1), 1e-9)
    return found


def medians(
    calls: Mapping[str, Call], seconds: float = 0.2, rounds: int = 5, before: Mapping[str, Call] | None = None
) -> dict[str, float]:
    """Median seconds of one call of each candidate on the CPU; the arguments are those of :func:`interleaved`.

    Rounds on a core that something else slows are taken again, for as long as the candidates themselves take.
    """
    patience = seconds * len(calls)
    found = interleaved(
        calls, seconds, rounds, before=before, primed=before is None, probe=shared_probe(), patience=patience
    )
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
