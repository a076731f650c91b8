"""What `fit` refuses before its first step: numbers out of range, and optimizers that do not fit the task."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rsn2.ownership import own_tensors, parameters
from rsn2.tasks import names_of, tasks

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
Kind = TypeVar("Kind")
Source = TypeVar("Source")


def check_int(name: str, value: object, least: int | None = None) -> None:
    """Raise unless the argument ``name`` is an int, and at least ``least``.

    Raises:
        TypeError: if it is no int, a bool included.
        ValueError: if it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int. Got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}. Got {value}.")


def check_fit_arguments(
    loss: object, epochs: object, batch_size: object, patience: object, min_delta: object, seed: object, has_val: bool
) -> None:
    """Check all arguments of `fit` that depend on neither network nor data.

    Raises:
        TypeError: if one is of another type.
        ValueError: if one is out of range, or there is patience without validation data.
    """
    if not callable(loss):
        raise TypeError(f"loss: expected a function loss(outputs, targets) -> scalar tensor. Got {loss!r}.")
    check_int("epochs", epochs, least=0)
    check_int("batch_size", batch_size, least=1)
    check_int("seed", seed)
    if isinstance(min_delta, bool) or not isinstance(min_delta, int | float):
        raise TypeError(f"min_delta: expected a number. Got {min_delta!r}.")
    if not min_delta >= 0:
        raise ValueError(f"min_delta: expected at least 0. Got {min_delta}.")
    if patience is None:
        return
    check_int("patience", patience, least=1)
    if not has_val:
        raise ValueError("patience: early stopping needs validation data. Got val=None.")


def checked_optimizer(
    model: nn.Module, task: str | Sequence[str], optimizer: Optimizer | OptimizerFactory | None, lr: float
) -> Optimizer:
    """The optimizer to use, over the parameters of the task or tasks; Adam with ``lr`` for None.

    Of those that are frozen it may hold some, all or none.

    Raises:
        TaskError: if nothing is allocated to a task.
        TypeError: if it is neither an optimizer nor a function that makes one, or its step needs a closure.
        ValueError: if it holds other parameters than the tasks'; names them. Also if there is nothing to train.
    """
    own = parameters(model, task)
    if not own:
        raise ValueError(
            f"task {task!r}: all its parameters are shared with tasks that are not trained with it. Train them "
            "together, with rsn2.fit_together."
        )
    made = made_optimizer(own, optimizer, lr)
    besides, lacking = unlike(made, own)
    if not besides and not lacking:
        return made
    names = {id(parameter): f"{name}, shared by all tasks" for name, parameter in model.named_parameters()}
    for other in tasks(model):
        for name, tensor in own_tensors(model, other).items():
            names[id(tensor)] = f"{name} of task {other!r}"
    strange = sorted(names.get(each, "a tensor not in this network") for each in besides)
    shown = task if isinstance(task, str) else list(names_of(task))
    raise ValueError(
        f"optimizer: expected exactly rsn2.parameters(model, {shown!r}). It holds {strange} besides, and "
        f"lacks {sorted(names[each] for each in lacking)}. Make it after rsn2.allocate."
    )


def made_optimizer(own: list[nn.Parameter], optimizer: Optimizer | OptimizerFactory | None, lr: float) -> Optimizer:
    """The optimizer that was given, or made of ``own`` by the function that was given; Adam with ``lr`` for None.

    Raises:
        TypeError: if it is neither, or its step needs a closure.
    """
    made = _made(
        "optimizer",
        torch.optim.Adam(own, lr=lr) if optimizer is None else optimizer,
        Optimizer,
        own,
        "a torch.optim.Optimizer, a function that makes one of a list of parameters (such as torch.optim.Adam), "
        "or None",
    )
    _, *options = inspect.signature(type(made).step).parameters.values()
    if any(option.default is option.empty and option.kind is option.POSITIONAL_OR_KEYWORD for option in options):
        raise TypeError(
            f"optimizer: expected one whose step needs no closure. The step of {type(made).__name__} runs the loss "
            "several times, which fit does not do."
        )
    return made


def unlike(optimizer: Optimizer, own: Collection[nn.Parameter]) -> tuple[set[int], set[int]]:
    """Ids of what an optimizer holds besides ``own``, and of what it lacks of the trainable ones among them."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {id(parameter) for parameter in own if parameter.requires_grad}
    return held - {id(parameter) for parameter in own}, trainable - held


def checked_scheduler(
    optimizer: Optimizer, scheduler: LRScheduler | SchedulerFactory | None, has_val: bool
) -> LRScheduler | None:
    """The scheduler that was given, or made of ``optimizer`` by the function that was given.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is another optimizer's, or goes by a validation loss that there is not.
    """
    if scheduler is None:
        return None
    made = _made(
        "scheduler",
        scheduler,
        LRScheduler,
        optimizer,
        "a scheduler of torch.optim.lr_scheduler, a function that makes one of an optimizer, or None",
    )
    if made.optimizer is not optimizer:
        raise ValueError("scheduler: expected one of the optimizer that is used. It is another one's.")
    if isinstance(made, ReduceLROnPlateau) and not has_val:
        raise ValueError("scheduler: ReduceLROnPlateau goes by the validation loss. Got val=None.")
    return made


def _made(name: str, given: Kind | Callable[[Source], Kind], kind: type[Kind], source: Source, expected: str) -> Kind:
    """What was given as the argument ``name``, or what that makes of ``source`` if it is a function."""
    made = given if isinstance(given, kind) or not callable(given) else given(source)
    if not isinstance(made, kind):
        which = f", which makes {made!r}" if callable(given) else ""
        raise TypeError(f"{name}: expected {expected}. Got {given!r}{which}.")
    return made
