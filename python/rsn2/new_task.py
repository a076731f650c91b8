"""What a task needs before it is allocated or warmed up: a new name, layers with room, copies of per-task modules."""

from collections.abc import Mapping
from contextlib import ExitStack

from torch import nn

from rsn2.nn.layer import MultitaskLayer, TaskError
from rsn2.ownership import check_apart
from rsn2.tasks import multitask_layers, per_task_modules


def check_new(model: nn.Module, task: str, own: Mapping[str, MultitaskLayer]) -> None:
    """Raise unless ``task`` is new, the layers ``own`` can give it weights, and per-task modules have a part for it.

    Raises:
        TaskError: if not; names the layer or module.
        ValueError: as `check_apart`.
    """
    check_apart(model)
    for name, layer in multitask_layers(model).items():
        if task in layer.slots:
            raise TaskError(f"task {task!r} is allocated already, in layer {name!r}.")
    for name, layer in own.items():
        if layer.pool is None:
            raise TaskError(f"task {task!r} cannot be added: layer {name!r} is finalized, its free weights are gone.")
    for name, module in per_task_modules(model).items():
        if task not in module.tasks and module.template is None:
            raise TaskError(
                f"task {task!r} has no module in {name!r}, which has no template to copy: give it one with "
                f"add_task({task!r}, module)."
            )


def add_copies(model: nn.Module, task: str, undo: ExitStack) -> None:
    """Copy the templates for the task; ``undo`` takes the copies back."""
    for module in per_task_modules(model).values():
        if task not in module.tasks:
            module.add_task(task)
            undo.callback(module.remove_task, task)


def share_slots(layers: Mapping[str, MultitaskLayer], task: str, holders: Mapping[str, str], undo: ExitStack) -> None:
    """Give the task the slots of ``holders``, layer name -> task; ``undo`` takes them back."""
    for name, holder in holders.items():
        layers[name].share_task(task, holder)
        undo.callback(layers[name].remove_task, task)
