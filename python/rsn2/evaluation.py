"""How well a task does, and what tasks answer: `evaluate`, `predict` and `predict_together`, which change nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rsn2.arguments import check_int
from rsn2.data import Data, Loss, batches_of, device_of, first_tensor, to_device
from rsn2.nn.hold import mode_of, set_mode
from rsn2.tasks import names_of, use_task, use_tasks

Metric = Callable[[Tensor, Tensor], float]


def predict(
    model: nn.Module,
    task: str | Sequence[str],
    x: Tensor,
    batch_size: int = 512,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The network's outputs for ``x`` as ``task``, in eval mode and without gradients.

    Args:
        task: one task, or several that were trained for the same purpose, whose outputs are averaged: an ensemble.
        x: samples along the first dimension; moved to the network's device batch by batch.
        batch_size: samples per forward pass, at least 1.
        activation: applied to each task's outputs before they are averaged, such as ``lambda y: y.softmax(-1)`` for the
            mean of probabilities rather than of logits; to those of a single task too.

    Returns:
        The outputs of all samples, concatenated, on the network's device; of several tasks, their mean.

    Raises:
        TaskError: if nothing is allocated to a task.
        TypeError: if ``x`` is no tensor, or ``batch_size`` no int.
        ValueError: if ``batch_size`` is below 1, no task is given, or the tasks' outputs differ in shape.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor. Got {type(x).__name__}.")
    check_int("batch_size", batch_size, least=1)
    names = names_of(task)
    if not names:
        raise ValueError("task: expected one or more tasks. Got none.")
    outputs = [_outputs(model, name, x, batch_size) for name in names]
    if activation is not None:
        outputs = [activation(output) for output in outputs]
    if len(outputs) == 1:
        return outputs[0]
    if len({output.shape for output in outputs}) > 1:
        shapes = {name: tuple(output.shape) for name, output in zip(names, outputs, strict=True)}
        raise ValueError(f"task: expected tasks with outputs of one shape, to average them. Got {shapes}.")
    return torch.stack(outputs).mean(0)


def predict_together(model: nn.Module, inputs: Mapping[str, Tensor], batch_size: int = 512) -> dict[str, Tensor]:
    """The network's outputs for samples of many tasks, in eval mode and without gradients: one pass serves all tasks.

    The same numbers as `predict` for each task, up to rounding. :func:`rsn2.use_tasks` says what is one product for all
    tasks, and what runs task by task.

    Args:
        inputs: task -> its samples, along the first dimension; moved to the network's device batch by batch. Where
            tasks differ in the shape of a sample, the network must begin with a :class:`~rsn2.nn.PerTask`.
        batch_size: samples of a task per forward pass, at least 1.

    Returns:
        task -> its outputs, on the network's device.

    Raises:
        TaskError: if nothing is allocated to a task, or samples do not come first in a module of the network.
        TypeError: if ``inputs`` is no mapping to tensors, ``batch_size`` is no int, or the network's output is neither
            a tensor nor a dict by task.
        ValueError: if there is no task, a task has no samples, or ``batch_size`` is below 1.
    """
    if not isinstance(inputs, Mapping) or not all(isinstance(x, Tensor) for x in inputs.values()):
        raise TypeError("inputs: expected a dict from task to a tensor of its samples.")
    check_int("batch_size", batch_size, least=1)
    empty = [task for task, x in inputs.items() if x.dim() == 0 or x.shape[0] == 0]
    if not inputs or empty:
        raise ValueError(f"inputs: expected samples of at least one task. Got none{f' of {empty}' if empty else ''}.")
    outputs: dict[str, list[Tensor]] = {task: [] for task in inputs}
    for start in range(0, max(len(x) for x in inputs.values()), batch_size):
        batch = {task: x[start : start + batch_size] for task, x in inputs.items() if len(x) > start}
        for task, output in _together(model, batch).items():
            outputs[task].append(output)
    return {task: torch.cat(parts) for task, parts in outputs.items()}


def _together(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one forward pass, by task."""
    counts = {task: len(x) for task, x in batch.items()}
    tasks = [task for task, count in counts.items() for _ in range(count)]
    with use_tasks(model, tasks), mode(model, training=False), torch.no_grad():
        device = device_of(model)
        batch = {task: x.to(device) for task, x in batch.items()}
        alike = len({(x.shape[1:], x.dtype) for x in batch.values()}) == 1
        output = model(torch.cat(list(batch.values())) if alike else batch)
    if isinstance(output, Mapping) and output.keys() == batch.keys():
        return dict(output)
    if not isinstance(output, Tensor):
        raise TypeError(f"model: expected one tensor, or a dict of {list(batch)}. Got {type(output).__name__}.")
    return dict(zip(batch, output.split(list(counts.values())), strict=True))


def _outputs(model: nn.Module, task: str, x: Tensor, batch_size: int) -> Tensor:
    with use_task(model, task), mode(model, training=False), torch.no_grad():
        device = device_of(model)
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
    return mean_over(model, task, data, loss, metrics, batch_size, "data")


def mean_over(
    model: nn.Module,
    task: str,
    data: Data,
    loss: Loss | None,
    metrics: Mapping[str, Metric],
    batch_size: int,
    name: str,
) -> dict[str, float]:
    """`evaluate` for an argument that the caller calls ``name``."""
    total, samples = 0.0, 0
    outputs, targets = [], []
    with use_task(model, task), mode(model, training=False), torch.no_grad():
        device = device_of(model)
        for batch in batches_of(data, batch_size, name=name):
            x, target = to_device(batch, device)
            output = model(x)
            count = samples_of(x)
            if loss is not None:
                total += scalar(loss(output, target)).item() * count
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


def scalar(value: object) -> Tensor:
    """What a loss gave, checked."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss: expected a scalar tensor, the mean over the batch. Got {type(value).__name__}.")
    if value.ndim > 0:
        raise TypeError(
            f"loss: expected a scalar tensor, the mean over the batch. Got one of shape {tuple(value.shape)}."
        )
    return value


def samples_of(x: Any) -> int:
    """Number of samples in a batch's input: the first dimension of the first tensor in it."""
    first = first_tensor(x)
    assert first is not None, "the batch was checked"
    return first.shape[0]


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode inside; behind, each module in its own mode of before. To be entered inside `use_task`.

    What a module makes of ``train()`` is up to it: a frozen part may stay in eval mode.
    """
    before = {module: mode_of(module) for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, was_training in before.items():
            set_mode(module, was_training)
