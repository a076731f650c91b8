"""PerTask: the parts of a network that each task keeps for itself: input layers, heads, norms."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rsn2.nn.layer import MultitaskLayer, TaskError
from rsn2.nn.mixture import Mixture
from rsn2.nn.names import check_task_name


class PerTask(nn.Module):
    """Runs the module of the active task; its parameters are trained with that task and are not pruned.

    Two ways to make one:

    * from a module per task, of any shapes: ``PerTask({"digits": nn.Linear(64, 256), "wine": nn.Linear(13, 256)})``;
    * from one ``template``, copied for each task when it is allocated: ``PerTask(template=nn.LayerNorm(256))``.

    Attributes:
        by_task: the modules, under ``task_<name>``.
        template: what new tasks copy, or None.
        active: name of the task that `forward` runs, or a task for each sample; set it with :func:`rsn2.use_task` or
            :func:`rsn2.use_tasks`.

    Raises:
        ValueError: if both or neither are given, two tasks' modules share a tensor, or one holds multitask layers or
            per-task modules, which know tasks themselves.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None, *, template: nn.Module | None = None):
        super().__init__()
        if (modules is None) == (template is None):
            raise ValueError("PerTask: expected either a module per task or a template.")
        for argument, given in (("modules", modules or {}), ("template", {"": template})):
            for module in given.values():
                _check_plain(argument, module)
        self.by_task = nn.ModuleDict()
        self.template = copy.deepcopy(template).requires_grad_(False) if template is not None else None
        self._trainable = _trainable(template)
        holders: dict[int, str] = {}
        for task, module in (modules or {}).items():
            check_task_name(task)
            for tensor in (*module.parameters(), *module.buffers()):
                holder = holders.setdefault(id(tensor), task)
                if holder != task:
                    raise ValueError(f"modules: those of {holder!r} and {task!r} share a tensor.")
            self.by_task[_key(task)] = module
        self.active: str | Mixture | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a module here."""
        return tuple(key.removeprefix("task_") for key in self.by_task)

    def of(self, task: str | None) -> nn.Module:
        """The module of a task.

        Raises:
            TaskError: if the task has none here.
        """
        if task is None:
            raise TaskError(f"no task is active: run inside rsn2.use_task(model, task). Tasks: {list(self.tasks)}.")
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

    def add_task(self, task: str) -> None:
        """Give a new task its copy of the template; what was frozen in the module given as template is frozen in it.

        Raises:
            TaskError: if the task has a module here, or there is no template to copy.
        """
        check_task_name(task)
        if task in self.tasks:
            raise TaskError(f"task {task!r} has a module here already.")
        if self.template is None:
            raise TaskError(f"task {task!r} has no module here, and there is no template. Tasks: {list(self.tasks)}.")
        module = copy.deepcopy(self.template)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        self.by_task[_key(task)] = module

    def remove_task(self, task: str) -> None:
        """Drop a task's module."""
        del self.by_task[_key(task)]

    def finalize(self) -> None:
        """Drop the template: no further task can be added."""
        self.template = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the active task's module returns.

        Where each sample has a task, it takes one argument, the batch or a dict of each task's samples, and returns
        what the tasks' modules do for theirs: joined where it can be, else a dict by task.

        Raises:
            TaskError: if no task is active, or it has no module here.
            ValueError: if each sample has a task, and the arguments are others.
        """
        if not isinstance(self.active, Mixture):
            return self.current(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor | Mapping):
            raise ValueError(
                "PerTask: where each sample has a task, expected one argument, a tensor or a dict by task."
            )
        return self.active.each(args[0], lambda task, samples: self.of(task)(samples))

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


def _check_plain(argument: str, module: nn.Module | None) -> None:
    for part in module.modules() if module is not None else ():
        if isinstance(part, MultitaskLayer | PerTask):
            raise ValueError(
                f"{argument}: expected ordinary modules, all of which is one task's own. Got one with a "
                f"{type(part).__name__}, which knows tasks itself."
            )


def _trainable(template: nn.Module | None) -> frozenset[str]:
    """Names of the parameters that each task trains in its copy."""
    named = template.named_parameters() if template is not None else ()
    return frozenset(name for name, parameter in named if parameter.requires_grad)


def _key(task: str) -> str:
    # The prefix keeps names such as "train" or "values" clear of the attributes of nn.ModuleDict.
    return f"task_{task}"
