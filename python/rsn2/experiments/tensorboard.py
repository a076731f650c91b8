"""The losses and scores of a run as TensorBoard shows them."""

import shutil
from pathlib import Path
from typing import Any

from rsn2 import extras
from rsn2.training import History


class Board:
    """Event files of one run; what an earlier start of the run wrote is replaced, since a start goes over all of it.

    Losses are under ``loss/train/<name>`` and ``loss/val/<name>`` by epoch, scores of the test set under
    ``<metric>/<name>`` by stage of training.

    Args:
        folder: for the event files; None writes nothing.

    Raises:
        MissingPackageError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path | None):
        self._writer: Any = None
        if folder is not None:
            tensorboard: Any = extras.load("torch.utils.tensorboard")
            shutil.rmtree(folder, ignore_errors=True)
            self._writer = tensorboard.SummaryWriter(str(folder))

    def add_history(self, name: str, history: History) -> None:
        """The losses of a training."""
        for part, losses in (("train", history.train_loss), ("val", history.val_loss)):
            for epoch, loss in enumerate(losses, start=1):
                self._add(f"loss/{part}/{name}", loss, epoch)

    def add_score(self, name: str, metric: str, value: float, stage: int) -> None:
        """A score of the test set after a stage of training, from 1."""
        self._add(f"{metric}/{name}", value, stage)

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()
