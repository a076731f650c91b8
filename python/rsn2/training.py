"""Training: `fit` one task, `fit_together` several, with early stopping and exact resuming."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rsn2.arguments import OptimizerFactory, SchedulerFactory, check_fit_arguments, checked_optimizer, checked_scheduler
from rsn2.data import Data, Loss, check_data
from rsn2.evaluation import Metric, evaluate, predict
from rsn2.loop import Lesson, Loop, TrainingError, best_epoch
from rsn2.ownership import frozen_slots, shared_parameters, trained_tensors
from rsn2.resume import FitState, ResumeFile, data_identity, identity, scheduler_identity
from rsn2.tasks import check_allocated, use_task

__all__ = ["History", "Loss", "Metric", "TrainingError", "evaluate", "fit", "fit_together", "predict"]


@dataclass(frozen=True)
class History:
    """What a fit did; epochs count from 1.

    Attributes:
        train_loss: mean loss over the samples of each epoch, while the weights were moving.
        val_loss: mean validation loss after each epoch; empty without validation data.
        seconds: wall time of each epoch.
        best_epoch: epoch of the lowest validation loss; None without validation data.
        stopped_early: whether patience ended the fit before its last epoch.
        resumed_from: epochs that the resume file already held; None if there was no file.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    seconds: tuple[float, ...]
    best_epoch: int | None
    stopped_early: bool
    resumed_from: int | None


def fit(
    model: nn.Module,
    task: str,
    train: Data,
    val: Data | None = None,
    *,
    loss: Loss,
    epochs: int,
    optimizer: Optimizer | OptimizerFactory | None = None,
    lr: float = 1e-3,
    scheduler: LRScheduler | SchedulerFactory | None = None,
    batch_size: int = 512,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = True,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train the parameters of one task, and nothing else.

    The network runs in train mode inside; behind, every module is in the mode it was in. Parameters and
    statistics that all tasks share stay as they are: should training move a buffer among them even so, each epoch puts
    it back, and a warning names it. A fit that ends with an error, or by
    KeyboardInterrupt, leaves the best epoch so far behind, as ``restore_best`` would have at its end; without a best
    epoch, what the last step made.

    Args:
        model: a converted network in which ``task`` is allocated.
        task: the one to train.
        train: ``(x, target)`` tensors, shuffled anew each epoch, or an iterable of batches for each epoch.
        val: the same for validation, not shuffled.
        loss: ``loss(model(x), target) -> scalar``, the mean over the batch.
        epochs: at most; those in the resume file count.
        optimizer: a function from the list of parameters to an optimizer (a class of torch.optim will do), an
            optimizer over exactly ``rsn2.parameters(model, task)``, with or without those that do not require a
            gradient, or None for Adam with ``lr``.
        lr: of that Adam; not used otherwise.
        scheduler: a function from the optimizer to a scheduler of torch.optim.lr_scheduler, such as
            ``partial(ExponentialLR, gamma=0.9)``, or such a scheduler. It steps behind each epoch,
            ReduceLROnPlateau by the validation loss.
        batch_size: samples per step, for tensors. A single sample that is left over joins the batch before it, since
            batch norm has no use for one alone.
        patience: stop after this many epochs in a row without a validation loss more than ``min_delta`` below
            the lowest counted so; None never stops early.
        min_delta: how much lower counts.
        restore_best: end with the parameters and statistics of the epoch with the lowest validation loss.
        seed: of the order of the samples and of dropout, which repeated calls with the same seed repeat: who calls
            with ``epochs=1`` again and again gives each call another. A DataLoader or its sampler that has a
            ``generator`` of its own draws from that, seeded anew for each epoch, too. All generators are left as they
            were.
        resume: a file, written before the first epoch and after each; if it exists, the fit goes on from it.
            More ``epochs`` than at first may be asked for; all other settings must be those of the file, and so
            must the tensors of ``train`` and ``val``, bit by bit. Data that is an iterable of batches is not
            compared: give the same again.
        progress: show a bar, if standard error is a terminal.

    Raises:
        TaskError: if nothing is allocated to the task.
        TypeError: if an argument is of another type, the optimizer's step needs a closure, a batch is no pair of
            tensors, or the loss gives no scalar tensor.
        ValueError: if an argument is out of range, there are no samples, the optimizer holds other parameters, or the
            scheduler is another optimizer's.
        CheckpointError: if the resume file is damaged or of another task, allocation, setting or data; names it.
        TrainingError: if a loss or a gradient is NaN or infinite (names epoch and batch; no step is made with it), or
            ``train`` runs out of batches.
    """
    check_fit_arguments(loss, epochs, batch_size, patience, min_delta, seed, has_val=val is not None)
    check_allocated(model, task)
    lesson = Lesson(train, val, loss)
    settings = {"patience": patience, "min_delta": min_delta, "restore_best": restore_best}
    settings |= {"seed": seed, "batch_size": batch_size}
    return _fit(model, {task: lesson}, epochs, optimizer, lr, scheduler, settings, resume, progress)[task]


def fit_together(
    model: nn.Module,
    train: Mapping[str, Data],
    val: Mapping[str, Data] | None = None,
    *,
    loss: Loss | Mapping[str, Loss],
    epochs: int,
    optimizer: Optimizer | OptimizerFactory | None = None,
    lr: float = 1e-3,
    scheduler: LRScheduler | SchedulerFactory | None = None,
    batch_size: int = 512,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = True,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, History]:
    """Train several tasks at once: the only way to train a slot that they share (``allocate(..., share=...)``).

    Each step takes one batch of every task, adds the gradients of their losses, and lets the optimizer step once. An
    epoch sees every sample of every task once; a task whose batches are used up sits out the rest of it, and its
    parameters stay still. Tasks that share nothing end in the bits of a :func:`fit` each, but for the draws of dropout
    and of loaders without a ``generator`` of their own, and for early stopping and ``restore_best``, which go by the
    sum of the tasks' validation losses. Scale the losses to weigh the tasks.

    Args:
        model: a converted network in which the tasks are allocated.
        train: task -> its data, as for :func:`fit`. Shuffled by one order where the tasks have as many samples, so
            that tasks of the same samples see the same ones in a step.
        val: the same tasks' data for validation.
        loss: one for all tasks, or task -> loss.
        epochs, optimizer, lr, scheduler, batch_size, patience, min_delta, restore_best, seed, resume, progress: as for
            :func:`fit`; an optimizer is one over exactly ``rsn2.parameters(model, list(train))``. The resume file is
            one for all tasks.

    Returns:
        Task -> its losses. ``seconds``, ``best_epoch``, ``stopped_early`` and ``resumed_from`` are those of the fit.

    Raises:
        TaskError: if nothing is allocated to a task.
        TypeError, ValueError, CheckpointError, TrainingError: as :func:`fit`; a ValueError too if ``train`` is empty,
            or ``val`` or ``loss`` are of other tasks.
    """
    if not isinstance(train, Mapping) or not train:
        raise ValueError(f"train: expected task -> data, of one task or more. Got {type(train).__name__}.")
    if not isinstance(loss, Mapping):
        loss = dict.fromkeys(train, loss)
    for name, given in (("val", val), ("loss", loss)):
        if given is not None and (not isinstance(given, Mapping) or set(given) != set(train)):
            got = list(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{name}: expected the tasks of train, {list(train)}. Got {got}.")
    for task in train:
        check_fit_arguments(loss[task], epochs, batch_size, patience, min_delta, seed, has_val=val is not None)
    lessons = {
        task: Lesson(train[task], None if val is None else val[task], loss[task], f"train[{task!r}]", f"val[{task!r}]")
        for task in train
    }
    settings = {"patience": patience, "min_delta": min_delta, "restore_best": restore_best}
    settings |= {"seed": seed, "batch_size": batch_size}
    return _fit(model, lessons, epochs, optimizer, lr, scheduler, settings, resume, progress)


def _fit(
    model: nn.Module,
    lessons: Mapping[str, Lesson],
    epochs: int,
    optimizer: Optimizer | OptimizerFactory | None,
    lr: float,
    scheduler: LRScheduler | SchedulerFactory | None,
    settings: dict[str, Any],
    resume: str | os.PathLike[str] | None,
    progress: bool,
) -> dict[str, History]:
    """What `fit` and `fit_together` have in common, their own arguments checked."""
    for lesson in lessons.values():
        check_data(lesson.train, lesson.train_name)
        if lesson.val is not None:
            check_data(lesson.val, lesson.val_name)
    tasks = tuple(lessons)
    optimizer = checked_optimizer(model, tasks[0] if len(tasks) == 1 else tasks, optimizer, lr)
    has_val = all(lesson.val is not None for lesson in lessons.values())
    scheduler = checked_scheduler(optimizer, scheduler, has_val)
    state = FitState(lambda: trained_tensors(model, tasks), optimizer, scheduler)
    file = None
    if resume is not None:
        data: dict[str, dict[str, Any]] = {"train": {}, "val": {}}
        for task, lesson in lessons.items():
            data["train"][task] = data_identity(lesson.train)
            data["val"][task] = data_identity(lesson.val)
        alone = {kind: each[tasks[0]] for kind, each in data.items()} if len(tasks) == 1 else data
        how = identity(model, tasks, state.own, optimizer) | {"scheduler": scheduler_identity(scheduler)}
        file = ResumeFile(Path(resume), how | settings | alone)
    if shared := shared_parameters(model):
        warnings.warn(f"fit does not train what all tasks share: {sorted(shared)}", stacklevel=3)
    if frozen := frozen_slots(model, tasks):
        others = list(dict.fromkeys(other for names in frozen.values() for other in names))
        warnings.warn(
            f"fit does not train {sorted(frozen)}, which {others} answer with too: rsn2.fit_together trains tasks that "
            "share a slot.",
            stacklevel=3,
        )
    loop = Loop(model, lessons, lambda task: use_task(model, task), epochs=epochs, progress=progress, **settings)
    resumed_from = loop.run(state, file)
    return {
        task: History(
            tuple(state.train_loss[task]),
            tuple(state.val_loss.get(task, ())),
            tuple(state.seconds),
            best_epoch(state.total_val_loss),
            state.epoch < epochs and loop.should_stop(state),
            resumed_from,
        )
        for task in tasks
    }
