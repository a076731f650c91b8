"""The results files of the experiments, `experiment-N-seed-S.json`: read together, and figures of several seeds."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsn2.experiments.folder import read_json
from rsn2.experiments.paper.kind import Result, differences


def load_results(folder: Path) -> dict[int, list[Result]]:
    """Experiment -> its results by seed, both rising, from the files ``experiment-N-seed-S.json`` of a folder.

    Raises:
        ValueError: names the file, if one is no JSON, is of another experiment or seed than its name says or of a
            quick run, or the files of one experiment differ in what they ran.
    """
    found: dict[int, dict[int, Result]] = {}
    for path in sorted(folder.glob("experiment-*-seed-*.json")):
        if named := re.fullmatch(r"experiment-(\d+)-seed-(\d+)\.json", path.name):
            experiment, seed = map(int, named.groups())
            result: Result = read_json(path)
            if (result["experiment"], result["seed"]) != (experiment, seed):
                raise ValueError(
                    f"{path}: expected experiment {experiment}, seed {seed}. "
                    f"Got experiment {result['experiment']}, seed {result['seed']}."
                )
            if result.get("quick", False):
                raise ValueError(f"{path}: expected a whole run. Got one with --quick, which is no result.")
            known = found.setdefault(experiment, {})
            if known and (different := differences(next(iter(known.values())), result)):
                key, what = next(iter(different.items()))
                raise ValueError(f"{path}: expected the same as in the other seeds. Got another {key}: {what}.")
            known[seed] = result
    return {number: [found[number][seed] for seed in sorted(found[number])] for number in sorted(found)}


def values_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A row's figure in the seeds that have it."""
    return [row[key] for row in rows if row[key] is not None]


def average(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
