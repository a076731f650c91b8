"""Tasks trained stage by stage in one network, each against a dense control, and an audit of forgetting.

The runner knows networks, tasks, controls and the audit; what the data is and what the network looks like, an
experiment tells it. All it does is repeatable, so that an interrupted run goes on by doing it again: the
resume files of `rsn2.fit` give back at once what was trained before.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.allocate import allocate
from rsn2.bench.machine import cpu_model
from rsn2.checkpoint import save
from rsn2.convert import convert
from rsn2.data import batches_of, device_of
from rsn2.experiments import extras, measures, plots, reload
from rsn2.experiments.audit import bits_of, count_changed
from rsn2.experiments.experiment import Control, Experiment, Problem, Stage, Task
from rsn2.experiments.folder import RunFolder
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import Training
from rsn2.experiments.tensorboard import Board
from rsn2.report import report
from rsn2.tasks import finalize, multitask_layers, own_tensors, parameters, slots_of
from rsn2.training import History, fit_together, predict
from rsn2.warm_up import warm_up

_ADAM_MOMENTS = 2


@dataclass(frozen=True)
class _Answers:
    """What a network says to a test set, and how good that is."""

    outputs: Tensor
    value: float
    loss: float
    f1: list[float]


@dataclass(frozen=True)
class _Trained:
    """A task or a control right after its training.

    Attributes:
        history: of the training.
        answers: to the test set.
        bits: all that the task answers with.
        nbytes: of a control on disk: with its weights alone, and with Adam's two moments.
    """

    history: History
    answers: _Answers
    bits: dict[str, Tensor] = field(default_factory=dict)
    nbytes: tuple[int, int] = (0, 0)


def run(
    experiment: Experiment,
    path: Path,
    *,
    controls: bool = True,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    control_folder: Path | None = None,
    tensorboard: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run an experiment in a folder, or go on with it, and return its report.

    Written there: ``report.json``, ``net.safetensors`` (the finished network), ``ownership.png``, ``curves.png``,
    ``losses.png``, and what an interrupted run needs: ``run.json`` and ``resume/``.

    Args:
        experiment: what to run.
        path: the folder, made if missing.
        controls: train the dense controls too. An experiment whose stages follow from them has them in any case.
        fresh: remove an earlier run from the folder first.
        device: where networks are; data comes to them batch by batch.
        control_folder: where controls that have a file keep their training, made if missing; None: in the folder.
        tensorboard: write losses and scores to ``tensorboard/`` in the folder too, after each training.
        console: where progress is told; None tells nothing.

    Raises:
        RunError: if the folder holds a run with other settings.
        AuditError: after the report is written, if a value of a finished task changed, or the saved network
            answers differently in a new process.
        MissingPackageError: if matplotlib, scikit-learn, or the tensorboard that was asked for is not installed.
    """
    for package in ("matplotlib", "sklearn"):  # before the training, not after it
        extras.load(package)
    folder = RunFolder(path)
    folder.enter({**experiment.settings, "threads": torch.get_num_threads(), "device": str(device)}, fresh)
    controls = (controls or callable(experiment.stages)) and bool(experiment.controls)
    finished = folder.read_report()
    if finished is not None and not _failures(finished) and not (controls and _lacks_controls(finished)):
        _tell(console, f"{path} holds this run, finished; --fresh runs it anew.")
        return finished
    board = Board(folder.events if tensorboard else None)
    dense: dict[str, _Trained] = {}
    for name, control in experiment.controls.items() if controls else ():
        _tell(console, f"{name}: dense control, {len(control.problem.train[0])} samples")
        dense[name] = _train_control(control, folder.resume_file(f"{name}.control"), control_folder, device, console)
        board.add_history(f"{name} (control)", dense[name].history)
        folder.keep_time()
    stages = experiment.stages
    if callable(stages):
        stages = stages({name: each.answers.f1 for name, each in dense.items()})
    tasks = [task for stage in stages for task in stage.tasks]
    model = convert(experiment.build()).to(device)
    trained: dict[str, _Trained] = {}
    after: list[dict[str, _Answers]] = []
    for number, stage in enumerate(stages, start=1):
        _allocate_all(model, stage, experiment, folder, console)
        trained |= _train_stage(model, stage, folder, console)
        folder.keep_time()
        after.append({task.name: _ask(model, task.name, task.problem) for task in tasks if task.name in trained})
        for task in tasks:
            if task.name in trained:
                board.add_score(task.name, task.problem.metric, after[-1][task.name].value, number)
        for task in stage.tasks:
            board.add_history(task.name, trained[task.name].history)
    board.close()
    backends = {task.name: _backends(model, task, stage.training) for stage in stages for task in stage.tasks}
    capacity = measures.capacity_used(model)
    sizes = _sizes(model, tasks)
    finalize(model)
    save(model, folder.checkpoint, experiment.metadata)
    curves = {
        kind: {name: {"train": each.history.train_loss, "val": each.history.val_loss} for name, each in group.items()}
        for kind, group in (("rsn2", trained), ("control", _by_task(tasks, dense)))
    }
    losses = [
        {"trained": [task.name for task in stage.tasks], "losses": {name: each.loss for name, each in answers.items()}}
        for stage, answers in zip(stages, after, strict=True)
    ]
    plots.ownership(model, folder.picture("ownership"))
    plots.learning_curves(curves, folder.picture("curves"))
    plots.task_losses(losses, folder.picture("losses"))
    moments = _ADAM_MOMENTS * _bytes(parameters(model, [task.name for task in tasks]))
    on_disk = folder.checkpoint.stat().st_size
    result = {
        "tasks": [_describe(model, task, stage, trained, after[-1], dense) for stage in stages for task in stage.tasks],
        "ensembles": [_ensemble(model, name, each, tasks, dense) for name, each in experiment.ensembles.items()],
        "f1": {
            "rsn2": {task.name: after[-1][task.name].f1 for task in tasks if task.problem.classes},
            "control": {name: each.answers.f1 for name, each in dense.items() if each.answers.f1},
        },
        "classes": {task.name: list(task.problem.classes) for task in tasks if task.problem.classes}
        | {name: list(each.problem.classes) for name, each in experiment.controls.items() if each.problem.classes},
        "continual": _continual(tasks, after) | {"capacity": capacity},
        "bytes": {
            "network": {"weights": on_disk, "with_optimizer": on_disk + moments},
            "controls": {
                "weights": sum(each.nbytes[0] for each in dense.values()),
                "with_optimizer": sum(each.nbytes[1] for each in dense.values()),
            },
            "multitask_layers": sizes,
        },
        "bits_per_weight": report(model).bits_per_weight,
        "bits_per_weight_dense": 8 * sum(_dense_bytes(model, task.name) for task in tasks) / report(model).positions,
        "predictions_unchanged": all(
            count_changed({"": after[-1][name].outputs}, {"": each.answers.outputs}) == 0
            for name, each in trained.items()
        ),
        "reload_bitwise_equal": _reloads_bitwise(model, experiment, tasks, folder.checkpoint),
        "losses": curves,
        "task_losses": losses,
        "optimizer": {task.name: stage.training.optimizer for stage in stages for task in stage.tasks},
        "training": {task.name: asdict(stage.training) for stage in stages for task in stage.tasks},
        "allocation": asdict(experiment.allocation),
        "backend": {"chosen": backends, "available_backends": rk.available_backends()},
        "threads": torch.get_num_threads(),
        "machine": _machine(device),
        "versions": _versions(),
        "seconds": folder.keep_time(),
    }
    folder.write_report(result)
    if failures := _failures(result):
        raise AuditError(f"{'; '.join(failures)}; see {folder.report}.")
    return result


def _failures(result: Mapping[str, Any]) -> list[str]:
    """The promises that a report says are broken."""
    failures = [
        f"{task['values_changed']} values of task {task['name']!r} changed after its training"
        for task in result["tasks"]
        if task["values_changed"]
    ]
    if not result["predictions_unchanged"]:
        failures.append("a task answers differently than right after its training")
    if not result["reload_bitwise_equal"]:
        failures.append("the saved network answers differently in a new process")
    return failures


def _lacks_controls(result: Mapping[str, Any]) -> bool:
    return any(task["control"] is None for task in result["tasks"])


def _tell(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, soft_wrap=True)


def _train_control(
    control: Control, resume: Path, shared: Path | None, device: torch.device | str, console: Console | None
) -> _Trained:
    """The plain network as one task's own: torch's dense layers, for the same training."""
    model = convert(control.build(), per_task=list(multitask_layers(convert(control.build())))).to(device)
    allocate(model, control.task, 1.0, criterion="magnitude")
    if shared is not None and control.file is not None:
        shared.mkdir(parents=True, exist_ok=True)
        resume = shared / f"{control.file}.safetensors"
    history = _fit(model, {control.task: control.problem}, control.training, resume, console)[control.task]
    own = own_tensors(model, control.task)
    on_disk = len(to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}))
    moments = _ADAM_MOMENTS * _bytes(parameters(model, control.task))
    return _Trained(history, _ask(model, control.task, control.problem), nbytes=(on_disk, on_disk + moments))


def _allocate_all(
    model: nn.Module, stage: Stage, experiment: Experiment, folder: RunFolder, console: Console | None
) -> None:
    how, training = experiment.allocation, stage.training
    for task in stage.tasks:
        problem = task.problem
        _tell(console, f"{task.name}: {len(problem.train[0])} samples, density {task.density}")
        start = None
        if stage.warm_up:
            start = warm_up(
                model,
                task.name,
                problem.train,
                loss=problem.loss,
                epochs=stage.warm_up,
                optimizer=training.make_optimizer,
                batch_size=training.batch_size,
                seed=training.seed,
                layers=task.layers,
                share=task.share,
                flip=how.flip,
                resume=folder.resume_file(f"{task.name}.warm_up"),
                progress=console is not None,
            )
        allocate(
            model.eval(),
            task.name,
            task.density,
            problem.loss,
            batches_of(how.part_of(problem.train, training.seed), training.batch_size),
            criterion=how.criterion,
            scope=how.scope,
            rescale=how.rescale,
            granularity=how.granularity,
            seed=training.seed,
            layers=task.layers,
            share=task.share,
            flip=how.flip and start is None,
            start=start,
        )


def _train_stage(model: nn.Module, stage: Stage, folder: RunFolder, console: Console | None) -> dict[str, _Trained]:
    problems = {task.name: task.problem for task in stage.tasks}
    history = _fit(model, problems, stage.training, folder.resume_file("+".join(problems)), console)
    return {
        name: _Trained(history[name], _ask(model, name, problem), bits_of(model, name))
        for name, problem in problems.items()
    }


def _fit(
    model: nn.Module, problems: Mapping[str, Problem], training: Training, resume: Path, console: Console | None
) -> dict[str, History]:
    return fit_together(
        model,
        {name: problem.train for name, problem in problems.items()},
        {name: problem.val for name, problem in problems.items()},
        loss={name: problem.loss for name, problem in problems.items()},
        epochs=training.epochs,
        optimizer=training.make_optimizer,
        batch_size=training.batch_size,
        patience=training.patience,
        min_delta=training.min_delta,
        seed=training.seed,
        resume=resume,
        progress=console is not None,
    )


def _ask(model: nn.Module, task: str, problem: Problem) -> _Answers:
    x, target = problem.test
    outputs = predict(model, task, x).cpu()
    f1 = measures.f1_per_class(outputs, target) if problem.classes else []
    return _Answers(outputs, problem.score(outputs, target), problem.loss(outputs, target).item(), f1)


def _describe(
    model: nn.Module,
    task: Task,
    stage: Stage,
    trained: Mapping[str, _Trained],
    answers: Mapping[str, _Answers],
    dense: Mapping[str, _Trained],
) -> dict[str, Any]:
    """A task's part of the report; the network is the one that all tasks were trained in."""
    own = trained[task.name]
    control = dense.get(task.control) if task.control is not None else None
    return {
        "name": task.name,
        "metric": task.problem.metric,
        "value": answers[task.name].value,
        "control": None if control is None else control.answers.value,
        "density": task.density,
        "value_after_training": own.answers.value,
        "values_changed": count_changed(bits_of(model, task.name), own.bits),
        "epochs": len(own.history.train_loss),
        "warm_up_epochs": stage.warm_up,
        "best_epoch": own.history.best_epoch,
        "seconds": sum(own.history.seconds),
        "trained_with": [other.name for other in stage.tasks if other is not task],
        "control_epochs": None if control is None else len(control.history.train_loss),
        "control_seconds": None if control is None else sum(control.history.seconds),
        "test_samples": len(task.problem.test[0]),
    }


def _ensemble(
    model: nn.Module, name: str, members: Sequence[str], tasks: Sequence[Task], dense: Mapping[str, _Trained]
) -> dict[str, Any]:
    """The score of the mean of several tasks' probabilities, on the test set of the first."""
    first = next(task for task in tasks if task.name == members[0])
    x, target = first.problem.test
    outputs = predict(model, members, x, activation=lambda logits: logits.softmax(-1)).cpu()
    control = dense.get(first.control) if first.control is not None else None
    return {
        "name": name,
        "tasks": list(members),
        "metric": first.problem.metric,
        "value": first.problem.score(outputs, target),
        "control": None if control is None else control.answers.value,
        "f1": measures.f1_per_class(outputs, target),
    }


def _continual(tasks: Sequence[Task], after: Sequence[Mapping[str, _Answers]]) -> dict[str, float | None]:
    stages = [{name: each.value for name, each in answers.items()} for answers in after]
    errors = [task.name for task in tasks if not task.problem.classes]
    some = len(errors) < len(tasks)
    return {
        "average_accuracy": measures.average_accuracy(stages, errors) if some else None,
        "backward_transfer": measures.backward_transfer(stages, errors),
    }


def _by_task(tasks: Sequence[Task], dense: Mapping[str, _Trained]) -> dict[str, _Trained]:
    """Task -> its control."""
    return {task.name: dense[task.control] for task in tasks if task.control is not None and task.control in dense}


def _backends(model: nn.Module, task: Task, training: Training) -> dict[str, str]:
    """What each shared linear layer runs on while the task trains."""
    chosen = {}
    batch = min(training.batch_size, len(task.problem.train[0]))
    for name, layer, slot in slots_of(model, task.name):
        values = layer.values[str(slot)]
        chosen[name] = rk.explain("linear", layer.pattern(slot), batch, values.dtype, values.device).backend
    return chosen


def _dense_bytes(model: nn.Module, task: str) -> int:
    """Bytes of the task's dense control: the same parts, with every position of the shared layers."""
    size = _bytes([tensor for tensor in own_tensors(model, task).values() if isinstance(tensor, nn.Parameter)])
    for _, layer, slot in slots_of(model, task):
        values = layer.values[str(slot)]
        size += (layer.owners.numel - values.numel()) * values.itemsize
    return size


def _sizes(model: nn.Module, tasks: Sequence[Task]) -> dict[str, int]:
    """Bytes of the multitask layers, and of the same layers in a dense network for each task."""
    dense = 0
    for task in tasks:
        for _, layer, slot in slots_of(model, task.name):
            bias = layer.biases[str(slot)].nbytes if str(slot) in layer.biases else 0
            dense += layer.owners.numel * layer.values[str(slot)].itemsize + bias
    kept = sum(layer.values_bytes + layer.planes_bytes for layer in report(model).layers)
    return {"weights": kept, "dense": dense}


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _reloads_bitwise(model: nn.Module, experiment: Experiment, tasks: Sequence[Task], checkpoint: Path) -> bool:
    """Whether a new process that loads the checkpoint gives the same bits for all test sets."""
    samples = {task.name: task.problem.test[0] for task in tasks}
    here = {name: predict(model, name, x).cpu() for name, x in samples.items()}
    there = reload.predict_elsewhere(checkpoint, experiment.rebuild, samples, device_of(model))
    return count_changed(here, there) == 0


def _machine(device: torch.device | str) -> dict[str, Any]:
    found = torch.device(device)
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(found) if found.type == "cuda" else str(found),
    }


def _versions() -> dict[str, str]:
    return {
        "rsn2-kernels": extras.version("rsn2-kernels"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": extras.version("scikit-learn"),
    }
