"""The paper's six experiments: a module each, with what it trains and the paper's figures; and the way to run one."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import nn

from rsn2.experiments import runner
from rsn2.experiments.data import DataSet, Source, load
from rsn2.experiments.experiment import Experiment
from rsn2.experiments.folder import write_json
from rsn2.experiments.paper import experiment1, experiment2, experiment3, experiment4, experiment5, experiment6
from rsn2.experiments.paper.kind import check_replaceable, planned
from rsn2.experiments.paper.options import Options
from rsn2.experiments.reload import AuditError
from rsn2.sealed import CheckpointError

__all__ = ["EXPERIMENTS", "Options", "PaperExperiment", "rebuild", "result_of", "run"]


class PaperExperiment(Protocol):
    """What the module of an experiment has."""

    @property
    def TITLE(self) -> str:
        """The experiment in a few words."""

    @property
    def DATA(self) -> tuple[str, ...]:
        """Names of its data sets."""

    @property
    def PAPER(self) -> Mapping[str, tuple[float, float]]:
        """Row -> the paper's figures for RSN2 and for the control: accuracy, or mean squared error."""

    @property
    def RATE(self) -> str:
        """Its learning rates, which the paper does not give."""

    @property
    def NOTES(self) -> tuple[str, ...]:
        """Where it differs from the paper."""

    def build(self, seed: int, outputs: Mapping[str, int]) -> nn.Module:
        """The plain network."""

    def experiment(self, sets: Mapping[str, DataSet], options: Options) -> Experiment:
        """What is run."""


EXPERIMENTS: Mapping[int, PaperExperiment] = {
    1: experiment1,
    2: experiment2,
    3: experiment3,
    4: experiment4,
    5: experiment5,
    6: experiment6,
}


def run(
    number: int,
    options: Options,
    source: Source,
    folder: Path,
    *,
    result: Path | None = None,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    tensorboard: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run an experiment in a folder, or go on with it, and return its result.

    Args:
        number: 1 to 6.
        options: what differs from the paper.
        source: where the data is.
        folder: of the run; its controls are kept beside it, in ``controls``, for other experiments with the same ones.
        result: JSON file to write besides the folder's report; None: no such file.
        fresh: as for :func:`rsn2.experiments.runner.run`, which removes ``result`` then, too.
        device, tensorboard, console: as there.

    Raises:
        MissingDataError, DataError: as :func:`rsn2.experiments.data.load`.
        RunError: as :func:`rsn2.experiments.runner.run`; or if ``result`` is of a run with other settings.
        AuditError: as there, after ``result`` is written.
        MissingPackageError: as there.
    """
    module = EXPERIMENTS[number]
    sets = load(module.DATA, source)
    facts = {name: dict(each.facts) for name, each in sets.items()}
    settings = {"experiment": number, "options": asdict(options), "data": facts}
    experiment = replace(module.experiment(sets, options), precision=options.precision, settings=settings)
    if result is not None and not fresh:
        check_replaceable(result, planned(experiment, options))
    broken = None
    try:
        report = runner.run(
            experiment,
            folder,
            fresh=fresh,
            outside=result,
            device=device,
            control_folder=folder.parent / "controls",
            tensorboard=tensorboard,
            console=console,
        )
    except AuditError as error:
        if error.report is None:
            raise
        report, broken = error.report, error
    content = result_of(number, options, report) | {"data": facts}
    if result is not None:
        write_json(result, content)
    if broken is not None:
        raise broken
    return content


def result_of(number: int, options: Options, report: Mapping[str, Any]) -> dict[str, Any]:
    """A report beside the paper's figures: the content of a results file."""
    module = EXPERIMENTS[number]
    rows = []
    for task in report["tasks"]:
        rows.append(
            {key: task[key] for key in ("name", "metric", "density")}
            | {"rsn2": task["value"], "control": task["control"]}
            | _paper(module, task["name"])
            | {key: task[key] for key in ("values_changed", "epochs", "warm_up_epochs", "seconds", "epoch_seconds")}
            | {key: task[key] for key in ("trained_with", *_CONTROLS_TRAINING)}
        )
    for ensemble in report["ensembles"]:
        members = [row for row in rows if row["name"] in ensemble["tasks"]]
        # Tasks that were trained at once share their epochs and seconds.
        trainings = list({frozenset((row["name"], *row["trained_with"])): row for row in members}.values())
        rows.append(
            {"name": ensemble["name"], "metric": ensemble["metric"], "density": sum(row["density"] for row in members)}
            | {"rsn2": ensemble["value"], "control": ensemble["control"]}
            | _paper(module, ensemble["name"])
            | {"values_changed": sum(row["values_changed"] for row in members)}
            | {key: sum(row[key] for row in trainings) for key in ("epochs", "seconds")}
            | {"epoch_seconds": statistics.fmean(row["epoch_seconds"] for row in trainings), "warm_up_epochs": 0}
            | {"trained_with": trainings[0]["trained_with"] if len(trainings) == 1 else []}
            | {key: members[0][key] for key in _CONTROLS_TRAINING}
        )
    ensembles = {each["name"]: each for each in report["ensembles"]}
    f1 = {**report["f1"], "rsn2": report["f1"]["rsn2"] | {name: each["f1"] for name, each in ensembles.items()}}
    classes = {name: report["classes"][each["tasks"][0]] for name, each in ensembles.items()} | report["classes"]
    kept: tuple[str, ...] = ("continual", "bytes", "predictions_unchanged", "reload_bitwise_equal", "losses")
    kept += ("task_losses", "allocation", "training", "control_training", "training_seconds")
    kept += ("available_backends", "machine", "versions", "seconds")
    return {
        "experiment": number,
        "title": module.TITLE,
        "seed": options.seed,
        "quick": options.quick,
        "options": asdict(options),
        "notes": [*([module.RATE] if options.lr is None else []), *module.NOTES, *options.notes()],
        "rows": rows,
        "f1": f1,
        "classes": classes,
        **{key: report[key] for key in kept},
    }


_CONTROLS_TRAINING = ("control_epochs", "control_seconds", "control_epoch_seconds")


def _paper(module: PaperExperiment, row: str) -> dict[str, float]:
    return dict(zip(("paper_rsn2", "paper_control"), module.PAPER[row], strict=True))


def rebuild(metadata: Mapping[str, Any]) -> nn.Module:
    """The plain network that a checkpoint's metadata describes, with weights drawn anew.

    Raises:
        CheckpointError: if the metadata is not of one of these experiments.
    """
    number = metadata.get("experiment")
    if not isinstance(number, int) or number not in EXPERIMENTS:
        raise CheckpointError("checkpoint: expected one of `rsn2 experiment`; this one says nothing of its network.")
    return EXPERIMENTS[number].build(metadata["seed"], metadata["outputs"])
