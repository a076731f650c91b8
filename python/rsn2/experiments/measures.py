"""Scores: of a task's outputs by scikit-learn, of tasks learnt one after another, and of how full a network is."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rsn2 import extras
from rsn2.report import report


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share in [0, 1] of the samples whose largest output is that of their class.

    Args:
        outputs: ``[samples, classes]``, logits or probabilities.
        targets: ``[samples]``, class numbers.

    Raises:
        ValueError: if the shapes are others, or there are no samples.
        MissingPackageError: if scikit-learn is not installed.
    """
    _check_classification(outputs, targets)
    return float(_sklearn().accuracy_score(_array(targets), _array(outputs.argmax(dim=1))))


def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    """Mean of ``(output - target) ** 2`` over all entries, in the square of the target's unit; computed in float64.

    Args:
        outputs: ``[samples]`` or ``[samples, 1]``, finite.
        targets: of the same shape, finite.

    Raises:
        ValueError: if the shapes differ or are others, there are no samples, or an entry is not finite.
        MissingPackageError: if scikit-learn is not installed.
    """
    if outputs.shape != targets.shape or targets.dim() not in (1, 2) or targets.shape[1:] not in ((), (1,)):
        raise ValueError(
            "outputs, targets: expected the same shape, [samples] or [samples, 1]. "
            f"Got {list(outputs.shape)} and {list(targets.shape)}."
        )
    pair = (_array(tensor.to(torch.float64)) for tensor in (targets, outputs))
    return float(_sklearn().mean_squared_error(*pair))


def f1_per_class(outputs: Tensor, targets: Tensor) -> list[float]:
    """F1 in [0, 1] of every class, the classes being the columns of ``outputs``.

    F1 is the harmonic mean of precision and recall; 0 for a class that is neither predicted nor there.

    Args:
        outputs: ``[samples, classes]``, logits or probabilities.
        targets: ``[samples]``, class numbers.

    Raises:
        ValueError: if the shapes are others, or there are no samples.
        MissingPackageError: if scikit-learn is not installed.
    """
    _check_classification(outputs, targets)
    labels = list(range(outputs.shape[1]))
    scores = _sklearn().f1_score(
        _array(targets), _array(outputs.argmax(dim=1)), labels=labels, average=None, zero_division=0
    )
    return [float(score) for score in scores]


def average_accuracy(stages: Sequence[Mapping[str, float]], leave_out: Collection[str] = ()) -> float:
    """Mean accuracy over the tasks after the last stage of training.

    With R[i, j] the test accuracy of task j after stage i, of T: ``ACC = mean over j of R[T, j]``
    (Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, eq. 2; there a stage is one task, here it may be
    several that were trained at once).

    Args:
        stages: R, a row for each stage of training: task -> score of the tasks trained so far.
        leave_out: tasks whose score is no accuracy. An error has another unit, and lower is better: a mean
            with accuracies would say nothing.

    Raises:
        ValueError: if there are no stages, a task is missing after its first stage, or no task is left.
    """
    last = _rows(stages, leave_out)[-1]
    if not last:
        raise ValueError(f"stages: expected a task besides those left out, {sorted(leave_out)}. Got none.")
    return sum(last.values()) / len(last)


def backward_transfer(stages: Sequence[Mapping[str, float]], leave_out: Collection[str] = ()) -> float | None:
    """What later training did to the accuracy of earlier tasks: below 0 is forgetting; 0 is none.

    ``BWT = mean over j of (R[T, j] - R[s(j), j])``, where task j was first scored after stage s(j), which is before
    the last stage T (Lopez-Paz and Ranzato 2017, eq. 3, where s(j) = j).

    Args:
        stages, leave_out: as for :func:`average_accuracy`.

    Returns:
        None if all tasks were trained in the last stage: there is nothing to forget.

    Raises:
        ValueError: if there are no stages, or a task is missing after its first stage.
    """
    rows = _rows(stages, leave_out)
    first = {task: score for row in reversed(rows[:-1]) for task, score in row.items()}
    changes = [rows[-1][task] - score for task, score in first.items()]
    return sum(changes) / len(changes) if changes else None


def capacity_used(model: nn.Module) -> float:
    """Share in [0, 1] of the positions of all multitask layers that a task owns; a shared slot counts once.

    Raises:
        ValueError: if the network has no multitask layers.
    """
    found = report(model)
    if not found.layers:
        raise ValueError("model: expected a network with multitask layers; rsn2.convert makes one. Got none.")
    return sum(layer.positions - layer.free for layer in found.layers) / found.positions


def _sklearn() -> Any:
    return extras.load("sklearn.metrics")


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _check_classification(outputs: Tensor, targets: Tensor) -> None:
    if outputs.dim() != 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(
            "outputs, targets: expected shapes [samples, classes] and [samples]. "
            f"Got {list(outputs.shape)} and {list(targets.shape)}."
        )


def _rows(stages: Sequence[Mapping[str, float]], leave_out: Collection[str]) -> list[dict[str, float]]:
    """The score matrix without what is left out, its rows checked to keep their tasks."""
    if not stages:
        raise ValueError("stages: expected at least one stage of training. Got none.")
    for number, (before, after) in enumerate(pairwise(stages), start=2):
        if missing := [task for task in before if task not in after]:
            raise ValueError(f"stages: expected the scores of all tasks so far. Stage {number} lacks {missing}.")
    return [{task: score for task, score in stage.items() if task not in leave_out} for stage in stages]
