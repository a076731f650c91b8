"""What the results files of one experiment share in all seeds, and a run that is to be written to one."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsn2.experiments.experiment import Experiment
from rsn2.experiments.folder import RunError, read_json
from rsn2.experiments.paper.options import Options
from rsn2.experiments.settings import Allocation, Training

# One results file: what `rsn2 experiment N --seed S` wrote.
Result = dict[str, Any]


def training_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How each task and each control was trained, but for the seed."""
    controls = {f"{name} (control)": settings for name, settings in result["control_training"].items()}
    return {name: _without("seed", settings=settings) for name, settings in (result["training"] | controls).items()}


def planned(experiment: Experiment, options: Options) -> Result:
    """What is known of a result before the run, as in its file."""
    result = {
        "options": asdict(options),
        "allocation": asdict(experiment.allocation),
        "training": {task.name: asdict(stage.training) for stage in experiment.planned for task in stage.tasks},
        "control_training": {name: asdict(each.training) for name, each in experiment.controls.items()},
    }
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """What two results, or a result and a planned one, must share, and do not: in words, with both values."""
    one, other = _kind(first), _kind(second)
    return {
        key: "; ".join(
            f"{name} {one[key].get(name)!r} and {other[key].get(name)!r}"
            for name in {**one[key], **other[key]}
            if one[key].get(name) != other[key].get(name)
        )
        for key in one
        if key in other and one[key] != other[key]
    }


def check_replaceable(path: Path, result: Mapping[str, Any]) -> None:
    """Whether a file is of a run like the planned one, so that it may take its place.

    Raises:
        RunError: if it is not; names the file, and what differs.
    """
    if not path.exists():
        return
    try:
        different = differences(read_json(path), result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: no results file of `rsn2 experiment` ({error!r}); it is not replaced.") from error
    if different:
        key = next(iter(different))
        raise RunError(
            f"{path} holds a run with other settings ({key}, there and here: {different[key]}): choose another folder "
            "with --results, or replace it with --fresh."
        )


def _kind(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What must not differ; a setting that came after a file was written had its default."""
    found = {
        # The optimizer was once its name, which "training" has.
        "options": _without("seed", "optimizer", settings=asdict(Options()) | result.get("options", {})),
        "allocation": asdict(Allocation()) | result["allocation"],
        "training": {
            f"{name} {key}": value
            for name, settings in training_of(result).items()
            for key, value in _without("seed", settings=asdict(Training()) | settings).items()
        },
    }
    if "rows" in result:
        keys = ("name", "metric", "density", "paper_rsn2", "paper_control")
        found["rows"] = {f"row {place}": [row[key] for key in keys] for place, row in enumerate(result["rows"], 1)}
        found["title"] = {"title": result["title"]}
    return found


def _without(*names: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}
