"""Tasks trained stage by stage in one network, each against a dense control, and an audit of forgetting.

The runner knows networks, tasks, controls and the audit; what the data is and what the network looks like, an
experiment tells it. All it does is repeatable, so that an interrupted run goes on by doing it again: the
resume files of `rsn2.fit` give back at once what was trained before.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save as to_bytes
from torch import nn

from rsn2 import extras
from rsn2.allocate import AllocationError, allocate
from rsn2.convert import convert
from rsn2.data import batches_of, nbytes_of
from rsn2.experiments.audit import bits_of
from rsn2.experiments.experiment import Control, Experiment, Problem, Stage
from rsn2.experiments.findings import Answers, Findings, Trained, ask
from rsn2.experiments.folder import RunFolder
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import Training, computed_in
from rsn2.experiments.tensorboard import Board
from rsn2.machine import facts
from rsn2.ownership import own_tensors, parameters
from rsn2.tasks import multitask_layers
from rsn2.training import History, fit_together
from rsn2.warm_up import warm_up


def run(
    experiment: Experiment,
    path: Path,
    *,
    controls: bool = True,
    fresh: bool = False,
    outside: Path | None = None,
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
        outside: a file of its results that is elsewhere, for ``fresh`` to remove too.
        device: where networks are; data comes to them batch by batch.
        control_folder: where controls that have a file keep their training, made if missing; None: in the folder.
        tensorboard: write losses and scores to ``tensorboard/`` in the folder too, after each training.
        console: where progress is told; None tells nothing.

    Raises:
        RunError: if the folder holds a run with other settings.
        AllocationError: before anything is trained, if a task would find no room, or not in the form asked for.
        AuditError: after the report is written, if a value of a finished task changed, or the saved network
            answers differently in a new process; has the report.
        MissingPackageError: if matplotlib, scikit-learn, or the tensorboard that was asked for is not installed.
    """
    for package in ("matplotlib", "sklearn"):  # before the training, not after it
        extras.load(package)
    # Settings that cannot run are not to be those of the folder.
    device = torch.device(device)
    _check_room(experiment)
    folder = RunFolder(path, outside)
    folder.enter({**experiment.described(), "threads": torch.get_num_threads(), "device": str(device)}, fresh)
    controls = (controls or callable(experiment.stages)) and bool(experiment.controls)
    finished = folder.read_report()
    if finished is not None and not (
        _failures(finished) or (controls and _lacks_controls(finished)) or (tensorboard and not folder.events.exists())
    ):
        tell(console, f"{path} holds this run, finished; --fresh runs it anew.")
        return finished
    board = Board(folder.events if tensorboard else None)
    with computed_in(experiment.precision, device):
        found = _train_all(experiment, folder, board, controls, control_folder, device, console)
        result = found.report(experiment, folder) | {"machine": facts(device), "seconds": folder.keep_time()}
    folder.write_report(result)
    if failures := _failures(result):
        raise AuditError(f"{'; '.join(failures)}; see {folder.report}.", result)
    return result


def _check_room(experiment: Experiment) -> None:
    """Allocate all tasks at random, in a network that is thrown away."""
    model, how = convert(experiment.build()), experiment.allocation
    with warnings.catch_warnings(action="ignore"):
        for task in (task for stage in experiment.planned for task in stage.tasks):
            try:
                allocate(
                    model,
                    task.name,
                    task.density,
                    criterion="random",
                    scope=how.scope,
                    granularity=how.granularity,
                    layers=task.layers,
                    share=task.share,
                )
            except ValueError as error:
                raise AllocationError(str(error)) from error


def _train_all(
    experiment: Experiment,
    folder: RunFolder,
    board: Board,
    controls: bool,
    control_folder: Path | None,
    device: torch.device | str,
    console: Console | None,
) -> Findings:
    """The controls, then the network of all tasks, stage by stage."""
    dense: dict[str, Trained] = {}
    for name, control in experiment.controls.items() if controls else ():
        tell(console, f"{name}: dense control, {len(control.problem.train[0])} samples")
        dense[name] = _train_control(control, folder.resume_file(f"{name}.control"), control_folder, device, console)
        board.add_history(f"{name} (control)", dense[name].history)
        folder.keep_time()
    stages = experiment.stages
    if callable(stages):
        stages = stages({name: each.answers.f1 for name, each in dense.items()})
    model = convert(experiment.build()).to(device)
    trained: dict[str, Trained] = {}
    after: list[dict[str, Answers]] = []
    for number, stage in enumerate(stages, start=1):
        _allocate_all(model, stage, experiment, folder, console)
        trained |= _train_stage(model, stage, folder, console)
        folder.keep_time()
        after.append(_ask_all(model, stages[:number], trained))
        for task in (task for each in stages[:number] for task in each.tasks):
            board.add_score(task.name, task.problem.metric, after[-1][task.name].value, number)
        for task in stage.tasks:
            board.add_history(task.name, trained[task.name].history)
    board.close()
    return Findings(model, stages, trained, after, dense)


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


def tell(console: Console | None, text: str) -> None:
    """Print a line of progress, if anybody listens."""
    if console is not None:
        console.print(text, highlight=False, soft_wrap=True)


def _train_control(
    control: Control, resume: Path, shared: Path | None, device: torch.device | str, console: Console | None
) -> Trained:
    """The plain network as one task's own: torch's dense layers, for the same training."""
    model = convert(control.build(), per_task=list(multitask_layers(convert(control.build())))).to(device)
    allocate(model, control.task, 1.0, criterion="magnitude")
    if shared is not None and control.file is not None:
        shared.mkdir(parents=True, exist_ok=True)
        # What it took is compared with what the network takes: on the same device, with as many threads.
        where = f"{torch.device(device)}-{torch.get_num_threads()}".replace(":", "-")
        resume = shared / f"{control.file}-{where}.safetensors"
    history = _fit(model, {control.task: control.problem}, control.training, resume, console)[control.task]
    own = own_tensors(model, control.task)
    on_disk = len(to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}))
    moments = control.training.moments * nbytes_of(parameters(model, control.task))
    return Trained(history, ask(model, control.task, control.problem), nbytes=(on_disk, on_disk + moments))


def _allocate_all(
    model: nn.Module, stage: Stage, experiment: Experiment, folder: RunFolder, console: Console | None
) -> None:
    how, training = experiment.allocation, stage.training
    for task in stage.tasks:
        problem = task.problem
        tell(console, f"{task.name}: {len(problem.train[0])} samples, density {task.density}")
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


def _train_stage(model: nn.Module, stage: Stage, folder: RunFolder, console: Console | None) -> dict[str, Trained]:
    problems = {task.name: task.problem for task in stage.tasks}
    history = _fit(model, problems, stage.training, folder.resume_file("+".join(problems)), console)
    return {
        name: Trained(history[name], ask(model, name, problem), bits_of(model, name))
        for name, problem in problems.items()
    }


def _ask_all(model: nn.Module, stages: Sequence[Stage], trained: Mapping[str, Trained]) -> dict[str, Answers]:
    """What all tasks answer after the last of these stages, whose own tasks have just been asked."""
    *before, last = stages
    answers = {task.name: ask(model, task.name, task.problem) for stage in before for task in stage.tasks}
    return answers | {task.name: trained[task.name].answers for task in last.tasks}


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
        scheduler=training.scheduler,
        batch_size=training.batch_size,
        patience=training.patience,
        min_delta=training.min_delta,
        seed=training.seed,
        resume=resume,
        progress=console is not None,
    )
