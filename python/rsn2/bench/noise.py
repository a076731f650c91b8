"""What samples say, and how far they can be trusted: ratios with intervals, and a verdict on the whole run."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

CONTROL = " again"
"""Behind the name of a baseline: the same call, timed a second time in every round. Its ratio should be 1."""

CONTROL_ALLOWED = 0.05
"""How far from 1 the ratio of a call to itself may be."""

INTERVAL_ALLOWED = 0.1
"""How far from its median the interval of a ratio may reach, as a share of the median."""

_OFF_ALLOWED = 0.1
# Two runs of `rsn2 bench --quick` in which a sixth and a quarter were uncertain agreed within 10 % in 91 of 92 cases.
_UNCERTAIN_ALLOWED = 0.25
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another a call is, and from where to where the passes reach (:func:`ratio`)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return digits(self.value)

    @property
    def reach(self) -> float:
        """How far from the median the interval reaches, as a share of it."""
        return max(self.high - self.value, self.value - self.low) / self.value

    @property
    def interval(self) -> str:
        """In words."""
        return f"{digits(self.low)} to {digits(self.high)}"


@dataclass(frozen=True)
class Verdict:
    """Whether a run can be judged.

    Attributes:
        quiet: whether at most a tenth of the controls were off by more than CONTROL_ALLOWED, and at most a quarter of
            the ratios are uncertain.
        cases: number of cases with a control.
        disagreeing: how many of these were off.
        typical: median of |ratio of a call to itself - 1|.
        uncertain: in how many the interval of this package's ratio reaches further than INTERVAL_ALLOWED.
    """

    quiet: bool
    cases: int
    disagreeing: int
    typical: float
    uncertain: int = 0

    def __str__(self) -> str:
        if self.cases == 0:
            return "nothing was timed: there is nothing to judge"
        counted = (
            f"in {self.disagreeing} of {self.cases} cases the same call, timed twice, differed from itself by more "
            f"than {CONTROL_ALLOWED:.0%} (median {self.typical:.1%}), and in {self.uncertain} the interval of rsn2's "
            f"ratio reaches further than {INTERVAL_ALLOWED:.0%}"
        )
        return f"quiet enough: {counted}" if self.quiet else f"TOO NOISY TO JUDGE: {counted}"


def digits(value: float) -> str:
    """A ratio with three digits that mean something, or two decimals."""
    return f"{value:.2f}" if value >= 1 else f"{value:.2g}" if value < 0.1 else f"{value:.3g}"


def ratio(slower: Sequence[float], faster: Sequence[float], passes: Sequence[int] = ()) -> Ratio:
    """The median over the passes of ``slower / faster``, each pass's own being the median over its rounds.

    A machine is slow for seconds, and not for all calls alike: the rounds of one pass are off together, and only
    passes, with others between, tell of it. The interval lies between two of their sorted ratios and assumes no
    distribution: a median is between them unless a fair coin falls almost always on one side. With fewer than nine
    passes they are the outermost, and of five the median is between them with a probability of 94 %, of three 75 %.

    Args:
        slower, faster: a sample per round, of two calls.
        passes: rounds of each pass, in turn. By itself each round is a pass of its own.

    Raises:
        ValueError: if there are no samples, not as many of the one as of the other, or more or less than in passes.
    """
    if not slower or len(slower) != len(faster) or sum(passes or (len(slower),)) != len(slower):
        raise ValueError(
            f"samples: expected as many of both, at least one, and {list(passes)} in passes. "
            f"Got {len(slower)} and {len(faster)}."
        )
    of_rounds = [a / b for a, b in zip(slower, faster, strict=True)]
    ends = list(accumulate(passes or [1] * len(of_rounds), initial=0))
    found = sorted(statistics.median(of_rounds[start:end]) for start, end in pairwise(ends))
    outside = _outside(len(found))
    return Ratio(statistics.median(found), found[outside], found[-1 - outside])


def speed(record: Mapping[str, Any], of: str, than: str | None = None) -> Ratio:
    """How many times as fast as another call, by itself the baseline, a call of a record is."""
    seconds = record["seconds"]
    return ratio(seconds[than or record["baseline"]], seconds[of], record.get("rounds", ()))


def control_error(record: Mapping[str, Any]) -> float:
    """How far from 1 the ratio of the baseline to itself is; 0 if there was no control."""
    again = record["baseline"] + CONTROL
    return abs(speed(record, again).value - 1) if again in record["seconds"] else 0.0


def is_unsure(record: Mapping[str, Any], of: str) -> bool:
    """Whether the baseline differs too much from itself, or the interval of ``of``'s ratio reaches too far."""
    if control_error(record) > CONTROL_ALLOWED:
        return True
    return of in record["seconds"] and speed(record, of).reach > INTERVAL_ALLOWED


def verdict(errors: Sequence[float], ratios: Sequence[Ratio] = ()) -> Verdict:
    """Judge a run by the errors of its controls and by the intervals of what it is about."""
    if not errors:
        return Verdict(False, 0, 0, 0.0)
    off = sum(error > CONTROL_ALLOWED for error in errors)
    uncertain = sum(each.reach > INTERVAL_ALLOWED for each in ratios)
    quiet = off <= _OFF_ALLOWED * len(errors) and uncertain <= _UNCERTAIN_ALLOWED * len(ratios)
    return Verdict(quiet, len(errors), off, statistics.median(errors), uncertain)


def _outside(count: int) -> int:
    """How many sorted samples lie outside the interval on each side: P(Binomial(count, 1/2) <= them) is allowed."""
    below, outside = 0.0, 0
    for number in range(count // 2):
        below += math.comb(count, number) / 2**count
        if below > (1 - _CONFIDENCE) / 2:
            break
        outside = number
    return outside
