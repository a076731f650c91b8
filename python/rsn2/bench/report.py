"""The tables of a run: for the terminal, and as Markdown."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from rsn2 import markdown
from rsn2.bench.analysis import DISPATCH_ALLOWED, Row, choices, growths, rows
from rsn2.bench.baselines import OURS
from rsn2.bench.cases import PRODUCTS, Case
from rsn2.bench.measure import Record
from rsn2.bench.memory import KINDS
from rsn2.bench.noise import CONTROL_ALLOWED, INTERVAL_ALLOWED
from rsn2.bench.results import Results

_BUSY = 0.5
_MARKS = (
    f"!: the baseline, timed twice, differed from itself by more than {CONTROL_ALLOWED:.0%}. ~: the passes differ, and "
    f"their interval reaches further than {INTERVAL_ALLOWED:.0%} from the ratio, as another run's ratio may."
)


@dataclass
class Table:
    """Rows of text under a header; the first column to the left, the others to the right."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self, level: int = 2) -> str:
        """As Markdown, under a heading of this level."""
        parts = [f"{'#' * level} {self.title}", self.note, markdown.table(self.header, self.rows)]
        return "\n\n".join(part for part in parts if part)

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number else "left")
        for line in self.rows:
            table.add_row(*line)
        return table


def summary(results: Results) -> list[str]:
    """What was measured where, and whether it can be judged: a sentence per line."""
    machine, peak = results.about["machine"], results.peak
    cpu = f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} of {machine['cores']} cores"
    rates = ", ".join(f"{2e-9 * rate:.4g} GFLOP/s in {name}" for name, rate in peak.items() if name != "bytes")
    lines = [
        f"{machine.get('gpu', cpu)}, torch {machine['torch']}, commit {results.about['commit']}.",
        f"Measured peaks: a copy moves {1e-9 * peak['bytes']:.4g} GB/s; a large product reaches {rates}.",
        f"Noise: {results.verdict}.",
    ]
    taken = sum(len(found["seconds"][found["baseline"]]) for found in results.records if "seconds" in found)
    loud = sum(found.get("loud", 0) for found in results.records)
    lines.append(f"{loud} of {taken} rounds were taken although something else slowed the core.")
    busy = [load for load in results.loads if load is not None and load > _BUSY]
    if busy:
        lines.append(f"Others were at work: up to {max(busy):.1f} processes wanted to run before the run began.")
    return lines + [f"WRONG RESULT: {place}." for place in results.wrong]


def tables(results: Results, *, brief: bool = False) -> list[Table]:
    """All tables of a run.

    Args:
        results: of the run.
        brief: a line for all densities of a product, in place of one for each: a whole grid has some hundred cases.
    """
    found = rows(results.records, results.peak)
    products = [row for row in found if row.case.op in PRODUCTS]
    made = [
        *([_by_density(products)] if brief else []),
        _overview([row for row in found if not brief or row.case.op not in PRODUCTS], results.records),
        _memory(results),
        _growth(results),
        _dispatch(results),
        losses(results),
        _skipped(results),
        _unavailable(results),
    ]
    return [table for table in made if table.rows]


def show(results: Results, console: Console) -> None:
    """Print all tables."""
    for table in tables(results):
        console.print(table.rich(), "")
    for line in summary(results):
        console.print(line, highlight=False)


def write(results: Results, path: Path) -> None:
    """All tables as one Markdown file, and one more of every single call."""
    made = [*tables(results), _speeds(rows(results.records, results.peak), results.records)]
    parts = ["# Benchmarks", *summary(results), *(table.markdown() for table in made)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _overview(found: list[Row], records: Iterable[Record]) -> Table:
    """A line per case: this package beside the baseline and the best of the other calls."""
    header = ["case", "baseline", "time", "reached", "rsn2 runs", "time", "reached", "x baseline", "passes"]
    table = Table(
        "rsn2 beside its baseline",
        [*header, "fastest other", "x that"],
        note=f"reached: of the bound. {_MARKS} tables.md has a line for every call.",
    )
    chosen = _chosen(records)
    for case, calls in _by_case(found).items():
        base, ours = calls[0], next((row for row in calls if row.ours), None)
        if ours is None:  # why is in another table
            table.rows.append(
                [case.key, base.name, _time(base.seconds), f"{base.fraction:.0%}", "not timed", *[""] * 6]
            )
            continue
        others = [row for row in calls[1:] if not row.name.startswith(OURS)]
        other = min(others, key=lambda row: row.seconds) if others else None
        table.rows.append(
            [
                case.key,
                base.name,
                _time(base.seconds),
                f"{base.fraction:.0%}",
                chosen.get(case.key, ""),
                _time(ours.seconds),
                f"{ours.fraction:.0%}",
                _speed(ours),
                ours.speed.interval,
                "" if other is None else other.name,
                "" if other is None else f"{other.seconds / ours.seconds:.2f}",
            ]
        )
    return table


def _by_density(found: list[Row]) -> Table:
    """How many times as fast as its baseline this package is: a line per case, a column per density."""
    ours = [row for row in found if row.ours]
    densities = sorted({row.case.density for row in ours})
    table = Table(
        "Speed over the baseline by density",
        ["case", *(f"{density:g}" for density in densities)],
        note=f"How many times as fast as F.linear, as F.conv2d, or as a dense product per task. {_MARKS}",
    )
    lines: dict[str, dict[float, str]] = {}
    for row in ours:
        name = row.case.key.replace(f", density {row.case.density:g}", "")
        lines.setdefault(name, {})[row.case.density] = _speed(row)
    table.rows += [[name, *(cells.get(density, "") for density in densities)] for name, cells in lines.items()]
    return table


def _speeds(found: list[Row], records: Iterable[Record]) -> Table:
    table = Table(
        "Every call",
        ["case", "call", "time", "x baseline", "passes", "bound", "by", "reached"],
        note=f"x baseline: how many times as fast as the call in the first line of its case. {_MARKS}",
    )
    chosen = _chosen(records)
    last = None
    for row in found:
        name = row.name + (f" -> {chosen[row.case.key]}" if row.ours and row.case.key in chosen else "")
        table.rows.append(
            [
                row.case.key if row.case != last else "",
                name,
                _time(row.seconds),
                _speed(row),
                row.speed.interval,
                _time(row.bound_seconds),
                row.bound_by,
                f"{row.fraction:.0%}",
            ]
        )
        last = row.case
    return table


def _memory(results: Results) -> Table:
    table = Table("Memory of networks, bytes", ["case", "network", *KINDS])
    for record in results.records:
        for number, (name, kinds) in enumerate(record.get("memory", {}).items()):
            table.rows.append([record["key"] if number == 0 else "", name, *(_bytes(kinds[kind]) for kind in KINDS)])
    return table


def _growth(results: Results) -> Table:
    table = Table(
        "How costs grow",
        ["of", "over", "network", "from", "to", "exponent", "last step"],
        note="y = factor * x ^ exponent, fitted to all points; last step: the exponent between the last two.",
    )
    for of in growths(results.records):
        what = f"{of.op}, {of.what}"
        ends = (f"{_value(y, of.what)} at {x:.2g}" for x, y in ((of.xs[0], of.ys[0]), (of.xs[-1], of.ys[-1])))
        table.rows.append([what, of.axis, of.name, *ends, f"{of.exponent:.2f} ± {of.error:.2f}", f"{of.last:.2f}"])
    return table


def _dispatch(results: Results) -> Table:
    found = choices(results.records)
    missed = [choice for choice in found if not choice.good]
    good = len(found) - len(missed)
    sure = sum(choice.sure for choice in missed)
    table = Table(
        "Dispatch",
        ["case", "chosen", "best", "of the best", "passes", "sure"],
        note=f"backend=None reaches {DISPATCH_ALLOWED} of the best backend in {good} of {len(found)} cases "
        f"({good / max(1, len(found)):.0%}, wanted {DISPATCH_ALLOWED:.0%}). The others are listed: in {sure} the whole "
        f"interval is below.",
    )
    for choice in missed:
        cells = [choice.chosen, choice.best, str(choice.reached), choice.reached.interval]
        table.rows.append([choice.case.key, *cells, "yes" if choice.sure else "no"])
    if found and not missed:
        table.rows.append(["none", *[""] * 5])
    return table


def losses(results: Results) -> Table:
    """Where a user would be better off without this package."""
    found = rows(results.records, results.peak)
    table = Table(
        "Where it loses", ["case", "fastest", "x rsn2", "x baseline"], note="rsn2 is not the fastest call there."
    )
    for case, calls in _by_case([row for row in found if row.ours or not row.name.startswith(OURS)]).items():
        best, ours = min(calls, key=lambda row: row.seconds), next((row for row in calls if row.ours), None)
        if ours is not None and best is not ours:
            cells = [f"{ours.seconds / best.seconds:.2f}", str(best.speed)]
            table.rows.append([case.key, best.name, *cells])
    return table


def _skipped(results: Results) -> Table:
    found = [[record["key"], record["skipped"]] for record in results.records if "skipped" in record]
    return Table("Skipped", ["case", "why"], found)


def _unavailable(results: Results) -> Table:
    """Each reason once, with the number of cases."""
    counts: dict[tuple[str, str], int] = {}
    for record in results.records:
        for name, why in record.get("unavailable", {}).items():
            counts[name, why] = counts.get((name, why), 0) + 1
    return Table("Not timed", ["call", "why", "cases"], [[name, why, str(n)] for (name, why), n in counts.items()])


def _by_case(found: Iterable[Row]) -> dict[Case, list[Row]]:
    by_case: dict[Case, list[Row]] = {}
    for row in found:
        by_case.setdefault(row.case, []).append(row)
    return by_case


def _chosen(records: Iterable[Record]) -> dict[str, str]:
    """Key of a case -> the backend that dispatch took."""
    return {record["key"]: record["chosen"] for record in records if "chosen" in record}


def _speed(row: Row) -> str:
    return str(row.speed) + ("!" if row.error > CONTROL_ALLOWED else "~" if row.speed.reach > INTERVAL_ALLOWED else "")


def _value(amount: float, what: str) -> str:
    return _time(amount) if what == "seconds" else _bytes(amount)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e6 * seconds:.3g} us"


def _bytes(amount: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f} B"
