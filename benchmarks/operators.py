"""Operators against what a user would run instead: the cases of docs/performance.md, measured as by `rsn2 bench`.

    python benchmarks/operators.py --name NAME [--threads 1 2]

writes results/operators-NAME-threads-1.json and so on, which docs/performance.md is made from. An interrupted run goes
on with the same command.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rsn2.bench import report
from rsn2.bench.analysis import rows
from rsn2.bench.baselines import DENSE, OURS
from rsn2.bench.cases import Case
from rsn2.bench.measure import Record, Settings
from rsn2.bench.noise import speed
from rsn2.bench.report import Table
from rsn2.bench.results import Results, run

ROOT = Path(__file__).parents[1]
DENSITIES = (0.05, 0.1, 0.2, 0.25, 0.5)
PROBLEMS = {
    "linear 512 x 1000 x 1000": Case("linear", (1000, 1000), 512),
    "linear 512 x 4096 x 4096": Case("linear", (4096, 4096), 512),
    "linear 64 x 1000 x 1000": Case("linear", (1000, 1000), 64),
    "linear 1 x 4096 x 4096": Case("linear", (4096, 4096), 1),
    "linear 1 x 1000 x 1000": Case("linear", (1000, 1000), 1),
    "linear 512 x 1000 x 1000, bf16": Case("linear", (1000, 1000), 512, dtype="bfloat16"),
    "conv 3x3, 64 -> 64, 28 x 28, batch 64": Case("conv2d", (64, 64, 28), 64),
}
OTHERS = {"x dense": DENSE, "x masked": "masked", "x torch.mv": "torch.mv", "x CSR": "torch CSR"}
SETTINGS = Settings(seconds=0.2, limit=10.0)


def cases() -> list[Case]:
    """Every problem at every density, forward and in training."""
    grid = itertools.product(PROBLEMS.values(), DENSITIES, (False, True))
    return [replace(problem, density=density, training=training) for problem, density, training in grid]


def table(results: Results) -> Table:
    """A line per problem and density: how many times as fast as each other call, forward and in training."""
    half = [*OTHERS, "of bound"]
    made = Table(
        "", ["problem", "density", "backend", *(f"forward: {half[0]}", *half[1:]), f"training: {half[0]}", *half[1:]]
    )
    reached = {row.case: f"{row.fraction:.0%}" for row in rows(results.records, results.peak) if row.ours}
    records = {record["key"]: record for record in results.records}
    for (name, problem), density in itertools.product(PROBLEMS.items(), DENSITIES):
        both = [replace(problem, density=density, training=training) for training in (False, True)]
        cells = [cell for case in both for cell in (*_speeds(records[case.key]), reached.get(case, ""))]
        made.rows.append([name, f"{density:g}", records[both[0].key].get("chosen", ""), *cells])
    return made


def _speeds(record: Record) -> Iterator[str]:
    """How many times as fast as each of the OTHERS this package is in a case; "about" that of a call timed once."""
    seconds = record.get("seconds", {})
    for other in OTHERS.values():
        if other in seconds and OURS in seconds:
            yield str(speed(record, OURS, other))
        else:
            slow = record.get("slow", {}).get(other)
            yield f"about {slow / statistics.median(seconds[OURS]):.0f}" if slow and OURS in seconds else ""


def main() -> None:
    """Measure all, print a table per number of threads, write a file for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the machine, in the names of the files")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="each of these numbers of threads")
    arguments = parser.parse_args()
    console = Console(width=190)
    for threads in arguments.threads:
        name = f"operators-{arguments.name}-threads-{threads}"
        results = run(cases(), replace(SETTINGS, threads=threads), ROOT / "runs" / name)
        results.write(ROOT / "results" / f"{name}.json")
        console.print(table(results).rich(), *report.summary(results), f"written to results/{name}.json", sep="\n")


if __name__ == "__main__":
    main()
