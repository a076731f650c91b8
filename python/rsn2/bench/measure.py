"""One case to one record: every sample, or why it was skipped."""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from rsn2 import machine
from rsn2.bench import memory, networks, operators
from rsn2.bench.baselines import OURS
from rsn2.bench.cases import PRODUCTS, Case
from rsn2.bench.noise import CONTROL
from rsn2.bench.peaks import Peaks
from rsn2.bench.quiet import Probe
from rsn2.bench.timing import LONG, Call, interleaved, warm
from rsn2.bench.work import UnavailableError, Work

Record = dict[str, Any]

_NETWORKS: dict[str, Callable[[Case, torch.device | str], Work]] = {
    "layer": networks.inference,
    "inference": networks.inference,
    "epoch": networks.epoch,
    "allocate": networks.allocation,
    "save": networks.checkpoint,
    "load": networks.checkpoint,
}

# Of what is free now: others want some, too.
_SHARE_OF_MEMORY = 0.7
_EVICTED_BYTES = 256 << 20
_DIGITS = 4
# Times as long as the baseline.
_SLOW = 10


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        device: where.
        threads: of the CPU.
        seconds: for each candidate of a case, about, all passes together.
        rounds: samples of each candidate, at least, all passes together; half as many where a call is LONG.
        passes: times that a case is measured, all others between: a machine may be slow for a minute. Once, with the
            rounds of all, where a call is LONG, as that lasts longer; each of these rounds then counts as a pass.
        further: passes of a case that is unsure after these, at most.
        limit: seconds that one call of the baseline may be predicted to take, and a product take; longer cases are
            skipped.
        cold: empty the caches before each call.
        patience: seconds per pass of a case that may go by with waiting for a quiet core and taking rounds again.
        grid: "quick" or "full".
        only: what the names of the cases hold; "" takes all of the grid.
    """

    device: str = "cpu"
    threads: int = 1
    seconds: float = 0.3
    rounds: int = 12
    passes: int = 5
    further: int = 2
    limit: float = 2.0
    cold: bool = False
    patience: float = 2.0
    grid: str = "full"
    only: str = ""


def record(
    case: Case, settings: Settings, peaks: Peaks, probe: Probe | None = None, known: Record | None = None
) -> Record:
    """Measure a case, one pass of it.

    Args:
        case: what to measure.
        settings: how.
        peaks: what the machine reaches.
        probe: says whether the core is quiet.
        known: the record of the passes before, which compared results; a call that they left out is not made again.

    Returns:
        "key", "case", "taken" (seconds), "passes" (that it stands for), and either "skipped" (why), or "memory" (name
        -> kind -> bytes), or

        - "baseline": the name of the call that others are compared with
        - "seconds": name -> of every sample; of the baseline a second time under its name + " again"
        - "rounds": how many of the samples each pass took, in turn
        - "bytes", "macs", "dtype": name -> the least that the call does
        - "loud": samples of each that were taken although something else slowed the core
        - "unavailable": name -> why it was not timed
        - "wrong": names of this package's calls whose result, or gradient of x, was not that of the reference
        - "slow": name -> seconds of one call, of those that were not sampled
        - further facts
    """
    start = time.perf_counter()
    found: Record = {"key": case.key, "case": case.as_dict(), "passes": 1}
    try:
        _check_fits(case, settings, peaks)
        if case.op == "memory":
            found["memory"] = memory.measured(case, settings.device)
        else:
            found |= _timed(case, settings, probe, known)
    except (UnavailableError, torch.OutOfMemoryError, MemoryError) as error:
        found["skipped"] = str(error).splitlines()[0]
    except RuntimeError as error:
        # A CPU's allocator has no class of errors of its own.
        if "alloc" not in str(error):
            raise
        found["skipped"] = str(error).splitlines()[0]
    return found | {"taken": round(time.perf_counter() - start, 3)}


def merged(first: Record, second: Record) -> Record:
    """Two passes of a case as one; a call that only one of them sampled is left out."""
    found = first | {"passes": first["passes"] + second["passes"], "taken": round(first["taken"] + second["taken"], 3)}
    if "seconds" in first and "seconds" in second:
        names = [name for name in first["seconds"] if name in second["seconds"]]
        found["seconds"] = {name: first["seconds"][name] + second["seconds"][name] for name in names}
        found["rounds"] = first["rounds"] + second["rounds"]
        found["unavailable"] = second["unavailable"] | first["unavailable"]
        found["loud"] = first["loud"] + second["loud"]
    for kind in ("slow", "error"):
        if kind in first or kind in second:
            found[kind] = second.get(kind, {}) | first.get(kind, {})
    if wrong := [*first.get("wrong", ()), *second.get("wrong", ())]:
        found["wrong"] = list(dict.fromkeys(wrong))
    return found


def _timed(case: Case, settings: Settings, probe: Probe | None, known: Record | None) -> Record:
    torch.manual_seed(0)
    _forget()
    loud = probe.loud if probe else 0
    if case.op in PRODUCTS:
        work = operators.work(case, settings.device, known["unavailable"] if known else None)
        if known is None:
            _check_time(work, settings)
    else:
        work = _NETWORKS[case.op](case, settings.device)
    once = warm(work.calls, device=settings.device, before=work.before, times=1 if known else 2)
    if known:
        once |= {name: median(known["seconds"][name]) for name in once if name in known["seconds"]}
    calls = dict(work.calls) if known else _without_slow(work, once, settings.seconds)
    calls[work.baseline + CONTROL], once[work.baseline + CONTROL] = calls[work.baseline], once[work.baseline]
    before = work.before
    if settings.cold:
        large = torch.ones(_EVICTED_BYTES // 4, device=settings.device)
        before = {name: _both(before.get(name), large.sum) for name in calls}
    is_long = max(once[name] for name in (work.baseline, OURS) if name in once) > LONG
    share = settings.rounds / (2 if is_long else settings.passes)
    samples = interleaved(
        calls,
        settings.seconds / settings.passes,
        math.ceil(share),
        device=settings.device,
        before=before,
        warmed=once,
        primed=not settings.cold,
        probe=probe,
        patience=settings.patience,
    )
    count = len(samples[work.baseline])
    return {
        "baseline": work.baseline,
        "seconds": {name: [float(f"{each:.{_DIGITS}g}") for each in taken] for name, taken in samples.items()},
        "bytes": {name: amount.bytes for name, amount in work.amounts.items()},
        "macs": {name: amount.macs for name, amount in work.amounts.items()},
        "dtype": {name: amount.dtype for name, amount in work.amounts.items()},
        "passes": settings.passes if is_long else 1,
        "rounds": [1] * count if is_long else [count],
        "loud": probe.loud - loud if probe else 0,
        "unavailable": work.unavailable,
        **work.facts,
    }


def _forget() -> None:
    """Give back what earlier cases left with the allocator: a large result that finds its memory there costs less."""
    gc.collect()
    # What is left is not garbage, modules above all: to go through them in each pass takes longer than some passes.
    gc.freeze()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _without_slow(work: Work, once: dict[str, float], seconds: float) -> dict[str, Call]:
    """The calls whose time is worth more than a sample; this package as it chooses for itself is always among them."""
    kept = {}
    for name, call in work.calls.items():
        times = once[name] / once[work.baseline]
        if name not in (work.baseline, OURS) and once[name] > seconds and times > _SLOW:
            work.unavailable[name] = f"more than {_SLOW} times as slow as the baseline: not sampled"
            work.facts.setdefault("slow", {})[name] = once[name]
        else:
            kept[name] = call
    return kept


def _both(first: Callable[[], object] | None, then: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        if first is not None:
            first()
        then()

    return run


def _check_fits(case: Case, settings: Settings, peaks: Peaks) -> None:
    """Raise UnavailableError if a case would not fit in memory or in time, as far as can be said beforehand."""
    free = machine.free_bytes(settings.device)
    needed = _bytes(case)
    if free is not None and needed > _SHARE_OF_MEMORY * free:
        raise UnavailableError(f"needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    steps = networks.STEPS if case.op == "epoch" else 1
    passes = 1 if case.op in ("save", "load", "memory") else 3 if case.training or case.op == "epoch" else 1
    rate = peaks.get(case.dtype, peaks.get("float32", 1.0))
    seconds = steps * passes * case.weights * case.positions / rate
    if seconds > settings.limit:
        raise UnavailableError(f"a dense call would take about {seconds:.1f} s, and the limit is {settings.limit:g} s")


def _check_time(work: Work, settings: Settings) -> None:
    """Raise UnavailableError if the baseline takes longer than predicted, and than the limit: some libraries do."""
    seconds = warm({work.baseline: work.calls[work.baseline]}, device=settings.device)[work.baseline]
    if seconds > settings.limit:
        raise UnavailableError(f"a dense call takes {seconds:.2g} s, and the limit is {settings.limit:g} s")


def _bytes(case: Case) -> float:
    """What all candidates of a case need at once, roughly."""
    size: int = getattr(torch, case.dtype).itemsize
    if case.op in PRODUCTS:
        operands = case.positions * (case.tasks if case.op == "grouped_linear" else 1) * sum(case.shape[:2]) * size
        # The weight, its copies in other formats, its gradient and its product with a mask; indices of 12 bytes.
        return case.weights * (6 * size + 3 + 24 * case.density) + 6 * operands
    per_task = 4 if case.op in ("save", "load", "memory") else 1
    activations = 8 * case.batch * case.shape[0] * case.shape[1] * 4
    # Dense, masked and shared weights, their gradients and a step's scratch; masks or networks per task.
    return case.weights * (24 + per_task * case.tasks + 12 * case.density * case.tasks) + activations
