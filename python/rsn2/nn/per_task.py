"""PerTask: the parts of a network that each task keeps for itself: input layers, heads, norms."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rsn2.nn.hold import STRUCTURE, changing
from rsn2.nn.layer import MultitaskLayer, TaskError, no_task_is_active
from rsn2.nn.mixture import Mixture
from rsn2.nn.names import check_task_name


class PerTask(nn.Module):
    """Runs the module of the active task; its parameters are trained with that task and are not pruned.

    Two ways to make one:

    * from a module per task, of any shapes: ``PerTask({"digits": nn.Linear(64, 256), "wine": nn.Linear(13, 256)})``.
      Tasks that come later bring theirs to :meth:`add_task`, so that it may begin with none: ``PerTask({})``;
    * from one ``template``, copied for each task when it is allocated: ``PerTask(template=nn.LayerNorm(256))``.

    Attributes:
        by_task: the modules, under ``task_<name>``.
        template: what new tasks copy, or None.
        active: name of the task that `forward` runs, or a task for each sample; set it with :func:`rsn2.use_task` or
            :func:`rsn2.use_tasks`.

    Raises:
        TypeError: if what is given is no module.
        ValueError: if both or neither are given, two tasks' modules share a tensor, or one holds multitask layers or
            per-task modules, which know tasks themselves.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None, *, template: nn.Module | None = None):
        super().__init__()
        if (modules is None) == (template is None):
            raise ValueError("PerTask: expected either a module per task or a template.")
        if template is not None:
            _check_plain("template", template)
        for module in (modules or {}).values():
            _check_plain("modules", module)
        self.by_task = nn.ModuleDict()
        self.template = copy.deepcopy(template).requires_grad_(False) if template is not None else None
        self._trainable = _trainable(template)
        _check_apart("modules", modules or {})
        for task, module in (modules or {}).items():
            check_task_name(task)
            self.by_task[_key(task)] = module
        self.active: str | Mixture | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a module here."""
        with STRUCTURE:
            return tuple(key.removeprefix("task_") for key in self.by_task)

    def of(self, task: str | None) -> nn.Module:
        """The module of a task.

        Raises:
            TaskError: if the task has none here.
        """
        if task is None:
            raise no_task_is_active(self.tasks)
        if _key(task) not in self.by_task:
            raise TaskError(f"task {task!r} has no module here. Tasks: {list(self.tasks)}.")
        return self.by_task[_key(task)]

    @property
    def current(self) -> nn.Module:
        """The module of the active task.

        Raises:
            TaskError: if no task is active, or each sample has one.
        """
        if isinstance(self.active, Mixture):
            raise TaskError("each sample has a task of its own here: no single module is active.")
        return self.of(self.active)

    def add_task(self, task: str, module: nn.Module | None = None) -> None:
        """Give a new task its module, before :func:`rsn2.allocate` gives it weights; by default a copy of the template.

        ::

            model[-1].add_task("news", nn.Linear(256, 20))  # a head of another size
            rsn2.allocate(model, "news", 0.2, loss, batches)

        Args:
            task: a new name.
            module: on the network's device and in its dtype, with no tensor of another task's module. It is put into
                the mode that this module is in. None: a copy of the template, in which is frozen what was frozen in
                the module that was given as template.

        Raises:
            TaskError: if the task has a module here, or there is neither a module nor a template to copy.
            TypeError: if ``module`` is no module.
            ValueError: if it shares a tensor with another task's module, or holds multitask layers or per-task modules.
        """
        check_task_name(task)
        if task in self.tasks:
            raise TaskError(f"task {task!r} has a module here already.")
        if module is not None:
            _check_plain("module", module)
            _check_apart("module", {**{other: self.of(other) for other in self.tasks}, task: module})
            module.train(self.training)
        elif self.template is None:
            raise TaskError(f"task {task!r} has no module here, and there is no template. Tasks: {list(self.tasks)}.")
        else:
            module = copy.deepcopy(self.template)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in self._trainable)
        with changing(self):
            self.by_task[_key(task)] = module

    def remove_task(self, task: str) -> None:
        """Drop a task's module.

        Raises:
            TaskError: if the task has none here.
        """
        with changing(self):
            self.of(task)
            del self.by_task[_key(task)]

    def finalize(self) -> None:
        """Drop the template: no further task can be added."""
        self.template = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the active task's module returns.

        Where each sample has a task, tensors among the arguments are batches, of which each task's module gets its
        samples; a dict holds them by task. What the modules return is joined where it can be, else a dict by task.

        Raises:
            TaskError: if no task is active, or it has no module here.
            ValueError: if each sample has a task, and a tensor has a name, so that nobody knows whether it is a batch.
        """
        if not isinstance(self.active, Mixture):
            return self.current(*args, **kwargs)
        for name, argument in kwargs.items():
            if isinstance(argument, Tensor):
                raise ValueError(
                    f"PerTask: where each sample has a task, expected batches without names. Got a tensor as {name}."
                )
        mixture = self.active
        parts = {id(each): mixture.parts(each) for each in args if isinstance(each, Tensor | Mapping)}
        return mixture.joined(
            {
                task: self.of(task)(*(parts[id(each)][task] if id(each) in parts else each for each in args), **kwargs)
                for task in mixture.tasks
            }
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Which tasks there are, so that a state dict can be loaded into a fresh network."""
        return {"tasks": list(self.tasks), "has_template": self.template is not None}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Make the copies that a state dict's tensors are loaded into, in its order."""
        for task in state["tasks"]:
            if task not in self.tasks:
                self.add_task(task)
        for task in self.tasks:
            if task not in state["tasks"]:
                self.remove_task(task)
        for task in state["tasks"]:  # each to the end: then they are in this order
            self.by_task[_key(task)] = self.by_task.pop(_key(task))
        if not state["has_template"]:
            self.finalize()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The extra state comes first here, since it decides which modules there are to load.
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self.set_extra_state(state)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MultitaskBatchNorm1d(PerTask):
    """``nn.BatchNorm1d`` with statistics and affine parameters of each task's own."""

    def __init__(self, num_features: int, **options: Any):
        super().__init__(template=nn.BatchNorm1d(num_features, **options))


class MultitaskBatchNorm2d(PerTask):
    """``nn.BatchNorm2d`` with statistics and affine parameters of each task's own."""

    def __init__(self, num_features: int, **options: Any):
        super().__init__(template=nn.BatchNorm2d(num_features, **options))


class MultitaskLayerNorm(PerTask):
    """``nn.LayerNorm`` with affine parameters of each task's own."""

    def __init__(self, normalized_shape: int | list[int], **options: Any):
        super().__init__(template=nn.LayerNorm(normalized_shape, **options))


def _check_plain(argument: str, module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument}: expected a module. Got {type(module).__name__}.")
    for part in module.modules():
        if isinstance(part, MultitaskLayer | PerTask):
            raise ValueError(
                f"{argument}: expected ordinary modules, all of which is one task's own. Got one with a "
                f"{type(part).__name__}, which knows tasks itself."
            )


def _check_apart(argument: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise if two tasks' modules hold the same tensor."""
    holders: dict[int, str] = {}
    for task, module in modules.items():
        for tensor in (*module.parameters(), *module.buffers()):
            holder = holders.setdefault(id(tensor), task)
            if holder != task:
                raise ValueError(f"{argument}: those of {holder!r} and {task!r} share a tensor.")


def _trainable(template: nn.Module | None) -> frozenset[str]:
    """Names of the parameters that each task trains in its copy."""
    named = template.named_parameters() if template is not None else ()
    return frozenset(name for name, parameter in named if parameter.requires_grad)


def _key(task: str) -> str:
    # The prefix keeps names such as "train" or "values" clear of the attributes of nn.ModuleDict.
    return f"task_{task}"
