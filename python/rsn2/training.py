"""Training one task: `fit` with early stopping and exact resuming, `predict` and `evaluate`.

A resumed fit ends in the same bits as an uninterrupted one. Each random draw of an epoch (shuffling, dropout,
the order of a DataLoader) comes from generators seeded with (seed, epoch), and whether to stop follows
from the losses so far; so the resume file holds tensors, optimizer scalars and losses, and no other state.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from rsn2.data import Data, as_tensor_pair, batches_of, device_of, to_device
from rsn2.resume import FitState, ResumeFile, copy_into, identity
from rsn2.tasks import own_tensors, parameters, per_task_modules, shared_parameters, tasks, use_task

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Tensor, Tensor], float]
OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is not finite, or an epoch has no data."""


@dataclass(frozen=True)
class History:
    """What a fit did; epochs count from 1.

    Attributes:
        train_loss: mean loss over the samples of each epoch, while the weights were moving.
        val_loss: mean validation loss after each epoch; empty without validation data.
        seconds: wall time of each epoch.
        best_epoch: epoch of the lowest validation loss; None without validation data.
        stopped_early: whether patience ended the fit.
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
    normalisation statistics that all tasks share stay as they are.

    Args:
        model: a converted network in which ``task`` is allocated.
        task: the one to train.
        train: ``(x, target)`` tensors, shuffled anew each epoch, or an iterable of batches for each epoch.
        val: the same for validation, not shuffled.
        loss: ``loss(model(x), target) -> scalar``, the mean over the batch.
        epochs: at most; those in the resume file count.
        optimizer: a function from the list of parameters to an optimizer (a class of torch.optim will do), an
            optimizer over exactly ``rsn2.parameters(model, task)``, or None for Adam with ``lr``.
        lr: of that Adam; not used otherwise.
        batch_size: samples per step, for tensors.
        patience: stop after this many epochs in a row without a validation loss more than ``min_delta`` below
            the lowest counted so; None never stops early.
        min_delta: how much lower counts.
        restore_best: end with the parameters and statistics of the epoch with the lowest validation loss.
        seed: of the order of the samples and of dropout. The global generators are left as they were.
        resume: a file, written before the first epoch and after each; if it exists, the fit goes on from it.
            More ``epochs`` than at first may be asked for; all other settings must be those of the file.
        progress: show a bar, if standard error is a terminal.

    Raises:
        TaskError: if nothing is allocated to the task.
        ValueError: if an argument is out of range, or the optimizer holds other parameters; before any step.
        CheckpointError: if the resume file is damaged or of another task, allocation or setting; names it.
        TrainingError: if a loss is NaN or infinite (names epoch and batch), or ``train`` runs out of batches.
    """
    _check_arguments(val, epochs, batch_size, patience, min_delta)
    optimizer = _checked_optimizer(model, task, optimizer, lr)
    own = own_tensors(model, task)
    state = FitState(own, optimizer)
    file = None
    if resume is not None:
        settings = identity(model, task, own, optimizer)
        settings |= {"patience": patience, "min_delta": min_delta, "restore_best": restore_best}
        settings |= {"seed": seed, "batch_size": batch_size, "train": _size(train), "val": _size(val)}
        file = ResumeFile(Path(resume), settings)
    resumed_from = None
    if file is not None and file.path.exists():
        file.read_into(state, epochs)
        resumed_from = state.epoch
    elif file is not None:
        file.write(state)
    if shared := shared_parameters(model):
        warnings.warn(f"fit does not train what all tasks share: {sorted(shared)}", stacklevel=2)
    with ExitStack() as stack:
        stack.callback(optimizer.zero_grad)
        stack.enter_context(use_task(model, task))
        stack.enter_context(_shared_parts_fixed(model))
        show = stack.enter_context(_bar(task, epochs, progress))
        show(state)
        device = device_of(model)
        while state.epoch < epochs and not _should_stop(state.val_loss, patience, min_delta):
            start = time.perf_counter()
            number = state.epoch + 1
            epoch_seed = _epoch_seed(seed, number)
            with _seeded(epoch_seed, device):
                batches = batches_of(train, batch_size, shuffle_seed=epoch_seed)
                train_loss = _train_epoch(model, task, batches, loss, optimizer, device, number)
                if val is not None:
                    val_loss = evaluate(model, task, val, loss=loss, batch_size=batch_size)["loss"]
                    _check_finite(val_loss, f"task {task!r}, epoch {number}: the validation loss")
                    state.val_loss.append(val_loss)
            state.train_loss.append(train_loss)
            state.seconds.append(time.perf_counter() - start)
            if _best_epoch(state.val_loss) == number and restore_best:
                state.best = {name: tensor.detach().clone() for name, tensor in own.items()}
            if file is not None:
                file.write(state)
            show(state)
    if state.best:
        copy_into(own, state.best)
    return History(
        tuple(state.train_loss),
        tuple(state.val_loss),
        tuple(state.seconds),
        _best_epoch(state.val_loss),
        _should_stop(state.val_loss, patience, min_delta),
        resumed_from,
    )


def predict(model: nn.Module, task: str, x: Tensor, batch_size: int = 512) -> Tensor:
    """The network's outputs for ``x`` as ``task``, in eval mode and without gradients.

    Args:
        x: samples along the first dimension; moved to the network's device batch by batch.
        batch_size: samples per forward pass, at least 1.

    Returns:
        The outputs of all samples, concatenated, on the network's device.

    Raises:
        TaskError: if nothing is allocated to the task.
        ValueError: if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1. Got {batch_size}.")
    device = device_of(model)
    with use_task(model, task), _mode(model, training=False), torch.no_grad():
        return torch.cat([model(part.to(device)) for part in torch.split(x, batch_size)])


def evaluate(
    model: nn.Module,
    task: str,
    data: Data,
    *,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 512,
) -> dict[str, float]:
    """Mean loss and metrics of ``task`` on ``data``, in eval mode and without gradients.

    Args:
        data: ``(x, target)`` tensors or an iterable of batches.
        loss: mean over a batch; the batches are weighted by their numbers of samples.
        metrics: name -> ``metric(outputs, targets)``, called once with the tensors of all samples.
        batch_size: samples per forward pass, for tensors.

    Returns:
        ``"loss"``, if a loss was given, and every metric by its name.

    Raises:
        TaskError: if nothing is allocated to the task.
        ValueError: if there is neither loss nor metric, a metric is named "loss", or ``data`` is empty.
    """
    metrics = metrics or {}
    if (loss is None and not metrics) or "loss" in metrics:
        raise ValueError('loss, metrics: expected a loss or at least one metric, none of them named "loss".')
    device = device_of(model)
    total, samples = 0.0, 0
    outputs, targets = [], []
    with use_task(model, task), _mode(model, training=False), torch.no_grad():
        for batch in batches_of(data, batch_size):
            x, target = to_device(batch, device)
            output = model(x)
            if loss is not None:
                total += loss(output, target).item() * _samples(x)
            samples += _samples(x)
            if metrics:
                outputs.append(output)
                targets.append(target)
    if samples == 0:
        raise ValueError("data: expected at least one sample. Got none.")
    results = {} if loss is None else {"loss": total / samples}
    if metrics:
        everything = torch.cat(outputs), torch.cat(targets)
        results |= {name: float(metric(*everything)) for name, metric in metrics.items()}
    return results


def _checked_optimizer(
    model: nn.Module, task: str, optimizer: Optimizer | OptimizerFactory | None, lr: float
) -> Optimizer:
    """The optimizer to use, over exactly the parameters of the task."""
    own = parameters(model, task)
    if optimizer is None:
        optimizer = torch.optim.Adam(own, lr=lr)
    elif not isinstance(optimizer, Optimizer):
        optimizer = optimizer(own)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    mine = {id(parameter) for parameter in own}
    if held == mine:
        return optimizer
    names = {id(parameter): f"{name}, shared by all tasks" for name, parameter in model.named_parameters()}
    for other in tasks(model):
        for name, tensor in own_tensors(model, other).items():
            names[id(tensor)] = f"{name} of task {other!r}"
    strange = sorted(names.get(each, "a tensor not in this network") for each in held - mine)
    raise ValueError(
        f"optimizer: expected exactly rsn2.parameters(model, {task!r}). It holds {strange} besides, and "
        f"lacks {sorted(names[each] for each in mine - held)}. Make it after rsn2.allocate."
    )


def _check_arguments(val: Data | None, epochs: int, batch_size: int, patience: int | None, min_delta: float) -> None:
    least = {"epochs": 0, "batch_size": 1, "min_delta": 0}
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("min_delta", min_delta)):
        if not value >= least[name]:
            raise ValueError(f"{name}: expected at least {least[name]}. Got {value}.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience: expected at least 1, or None. Got {patience}.")
    if patience is not None and val is None:
        raise ValueError("patience: early stopping needs validation data. Got val=None.")


def _train_epoch(
    model: nn.Module,
    task: str,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    optimizer: Optimizer,
    device: torch.device,
    epoch: int,
) -> float:
    """One step per batch; the mean loss over the samples."""
    total, samples = 0.0, 0
    with _mode(model, training=True):
        for number, batch in enumerate(batches, start=1):
            x, target = to_device(batch, device)
            optimizer.zero_grad()
            value = loss(model(x), target)
            _check_finite(value.item(), f"task {task!r}, epoch {epoch}, batch {number}: the loss")
            torch.autograd.backward(value)
            optimizer.step()
            total += value.item() * _samples(x)
            samples += _samples(x)
    if samples == 0:
        raise TrainingError(f"train: epoch {epoch} has no samples; expected an iterable that starts anew.")
    return total / samples


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"{what} is {value}. Lower the learning rate, or look at the data.")


def _size(data: Data | None) -> list[int] | str | None:
    """What a resume file remembers of a data set: the shape of its samples, if they are one tensor."""
    if data is None:
        return None
    pair = as_tensor_pair(data)
    return "batches" if pair is None else list(pair[0].shape)


def _samples(x: Any) -> int:
    """Number of samples in a batch's input: the first dimension of the first tensor in it."""
    while not isinstance(x, Tensor):
        x = next(iter(x.values() if isinstance(x, dict) else x))
    return int(x.shape[0])


def _best_epoch(val_loss: Sequence[float]) -> int | None:
    """The first epoch, from 1, with the lowest loss."""
    return min(range(len(val_loss)), key=val_loss.__getitem__) + 1 if val_loss else None


def _should_stop(val_loss: Sequence[float], patience: int | None, min_delta: float) -> bool:
    """Whether the last ``patience`` losses were all without progress."""
    counted, waited = math.inf, 0
    for value in val_loss:
        if value < counted - min_delta:
            counted, waited = value, 0
        else:
            waited += 1
    return patience is not None and waited >= patience


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode inside; behind, each module in its own mode of before.

    Norms that all tasks share stay in eval mode: training one task must not move their statistics.
    """
    before = {module: module.training for module in model.modules()}
    owned = {part for module in per_task_modules(model).values() for part in module.modules()}
    try:
        for module in before:
            shared_norm = isinstance(module, nn.modules.batchnorm._NormBase) and module not in owned
            module.training = training and not shared_norm
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def _shared_parts_fixed(model: nn.Module) -> Iterator[None]:
    """Keep parameters that all tasks share without gradients inside."""
    shared = shared_parameters(model)
    try:
        for parameter in shared.values():
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in shared.values():
            parameter.requires_grad_(True)


def _epoch_seed(seed: int, epoch: int) -> int:
    """63 bits that depend on both numbers; seed + epoch would give seed 1 the epochs of seed 0."""
    return int.from_bytes(hashlib.sha256(f"{seed}, {epoch}".encode()).digest()[:8], "little") >> 1


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of ``device`` inside; behind, they go on as before."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _bar(task: str, epochs: int, progress: bool) -> Iterator[Callable[[FitState], None]]:
    """A function that shows how far a fit is; it does nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        line = bar.add_task(task, total=epochs, losses="")

        def show(state: FitState) -> None:
            losses = [f"train {state.train_loss[-1]:.4f}"] if state.train_loss else []
            losses += [f"val {state.val_loss[-1]:.4f}"] if state.val_loss else []
            bar.update(line, completed=state.epoch, losses=", ".join(losses))

        yield show
