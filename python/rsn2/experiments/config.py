"""The TOML file of a tabular experiment, checked key by key."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rsn2.allocate import Criterion, Rescale, Scope
from rsn2.experiments.settings import Allocation, OptimizerName, Training
from rsn2.nn.names import check_task_name

Kind = Literal["classification", "regression"]
SKLEARN_SETS = ("breast_cancer", "diabetes", "digits", "wine")

# Densities such as 5 x 0.2 add to 1 only up to the rounding of binary fractions.
_SUM_TOLERANCE = 1e-9


class ConfigError(ValueError):
    """A configuration has an unknown key or a value that cannot be; the message names file, table and key."""


@dataclass(frozen=True)
class TaskConfig:
    """One ``[[tasks]]`` table.

    Attributes:
        name: of the task.
        data: "sklearn:<name>", or the path of a CSV file, from the folder of the configuration.
        kind: "classification" or "regression".
        density: share of every shared layer that the task gets.
        target: column of the CSV file that is predicted; None for scikit-learn's sets.
        training: the settings of ``[training]`` with this task's own in their place.
    """

    name: str
    data: str
    kind: Kind
    density: float
    target: str | None
    training: Training


@dataclass(frozen=True)
class Config:
    """A whole file.

    Attributes:
        hidden: output width of each shared layer. Each task's input layer puts out ``hidden[0]`` values.
        training: defaults for all tasks; its seed also draws the initial weights.
        allocation: how the weights are chosen.
        tasks: in the order of their training.
        folder: of the file; no part of the settings, so that a project can be moved.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    training: Training = field(default_factory=Training)
    allocation: Allocation = field(default_factory=Allocation)
    tasks: tuple[TaskConfig, ...] = ()
    folder: Path = Path()

    def to_json(self) -> dict[str, Any]:
        """The settings, as JSON can hold them."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


class _Rule(NamedTuple):
    """What a key's value must be: in words, and as a check."""

    expected: str
    holds: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _one_of(*choices: str) -> _Rule:
    return _Rule(f"one of {list(choices)}", lambda value: isinstance(value, str) and value in choices)


_TEXT = _Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")
_COUNT = _Rule("an int of at least 1", lambda value: _is_int(value) and value >= 1)
_NOT_NEGATIVE = _Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
_POSITIVE = _Rule("a number above 0", lambda value: _is_number(value) and value > 0)

_NETWORK = {
    "hidden": _Rule(
        "a list of at least one int, each at least 1",
        lambda value: isinstance(value, list) and len(value) > 0 and all(map(_COUNT.holds, value)),
    )
}
_TRAINING = {
    "optimizer": _one_of(*get_args(OptimizerName)),
    "lr": _POSITIVE,
    "lr_patience": _COUNT,
    "lr_factor": _Rule("a number in (0, 1)", lambda value: _is_number(value) and 0 < value < 1),
    "weight_decay": _NOT_NEGATIVE,
    "momentum": _Rule("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "patience": _COUNT,
    "min_delta": _NOT_NEGATIVE,
    "seed": _Rule("an int of at least 0", lambda value: _is_int(value) and value >= 0),
}
_ALLOCATION = {
    "criterion": _one_of(*get_args(Criterion)),
    "scope": _one_of(*get_args(Scope)),
    "rescale": _one_of(*get_args(Rescale)),
    "flip": _Rule("true or false", lambda value: isinstance(value, bool)),
    "samples": _COUNT,
    "granularity": _Rule(
        "[rows, columns], two ints of at least 1",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_COUNT.holds, value)),
    ),
}
_TASK = {
    "name": _TEXT,
    "data": _TEXT,
    "kind": _one_of(*get_args(Kind)),
    "density": _Rule("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1),
}
_TABLES = ("network", "training", "allocation", "tasks")


def read_config(path: Path) -> Config:
    """Read and check a configuration.

    Raises:
        ConfigError: if the file is no TOML, a key is unknown or missing, or a value cannot be.
        FileNotFoundError: if there is no such file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    for key, value in content.items():
        if key not in _TABLES:
            raise ConfigError(f"{path}: unknown table [{key}]. There are {list(_TABLES)}.")
        if key != "tasks" and not isinstance(value, dict):
            raise ConfigError(f"{path}: {key}: expected a table. Got {value!r}.")
    tables = content.get("tasks")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: expected at least one [[tasks]] table.")
    network = _checked(f"{path}: [network]", content.get("network", {}), _NETWORK)
    allocation = _checked(f"{path}: [allocation]", content.get("allocation", {}), _ALLOCATION)
    if "granularity" in allocation:
        allocation["granularity"] = tuple(allocation["granularity"])
    where = f"{path}: [training]"
    defaults = _checked(where, content.get("training", {}), _TRAINING)
    config = Config(
        hidden=tuple(network.get("hidden", Config.hidden)),
        training=_training(where, defaults),
        allocation=Allocation(**allocation),
        tasks=tuple(_task(path, number, table, defaults) for number, table in enumerate(tables, start=1)),
        folder=path.parent,
    )
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: [[tasks]]: expected different names. Got {names}.")
    total = sum(task.density for task in config.tasks)
    if total > 1 + _SUM_TOLERANCE:
        raise ConfigError(f"{path}: [[tasks]]: the densities add to {total:.4g}; expected at most 1.")
    return config


def _checked(where: str, table: Mapping[str, Any], rules: Mapping[str, _Rule]) -> dict[str, Any]:
    """The table itself, once every key is known and every value holds."""
    for key, value in table.items():
        if key not in rules:
            raise ConfigError(f"{where}: unknown key {key!r}. There are {list(rules)}.")
        if not rules[key].holds(value):
            raise ConfigError(f"{where} {key}: expected {rules[key].expected}. Got {value!r}.")
    return dict(table)


def _training(where: str, table: Mapping[str, Any]) -> Training:
    training = Training(**table)
    if training.momentum and training.optimizer != "sgd":
        raise ConfigError(f"{where} momentum: only 'sgd' has one. The optimizer is {training.optimizer!r}.")
    return training


def _task(path: Path, number: int, table: Mapping[str, Any], defaults: Mapping[str, Any]) -> TaskConfig:
    where = f"{path}: [[tasks]] {table.get('name', f'number {number}')!r}"
    values = _checked(where, table, {**_TASK, "target": _TEXT, **_TRAINING})
    for key in _TASK:
        if key not in values:
            raise ConfigError(f"{where}: the key {key!r} is missing.")
    try:
        check_task_name(values["name"])
    except ValueError as error:
        raise ConfigError(f"{where} name: {error}") from error
    own = {key: values[key] for key in _TRAINING if key in values}
    return TaskConfig(
        name=values["name"],
        data=_data(where, values["data"], values.get("target")),
        kind=values["kind"],
        density=values["density"],
        target=values.get("target"),
        training=_training(where, {**defaults, **own}),
    )


def _data(where: str, data: str, target: str | None) -> str:
    """The data as written, once it goes with the target."""
    scheme, _, name = data.partition(":")
    if scheme == "sklearn":
        if name not in SKLEARN_SETS:
            raise ConfigError(f"{where} data: expected one of {list(SKLEARN_SETS)} of sklearn. Got {name!r}.")
        if target is not None:
            raise ConfigError(f"{where} target: {data} has a target of its own; the key is for CSV files.")
        return data
    if target is None:
        raise ConfigError(f"{where} target: missing; name the column of {data!r} to predict.")
    return data
