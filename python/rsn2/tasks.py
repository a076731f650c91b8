"""Which tasks a network holds, and which one runs, or which for each sample."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from torch import nn

from rsn2.nn.hold import STRUCTURE, held, kept_in_eval
from rsn2.nn.layer import MultitaskLayer, TaskError
from rsn2.nn.mixture import Mixture
from rsn2.nn.per_task import PerTask
from rsn2.opening import uncompiled


class _Parts(NamedTuple):
    """What of a network has to do with tasks, by name, in order of registration.

    Attributes:
        layers, copies: multitask layers and per-task modules.
        shared_state: modules with buffers and without submodules that belong to no task: what training may move there,
            such as running statistics, all tasks answer with.
    """

    layers: dict[str, MultitaskLayer]
    copies: dict[str, PerTask]
    shared_state: list[nn.Module]

    def all(self) -> list[MultitaskLayer | PerTask]:
        """Layers and per-task modules."""
        return [*self.layers.values(), *self.copies.values()]

    def held(self) -> list[nn.Module]:
        """What one runner has at a time."""
        return [*self.all(), *self.shared_state]


def _parts_of(model: nn.Module) -> _Parts:
    """One walk over the network: it is most of what `use_task` costs, and that runs for every request served."""
    model = uncompiled(model)
    parts = _Parts({}, {}, [])
    stateful: dict[str, nn.Module] = {}
    with STRUCTURE:
        for name, module in model.named_modules():
            if isinstance(module, MultitaskLayer):
                parts.layers[name] = module
            elif isinstance(module, PerTask):
                parts.copies[name] = module
            elif module._buffers and not module._modules:
                stateful[name] = module
    inside = tuple(f"{name}." if name else "" for name in parts.copies)
    parts.shared_state.extend(module for name, module in stateful.items() if not name.startswith(inside))
    return parts


def multitask_layers(model: nn.Module) -> dict[str, MultitaskLayer]:
    """The multitask layers of a network by name, in order of registration."""
    return _parts_of(model).layers


def per_task_modules(model: nn.Module) -> dict[str, PerTask]:
    """The per-task modules of a network by name, in order of registration."""
    return _parts_of(model).copies


def tasks(model: nn.Module) -> list[str]:
    """Tasks with an allocation in the network: layer by layer, and in each in order of allocation."""
    parts = _parts_of(model)
    with STRUCTURE:
        if not parts.layers:
            return list(dict.fromkeys(task for module in parts.copies.values() for task in module.tasks))
        return list(dict.fromkeys(task for layer in parts.layers.values() for task in layer.slots))


def slots_of(model: nn.Module, task: str | Sequence[str]) -> list[tuple[str, MultitaskLayer, int]]:
    """The slots that a task has, or any of several tasks: layer name, layer, slot; each once, in the layers' order.

    A task has a slot in the layers that it runs through, and in no other.
    """
    return [
        (name, layer, slot)
        for name, layer in multitask_layers(model).items()
        for slot in dict.fromkeys(layer.slots[each] for each in names_of(task) if each in layer.slots)
    ]


def names_of(task: str | Sequence[str]) -> tuple[str, ...]:
    """One task's name, or several, as a tuple."""
    return (task,) if isinstance(task, str) else tuple(task)


def check_converted(model: nn.Module) -> None:
    """Raise if the network has neither multitask layers nor per-task modules.

    Raises:
        TaskError: if so; says what to call.
    """
    if not _parts_of(model).all():
        raise TaskError("model: expected a network with multitask layers; make one with rsn2.convert(model).")


def check_allocated(model: nn.Module, task: str) -> None:
    """Raise unless a multitask layer, if the network has any, and every per-task module have a part for ``task``.

    Raises:
        TaskError: if the network was not converted, or the task has nothing allocated; says what to call.
        TypeError: if ``task`` is no name.
    """
    _check_allocated(model, _parts_of(model), task)


def _check_allocated(model: nn.Module, parts: _Parts, task: str) -> None:
    if not isinstance(task, str):
        raise TypeError(
            f"task: expected the name of one task. Got {task!r}. For several there are rsn2.fit_together, "
            "rsn2.use_tasks, rsn2.predict and rsn2.predict_together."
        )
    if not parts.all():
        check_converted(model)
    missing = [] if any(task in layer.slots for layer in parts.layers.values()) else list(parts.layers)
    missing += [name for name, module in parts.copies.items() if task not in module.tasks]
    if missing:
        raise TaskError(
            f"task {task!r} has nothing allocated in {missing}: call rsn2.allocate(model, {task!r}, density, ...) "
            f"first. Tasks of this network: {tasks(model)}."
        )


@contextmanager
def use_task(model: nn.Module, task: str) -> Iterator[None]:
    """Run the network as ``task`` inside the block; what was active before is active again behind it.

    Modules whose buffers all tasks share (norms that were left out of `convert`, parametrizations such as spectral
    norm; each that has buffers and no submodules) are in eval mode inside, whoever calls ``model.train()`` there, since
    one task must not move them for the others. Behind the block they are in the mode last asked for.

    Another thread that wants the network, or any part of it, waits until the block is left; to run tasks side by side,
    give each thread a copy.

    A backward pass that runs parts of the network again (``torch.utils.checkpoint``) runs them as the task that is
    active then: call it inside the block of its forward pass.

    Raises:
        TaskError: if the task has nothing allocated.
        TypeError: if ``task`` is no name.
        RuntimeError: if another coroutine of this thread is in such a block, which it cannot leave meanwhile.
    """
    parts = _parts_of(model)
    _check_allocated(model, parts, task)
    with _activated(parts, task):
        yield


@contextmanager
def use_tasks(model: nn.Module, task_of_sample: Sequence[str]) -> Iterator[None]:
    """Run batches whose samples belong to different tasks inside the block: sample ``b`` as ``task_of_sample[b]``.

    Samples lie along the first dimension, in every layer. A linear layer is one product for all tasks
    (:func:`rsn2_kernels.grouped_linear`), other layers run task by task, on the samples of each. A
    :class:`~rsn2.nn.PerTask` also takes a dict of each task's samples, which may differ in shape, and gives one where
    the outputs of the batch's tasks do: a batch of one task always gives a tensor. Only tasks of the batch have
    gradients. Otherwise as :func:`use_task`.

    Args:
        task_of_sample: a task's name for every sample of the batches that follow; at least one.

    Raises:
        TaskError: if one of the tasks has nothing allocated, or the network has a module with ``batch_first=False``, in
            which samples do not come first.
        TypeError: if ``task_of_sample`` is no sequence of names; inside, if a layer other than a PerTask gets a dict.
        ValueError: if it is empty; inside, if a batch is of another size.
        RuntimeError: as :func:`use_task`.
    """
    if isinstance(task_of_sample, str) or not isinstance(task_of_sample, Sequence):
        raise TypeError(f"task_of_sample: expected a sequence of names. Got {type(task_of_sample).__name__}.")
    for task in task_of_sample:
        if not isinstance(task, str):
            raise TypeError(f"task_of_sample: expected a sequence of names. Got one with a {type(task).__name__}.")
    if not task_of_sample:
        raise ValueError("task_of_sample: expected a task for each sample, and at least one sample. Got none.")
    mixture = Mixture(task_of_sample)
    parts = _parts_of(model)
    for task in mixture.tasks:
        _check_allocated(model, parts, task)
    with STRUCTURE:
        for name, module in model.named_modules():
            if getattr(module, "batch_first", True) is False:
                raise TaskError(
                    f"{name or 'model'}: expected batch_first=True, as samples come first where each has a task."
                )
    with _activated(parts, mixture):
        yield


def activated(model: nn.Module, task: str) -> AbstractContextManager[None]:
    """`use_task` without its check, for allocation, which runs a task that has nothing yet."""
    return _activated(_parts_of(model), task)


def alone_with(model: nn.Module) -> AbstractContextManager[None]:
    """Keep others from running or changing the network inside; first wait until nobody does."""
    return held(_parts_of(model).held())


@contextmanager
def _activated(found: _Parts, active: str | Mixture) -> Iterator[None]:
    parts = found.all()
    with held(found.held()), kept_in_eval(found.shared_state):
        before = [part.active for part in parts]
        try:
            for part in parts:
                part.active = active
                if isinstance(part, MultitaskLayer):
                    # Made here, so that a compiled network never has to: its size depends on data.
                    # Of a mixture, all: one index serves every mixture.
                    for slot in part.densities:
                        if isinstance(active, Mixture) or part.slots.get(active) == slot:
                            part.pattern(slot)
            yield
        finally:
            for part, previous in zip(parts, before, strict=True):
                part.active = previous


def remove(model: nn.Module, task: str) -> None:
    """Take a task out of the network, in place: its weights are free for later tasks, and its own modules are gone.

    Free weights start a later task from the values that they had before this one. All other tasks answer with the same
    bits as before; a slot that they share with this one stays theirs. To have the task again,
    :func:`rsn2.allocate` it anew, behind ``add_task`` of each :class:`~rsn2.nn.PerTask` without a template.

    Raises:
        TaskError: if the task has nothing allocated.
        TypeError: if ``task`` is no name.
    """
    with alone_with(model):
        check_allocated(model, task)
        parts = _parts_of(model)
        for layer in parts.layers.values():
            if task in layer.slots:
                layer.remove_task(task)
        for module in parts.copies.values():
            module.remove_task(task)


def finalize(model: nn.Module) -> None:
    """Drop every pool and template: the network shrinks to what its tasks own, and takes no further task."""
    with alone_with(model):
        for part in _parts_of(model).all():
            part.finalize()
