"""MultitaskLayer: one weight, many tasks, each the owner of its own positions. What linear and convolution share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from rsn2.nn.hold import changing
from rsn2.nn.mixture import Mixture
from rsn2.nn.names import check_task_name
from rsn2_kernels import OwnerMap, SparsePattern


class TaskError(LookupError):
    """A task does not exist, has nothing allocated, is there already, or none is active."""


def no_task_is_active(tasks: Iterable[str]) -> TaskError:
    """The error of a module that runs outside `use_task`, and has these tasks."""
    return TaskError(
        "no task is active: run inside rsn2.use_task(model, task), and there too a backward pass that runs the forward "
        f"pass again (torch.utils.checkpoint). Tasks: {list(tasks)}."
    )


@dataclass(frozen=True)
class Candidates:
    """What a new task may claim, run densely while it is being chosen or warmed up.

    Attributes:
        weight: of torch's shape, a leaf to differentiate.
        bias: ``[rows]``, or None.
        free: bool, of the shape of ``weight``; where it is False, the weight counts as 0. None: all is free.
    """

    weight: Tensor
    bias: Tensor | None
    free: Tensor | None = None

    @property
    def effective(self) -> Tensor:
        """The weight that the layer runs with."""
        return self.weight if self.free is None else self.weight * self.free


class MultitaskLayer(nn.Module, ABC):
    """A weight ``[rows, cols]`` whose positions belong to tasks.

    A task's weights are one trainable ``[nnz]`` tensor of packed values; nothing that trains one task can reach another
    task's tensor. Until a task claims it, a position holds its initial value in the pool.

    Attributes:
        owners: who owns each position; its task numbers are this layer's slots. Read it; the layer changes it.
        slots: task name -> slot. Tasks that share a slot have the same values and bias here.
        densities: slot -> the density that was asked for (what it owns differs by rounding, or by global scope).
        values: slot -> packed values ``[nnz]``, the trainable weights.
        biases: slot -> bias ``[rows]``; empty without bias.
        pool: the dense initial weight, in torch's shape, whose free positions later tasks will claim; None once
            finalized.
        initial_bias: the bias that each new task starts from, or None.
        active: name of the task that `forward` runs, or a task for each sample; set it with :func:`rsn2.use_task` or
            :func:`rsn2.use_tasks`.
    """

    pool: Tensor | None
    initial_bias: Tensor | None
    _like: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        rows = weight.shape[0]
        self.owners = OwnerMap.empty((rows, weight.numel() // rows), device=weight.device)
        self.slots: dict[str, int] = {}
        self.densities: dict[int, float] = {}
        self.values = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.register_buffer("pool", weight.detach().clone())
        self.register_buffer("initial_bias", None if bias is None else bias.detach().clone())
        # Holds no element: it carries dtype and device to where a finalized layer without tasks has no other tensor.
        self.register_buffer("_like", weight.detach().new_empty(0), persistent=False)
        self.active: str | Mixture | None = None
        self._patterns: dict[int, SparsePattern] = {}
        self._candidates: Candidates | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for the active task; see the subclass for shapes.

        Raises:
            TaskError: if no task is active, or nothing is allocated to the active one.
        """
        if self._candidates is not None:
            return self._dense(x, self._candidates.effective, self._candidates.bias)
        if isinstance(self.active, Mixture):
            return self._mixed(x, self.active)
        return self._as_task(self.active, x)

    def _as_task(self, task: str | None, x: Tensor) -> Tensor:
        slot = self.slot(task)
        bias = self.biases[str(slot)] if self.initial_bias is not None else None
        return self._packed(x, self.values[str(slot)], self.pattern(slot), bias)

    def _mixed(self, x: Tensor, mixture: Mixture) -> Tensor:
        """The output where each sample has a task of its own."""
        mixture.check(x)
        output: Tensor = mixture.each(x, self._as_task)
        return output

    def slot(self, task: str | None) -> int:
        """The slot of a task.

        Raises:
            TaskError: if the task has none here.
        """
        if task is None:
            raise no_task_is_active(self.slots)
        if task not in self.slots:
            raise TaskError(
                f"task {task!r} has nothing allocated here, in the {type(self).__name__} of weight shape "
                f"{self.weight_shape}. Tasks: {list(self.slots)}."
            )
        return self.slots[task]

    def holders(self, slot: int) -> tuple[str, ...]:
        """The tasks of a slot, in the order in which they came."""
        return tuple(task for task, held in self.slots.items() if held == slot)

    def pattern(self, slot: int) -> SparsePattern:
        """The index structure of a slot's weights, made on first use and kept."""
        if slot not in self._patterns:
            self._patterns[slot] = SparsePattern.from_mask(self.owners.mask(slot))
        return self._patterns[slot]

    def dense_weight(self, task: str) -> Tensor:
        """The dense weight of one task, in torch's shape: its values at its positions, 0 elsewhere. A copy.

        Raises:
            TaskError: if nothing is allocated to the task.
        """
        slot = self.slot(task)
        values: Tensor = self.values[str(slot)].detach()
        return self.pattern(slot).unpack(values).view(self.weight_shape)

    def add_task(
        self,
        task: str,
        mask: Tensor,
        density: float,
        scale: Tensor | None = None,
        *,
        initial: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        """Give a new task the positions of ``mask``, with their values from the pool.

        Args:
            task: a new name.
            mask: bool ``[rows, cols]``, free positions only.
            density: the share of all positions that was asked for, kept for the check that all of them add to <= 1.
            scale: float64 ``[rows]``; each row's values are multiplied by it once.
            initial: of torch's shape, the values to start from instead of the pool's.
            bias: ``[rows]``, the bias to start from instead of the initial one; not used by a layer without bias.

        Raises:
            TaskError: if the task is here already, or the layer is finalized.
            ValueError: if a tensor is of another shape, or ``mask`` is not bool.
            rsn2_kernels.OverlapError: if a position is owned. Nothing has changed after any error.
        """
        self._check_new(task)
        if self.pool is None:
            raise TaskError(f"task {task!r} cannot be added: the layer is finalized, its free weights are gone.")
        pattern = SparsePattern.from_mask(mask)
        whole, rows = self.owners.shape, self.owners.shape[:1]
        for name, given, shape in (
            ("mask", mask, whole),
            ("scale", scale, rows),
            ("initial", initial, self.weight_shape),
            ("bias", bias, rows),
        ):
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}. Got {tuple(given.shape)}.")
        dense = (self.pool if initial is None else initial.detach().to(self.pool)).flatten(1)
        if scale is not None:
            dense = (dense.to(scale.dtype) * scale.unsqueeze(1)).to(dense.dtype)
        values = nn.Parameter(pattern.pack(dense))
        slot = next(number for number in range(len(self.densities) + 1) if number not in self.densities)
        own_bias = None
        if self.initial_bias is not None:
            start = self.initial_bias if bias is None else bias.detach().to(self.initial_bias)
            own_bias = nn.Parameter(start.clone())
        with changing(self):
            self.owners.claim(slot, mask)  # the last that can fail
            self.slots[task] = slot
            self.densities[slot] = density
            self._patterns[slot] = pattern
            self.values[str(slot)] = values
            if own_bias is not None:
                self.biases[str(slot)] = own_bias

    def remove_task(self, task: str) -> None:
        """Take a task out; its positions are free as they were before it, unless other tasks share its slot.

        Raises:
            TaskError: if the task has none here.
        """
        with changing(self):
            slot = self.slot(task)
            del self.slots[task]
            if self.holders(slot):
                return
            self.owners.release(slot)
            self._patterns.pop(slot, None)
            del self.densities[slot], self.values[str(slot)]
            if str(slot) in self.biases:
                del self.biases[str(slot)]

    def share_task(self, task: str, holder: str) -> None:
        """Give a new task the slot of another: the same positions, values and bias, without a copy.

        Raises:
            TaskError: if the task is here already, or ``holder`` has nothing allocated. Nothing changes then.
        """
        with changing(self):
            self._check_new(task)
            self.slots[task] = self.slot(holder)

    def alone(self, task: str) -> Self:
        """A finalized copy that holds one task, which is active in it, or none, if the task has nothing here."""
        owners = OwnerMap.empty(self.owners.shape, device=self.owners.device)
        # What other tasks have is not copied to be dropped.
        instead: dict[int, Any] = {id(self.owners): owners, id(self._patterns): {}}
        instead |= {id(self.values): nn.ParameterDict(), id(self.biases): nn.ParameterDict()}
        if self.pool is not None:
            instead[id(self.pool)] = self._like
        copied = copy.deepcopy(self, instead)
        if task in self.slots:
            slot = self.slots[task]
            owners.claim(0, self.owners.mask(slot))
            copied.take_over(owners, {task: 0}, {0: self.densities[slot]}, has_pool=False)
            copied.values["0"].data.copy_(self.values[str(slot)].detach())
            if str(slot) in self.biases:
                copied.biases["0"].data.copy_(self.biases[str(slot)].detach())
            copied.pattern(0)  # its size depends on data, so neither an export nor torch.compile could make it
        else:
            copied.take_over(owners, {}, {}, has_pool=False)
        copied.active = task
        return copied

    def _check_new(self, task: str) -> None:
        check_task_name(task)
        if task in self.slots:
            raise TaskError(f"task {task!r} is allocated already.")

    @property
    def index_nbytes(self) -> int:
        """Bytes of the index structures derived so far, those of several tasks together included."""
        # Copies: another thread may add to them.
        patterns = list(self._patterns.values())
        groups = [group for pattern in patterns for group in list(pattern.groups.values())]
        return sum(each.nbytes for each in (*patterns, *groups))

    def finalize(self) -> None:
        """Drop the pool: the layer shrinks to its owned weights, and no further task can be added."""
        self.pool = None

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """Torch's shape of the dense weight."""

    @property
    def geometry(self) -> dict[str, Any]:
        """What decides the layer's result besides its tensors, as JSON."""
        return {}

    @abstractmethod
    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Torch's own operator, on a weight of torch's shape: what allocation differentiates."""

    @abstractmethod
    def _packed(self, x: Tensor, values: Tensor, pattern: SparsePattern, bias: Tensor | None) -> Tensor:
        """The operator on packed values."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.owners.device)).device
        if device != self.owners.device:
            self.owners = self.owners.to(device)
            self._patterns.clear()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds besides tensors of parameters and buffers: who owns what."""
        return {
            "planes": list(self.owners.planes),
            "slots": dict(self.slots),
            "densities": dict(self.densities),
            "has_pool": self.pool is not None,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing is left to do here: `_load_from_state_dict` took the state over before it loaded the parameters."""

    def take_over(self, owners: OwnerMap, slots: dict[str, int], densities: dict[int, float], has_pool: bool) -> None:
        """Adopt owners and slots that were checked, and make the parameters that the values are loaded into.

        Args:
            owners: of this layer's shape; its tasks are the slots.
            slots, densities, has_pool: as the attributes; ``has_pool`` False is a finalized layer.
        """
        self.owners = owners.to(self.owners.device)
        self.slots, self.densities = dict(slots), dict(densities)
        self._patterns.clear()
        for parameters, sizes in (
            (self.values, {slot: owners.count(slot) for slot in densities}),
            (self.biases, dict.fromkeys(densities, owners.shape[0]) if self.initial_bias is not None else {}),
        ):
            for key in set(parameters.keys()) - {str(slot) for slot in sizes}:
                del parameters[key]
            for slot, size in sizes.items():
                if str(slot) not in parameters or parameters[str(slot)].shape[0] != size:
                    parameters[str(slot)] = nn.Parameter(self._like.new_zeros(size))
        if not has_pool:
            self.pool = None
        elif self.pool is None:
            self.pool = self._like.new_zeros(self.weight_shape)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # The extra state comes first here, since it decides which parameters there are to load.
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            slots, densities = state["slots"], state["densities"]
            if set(slots.values()) != set(densities):
                raise ValueError(f"{prefix}slots: expected those of densities, {sorted(densities)}. Got {slots}.")
            owners = OwnerMap.from_planes(state["planes"], self.owners.shape, densities)
            for slot in densities:
                values = state_dict.get(f"{prefix}values.{slot}")
                if values is not None and values.shape != (owners.count(slot),):
                    raise ValueError(
                        f"{prefix}values.{slot}: expected shape ({owners.count(slot)},), as its planes say. "
                        f"Got {tuple(values.shape)}."
                    )
            if local_metadata.get("assign_to_params_buffers", False):
                self._follow(state_dict, prefix)
            self.take_over(owners, slots, densities, state["has_pool"])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _follow(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Bring what `load_state_dict` does not assign to the dtype and device of what it does."""
        own = [name for name in state_dict if name.startswith(prefix) and isinstance(state_dict[name], Tensor)]
        if own:
            self._like = state_dict[own[0]].detach().new_empty(0)
            self.owners = OwnerMap.empty(self.owners.shape, device=self._like.device)

    def extra_repr(self) -> str:
        """Sizes and tasks, for `print`."""
        shares = ", ".join(
            f"{task}={self.owners.count(slot) / self.owners.numel:.3f}" for task, slot in self.slots.items()
        )
        return f"{', '.join(map(str, self.weight_shape))}, bias={self.initial_bias is not None}, owned: {{{shares}}}"
