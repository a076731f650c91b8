"""What a run found: its report, with the scores of tasks and controls, sizes, pictures and the audit of forgetting."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2 import extras
from rsn2.checkpoint import save
from rsn2.data import device_of, nbytes_of
from rsn2.experiments import measures, plots, reload
from rsn2.experiments.audit import bits_of, count_changed
from rsn2.experiments.experiment import Experiment, Problem, Stage, Task
from rsn2.experiments.folder import RunFolder
from rsn2.ownership import own_tensors, parameters
from rsn2.report import report
from rsn2.tasks import finalize, slots_of
from rsn2.training import History, predict


@dataclass(frozen=True)
class Answers:
    """What a network says to a test set, and how good that is."""

    outputs: Tensor
    value: float
    loss: float
    f1: list[float]


@dataclass(frozen=True)
class Trained:
    """A task or a control right after its training.

    Attributes:
        history: of the training.
        answers: to the test set.
        bits: all that the task answers with.
        nbytes: of a control on disk: with its weights alone, and with what the optimizer keeps.
    """

    history: History
    answers: Answers
    bits: dict[str, Tensor] = field(default_factory=dict)
    nbytes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Findings:
    """A run whose training is over.

    Attributes:
        model: the network of all tasks.
        stages: in their order.
        trained: task -> what it was right after its training.
        after: the answers of all tasks so far, after each stage.
        dense: control -> what it was right after its training.
    """

    model: nn.Module
    stages: Sequence[Stage]
    trained: Mapping[str, Trained]
    after: Sequence[Mapping[str, Answers]]
    dense: Mapping[str, Trained]

    @property
    def tasks(self) -> list[Task]:
        """In the order of their training."""
        return [task for stage in self.stages for task in stage.tasks]

    def report(self, experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
        """Finalize and save the network, draw the pictures, and say all in JSON."""
        tasks, answers = self.tasks, self.after[-1]
        training = {task.name: stage.training for stage in self.stages for task in stage.tasks}
        # Finalized, a network has no free weights left to count.
        continual = self._continual()
        sizes = self._sizes()
        finalize(self.model)
        save(self.model, folder.checkpoint, experiment.metadata)
        curves, losses = self._curves(), self._losses()
        plots.ownership(self.model, folder.picture("ownership"))
        plots.learning_curves(curves, folder.picture("curves"))
        plots.task_losses(losses, folder.picture("losses"))
        positions = report(self.model).positions
        return {
            "tasks": [self._describe(task, stage) for stage in self.stages for task in stage.tasks],
            "ensembles": [self._ensemble(name, each) for name, each in experiment.ensembles.items()],
            "f1": {
                "rsn2": {task.name: answers[task.name].f1 for task in tasks if task.problem.classes},
                "control": {name: each.answers.f1 for name, each in self.dense.items() if each.answers.f1},
            },
            "classes": {
                name: list(problem.classes)
                for name, problem in (
                    *((task.name, task.problem) for task in tasks),
                    *((name, each.problem) for name, each in experiment.controls.items()),
                )
                if problem.classes
            },
            "continual": continual,
            "bytes": self._bytes(folder.checkpoint) | {"multitask_layers": sizes},
            "bits_per_weight": report(self.model).bits_per_weight,
            "bits_per_weight_dense": 8 * sum(_dense_bytes(self.model, task.name) for task in tasks) / positions,
            "predictions_unchanged": all(
                count_changed({"": answers[name].outputs}, {"": each.answers.outputs}) == 0
                for name, each in self.trained.items()
            ),
            "reload_bitwise_equal": self._reloads_bitwise(experiment, folder.checkpoint),
            "losses": curves,
            "task_losses": losses,
            "optimizer": {name: each.optimizer for name, each in training.items()},
            "training": {name: asdict(each) for name, each in training.items()},
            "control_training": {name: asdict(experiment.controls[name].training) for name in self.dense},
            "training_seconds": self._seconds(),
            "allocation": asdict(experiment.allocation),
            "available_backends": rk.available_backends(),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
        }

    def _control(self, task: Task) -> Trained | None:
        return None if task.control is None else self.dense.get(task.control)

    def _describe(self, task: Task, stage: Stage) -> dict[str, Any]:
        """A task's part of the report."""
        own, control = self.trained[task.name], self._control(task)
        return {
            "name": task.name,
            "metric": task.problem.metric,
            "value": self.after[-1][task.name].value,
            "control": None if control is None else control.answers.value,
            "density": task.density,
            "value_after_training": own.answers.value,
            "values_changed": count_changed(bits_of(self.model, task.name), own.bits),
            "epochs": len(own.history.train_loss),
            "warm_up_epochs": stage.warm_up,
            "best_epoch": own.history.best_epoch,
            "seconds": sum(own.history.seconds),
            "epoch_seconds": statistics.median(own.history.seconds),
            "trained_with": [other.name for other in stage.tasks if other is not task],
            "control_epochs": None if control is None else len(control.history.train_loss),
            "control_seconds": None if control is None else sum(control.history.seconds),
            "control_epoch_seconds": None if control is None else statistics.median(control.history.seconds),
            "test_samples": len(task.problem.test[0]),
        }

    def _ensemble(self, name: str, members: Sequence[str]) -> dict[str, Any]:
        """The score of the mean of several tasks' probabilities, on the test set of the first."""
        first = next(task for task in self.tasks if task.name == members[0])
        x, target = first.problem.test
        outputs = predict(self.model, members, x, activation=lambda logits: logits.float().softmax(-1)).cpu()
        control = self._control(first)
        return {
            "name": name,
            "tasks": list(members),
            "metric": first.problem.metric,
            "value": first.problem.score(outputs, target),
            "control": None if control is None else control.answers.value,
            "f1": measures.f1_per_class(outputs, target),
        }

    def _continual(self) -> dict[str, float | None]:
        scores = [{name: each.value for name, each in answers.items()} for answers in self.after]
        errors = [task.name for task in self.tasks if not task.problem.classes]
        some = len(errors) < len(self.tasks)
        return {
            "average_accuracy": measures.average_accuracy(scores, errors) if some else None,
            "backward_transfer": measures.backward_transfer(scores, errors),
            "capacity": measures.capacity_used(self.model),
        }

    def _seconds(self) -> dict[str, float]:
        """Of all trainings, over all starts of the run; tasks that were trained at once share theirs."""
        network = (self.trained[stage.tasks[0].name].history for stage in self.stages)
        return {
            "network": sum(second for history in network for second in history.seconds),
            "controls": sum(second for each in self.dense.values() for second in each.history.seconds),
        }

    def _curves(self) -> dict[str, dict[str, dict[str, tuple[float, ...]]]]:
        controls = {task.name: control for task in self.tasks if (control := self._control(task)) is not None}
        return {
            kind: {
                name: {"train": each.history.train_loss, "val": each.history.val_loss} for name, each in group.items()
            }
            for kind, group in (("rsn2", self.trained), ("control", controls))
        }

    def _losses(self) -> list[dict[str, Any]]:
        """The test loss of every task after each stage."""
        return [
            {
                "trained": [task.name for task in stage.tasks],
                "losses": {name: each.loss for name, each in answers.items()},
            }
            for stage, answers in zip(self.stages, self.after, strict=True)
        ]

    def _bytes(self, checkpoint: Path) -> dict[str, dict[str, int]]:
        """On disk: the network, and its controls together; with weights alone, and with what the optimizers keep."""
        weights = checkpoint.stat().st_size
        names: list[str] = []
        moments: dict[nn.Parameter, int] = {}
        for stage in self.stages:
            names += [task.name for task in stage.tasks]
            # Those of earlier stages are known, and parameters that tasks share count once.
            for parameter in parameters(self.model, names):
                moments.setdefault(parameter, stage.training.moments)
        kept = sum(number * parameter.nbytes for parameter, number in moments.items())
        controls = [each.nbytes for each in self.dense.values()]
        return {
            "network": {"weights": weights, "with_optimizer": weights + kept},
            "controls": {
                "weights": sum(alone for alone, _ in controls),
                "with_optimizer": sum(both for _, both in controls),
            },
        }

    def _sizes(self) -> dict[str, int]:
        """Bytes of the multitask layers, and of the same layers in a dense network for each task."""
        dense = 0
        for task in self.tasks:
            for _, layer, slot in slots_of(self.model, task.name):
                bias = layer.biases[str(slot)].nbytes if str(slot) in layer.biases else 0
                dense += layer.owners.numel * layer.values[str(slot)].itemsize + bias
        kept = sum(layer.values_bytes + layer.planes_bytes for layer in report(self.model).layers)
        return {"weights": kept, "dense": dense}

    def _reloads_bitwise(self, experiment: Experiment, checkpoint: Path) -> bool:
        """Whether a new process that loads the checkpoint gives the same bits for all test sets."""
        samples = {task.name: task.problem.test[0] for task in self.tasks}
        here = {name: answers.outputs for name, answers in self.after[-1].items()}
        there = reload.predict_elsewhere(
            checkpoint, experiment.rebuild, samples, device_of(self.model), experiment.precision
        )
        return count_changed(here, there) == 0


def ask(model: nn.Module, task: str, problem: Problem) -> Answers:
    """Let the network answer a problem's test set as ``task``."""
    x, target = problem.test
    outputs = predict(model, task, x).float().cpu()
    f1 = measures.f1_per_class(outputs, target) if problem.classes else []
    return Answers(outputs, problem.score(outputs, target), problem.loss(outputs, target).item(), f1)


def _dense_bytes(model: nn.Module, task: str) -> int:
    """Bytes of the task's dense control: the same parts, with every position of the shared layers."""
    size = nbytes_of([tensor for tensor in own_tensors(model, task).values() if isinstance(tensor, nn.Parameter)])
    for _, layer, slot in slots_of(model, task):
        values = layer.values[str(slot)]
        size += (layer.owners.numel - values.numel()) * values.itemsize
    return size


def _versions() -> dict[str, str]:
    return {
        "rsn2-kernels": extras.version("rsn2-kernels"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": extras.version("scikit-learn"),
    }
