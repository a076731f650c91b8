"""The tabular experiment: small data sets of different shapes share the hidden layers of one MLP."""

import os
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsn2.checkpoint import load, read_metadata
from rsn2.experiments.config import Config, ConfigError
from rsn2.experiments.csv_file import CsvFile
from rsn2.experiments.experiment import Control, Experiment, Problem, Stage, Task
from rsn2.experiments.measures import mean_squared_error
from rsn2.experiments.tables import Scaling, file_sha256, load_split
from rsn2.nn import PerTask
from rsn2.sealed import CheckpointError
from rsn2.training import predict

_KIND = "tabular"


class TabularNet(nn.Module):
    """Own input layer -> shared hidden layers -> own head, with ReLU between.

    Args:
        hidden: output width of each shared layer; the input layers put out ``hidden[0]``.
        sizes: task -> (features, outputs).
    """

    def __init__(self, hidden: tuple[int, ...], sizes: Mapping[str, tuple[int, int]]):
        super().__init__()
        self.input = PerTask({task: nn.Linear(features, hidden[0]) for task, (features, _) in sizes.items()})
        widths = (hidden[0], *hidden)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = PerTask({task: nn.Linear(hidden[-1], outputs) for task, (_, outputs) in sizes.items()})

    def forward(self, x: Tensor) -> Tensor:
        """``[n, features]`` of the active task to ``[n, outputs]``."""
        x = F.relu(self.input(x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        out: Tensor = self.head(x)
        return out


def experiment(config: Config) -> Experiment:
    """Read the data of a configuration and say what is to be run on it.

    The settings of the experiment hold the SHA-256 of every CSV file, so that a run is of these files alone.

    Raises:
        ConfigError: if a data set is not as its task says.
        FileNotFoundError: if a CSV file is missing.
        MissingPackageError: if scikit-learn is not installed.
    """
    stages = []
    controls = {}
    scalings = {}
    files: dict[str, str] = {}

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            return rebuild(metadata)

    for task in config.tasks:
        # The hash comes first: a file that changes in between belongs to no later run.
        if task.target is not None:
            files[task.name] = file_sha256(config.folder / task.data)
        split = load_split(task, config.folder)
        scalings[task.name] = split.scaling
        problem = Problem.of(
            split.train, split.val, split.test, split.scaling.classes or (), partial(_mse, split.scaling)
        )
        stages.append(Stage((Task(task.name, problem, task.density, control=task.name),), task.training))
        controls[task.name] = Control(task.name, problem, task.training, build)
    metadata = {
        "experiment": _KIND,
        "config": config.to_json(),
        "tasks": {name: scaling.to_json() for name, scaling in scalings.items()},
    }
    return Experiment(
        build=build,
        rebuild=f"{__name__}:{rebuild.__name__}",
        stages=stages,
        allocation=config.allocation,
        controls=controls,
        metadata=metadata,
        settings={**config.to_json(), "data": files},
    )


def rebuild(metadata: Mapping[str, Any]) -> nn.Module:
    """The plain network that a checkpoint's metadata describes, with weights drawn anew.

    Raises:
        CheckpointError: if the metadata is not of a tabular experiment.
    """
    scalings = _scalings(metadata)
    hidden = tuple(metadata["config"]["hidden"])
    return TabularNet(hidden, {name: (len(each.features), each.outputs) for name, each in scalings.items()})


def predict_csv(checkpoint: str | os.PathLike[str], task: str, path: Path) -> list[str]:
    """Answers for the rows of a CSV file: names of classes, or values in the target's units.

    Args:
        checkpoint: of a tabular experiment.
        task: one of its tasks.
        path: a file whose header has exactly the task's features, in any order.

    Raises:
        CheckpointError: if the checkpoint is damaged or not of a tabular experiment.
        ConfigError: if it has no such task, columns are missing or too many, a field is no number or too large for
            float32 after scaling, or the network's outputs for a row are not finite; names the line.
        FileNotFoundError: if a file is missing.
    """
    metadata = read_metadata(checkpoint)
    scalings = _scalings(metadata)
    if task not in scalings:
        raise ConfigError(f"task: {checkpoint} has no task {task!r}. There are {list(scalings)}.")
    scaling = scalings[task]
    file = CsvFile.read(path)
    missing = [name for name in scaling.features if name not in file.header]
    extra = [name for name in file.header if name not in scaling.features]
    if missing or extra:
        raise ConfigError(f"{path}: columns missing: {missing}; columns that are no features: {extra}.")
    if not file.rows:
        return []
    values = file.numbers(scaling.features)
    x = scaling.inputs(values)
    if unfit := (~torch.isfinite(x)).nonzero().tolist():
        row, column = unfit[0]
        raise ConfigError(
            f"{file.place(row, scaling.features[column])}: expected a number that float32 can hold after scaling. "
            f"Got {values[row, column]}."
        )
    outputs = predict(load(checkpoint, rebuild(metadata)), task, x)
    if unfit := (~torch.isfinite(outputs)).nonzero().tolist():
        row, _ = unfit[0]
        raise ConfigError(f"{file.place(row)}: the network's outputs are not finite: {outputs[row].tolist()}.")
    if scaling.classes is not None:
        return [scaling.classes[number] for number in outputs.argmax(dim=1).tolist()]
    return [str(value) for value in scaling.values(outputs).tolist()]


def _scalings(metadata: Mapping[str, Any]) -> dict[str, Scaling]:
    if metadata.get("experiment") != _KIND:
        raise CheckpointError("checkpoint: expected one of `rsn2 train`; this one says nothing of its data.")
    return {name: Scaling.from_json(content) for name, content in metadata["tasks"].items()}


def _mse(scaling: Scaling, outputs: Tensor, target: Tensor) -> float:
    """Mean squared error in the target's units."""
    return mean_squared_error(scaling.values(outputs), scaling.values(target))
