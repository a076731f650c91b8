"""Pictures of losses: written as PNG files, and pictures of their data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from rsn2.experiments import plots

RSN2, CONTROL = "#0072b2", "#d55e00"


def curves(*tasks: str, control: bool = True, last: float = 0.5) -> dict[str, Any]:
    losses = {task: {"train": [2.0, 1.0, 0.4], "val": [2.1, 1.2, last]} for task in tasks}
    return {"rsn2": losses, **({"control": {tasks[0]: {"train": [1.8], "val": [1.9]}}} if control else {})}


def stages(last: float = 0.1) -> list[dict[str, Any]]:
    return [
        {"trained": ["mnist", "fashion"], "losses": {"mnist": 0.1, "fashion": 0.4}},
        {"trained": ["boston"], "losses": {"mnist": 0.1, "fashion": 0.4, "boston": 0.011}},
        {"trained": ["imdb"], "losses": {"mnist": last, "fashion": 0.4, "boston": 0.011, "imdb": 0.45}},
    ]


def drawn(path: Path) -> Any:
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    return imread(path)[..., :3]


def has(picture: Any, colour: str) -> bool:
    return bool((np.abs(picture - to_rgb(colour)).max(axis=2) < 0.02).any())


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_learning_curves_show_the_network_and_its_controls(count: int, tmp_path: Path) -> None:
    tasks = [f"task_{number}" for number in range(count)]
    plots.learning_curves(curves(*tasks), tmp_path / "both.png")
    plots.learning_curves(curves(*tasks, control=False), tmp_path / "alone.png")
    both, alone = drawn(tmp_path / "both.png"), drawn(tmp_path / "alone.png")
    assert (has(both, RSN2), has(both, CONTROL)) == (True, True)
    assert (has(alone, RSN2), has(alone, CONTROL)) == (True, False)


def test_learning_curves_follow_the_losses(tmp_path: Path) -> None:
    for name, last in (("first", 0.5), ("same", 0.5), ("other", 0.9)):
        plots.learning_curves(curves("a", "b", last=last), tmp_path / f"{name}.png")
    first, same, other = (drawn(tmp_path / f"{name}.png") for name in ("first", "same", "other"))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_task_losses_show_what_was_forgotten(tmp_path: Path) -> None:
    for name, last in (("kept", 0.1), ("same", 0.1), ("forgotten", 0.2)):
        plots.task_losses(stages(last), tmp_path / f"{name}.png")
    kept, same, forgotten = (drawn(tmp_path / f"{name}.png") for name in ("kept", "same", "forgotten"))
    assert np.array_equal(kept, same)
    assert not np.array_equal(kept, forgotten)
    assert all(has(kept, colour) for colour in ("tab:blue", "tab:orange", "tab:green", "tab:red"))


def test_task_losses_of_one_stage_and_of_zero_are_drawn(tmp_path: Path) -> None:
    plots.task_losses(stages()[:1], tmp_path / "one.png")
    plots.task_losses([{"trained": ["a"], "losses": {"a": 0.0}}], tmp_path / "zero.png")
    assert has(drawn(tmp_path / "one.png"), "tab:orange")
    assert has(drawn(tmp_path / "zero.png"), "tab:blue")


def test_pictures_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curves: expected at least one task"):
        plots.learning_curves({"rsn2": {}}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="stages: expected at least one with a loss"):
        plots.task_losses([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
