"""Questions that the paper leaves open: how sparse a task may be, how many there can be, how late ones get weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from rsn2.allocate import AllocationError
from rsn2.blocks import Granularity
from rsn2.experiments import paper, plots, runner
from rsn2.experiments.data import Source, load
from rsn2.experiments.experiment import Experiment, Stage, Task
from rsn2.experiments.folder import write_json
from rsn2.experiments.paper import experiment2
from rsn2.experiments.paper.networks import FullyConnected, Permutation, drawn
from rsn2.experiments.paper.options import Options
from rsn2.experiments.paper.problems import problem
from rsn2.experiments.settings import Allocation

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
BLOCKS: tuple[Granularity, ...] = ((1, 1), (16, 16), (64, 64))
FALL = 0.02
"""A network holds no further task where its accuracy is this much below the first one's."""

_PIXELS = 28 * 28
_SAMPLES = 5120
FORMS = {
    "paper": Allocation(samples=_SAMPLES),
    "flip": Allocation(flip=True, samples=_SAMPLES),
    "fan_in": Allocation(rescale="fan_in", samples=_SAMPLES),
    "fan_in, flip": Allocation(rescale="fan_in", flip=True, samples=_SAMPLES),
    "fan_in, flip, column": Allocation(rescale="fan_in", flip=True, scope="column", samples=_SAMPLES),
}
"""How weights are chosen: as in the paper, and with what helps late tasks."""
COPIES, COPY_DENSITY = 5, 0.2

# As the paper chooses them, later tasks would find dead units only.
_ALLOCATION = FORMS["fan_in, flip, column"]


def sparsity(
    number: int,
    options: Sequence[Options],
    source: Source,
    out: Path,
    results: Path,
    *,
    densities: Sequence[float] = DENSITIES,
    blocks: Sequence[Granularity] = BLOCKS,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> Path:
    """Accuracy of an experiment's tasks against the density, and against the blocks that are claimed at its density.

    Args:
        number: of the experiment.
        options: of the runs, one for each seed.
        source: where the data is.
        out: folder of the runs, a folder for each.
        results: folder for ``study-sparsity-experiment-N.json`` and the picture beside it.
        densities: of each task.
        blocks: rows and columns.
        fresh, device, console: as for :func:`rsn2.experiments.runner.run`.

    Returns:
        The JSON file: "points" with "density", "blocks", "seed", "task", "metric", "value",
        "control" and "seconds_per_epoch".

    A setting that leaves a task without room is left out.

    Raises:
        What :func:`rsn2.experiments.paper.run` raises; an AllocationError only if nothing can run.
    """
    points: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    variants: list[tuple[str, dict[str, Any]]] = [(f"density-{each:g}", {"density": each}) for each in densities]
    variants += [
        (f"blocks-{rows}x{columns}", {"granularity": None if rows == columns == 1 else (rows, columns)})
        for rows, columns in blocks
    ]
    left_out: list[AllocationError] = []
    for seed in options:
        for name, change in variants:
            folder = out / f"experiment-{number}-{name}-seed-{seed.seed}"
            runner.tell(console, f"experiment {number}, {name}, seed {seed.seed}")
            asked = replace(seed, **change)
            try:
                contents.append(paper.run(number, asked, source, folder, fresh=fresh, device=device, console=console))
            except AllocationError as error:
                runner.tell(console, f"left out: {error}")
                left_out.append(error)
                continue
            points += [
                {
                    "density": change.get("density", row["density"]),
                    "blocks": list(asked.granularity or (1, 1)),
                    "varied": "density" if "density" in change else "blocks",
                    "seed": seed.seed,
                    "task": row["name"],
                    "metric": row["metric"],
                    "value": row["rsn2"],
                    "control": row["control"],
                    "seconds_per_epoch": row["seconds"] / max(1, row["epochs"]),
                }
                for row in contents[-1]["rows"]
            ]
    if not points:
        raise left_out[0]
    kept = {key: contents[0][key] for key in ("experiment", "title", "notes", "allocation", "machine", "versions")}
    path = results / f"study-sparsity-experiment-{number}.json"
    write_json(path, {"study": "sparsity", **_asked(options), **kept, "points": points})
    plots.sparsity(points, path.with_suffix(".png"))
    return path


def tasks(
    densities: Sequence[float],
    options: Sequence[Options],
    source: Source,
    out: Path,
    results: Path,
    *,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> Path:
    """How many tasks experiment 2's network holds: MNIST, its pixels in another order for each task.

    As many tasks as fit are trained in turn; those held are the ones before the first whose accuracy is `FALL` below
    that of the first.

    Args:
        densities: of each task; a network for each.
        options, source, out, fresh, device, console: as for :func:`sparsity`.
        results: folder for ``study-tasks.json`` and the picture beside it.

    Returns:
        The JSON file: "runs" with "density", "seed", "accuracies" in the order of training, "held", "capacity",
        "bytes" and "values_changed".

    Raises:
        What :func:`rsn2.experiments.runner.run` raises.
    """
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for seed in options:
        for density in densities:
            runner.tell(console, f"tasks of density {density:g}, seed {seed.seed}")
            folder = out / f"tasks-{density:g}-seed-{seed.seed}"
            made = _permuted(density, seed, source)
            report = runner.run(made, folder, fresh=fresh, device=device, console=console)
            accuracies = [task["value"] for task in report["tasks"]]
            runs.append(
                {
                    "density": density,
                    "seed": seed.seed,
                    "accuracies": accuracies,
                    "held": held(accuracies),
                    "capacity": report["continual"]["capacity"],
                    "bytes": report["bytes"]["network"]["weights"],
                    "epochs": [task["epochs"] for task in report["tasks"]],
                    "values_changed": sum(task["values_changed"] for task in report["tasks"]),
                }
            )
    path = results / "study-tasks.json"
    kept = {key: report[key] for key in ("allocation", "machine", "versions")}
    write_json(path, {"study": "tasks", **_asked(options), **kept, "runs": runs})
    plots.in_order([(f"density {run['density']:g}", run["accuracies"]) for run in runs], path.with_suffix(".png"))
    return path


def allocation(
    options: Sequence[Options],
    source: Source,
    out: Path,
    results: Path,
    *,
    forms: Mapping[str, Allocation] = FORMS,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> Path:
    """What late tasks learn: experiment 2's network, filled with `COPIES` tasks that are all Fashion-MNIST.

    Equal tasks differ in nothing but what the ones before them left.

    Args:
        options, source, out, fresh, device, console: as for :func:`sparsity`.
        results: folder for ``study-allocation.json`` and the picture beside it.
        forms: name -> how weights are chosen; a network for each.

    Returns:
        The JSON file: "runs" with "form", "seed", "accuracies" in the order of training, "epochs" and
        "values_changed".

    Raises:
        What :func:`rsn2.experiments.runner.run` raises.
    """
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for seed in options:
        for form, how in forms.items():
            runner.tell(console, f"{COPIES} copies, {form}, seed {seed.seed}")
            folder = out / f"allocation-{form.replace(', ', '-')}-seed-{seed.seed}"
            made = _copies(how, seed, source)
            report = runner.run(made, folder, fresh=fresh, device=device, console=console)
            runs.append(
                {
                    "form": form,
                    "seed": seed.seed,
                    "accuracies": [task["value"] for task in report["tasks"]],
                    "epochs": [task["epochs"] for task in report["tasks"]],
                    "values_changed": sum(task["values_changed"] for task in report["tasks"]),
                }
            )
    path = results / "study-allocation.json"
    kept = {key: report[key] for key in ("machine", "versions")}
    write_json(path, {"study": "allocation", **_asked(options), **kept, "runs": runs})
    plots.in_order([(run["form"], run["accuracies"]) for run in runs], path.with_suffix(".png"))
    return path


def held(accuracies: Sequence[float]) -> int:
    """Number of tasks before the first whose accuracy is `FALL` below the first one's."""
    fallen = (place for place, value in enumerate(accuracies) if value < accuracies[0] - FALL)
    return next(fallen, len(accuracies))


def rebuild(metadata: Mapping[str, Any]) -> nn.Module:
    """The plain network that the metadata of a checkpoint of :func:`tasks` describes."""
    return _network(metadata["seed"], metadata["tasks"])


def _asked(options: Sequence[Options]) -> dict[str, Any]:
    return {"options": [asdict(each) for each in options], "notes": options[0].notes()}


def _permuted(density: float, options: Options, source: Source) -> Experiment:
    count = math.floor(1 / density + 1e-9)
    mnist = load(["mnist"], source)["mnist"]
    digits = problem(mnist, options.samples)
    names = [f"order_{number}" for number in range(count)]
    training = options.training()
    return Experiment(
        build=partial(_network, options.seed, names),
        rebuild=f"{__name__}:{rebuild.__name__}",
        stages=[Stage((Task(name, digits, density),), training) for name in names],
        allocation=options.allocation(_ALLOCATION),
        metadata={"seed": options.seed, "tasks": names},
        settings={"study": "tasks", "options": asdict(options), "data": dict(mnist.facts)},
    )


def _copies(how: Allocation, options: Options, source: Source) -> Experiment:
    clothes = load(["fashion_mnist"], source)["fashion_mnist"]
    fashion, training = problem(clothes, options.samples), options.training()
    outputs = {f"copy_{number}": len(fashion.classes) for number in range(1, COPIES + 1)}
    return Experiment(
        build=partial(experiment2.build, options.seed, outputs),
        rebuild="rsn2.experiments.paper:rebuild",
        stages=[Stage((Task(name, fashion, COPY_DENSITY),), training) for name in outputs],
        allocation=how,
        metadata={"experiment": 2, "seed": options.seed, "outputs": outputs},
        settings={"study": "allocation", "options": asdict(options), "data": dict(clothes.facts)},
    )


def _network(seed: int, names: Iterable[str]) -> nn.Module:
    names = list(names)

    def build() -> nn.Module:
        orders: dict[str, nn.Module] = {name: Permutation(_PIXELS, seed=place) for place, name in enumerate(names)}
        return FullyConnected([_PIXELS], dict.fromkeys(names, 10), orders)

    return drawn(build, seed)
