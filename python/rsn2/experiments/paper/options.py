"""What can be asked of an experiment besides what the paper did."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from torch import nn

from rsn2.allocate import Criterion, Rescale, Scope
from rsn2.blocks import Granularity
from rsn2.experiments.experiment import Control, Problem
from rsn2.experiments.settings import Allocation, OptimizerName, Precision, Training

EPOCHS = 100
QUICK_SAMPLES = 5000
QUICK_EPOCHS = 2


@dataclass(frozen=True)
class Options:
    """Settings of a run; None is what the experiment does by itself.

    Attributes:
        seed: of the weights, the order of the samples and dropout.
        density: share of each layer's positions for each task.
        criterion, scope, rescale, flip, granularity: as for :func:`rsn2.allocate`; for ``rescale`` "none" is the
            paper's form.
        optimizer, lr: of all trainings; an optimizer that is asked for has no weight decay.
        epochs: at most, of each training.
        samples: at most, of each training part; validation and test parts shrink as it does.
        precision: of forward passes; "bfloat16" is torch's autocast.
        quick: whether this is a look at whether all works, and no result; see :meth:`as_quick`.
    """

    seed: int = 0
    density: float | None = None
    criterion: Criterion | None = None
    scope: Scope | None = None
    rescale: Rescale | Literal["none"] | None = None
    flip: bool | None = None
    granularity: Granularity | None = None
    optimizer: OptimizerName | None = None
    lr: float | None = None
    epochs: int = EPOCHS
    samples: int | None = None
    precision: Precision = "float32"
    quick: bool = False

    def as_quick(self) -> "Options":
        """The same on few samples and epochs."""
        samples = min(self.samples or QUICK_SAMPLES, QUICK_SAMPLES)
        return replace(self, samples=samples, epochs=min(self.epochs, QUICK_EPOCHS), quick=True)

    def share(self, paper: float) -> float:
        """The density, by itself the paper's."""
        return paper if self.density is None else self.density

    def allocation(self, default: Allocation) -> Allocation:
        """The experiment's way to choose weights, with what was asked for in its place."""
        asked = {
            name: getattr(self, name)
            for name in ("criterion", "scope", "flip", "granularity")
            if getattr(self, name) is not None
        }
        if self.rescale is not None:
            asked["rescale"] = None if self.rescale == "none" else self.rescale
        return replace(default, **asked)

    def training(
        self,
        batch_size: int = 512,
        patience: int = 3,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_patience: int | None = None,
    ) -> Training:
        """Early stopping as in the paper: no progress of more than 0.01 in ``patience`` epochs.

        Behind ``lr_patience`` such epochs the learning rate falls to 0.3 of itself. The paper names neither optimizer
        nor learning rate: Adam, or AdamW where there is a ``weight_decay``.
        """
        return Training(
            optimizer=self.optimizer or ("adamw" if weight_decay else "adam"),
            lr=lr if self.lr is None else self.lr,
            lr_patience=lr_patience,
            weight_decay=0.0 if self.optimizer else weight_decay,
            epochs=self.epochs,
            batch_size=batch_size,
            patience=patience,
            min_delta=0.01,
            seed=self.seed,
        )

    def control(
        self, network: str, task: str, problem: Problem, training: Training, build: Callable[[], nn.Module]
    ) -> Control:
        """A dense control; experiments that have the same ``network`` and problem train it once."""
        data = hashlib.sha256()
        for tensor in (*problem.train, *problem.val):
            data.update(tensor.contiguous().numpy().data)
        key = json.dumps([asdict(training), self.precision, len(problem.classes), data.hexdigest()])
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        return Control(task, problem, training, build, file=f"{network}-{task}-seed-{self.seed}-{digest}")

    def notes(self) -> list[str]:
        """Where a run does less than the paper, in words."""
        found = []
        if self.samples is not None:
            found.append(f"At most {self.samples} samples of each training part; the other parts shrink as it does.")
        if self.epochs < EPOCHS:
            found.append(f"At most {self.epochs} epochs of each training.")
        if self.precision != "float32":
            found.append(f"Forward passes compute in {self.precision} where torch's autocast says they may.")
        return found
