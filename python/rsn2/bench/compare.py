"""Two runs side by side: what became slower or larger, beyond what noise explains."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from rsn2.bench.analysis import Row, rows
from rsn2.bench.baselines import OURS
from rsn2.bench.noise import Ratio
from rsn2.bench.report import Table
from rsn2.bench.results import Results

SPEED_ALLOWED = 0.1
"""Less of a change is never told."""

MEMORY_ALLOWED = 0.01


@dataclass(frozen=True)
class Change:
    """One call in two runs. Speeds are ratios to the baseline of the same run, so that runs of two days compare.

    Attributes:
        key: of the case.
        name: of the call.
        old, new: times as fast as the baseline.
        kind: "slower" or "faster".
    """

    key: str
    name: str
    old: Ratio
    new: Ratio
    kind: str


@dataclass
class Comparison:
    """What changed between two runs.

    Attributes:
        slower, faster: calls of this package whose ratio changed by more than SPEED_ALLOWED, and whose intervals,
            widened by what the baselines differed from themselves, do not meet.
        larger: bytes that grew by more than MEMORY_ALLOWED: case, network, kind, old, new. These have no noise.
        lost: cases that the old run measured and the new one did not, with the reason.
        compared: number of calls in both.
        differs: what of machine and settings is not the same.
        quiet: whether both runs were quiet enough to be judged.
    """

    slower: list[Change] = field(default_factory=list)
    faster: list[Change] = field(default_factory=list)
    larger: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    compared: int = 0
    differs: list[str] = field(default_factory=list)
    quiet: bool = True

    @property
    def exit_code(self) -> int:
        """0 if nothing is worse; 1 if something is; 3 if speeds cannot be judged, or nothing was there to compare."""
        if self.larger or (self.slower and self.quiet):
            return 1
        return 0 if self.quiet and self.compared else 3

    def tables(self) -> list[Table]:
        """For the terminal."""
        made = [
            Table(f"{name}: times as fast as the baseline", ["case", "call", "old", "new"], list(map(_cells, changes)))
            for name, changes in (("Slower", self.slower), ("Faster", self.faster))
        ]
        larger = [[key, name, kind, f"{old:,}", f"{new:,}"] for key, name, kind, old, new in self.larger]
        made.append(Table("Larger, bytes", ["case", "network", "kind", "old", "new"], larger))
        made.append(Table("Not measured any more", ["case", "why"], [list(each) for each in self.lost]))
        return [table for table in made if table.rows]

    def summary(self) -> list[str]:
        """A sentence per line."""
        lines = [
            f"{self.compared} calls compared: {len(self.slower)} slower, {len(self.faster)} faster, "
            f"{len(self.larger)} larger, {len(self.lost)} cases lost."
        ]
        if self.differs:
            lines.append(f"The runs differ in {', '.join(self.differs)}.")
        if not self.quiet:
            lines.append("At least one of the runs was TOO NOISY TO JUDGE: no speed is.")
        return lines


def compare(old: Results, new: Results) -> Comparison:
    """Compare this package's calls, as it chooses its backend and with each backend by name."""
    found = Comparison(quiet=old.verdict.quiet and new.verdict.quiet, differs=_differences(old, new))
    before = _by_name(rows(old.records, old.peak))
    for place, row in _by_name(rows(new.records, new.peak)).items():
        if place in before:
            found.compared += 1
            change = _change(before[place], row)
            if change is not None:
                (found.slower if change.kind == "slower" else found.faster).append(change)
    measured = {record["key"]: record for record in new.records}
    for record in old.records:
        key = record["key"]
        if "skipped" in record:
            continue
        if key not in measured or "skipped" in measured[key]:
            found.lost.append((key, measured.get(key, {}).get("skipped", "not in this run")))
        elif "memory" in record:
            found.compared += 1
            found.larger += _larger(key, record["memory"], measured[key]["memory"])
    return found


def _change(old: Row, new: Row) -> Change | None:
    wider = 1 + max(old.error, new.error)
    if new.speed.value < (1 - SPEED_ALLOWED) * old.speed.value and new.speed.high * wider < old.speed.low:
        kind = "slower"
    elif new.speed.value * (1 - SPEED_ALLOWED) > old.speed.value and new.speed.low > old.speed.high * wider:
        kind = "faster"
    else:
        return None
    return Change(new.case.key, new.name, old.speed, new.speed, kind)


def _larger(
    key: str, old: dict[str, dict[str, int]], new: dict[str, dict[str, int]]
) -> list[tuple[str, str, str, int, int]]:
    return [
        (key, OURS, kind, amount, new[OURS][kind])
        for kind, amount in old[OURS].items()
        if new[OURS].get(kind, 0) > (1 + MEMORY_ALLOWED) * amount
    ]


def _by_name(found: Iterable[Row]) -> dict[tuple[str, str], Row]:
    return {(row.case.key, row.name): row for row in found if row.name.startswith(OURS)}


def _differences(old: Results, new: Results) -> list[str]:
    """Names of what differs in the machine and the settings."""
    return [
        f"{key} ({of[0].get(key)} and {of[1].get(key)})"
        for part in ("machine", "settings")
        for of in [(old.about[part], new.about[part])]
        for key in sorted({*of[0], *of[1]})
        if of[0].get(key) != of[1].get(key)
    ]


def _cells(change: Change) -> list[str]:
    ratios = (f"{each} ({each.interval})" for each in (change.old, change.new))
    return [change.key, change.name, *ratios]
