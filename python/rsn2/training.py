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
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rsn2.arguments import OptimizerFactory, check_fit_arguments, check_int, checked_optimizer
from rsn2.data import Data, batches_of, check_data, device_of, first_tensor, to_device
from rsn2.resume import FitState, ResumeFile, copy_into, data_identity, identity
from rsn2.tasks import own_tensors, shared_norms, shared_parameters, use_task

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Tensor, Tensor], float]


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or a gradient is not finite, or an epoch has no data."""


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
    normalisation statistics that all tasks share stay as they are. A fit that ends with an error, or by
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
            optimizer over exactly ``rsn2.parameters(model, task)``, or None for Adam with ``lr``.
        lr: of that Adam; not used otherwise.
        batch_size: samples per step, for tensors.
        patience: stop after this many epochs in a row without a validation loss more than ``min_delta`` below
            the lowest counted so; None never stops early.
        min_delta: how much lower counts.
        restore_best: end with the parameters and statistics of the epoch with the lowest validation loss.
        seed: of the order of the samples and of dropout, which repeated calls with the same seed repeat: who calls
            with ``epochs=1`` again and again gives each call another. The global generators are left as they were.
        resume: a file, written before the first epoch and after each; if it exists, the fit goes on from it.
            More ``epochs`` than at first may be asked for; all other settings must be those of the file, and so
            must the tensors of ``train`` and ``val``, bit by bit. Data that is an iterable of batches is not
            compared: give the same again.
        progress: show a bar, if standard error is a terminal.

    Raises:
        TaskError: if nothing is allocated to the task.
        TypeError: if an argument is of another type, the optimizer's step needs a closure, a batch is no pair of
            tensors, or the loss gives no scalar tensor.
        ValueError: if an argument is out of range, there are no samples, or the optimizer holds other parameters.
        CheckpointError: if the resume file is damaged or of another task, allocation, setting or data; names it.
        TrainingError: if a loss or a gradient is NaN or infinite (names epoch and batch; no step is made with it), or
            ``train`` runs out of batches.
    """
    check_fit_arguments(loss, epochs, batch_size, patience, min_delta, seed, has_val=val is not None)
    check_data(train, "train")
    if val is not None:
        check_data(val, "val")
    optimizer = checked_optimizer(model, task, optimizer, lr)
    own = own_tensors(model, task)
    state = FitState(own, optimizer)
    file = None
    if resume is not None:
        settings = identity(model, task, own, optimizer)
        settings |= {"patience": patience, "min_delta": min_delta, "restore_best": restore_best}
        settings |= {"seed": seed, "batch_size": batch_size, "train": data_identity(train), "val": data_identity(val)}
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
        stack.enter_context(use_task(model, task))
        stack.enter_context(_shared_parts_fixed(model))
        stack.enter_context(_best_at_the_end(state))
        stack.callback(optimizer.zero_grad)
        show = stack.enter_context(_bar(task, epochs, progress))
        show(state)
        device = device_of(model)
        while state.epoch < epochs and not _should_stop(state.val_loss, patience, min_delta):
            start = time.perf_counter()
            number = state.epoch + 1
            epoch_seed = _epoch_seed(seed, number)
            with _seeded(epoch_seed, device):
                batches = batches_of(train, batch_size, epoch_seed, "train")
                train_loss = _train_epoch(model, task, batches, loss, optimizer, device, number)
                if val is not None:
                    val_loss = _evaluate(model, task, val, loss, {}, batch_size, "val")["loss"]
                    _check_finite(val_loss, f"task {task!r}, epoch {number}: the validation loss")
                    state.val_loss.append(val_loss)
            state.train_loss.append(train_loss)
            state.seconds.append(time.perf_counter() - start)
            if _best_epoch(state.val_loss) == number and restore_best:
                state.best = {name: tensor.detach().clone() for name, tensor in own.items()}
            if file is not None:
                file.write(state)
            show(state)
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
        TypeError: if ``x`` is no tensor, or ``batch_size`` no int.
        ValueError: if ``batch_size`` is below 1.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor. Got {type(x).__name__}.")
    check_int("batch_size", batch_size, least=1)
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
        TypeError: if ``data`` is neither tensors nor batches that are pairs of them, ``batch_size`` is no int, or the
            loss gives no scalar tensor.
        ValueError: if there is neither loss nor metric, a metric is named "loss", or ``data`` is empty.
    """
    metrics = metrics or {}
    if (loss is None and not metrics) or "loss" in metrics:
        raise ValueError('loss, metrics: expected a loss or at least one metric, none of them named "loss".')
    return _evaluate(model, task, data, loss, metrics, batch_size, "data")


def _evaluate(
    model: nn.Module,
    task: str,
    data: Data,
    loss: Loss | None,
    metrics: Mapping[str, Metric],
    batch_size: int,
    name: str,
) -> dict[str, float]:
    """`evaluate` for an argument that the caller calls ``name``."""
    device = device_of(model)
    total, samples = 0.0, 0
    outputs, targets = [], []
    with use_task(model, task), _mode(model, training=False), torch.no_grad():
        for batch in batches_of(data, batch_size, name=name):
            x, target = to_device(batch, device)
            output = model(x)
            count = _samples(x)
            if loss is not None:
                total += _scalar(loss(output, target)).item() * count
            samples += count
            if metrics:
                outputs.append(output)
                targets.append(target)
    if samples == 0:
        raise ValueError(f"{name}: expected at least one sample. Got none.")
    results = {} if loss is None else {"loss": total / samples}
    if metrics:
        everything = torch.cat(outputs), torch.cat(targets)
        results |= {name: float(metric(*everything)) for name, metric in metrics.items()}
    return results


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
            where = f"task {task!r}, epoch {epoch}, batch {number}"
            result = _scalar(loss(model(x), target))
            value = result.item()
            _check_finite(value, f"{where}: the loss")
            torch.autograd.backward(result)
            _check_finite(_largest_gradient(optimizer), f"{where}: the largest gradient")
            optimizer.step()
            count = _samples(x)
            total += value * count
            samples += count
    if samples == 0:
        raise TrainingError(f"train: epoch {epoch} has no samples; expected an iterable that starts anew.")
    return total / samples


def _scalar(value: object) -> Tensor:
    """What a loss gave, checked."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss: expected a scalar tensor, the mean over the batch. Got {type(value).__name__}.")
    if value.ndim > 0:
        raise TypeError(
            f"loss: expected a scalar tensor, the mean over the batch. Got one of shape {tuple(value.shape)}."
        )
    return value


def _largest_gradient(optimizer: Optimizer) -> float:
    """Largest magnitude of all gradients; NaN if one is. Unlike a sum of squares it is finite if they all are."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    # A layer in which the task owns nothing has an empty gradient, and that has no maximum.
    return get_total_norm([gradient for gradient in dense if gradient.numel()], norm_type=math.inf).item()


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"{what} is {value}. Lower the learning rate, or look at the data.")


def _samples(x: Any) -> int:
    """Number of samples in a batch's input: the first dimension of the first tensor in it."""
    first = first_tensor(x)
    assert first is not None, "the batch was checked"
    return first.shape[0]


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
    """Train or eval mode inside; behind, each module in its own mode of before. To be entered inside `use_task`.

    Norms that all tasks share stay in eval mode: training one task must not move their statistics.
    """
    before = {module: module.training for module in model.modules()}
    shared = set(shared_norms(model))
    try:
        for module in before:
            module.training = training and module not in shared
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def _best_at_the_end(state: FitState) -> Iterator[None]:
    """Put the best epoch's copy back behind the block, however that ends."""
    try:
        yield
    finally:
        if state.best:
            copy_into(state.own, state.best)


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
