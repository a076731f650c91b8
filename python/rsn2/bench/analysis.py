"""What the records say: rows with ratios and bounds, how well dispatch chose, and how costs grow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsn2.bench.baselines import OURS
from rsn2.bench.cases import PRODUCTS, Case
from rsn2.bench.measure import Record
from rsn2.bench.noise import CONTROL, Ratio, control_error, speed
from rsn2.bench.peaks import Peaks

DISPATCH_ALLOWED = 0.95
"""What `backend=None` must reach of the best backend, and in which share of the cases."""


# Of the bytes of a network; those on disk are among what "save" finds.
_GROWING = ("weights", "index", "total")


@dataclass(frozen=True)
class Row:
    """One call of one case.

    Attributes:
        case: what was measured.
        name: of the call.
        seconds: median of one call.
        speed: how many times as fast as the baseline.
        bound_seconds: the least that the machine could take: what must be moved at the bandwidth of a copy, or what
            must be multiplied at the rate of a large product, whichever is longer.
        bound_by: "memory" or "arithmetic".
        error: how far the baseline was from itself in this case.
        macs, bytes: the least to be done.
    """

    case: Case
    name: str
    seconds: float
    speed: Ratio
    bound_seconds: float
    bound_by: str
    error: float
    macs: float
    bytes: float

    @property
    def fraction(self) -> float:
        """Of the bound reached; above 1 where the operands came from a cache."""
        return self.bound_seconds / self.seconds

    @property
    def ours(self) -> bool:
        """Whether it is this package as it chooses its backend itself."""
        return self.name == OURS


def rows(records: Iterable[Record], peak: Peaks) -> list[Row]:
    """A row for each call that was timed, the baselines' repetitions left out."""
    found = []
    for record in records:
        if "seconds" not in record:
            continue
        error = control_error(record)
        for name, samples in record["seconds"].items():
            if name.endswith(CONTROL):
                continue
            moved, macs = record["bytes"][name], record["macs"][name]
            memory, arithmetic = moved / peak["bytes"], macs / peak[record["dtype"][name]]
            found.append(
                Row(
                    Case.from_dict(record["case"]),
                    name,
                    float(np.median(samples)),
                    speed(record, name),
                    max(memory, arithmetic),
                    "memory" if memory >= arithmetic else "arithmetic",
                    error,
                    macs,
                    moved,
                )
            )
    return found


@dataclass(frozen=True)
class Choice:
    """How well `backend=None` chose in one case.

    Attributes:
        case: which.
        best: name of the fastest backend.
        chosen: name of what dispatch took.
        reached: seconds of the best backend over those of ``backend=None``.
    """

    case: Case
    best: str
    chosen: str
    reached: Ratio

    @property
    def good(self) -> bool:
        """Whether it was at most 5 % slower than the best."""
        return self.reached.value >= DISPATCH_ALLOWED

    @property
    def sure(self) -> bool:
        """Whether it missed by more than noise explains."""
        return self.reached.high < DISPATCH_ALLOWED


def choices(records: Iterable[Record]) -> list[Choice]:
    """`backend=None` against every backend by name, in each case where there were several and its result was right."""
    found = []
    for record in records:
        # A wrong result has no seconds.
        if record["case"]["op"] not in PRODUCTS or OURS not in record.get("seconds", ()):
            continue
        seconds, mark = record["seconds"], f"{OURS} "
        backends = [name for name in seconds if name.startswith(mark)]
        # One that was too slow to be sampled could have been chosen, too.
        if backends and len({*backends, *(name for name in record.get("slow", ()) if name.startswith(mark))}) > 1:
            best = min(backends, key=lambda name, of=seconds: float(np.median(of[name])))  # type: ignore[misc]
            reached = speed(record, OURS, best)
            chosen = record["chosen"]
            found.append(Choice(Case.from_dict(record["case"]), best.removeprefix(mark), chosen, reached))
    return found


@dataclass(frozen=True)
class Growth:
    """A power law fitted to a curve: ``y = factor * x ** exponent``.

    Attributes:
        axis: what x is: "tasks" or "weights".
        op: what was measured.
        name: of the call or of the kind of network.
        what: "seconds", or the kind of bytes.
        xs, ys: the points, x rising.
        exponent, factor: fitted by least squares to the logarithms.
        error: standard error of the exponent; 0 with two points.
        last: exponent between the last two points: small sizes cost what a call costs beside its kernel.
    """

    axis: str
    op: str
    name: str
    what: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    exponent: float
    factor: float
    error: float
    last: float


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Exponent, factor and standard error of the exponent of the power law through positive points.

    Raises:
        ValueError: if there are fewer than two different x, or a value is not positive.
    """
    if len(set(xs)) < 2 or len(xs) != len(ys) or min(*xs, *ys) <= 0:
        raise ValueError(f"points: expected at least two different x, all values positive. Got {list(xs)}, {list(ys)}.")
    x, y = np.log(xs), np.log(ys)
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    left = y - y.mean() - exponent * centred
    error = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred)) if len(x) > 2 else 0.0
    return exponent, float(np.exp(y.mean() - exponent * x.mean())), error


def growths(records: Iterable[Record]) -> list[Growth]:
    """The curves over the numbers of tasks and of weights."""
    points: dict[tuple[str, str, str, str], dict[float, float]] = {}
    for record in records:
        case = Case.from_dict(record["case"])
        if not case.axis:
            continue
        x = float(case.tasks if case.axis == "tasks" else case.weights)
        label = f"{case.op}, training" if case.training else case.op
        for name, samples in record.get("seconds", {}).items():
            if not name.endswith(CONTROL):
                points.setdefault((case.axis, label, name, "seconds"), {})[x] = float(np.median(samples))
        for name, kinds in record.get("memory", {}).items():
            for kind, amount in kinds.items():
                if amount > 0 and kind in _GROWING:
                    points.setdefault((case.axis, label, name, kind), {})[x] = amount
        for name, amount in record.get("bytes_on_disk", {}).items():
            if case.op == "save":
                points.setdefault((case.axis, label, name, "disk"), {})[x] = amount
    found = []
    for (axis, op, name, what), of in points.items():
        xs, ys = zip(*sorted(of.items()), strict=True)
        if len(xs) > 1:
            exponent, factor, error = fit(xs, ys)
            last, _, _ = fit(xs[-2:], ys[-2:])
            found.append(Growth(axis, op, name, what, xs, ys, exponent, factor, error, last))
    return found


def without(case: Case, *axes: str) -> Case:
    """A case with these fields at their defaults: equal for all points of one curve."""
    defaults = {"batch": 1, "density": 0.1, "tasks": 1}
    return replace(case, **{axis: defaults[axis] for axis in axes})  # type: ignore[arg-type]
