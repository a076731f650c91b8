"""What a run is about: problems, the tasks that are trained on them in stages, and the dense controls beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rsn2.data import Loss
from rsn2.experiments.measures import accuracy, mean_squared_error
from rsn2.experiments.settings import Allocation, Precision, Training
from rsn2.sharing import Share

Part = tuple[Tensor, Tensor]
"""``(x, target)``, the samples along the first dimension."""
Score = Callable[[Tensor, Tensor], float]
"""``score(outputs, targets)`` of a whole test set."""


@dataclass(frozen=True)
class Problem:
    """What can be learnt: data, a loss and a score.

    Attributes:
        train, val, test: the data.
        loss: ``loss(output, target) -> scalar``, the mean over the batch.
        metric: name of the score, such as "accuracy".
        score: of the answers to the test set.
        classes: names of the classes; empty for regression.
    """

    train: Part
    val: Part
    test: Part
    loss: Loss
    metric: str
    score: Score
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, train: Part, val: Part, test: Part, classes: Sequence[str], score: Score = mean_squared_error
    ) -> "Problem":
        """Which class it is: by cross entropy and accuracy. Without classes, values: by squared error and `score`."""
        if classes:
            return cls(train, val, test, F.cross_entropy, "accuracy", accuracy, tuple(classes))
        return cls(train, val, test, F.mse_loss, "mse", score)


@dataclass(frozen=True)
class Task:
    """A problem that gets weights of its own in the network.

    Attributes:
        name: of the task.
        problem: what it learns.
        density: share of the positions of every layer that it gets weights in.
        control: name of the control that it is compared with; None: there is none.
        layers: patterns of the layers that it runs through; None: all.
        share: task -> patterns of the layers in which this task uses that one's weights.
    """

    name: str
    problem: Problem
    density: float
    control: str | None = None
    layers: Sequence[str] | None = None
    share: Share | None = None


@dataclass(frozen=True)
class Stage:
    """Tasks that are allocated one after another, and then trained at once.

    Attributes:
        tasks: in the order of their allocation.
        training: of all of them.
        warm_up: epochs of dense training of all free weights, before each task is allocated.
    """

    tasks: tuple[Task, ...]
    training: Training
    warm_up: int = 0


@dataclass(frozen=True)
class Control:
    """A dense network with all of its weights for one problem.

    Attributes:
        task: the name under which it is trained; where `build` has parts of each task's own, those of this task.
        problem: what it learns.
        training: how.
        build: makes the plain network, with the same initial weights at every call.
        file: what its training is kept under, so that runs beside each other train it once; None: for one run.
    """

    task: str
    problem: Problem
    training: Training
    build: Callable[[], nn.Module]
    file: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A network, what it learns stage by stage, and what it is compared with.

    Attributes:
        build: makes the plain network, with the same initial weights at every call.
        rebuild: "module:function"; ``function(metadata)`` makes the plain network that `rsn2.load` fills.
        stages: in their order; or a function that makes them from the controls' F1 of each class.
        allocation: how the weights are chosen.
        controls: by name.
        ensembles: name -> tasks of one problem, whose probabilities are averaged.
        metadata: kept in the checkpoint; JSON.
        precision: what forward passes compute in, of the network and of its controls.
        settings: what else determines the result, such as the seed and the data; JSON.
    """

    build: Callable[[], nn.Module]
    rebuild: str
    stages: Sequence[Stage] | Callable[[Mapping[str, Sequence[float]]], Sequence[Stage]]
    allocation: Allocation
    controls: Mapping[str, Control] = field(default_factory=dict)
    ensembles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def planned(self) -> Sequence[Stage]:
        """The stages; where they follow from the controls, as if these knew all classes alike."""
        if not callable(self.stages):
            return self.stages
        return self.stages({name: [0.0] * len(each.problem.classes) for name, each in self.controls.items()})

    def described(self) -> dict[str, Any]:
        """All that determines the result, as JSON."""
        stages = [
            {
                "tasks": [[task.name, task.density, task.layers, task.share] for task in stage.tasks],
                "training": asdict(stage.training),
                "warm_up": stage.warm_up,
            }
            for stage in self.planned
        ]
        return {
            **self.settings,
            "precision": self.precision,
            "allocation": asdict(self.allocation),
            "stages": stages,
            "controls": {name: asdict(each.training) for name, each in self.controls.items()},
        }
