"""The studies on docs/experiments.md: tables from the results files that `rsn2 study` wrote, and its pictures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsn2 import markdown
from rsn2.experiments.folder import read_json
from rsn2.experiments.wording import counted, digits, listed, setting, spread

_SPARSITY = (
    "Each task's score in networks that differ in one thing: above in the density of every task, below in the blocks "
    "that are claimed, at the paper's density. Means over the seeds ± their sample standard deviation, with the number "
    "of seeds in brackets. The last line is of the dense controls."
)
_TASKS = (
    "Experiment 2's network learns MNIST in turn, with its pixels in another order for each task, until no weight is "
    "left. Held are the tasks before the first whose accuracy is two points below that of the first task."
)
_ALLOCATION = (
    "Experiment 2's network, filled with five tasks of density 0.2 that are all Fashion-MNIST: equal tasks differ in "
    "nothing but what those before them left. Lines differ in how weights are chosen: `paper` is its own form, `flip`, "
    "`fan_in` and `column` are options of `rsn2.allocate` ([method](method.md#late-tasks)). Means over the seeds ± "
    "their sample standard deviation, with the number of seeds in brackets."
)


def sections(folder: Path) -> list[str]:
    """What is on the page of the studies in a folder of results, in Markdown; nothing if there are none.

    Raises:
        ValueError: names the file, if one is no JSON or of a quick run.
    """
    parts = [part for path in sorted(folder.glob("study-sparsity-*.json")) for part in _sparsity(path)]
    if (path := folder / "study-tasks.json").exists():
        parts += _tasks(path)
    if (path := folder / "study-allocation.json").exists():
        parts += _allocation(path)
    return parts


def _read(path: Path) -> Any:
    found = read_json(path)
    if any(options["quick"] for options in found["options"]):
        raise ValueError(f"{path}: expected whole runs. Got some with --quick, which are no result.")
    return found


def _sparsity(path: Path) -> list[str]:
    found = _read(path)
    points = found["points"]
    tasks = list(dict.fromkeys(point["task"] for point in points))
    parts = [f"## How sparse a task may be: experiment {found['experiment']}", markdown.wrapped(_SPARSITY)]
    for varied in ("density", "blocks"):
        chosen = [point for point in points if point["varied"] == varied]
        rows = [
            [setting(value), *(_scores([each for each in chosen if each[varied] == value], tasks, "value"))]
            for value in _distinct([point[varied] for point in chosen])
        ]
        parts.append(markdown.table([varied, *tasks], [*rows, ["control", *_scores(points, tasks, "control")]]))
    return [*parts, _picture(path), _lines(found, points)]


def _tasks(path: Path) -> list[str]:
    found = _read(path)
    rows = [
        [
            f"{run['density']:g}",
            str(run["seed"]),
            f"{run['held']} of {len(run['accuracies'])}",
            *(f"{100 * accuracy:.1f} %" for accuracy in (run["accuracies"][0], run["accuracies"][-1])),
            f"{100 * statistics.fmean(run['accuracies']):.1f} %",
            f"{digits(run['bytes'] / 1e6)} MB",
            str(run["values_changed"]),
        ]
        for run in found["runs"]
    ]
    header = ["density", "seed", "tasks held", "first task", "last task", "mean", "size", "changed"]
    table = markdown.table(header, rows)
    heading = "## How many tasks one network holds"
    return [heading, markdown.wrapped(_TASKS), table, _picture(path), _lines(found, found["runs"])]


def _allocation(path: Path) -> list[str]:
    found = _read(path)
    runs = found["runs"]
    places = range(len(runs[0]["accuracies"]))
    rows = []
    for form in _distinct([run["form"] for run in runs]):
        own = [run for run in runs if run["form"] == form]
        scores = (spread("accuracy", [run["accuracies"][place] for run in own]) for place in places)
        rows.append([form, *scores, str(sum(run["values_changed"] for run in own))])
    header = ["form", *(f"task {place + 1}" for place in places), "changed"]
    heading = "## What late tasks learn"
    return [heading, markdown.wrapped(_ALLOCATION), markdown.table(header, rows), _picture(path), _lines(found, runs)]


def _scores(points: Sequence[Mapping[str, Any]], tasks: Sequence[str], key: str) -> list[str]:
    """A task's figure in the seeds, one for each: a control is the same beside every network."""
    cells = []
    for task in tasks:
        own = {point["seed"]: point for point in points if point["task"] == task}
        values = [point[key] for point in own.values() if point[key] is not None]
        cells.append(spread(next(iter(own.values()))["metric"], values) if own else "-")
    return cells


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _picture(path: Path) -> str:
    return f"![The same as a picture](../results/{path.stem}.png)"


def _lines(found: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    machine, seeds = found["machine"], {run["seed"] for run in runs}
    lines = [
        *found["notes"],
        *([f"Allocation: {listed(found['allocation'])}."] if "allocation" in found else []),
        f"{counted(len(seeds), 'seed')}; {machine['cpu']}, {counted(machine['threads'], 'thread')}, "
        f"device {machine.get('gpu', machine['device'])}; torch {found['versions']['torch']}.",
    ]
    return "\n".join(markdown.wrapped(f"- {line}") for line in lines)
