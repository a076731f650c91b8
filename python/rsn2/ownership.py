"""What is whose: the parameters and buffers of a task, of several together, and those that all tasks share."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from rsn2.nn.layer import MultitaskLayer
from rsn2.nn.per_task import PerTask
from rsn2.opening import uncompiled
from rsn2.tasks import check_allocated, multitask_layers, names_of, per_task_modules, slots_of


def parameters(model: nn.Module, task: str | Sequence[str]) -> list[nn.Parameter]:
    """The parameters that training ``task``, or several tasks together, may change: no other task answers with them.

    Those are values and biases of the tasks' slots, and their per-task modules. A slot that several tasks share
    (``allocate(..., share=...)``) is among them only if all of these tasks are named: trained for some of them, it
    would make the others forget. An optimizer over the result cannot touch a task that is not named.

    Parameters that all tasks share (of layers that were left out of `convert`) are never among them.

    Raises:
        TaskError: if a task has nothing allocated, so that no optimizer can be made too early.
        ValueError: if a per-task module shares a tensor with another part of the network; names it.
    """
    check_apart(model)
    return _parameters_of(model, names_of(task))


def named_parameters(model: nn.Module, task: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The same as :func:`parameters`, by their names in the network: for options of some of them.

    Packed values have one dimension, like biases, so the name tells what is what: values of a slot are called
    ``<layer>.values.<slot>``, its bias ``<layer>.biases.<slot>``, and parameters of a task's own modules
    ``<module>.by_task.task_<task>.<name>``. Without weight decay for biases, for instance::

        named = rsn2.named_parameters(model, "digits")
        groups = [
            {"params": [each for name, each in named.items() if "bias" not in name]},
            {"params": [each for name, each in named.items() if "bias" in name], "weight_decay": 0.0},
        ]
        rsn2.fit(model, "digits", train, loss=loss, epochs=20, optimizer=torch.optim.AdamW(groups, weight_decay=0.1))

    Raises:
        TaskError: if a task has nothing allocated.
    """
    names = {id(parameter): name for name, parameter in uncompiled(model).named_parameters()}
    return {names[id(parameter)]: parameter for parameter in parameters(model, task)}


def frozen_slots(model: nn.Module, task: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers in which training ``task`` cannot change its own values, since others share them: layer -> the others."""
    names = names_of(task)
    found: dict[str, tuple[str, ...]] = {}
    for where, layer, slot in slots_of(model, names):
        if others := tuple(other for other in layer.holders(slot) if other not in names):
            found[where] = (*found.get(where, ()), *others)
    return found


def own_tensors(model: nn.Module, task: str) -> dict[str, Tensor]:
    """All that a task answers with, by name, besides what all tasks share: its parameters and per-task buffers.

    A slot that it shares with other tasks counts as its own here: a change of it is a change of the task.

    Raises:
        TaskError: if nothing is allocated to the task.
    """
    check_allocated(model, task)
    mine = {id(parameter) for _, layer, slot in slots_of(model, task) for parameter in _of_slot(layer, slot)}
    for module in per_task_modules(model).values():
        mine |= {id(tensor) for tensor in (*module.of(task).parameters(), *module.of(task).buffers())}
    return _named(model, mine)


def trained_tensors(model: nn.Module, task: str | Sequence[str]) -> dict[str, Tensor]:
    """All that training ``task``, or several tasks together, may change, by name: parameters and per-task buffers.

    Raises:
        TaskError: if nothing is allocated to a task.
    """
    mine = {id(parameter) for parameter in _parameters_of(model, names_of(task))}
    for module in per_task_modules(model).values():
        mine |= {id(buffer) for name in names_of(task) for buffer in module.of(name).buffers()}
    return _named(model, mine)


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that belong to no task, by name: those of layers that were left out of `convert`."""
    owned = {id(parameter) for part in _parts(model) for parameter in part.parameters()}
    return {
        name: parameter
        for name, parameter in uncompiled(model).named_parameters()
        if id(parameter) not in owned and parameter.requires_grad
    }


def shared_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to no task, by name: those of modules that are neither multitask layers nor per task."""
    owned = {id(buffer) for part in _parts(model) for buffer in part.buffers()}
    return {name: buffer for name, buffer in uncompiled(model).named_buffers() if id(buffer) not in owned}


def check_apart(model: nn.Module) -> None:
    """Raise where others answer with a tensor of a task's own module: of another task, or of what all tasks share.

    One that is shared and frozen is nobody's to change, and may be.

    Raises:
        ValueError: names the tensor.
    """
    model = uncompiled(model)
    holders: dict[int, set[str]] = {}
    for module in per_task_modules(model).values():
        for task in module.tasks:
            for tensor in _movable(module.of(task).modules()):
                holders.setdefault(id(tensor), set()).add(f"task {task!r}")
    if holders:
        for tensor in _movable(_outside_per_task(model)):
            if id(tensor) in holders:
                holders[id(tensor)].add("what all tasks share")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if len(found := sorted(holders.get(id(tensor), ()))) > 1:
            raise ValueError(
                f"{name}: expected a tensor of one task's own in its per-task module. This one is of "
                f"{' and '.join(found)}: give the task a copy, or freeze it (requires_grad_(False))."
            )


def _movable(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """What training may change in these modules themselves: buffers, and parameters that are not frozen."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and (tensor.requires_grad or not isinstance(tensor, nn.Parameter)):
                yield tensor


def _outside_per_task(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that are reached without going through a per-task module."""
    left, seen = [model], {model}
    while left:
        module = left.pop()
        if isinstance(module, PerTask):
            continue
        yield module
        new = [child for child in module.children() if child not in seen]
        seen.update(new)
        left += new


def _parameters_of(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """What :func:`parameters` returns, for who asks again and again: that nothing is shared was checked before."""
    for name in names:
        check_allocated(model, name)
    own: list[nn.Parameter] = []
    for _, layer, slot in slots_of(model, names):
        if set(layer.holders(slot)) <= set(names):
            own.extend(_of_slot(layer, slot))
    for module in per_task_modules(model).values():
        for name in names:
            own.extend(module.of(name).parameters())
    return list(dict.fromkeys(own))


def _of_slot(layer: MultitaskLayer, slot: int) -> list[nn.Parameter]:
    key = str(slot)
    return [parameters[key] for parameters in (layer.values, layer.biases) if key in parameters]


def _named(model: nn.Module, ids: set[int]) -> dict[str, Tensor]:
    model = uncompiled(model)
    named: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if id(tensor) in ids}


def _parts(model: nn.Module) -> list[nn.Module]:
    return [*multitask_layers(model).values(), *per_task_modules(model).values()]
