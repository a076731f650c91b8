"""The results files of the experiments, `experiment-N-seed-S.json`: read together, and figures of several seeds."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsn2.experiments.folder import read_json
from rsn2.experiments.paper.options import Options

# One results file: what `rsn2 experiment N --seed S` wrote.
Result = dict[str, Any]


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
            if known and (different := _differences(next(iter(known.values())), result)):
                raise ValueError(f"{path}: expected the same as in the other seeds. Got another {different[0]}.")
            known[seed] = result
    return {number: [found[number][seed] for seed in sorted(found[number])] for number in sorted(found)}


def values_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A row's figure in the seeds that have it."""
    return [row[key] for row in rows if row[key] is not None]


def average(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def training_of(result: Result) -> dict[str, dict[str, Any]]:
    """How each task and each control was trained, but for the seed."""
    controls = {f"{name} (control)": settings for name, settings in result["control_training"].items()}
    return {name: _without("seed", settings=settings) for name, settings in (result["training"] | controls).items()}


def _differences(first: Result, second: Result) -> list[str]:
    """What results of the same experiment must share, and do not."""
    kinds = [_kind(result) for result in (first, second)]
    return [key for key in kinds[0] if kinds[0][key] != kinds[1][key]]


def _kind(result: Result) -> dict[str, Any]:
    rows = [
        [row[key] for key in ("name", "metric", "density", "paper_rsn2", "paper_control")] for row in result["rows"]
    ]
    return {
        "title": result["title"],
        "rows": rows,
        # An option that came after a file was written had its default. That of the optimizer was once its name, which
        # "training" has.
        "options": _without("seed", "optimizer", settings=asdict(Options()) | result.get("options", {})),
        "allocation": result["allocation"],
        "training": training_of(result),
    }


def _without(*names: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}
