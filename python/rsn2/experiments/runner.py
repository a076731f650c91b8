"""Several tasks trained in turn in one network, each against a dense control, and an audit of forgetting.

The runner knows networks, tasks, controls and the audit; what the data is and what the network looks like, an
experiment tells it. All it does is repeatable, so that an interrupted run goes on by doing it again: the
resume files of `rsn2.fit` give back at once what was trained before.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.allocate import allocate
from rsn2.checkpoint import save
from rsn2.convert import convert
from rsn2.data import batches_of, device_of
from rsn2.experiments import extras, plots, reload
from rsn2.experiments.folder import RunFolder
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import Allocation, Training
from rsn2.report import report
from rsn2.tasks import finalize, multitask_layers, own_tensors, parameters
from rsn2.training import History, Loss, evaluate, fit, predict


@dataclass(frozen=True)
class Task:
    """One task of an experiment.

    Attributes:
        name: of the task.
        density: share of the shared positions.
        train, val, test: ``(x, target)`` tensors.
        loss: ``loss(output, target) -> scalar``.
        metric: name of the score, such as "accuracy".
        score: ``score(outputs, targets)`` of a whole test set.
        training: how the task and its control are trained.
    """

    name: str
    density: float
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Loss
    metric: str
    score: Callable[[Tensor, Tensor], float]
    training: Training


@dataclass(frozen=True)
class Experiment:
    """What a run is about.

    Attributes:
        build: makes the plain network, with the same initial weights at every call.
        rebuild: "module:function"; ``function(metadata)`` makes the plain network that `rsn2.load` fills.
        tasks: in the order of their training.
        allocation: how the weights are chosen.
        metadata: kept in the checkpoint; JSON.
        settings: all that determines the result; JSON. A folder goes on with a run of equal settings only.
    """

    build: Callable[[], nn.Module]
    rebuild: str
    tasks: Sequence[Task]
    allocation: Allocation
    metadata: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Trained:
    """A task right after its training: its history, its score, and its bits."""

    history: History
    value: float
    bits: dict[str, Tensor]


def run(
    experiment: Experiment,
    path: Path,
    *,
    controls: bool = True,
    fresh: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run an experiment in a folder, or go on with it, and return its report.

    Written there: ``report.json``, ``net.safetensors`` (the finished network), ``ownership.png``, and what an
    interrupted run needs: ``run.json`` and ``resume/``.

    Args:
        experiment: what to run.
        path: the folder, made if missing.
        controls: train each task's dense control too.
        fresh: remove an earlier run from the folder first.
        console: where progress is told; None tells nothing.

    Raises:
        RunError: if the folder holds a run with other settings.
        AuditError: after the report is written, if a value of a finished task changed, or the saved network
            answers differently in a new process.
        MissingPackageError: if matplotlib is not installed.
    """
    extras.load("matplotlib")  # before the training, not after it
    folder = RunFolder(path)
    folder.enter({**experiment.settings, "threads": torch.get_num_threads()}, fresh)
    finished = folder.read_report()
    if finished is not None and not _failures(finished) and not (controls and _lacks_controls(finished)):
        _tell(console, f"{path} holds this run, finished; --fresh runs it anew.")
        return finished
    model = convert(experiment.build())
    trained: dict[str, _Trained] = {}
    dense: dict[str, _Trained] = {}
    for task in experiment.tasks:
        _tell(console, f"{task.name}: {len(task.train[0])} samples, density {task.density}")
        _allocate(model, task, experiment.allocation)
        trained[task.name] = _train(model, task, folder.resume_file(task.name), console)
        folder.keep_time()
        if controls:
            _tell(console, f"{task.name}: dense control")
            control = _dense_control(experiment, task.name)
            dense[task.name] = _train(control, task, folder.resume_file(f"{task.name}.control"), console)
            folder.keep_time()
    tasks = [_describe(model, task, trained[task.name], dense.get(task.name)) for task in experiment.tasks]
    backends = {task.name: _backends(model, task) for task in experiment.tasks}
    dense_bytes = sum(_dense_bytes(model, task.name) for task in experiment.tasks)
    finalize(model)
    save(model, folder.checkpoint, experiment.metadata)
    plots.ownership(model, folder.picture)
    size = report(model)
    result = {
        "tasks": tasks,
        "bits_per_weight": size.bits_per_weight,
        "bits_per_weight_dense": 8 * dense_bytes / size.positions,
        "reload_bitwise_equal": _reloads_bitwise(model, experiment, folder.checkpoint),
        "optimizer": {task.name: task.training.optimizer for task in experiment.tasks},
        "allocation": asdict(experiment.allocation),
        "backend": {"chosen": backends, "available_backends": rk.available_backends()},
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "seconds": folder.keep_time(),
    }
    folder.write_report(result)
    if failures := _failures(result):
        raise AuditError(f"{'; '.join(failures)}; see {folder.report}.")
    return result


def count_changed(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> int:
    """Number of values that are not the same bits; all of a tensor that came, went or changed its shape."""
    count = 0
    for name in {*now, *before}:
        pair = [tensors[name].detach() for tensors in (now, before) if name in tensors]
        if len(pair) == 2 and pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype:
            first, second = (tensor.reshape(-1, 1).view(torch.uint8) for tensor in pair)
            count += int((first != second).any(dim=1).sum())
        else:
            count += max(tensor.numel() for tensor in pair)
    return count


def _failures(result: Mapping[str, Any]) -> list[str]:
    """The promises that a report says are broken."""
    failures = [
        f"{task['values_changed']} values of task {task['name']!r} changed after its training"
        for task in result["tasks"]
        if task["values_changed"]
    ]
    if not result["reload_bitwise_equal"]:
        failures.append("the saved network answers differently in a new process")
    return failures


def _lacks_controls(result: Mapping[str, Any]) -> bool:
    return any(task["control"] is None for task in result["tasks"])


def _tell(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, soft_wrap=True)


def _allocate(model: nn.Module, task: Task, allocation: Allocation) -> None:
    allocate(
        model.eval(),
        task.name,
        task.density,
        task.loss,
        batches_of(task.train, task.training.batch_size),
        criterion=allocation.criterion,
        scope=allocation.scope,
        rescale=allocation.rescale,
        granularity=allocation.granularity,
        seed=task.training.seed,
    )


def _dense_control(experiment: Experiment, task: str) -> nn.Module:
    """The plain network as one task's own: torch's dense layers, from the same initial weights, for the same `fit`."""
    shared = list(multitask_layers(convert(experiment.build())))
    control = convert(experiment.build(), per_task=shared)
    allocate(control, task, 1.0, criterion="magnitude")
    return control


def _train(model: nn.Module, task: Task, resume: Path, console: Console | None) -> _Trained:
    training = task.training
    history = fit(
        model,
        task.name,
        task.train,
        task.val,
        loss=task.loss,
        epochs=training.epochs,
        optimizer=training.make_optimizer,
        batch_size=training.batch_size,
        patience=training.patience,
        min_delta=training.min_delta,
        seed=training.seed,
        resume=resume,
        progress=console is not None,
    )
    bits = {name: tensor.clone() for name, tensor in _bits(model, task.name).items()}
    return _Trained(history, _score(model, task), bits)


def _score(model: nn.Module, task: Task) -> float:
    batch_size = task.training.batch_size
    return evaluate(model, task.name, task.test, metrics={"score": task.score}, batch_size=batch_size)["score"]


def _bits(model: nn.Module, task: str) -> dict[str, Tensor]:
    """All that a task answers with: its values, biases, per-task modules, and where its values stand."""
    own = {name: tensor.detach() for name, tensor in own_tensors(model, task).items()}
    for name, layer in multitask_layers(model).items():
        own[f"{name}.mask"] = layer.owners.mask(layer.slot(task))
    return own


def _describe(model: nn.Module, task: Task, trained: _Trained, control: _Trained | None) -> dict[str, Any]:
    """A task's part of the report; the network is the one that all tasks were trained in."""
    history = trained.history
    return {
        "name": task.name,
        "metric": task.metric,
        "value": _score(model, task),
        "control": None if control is None else control.value,
        "density": task.density,
        "value_after_training": trained.value,
        "values_changed": count_changed(_bits(model, task.name), trained.bits),
        "epochs": len(history.train_loss),
        "best_epoch": history.best_epoch,
        "seconds": sum(history.seconds),
        "control_epochs": None if control is None else len(control.history.train_loss),
        "control_seconds": None if control is None else sum(control.history.seconds),
        "test_samples": len(task.test[0]),
    }


def _backends(model: nn.Module, task: Task) -> dict[str, str]:
    """What each shared linear layer runs on while the task trains."""
    chosen = {}
    batch = min(task.training.batch_size, len(task.train[0]))
    for name, layer in multitask_layers(model).items():
        slot = layer.slot(task.name)
        values = layer.values[str(slot)]
        chosen[name] = rk.explain("linear", layer.pattern(slot), batch, values.dtype, values.device).backend
    return chosen


def _dense_bytes(model: nn.Module, task: str) -> int:
    """Bytes of the task's dense control: the same parts, with every position of the shared layers."""
    size = sum(parameter.nbytes for parameter in parameters(model, task))
    for layer in multitask_layers(model).values():
        values = layer.values[str(layer.slot(task))]
        size += (layer.owners.numel - values.numel()) * values.itemsize
    return size


def _reloads_bitwise(model: nn.Module, experiment: Experiment, checkpoint: Path) -> bool:
    """Whether a new process that loads the checkpoint gives the same bits for all test sets."""
    samples = {task.name: task.test[0] for task in experiment.tasks}
    here = {name: predict(model, name, x).cpu() for name, x in samples.items()}
    there = reload.predict_elsewhere(checkpoint, experiment.rebuild, samples, device_of(model))
    return count_changed(here, there) == 0


def _versions() -> dict[str, str]:
    return {
        "rsn2-kernels": extras.version("rsn2-kernels"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": extras.version("scikit-learn"),
    }
