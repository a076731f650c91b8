"""Tables of numbers: read from scikit-learn or a CSV file, split in three, and standardised."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsn2 import extras
from rsn2.experiments.config import ConfigError, Kind, TaskConfig
from rsn2.experiments.csv_file import CsvFile, Numbers

TEST_SHARE = 0.30
VALIDATION_SHARE = 0.15
# Not the training seed: every run is scored on the same test samples.
SPLIT_SEED = 0
# Classes that a message lists.
_NAMED = 5


@dataclass(frozen=True)
class Table:
    """A data set as read.

    Attributes:
        features: names of the columns of ``x``.
        x: ``[samples, features]``.
        target: ``[samples]``; the number of the class, or the value.
        classes: names of the classes; None for regression.
    """

    features: tuple[str, ...]
    x: Numbers
    target: Numbers
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Scaling:
    """How one task's rows become network inputs, and its outputs become answers.

    Attributes:
        kind: "classification" or "regression".
        features: column names, in the order of the network's inputs.
        mean, scale: of each column, over the samples trained on.
        classes: names in the order of the outputs; None for regression.
        target_mean, target_scale: of a regression's target, in its units; 0 and 1 for classes.
    """

    kind: Kind
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    classes: tuple[str, ...] | None
    target_mean: float
    target_scale: float

    @classmethod
    def of(cls, kind: Kind, table: Table, rows: npt.NDArray[np.int64]) -> Self:
        """The scaling by ``rows`` of a table. A constant column keeps its scale."""
        mean, scale = _mean_and_scale(table.x[rows])
        target_mean, target_scale = 0.0, 1.0
        if table.classes is None:
            target_mean, target_scale = (float(each) for each in _mean_and_scale(table.target[rows]))
        return cls(
            kind,
            table.features,
            tuple(mean.tolist()),
            tuple(scale.tolist()),
            table.classes,
            target_mean,
            target_scale,
        )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`."""
        fields: dict[str, Any] = {}
        for key, value in content.items():
            fields[key] = tuple(value) if isinstance(value, list) else value
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @property
    def outputs(self) -> int:
        """Number of the network's outputs: one per class, or one."""
        return len(self.classes) if self.classes is not None else 1

    def inputs(self, x: Numbers) -> Tensor:
        """Rows ``[n, features]`` in their units to float32 network inputs; infinite where float32 ends."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by name
            return torch.from_numpy((x - np.array(self.mean)) / np.array(self.scale)).to(torch.float32)

    def targets(self, target: Numbers) -> Tensor:
        """Targets ``[n]`` to what the loss takes: int64 ``[n]``, or standardised float32 ``[n, 1]``."""
        if self.classes is not None:
            return torch.from_numpy(target).to(torch.int64)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by name
            standardised = torch.from_numpy((target - self.target_mean) / self.target_scale)
        return standardised.to(torch.float32).unsqueeze(1)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs of a regression, ``[n, 1]``, to float64 ``[n]`` in the target's units."""
        return outputs.squeeze(1).to(torch.float64) * self.target_scale + self.target_mean


@dataclass(frozen=True)
class Split:
    """``(x, target)`` as the network takes them, of the three parts of a data set."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    scaling: Scaling


def load_split(task: TaskConfig, folder: Path) -> Split:
    """Read a task's data and split it: 30 % test, 15 % of the rest validation, stratified by class.

    Args:
        task: whose data.
        folder: that the path of a CSV file starts from.

    Raises:
        ConfigError: if the data is not as the task says, or too large for float32; names task, column and line.
        MissingPackageError: if scikit-learn is not installed.
    """
    where = f"task {task.name!r}"
    if task.data.startswith("sklearn:"):
        table = _from_sklearn(where, task.data.removeprefix("sklearn:"), task.kind)
    else:
        assert task.target is not None, "the configuration was checked"
        table = _from_csv(where, folder / task.data, task.kind, task.target)
    rest, test = _divide(where, np.arange(len(table.target)), table, TEST_SHARE)
    train, val = _divide(where, rest, table, VALIDATION_SHARE)
    scaling = Scaling.of(task.kind, table, train)

    statistics = [*zip(scaling.features, scaling.mean, scaling.scale, strict=True)]
    statistics += [("the target", scaling.target_mean, scaling.target_scale)]
    _check_scaled(where, [name for name, *values in statistics if not np.isfinite(values).all()])

    def part(rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x, target = scaling.inputs(table.x[rows]), scaling.targets(table.target[rows])
        columns = torch.isfinite(x).all(dim=0).tolist()
        unfit = [name for name, finite in zip(scaling.features, columns, strict=True) if not finite]
        _check_scaled(where, unfit + ["the target"] * (not bool(torch.isfinite(target).all())))
        return x, target

    return Split(part(train), part(val), part(test), scaling)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_scaled(where: str, unfit: Sequence[str]) -> None:
    if unfit:
        raise ConfigError(f"{where} data: values too large for float32 after scaling, in {', '.join(unfit)}.")


def _from_sklearn(where: str, name: str, kind: Kind) -> Table:
    sets = extras.load("sklearn.datasets")
    bunch = sets.load_diabetes(scaled=False) if name == "diabetes" else getattr(sets, f"load_{name}")()
    actual: Kind = "regression" if name == "diabetes" else "classification"
    if kind != actual:
        raise ConfigError(f"{where} kind: {name} is a {actual}. Got {kind!r}.")
    classes = tuple(str(label) for label in bunch.target_names) if kind == "classification" else None
    features = tuple(str(feature) for feature in bunch.feature_names)
    return Table(features, np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64), classes)


def _from_csv(where: str, path: Path, kind: Kind, target: str) -> Table:
    file = CsvFile.read(path)
    if target not in file.header:
        raise ConfigError(f"{where} target: {path} has no column {target!r}. There are {file.header}.")
    features = tuple(name for name in file.header if name != target)
    if not features or not file.rows:
        raise ConfigError(f"{where} data: {path} has no {'rows' if features else 'features'}.")
    x = file.numbers(features)
    if kind == "regression":
        return Table(features, x, file.numbers([target])[:, 0], None)
    labels = file.labels(target)
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ConfigError(f"{where} target: column {target!r} of {path} holds one class, {classes[0]!r}.")
    number_of = {label: number for number, label in enumerate(classes)}
    return Table(features, x, np.array([number_of[label] for label in labels], np.float64), classes)


def _mean_and_scale(values: Numbers) -> tuple[Any, Any]:
    """Mean and standard deviation along the first dimension; 1 for a constant, whose deviation is but rounding."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by name
        constant = values.max(axis=0) == values.min(axis=0)
        return values.mean(axis=0), np.where(constant, 1.0, values.std(axis=0))


def _divide(
    where: str, rows: npt.NDArray[np.int64], table: Table, share: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split rows in two, the second part holding ``share`` of them."""
    selection = extras.load("sklearn.model_selection")
    strata = table.target[rows] if table.classes is not None else None
    try:
        first, second = selection.train_test_split(rows, test_size=share, random_state=SPLIT_SEED, stratify=strata)
    except ValueError as error:
        raise ConfigError(f"{where} data: {len(rows)} samples cannot be split: {_why(table, rows, error)}") from error
    return first, second


def _why(table: Table, rows: npt.NDArray[np.int64], error: ValueError) -> str:
    """Why rows cannot be split, with names for classes: scikit-learn knows their numbers."""
    if table.classes is None:
        return str(error)
    numbers, counts = np.unique(table.target[rows], return_counts=True)
    alone = [table.classes[int(number)] for number in numbers[counts < 2]]
    if not alone:
        return str(error)
    more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    return f"each class needs two of them, and there is one of {', '.join(map(repr, alone[:_NAMED]))}{more}."
