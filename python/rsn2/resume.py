"""A fit between two epochs, kept in a sealed file."""

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rsn2.data import Data, as_tensor_pair
from rsn2.sealed import CheckpointError, TensorRecord, read_sealed, write_sealed
from rsn2.tasks import multitask_layers

_VERSION = 3
_KEY = "rsn2.fit"


def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Overwrite each target by the source of its name, in place and bit for bit."""
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != sources[name].shape:  # a buffer that grew
                target.data = torch.empty_like(sources[name], device=target.device)
            target.copy_(sources[name])
    torch.clear_autocast_cache()  # as behind each step of a fit


@dataclass
class FitState:
    """Everything that a fit changes: trained tensors, optimizer, losses by task, the best epoch's copy.

    A scheduler's own state is in no file: it follows from the losses.

    Attributes:
        look_up: gives the trained tensors by name, of now: a module may put another tensor into a buffer's place.
    """

    look_up: Callable[[], dict[str, Tensor]]
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    train_loss: dict[str, list[float]] = field(default_factory=dict)
    val_loss: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def own(self) -> dict[str, Tensor]:
        """What is trained: parameters, and buffers of the tasks' own."""
        return self.look_up()

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return len(self.seconds)

    @property
    def total_val_loss(self) -> list[float]:
        """The validation loss of each epoch, summed over the tasks; empty without validation data."""
        return [sum(losses) for losses in zip(*self.val_loss.values(), strict=True)]

    def schedule(self, epoch: int) -> None:
        """Set the learning rates of the epoch behind this one, which is complete."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(self.total_val_loss[epoch - 1])
        elif self.scheduler is not None:
            self.scheduler.step()


class ResumeFile:
    """A fit between two epochs, in one sealed file.

    Tensors: ``own.<name>``, ``best.<name>``, ``optimizer.<parameter>.<key>``. The record holds the settings,
    the losses and the optimizer's scalars.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        if not path.parent.is_dir():
            raise ValueError(f"resume: expected a file in an existing folder. Got {str(path)!r}.")
        self.path = path
        # As they come back from a file, so that the two compare.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def write(self, state: FitState) -> None:
        tensors = {f"own.{name}": tensor for name, tensor in state.own.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for index, entries in state.optimizer.state_dict()["state"].items():
            scalars[str(index)] = {}
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is None or isinstance(value, bool | int | float):
                    scalars[str(index)][key] = value
                else:
                    kind = type(state.optimizer).__name__
                    raise TypeError(
                        f"resume: expected an optimizer that keeps tensors and numbers. {kind} keeps {key!r} "
                        f"as {type(value).__name__}."
                    )
        record = {
            "settings": self.settings,
            "groups": _hyperparameters(state.optimizer),
            "scalars": scalars,
            "train_loss": state.train_loss,
            "val_loss": state.val_loss,
            "seconds": state.seconds,
        }
        write_sealed(self.path, _KEY, record, tensors)

    def read_into(self, state: FitState, most_epochs: int) -> None:
        """Take over the file's state; nothing changes before all of the file is checked."""
        record, tensors = read_sealed(self.path, _KEY, writer="rsn2.fit")
        theirs = record["settings"]
        for name in dict.fromkeys([*self.settings, *theirs]):
            if theirs.get(name) != self.settings.get(name):
                raise CheckpointError(
                    f"{self.path}: it was written with another {name}: {_brief(theirs.get(name))}; this fit "
                    f"has {_brief(self.settings.get(name))}. Use its settings, or another resume file."
                )
        done = len(record["seconds"])
        if done > most_epochs:
            raise CheckpointError(f"{self.path}: it holds {done} epochs. Asked for: {most_epochs}.")
        parts: dict[str, dict[str, Tensor]] = {"own": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        slots = {int(index): entries for index, entries in record["scalars"].items()}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            slots[int(index)][key] = tensor
        own = state.own
        copy_into(own, parts["own"])
        state.best = {name: tensor.to(own[name].device) for name, tensor in parts["best"].items()}
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        _keep_dtypes(state.optimizer, slots)
        for losses in ("train_loss", "val_loss", "seconds"):
            setattr(state, losses, record[losses])
        with warnings.catch_warnings(action="ignore"):  # torch would have the optimizer step before its scheduler does
            for epoch in range(1, done + 1):
                state.schedule(epoch)
        _set_hyperparameters(state.optimizer, record["groups"])


def identity(
    model: nn.Module,
    tasks: Sequence[str],
    own: Mapping[str, Tensor],
    optimizer: Optimizer,
    free_in: Collection[str] = (),
) -> dict[str, Any]:
    """The settings that say which weights a resume file is about, and how they are trained.

    Args:
        free_in: layers in which the tasks have no slot yet, and train what is free: those of a warm-up.
    """
    owned = hashlib.sha256()
    for name, layer in multitask_layers(model).items():
        for task in tasks:
            if task in layer.slots:
                owned.update(_bytes_of(layer.owners.mask(layer.slots[task])))
            else:  # "unused" are no bytes of a mask, which are 0 and 1
                owned.update(_bytes_of(layer.owners.free()) if name in free_in else b"unused")
    return {
        "version": _VERSION,
        "task": tasks[0] if len(tasks) == 1 else list(tasks),
        "tensors": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in own.items()},
        # Equal counts at other positions would fit the file's tensors, and mean something else.
        "allocation": owned.hexdigest(),
        "optimizer": type(optimizer).__name__,
        **{
            f"{key} (group {number})": value
            for number, group in enumerate(_hyperparameters(optimizer))
            for key, value in group.items()
        },
    }


def scheduler_identity(scheduler: LRScheduler | None) -> dict[str, Any] | None:
    """What a resume file remembers of a scheduler: its kind, and of its settings those that JSON holds."""
    if scheduler is None:
        return None
    settings = {key: value for key, value in scheduler.state_dict().items() if key[0] != "_" and _is_plain(value)}
    return {"kind": type(scheduler).__name__} | settings


def data_identity(data: Data | None) -> list[dict[str, Any]] | str | None:
    """What a resume file remembers of a data set: dtype, shape and SHA-256 of two tensors.

    Of an iterable it remembers only that it was one, since to read it could change what comes next: two iterables are
    not compared.
    """
    if data is None:
        return None
    pair = as_tensor_pair(data)
    if pair is None:
        return "batches"
    return [vars(TensorRecord.of(tensor)) for tensor in pair]


def _hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups as JSON: each hyperparameter, and the number of parameters."""
    return [
        {key: len(value) if key == "params" else _plain(value) for key, value in group.items()}
        for group in optimizer.param_groups
    ]


def _set_hyperparameters(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        for key, value in saved.items():
            if isinstance(group[key], Tensor):
                group[key].fill_(value)
            elif key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value


def _keep_dtypes(optimizer: Optimizer, slots: Mapping[int, Mapping[str, Any]]) -> None:
    """Give floating-point state back what it was saved in: torch brings it to the dtype of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in slots.items():
        state = optimizer.state[parameters[index]]
        for key, value in entries.items():
            if isinstance(value, Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    return (
        all(map(_is_plain, value))
        if isinstance(value, list | tuple)
        else value is None or isinstance(value, bool | int | float | str)
    )


def _bytes_of(mask: Tensor) -> bytes:
    return mask.cpu().numpy().tobytes()


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
