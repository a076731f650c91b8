"""The folder of a run: its files, and what is needed to go on where it was interrupted."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PICTURES = ("ownership", "curves", "losses")
"""Who owns which weight, loss over the epochs, test losses over the stages of training."""


class RunError(RuntimeError):
    """A run cannot go on in its folder."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        outside: a file of the run that is elsewhere; None: there is none.

    Attributes:
        report: JSON, written at the end.
        checkpoint: the finished network.
        events: folder for TensorBoard.
    """

    def __init__(self, path: Path, outside: Path | None = None):
        self.path = path
        self.report = path / "report.json"
        self.checkpoint = path / "net.safetensors"
        self.events = path / "tensorboard"
        self._state = path / "run.json"
        self._resume = path / "resume"
        self._outside = [outside] if outside is not None else []
        self._settings: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._start = time.perf_counter()

    def enter(self, settings: Mapping[str, Any], fresh: bool = False) -> None:
        """Make the folder ready for a run with ``settings`` (JSON), or for going on with one.

        Args:
            settings: all that determines the run's result.
            fresh: remove an earlier run first: the files named here, and nothing else.

        Raises:
            RunError: if the folder holds a run with other settings.
        """
        # As they come back from a file, so that the two compare.
        self._settings = json.loads(json.dumps(settings))
        if fresh:
            for file in (self._state, self.report, self.checkpoint, *map(self.picture, PICTURES), *self._outside):
                file.unlink(missing_ok=True)
            for each in (self._resume, self.events):
                shutil.rmtree(each, ignore_errors=True)
        self._resume.mkdir(parents=True, exist_ok=True)
        state = _read(self._state)
        if state is None:
            state = {"settings": self._settings, "seconds": 0.0}
        if not (isinstance(known := state.get("settings"), dict) and isinstance(state.get("seconds"), float)):
            raise RunError(f"{self._state}: not written by a run; start anew with --fresh.")
        different = [key for key in {*known, *self._settings} if known.get(key) != self._settings.get(key)]
        if different:
            raise RunError(
                f"{self.path} holds a run with other settings ({', '.join(sorted(different))}): choose "
                "another folder, or start anew with --fresh."
            )
        self._seconds_before = state["seconds"]
        self.keep_time()

    def picture(self, name: str) -> Path:
        """Where one of `PICTURES` is drawn."""
        return self.path / f"{name}.png"

    def resume_file(self, name: str) -> Path:
        """Where `rsn2.fit` keeps the training called ``name``."""
        return self._resume / f"{name}.safetensors"

    def keep_time(self) -> float:
        """Write down, and return, the seconds that the run has taken over all its starts."""
        seconds = self._seconds_before + time.perf_counter() - self._start
        write_json(self._state, {"settings": self._settings, "seconds": seconds})
        return seconds

    def read_report(self) -> dict[str, Any] | None:
        """The report of a run that came to its end, else None."""
        return _read(self.report) if self.checkpoint.exists() else None

    def write_report(self, content: Mapping[str, Any]) -> None:
        """Write ``report.json``."""
        write_json(self.report, content)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except ValueError as error:
        raise RunError(f"{error}; start anew with --fresh.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a table in JSON. Got {type(content).__name__}; start anew with --fresh.")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: names the file, if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as a whole; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
