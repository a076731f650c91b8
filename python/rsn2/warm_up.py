"""Dense training of a task's candidates before it is allocated: `warm_up`, and what it returns.

The network is left as it is: what is trained is a copy of its free weights. So a warm-up changes no bit of any task,
and the weights that the task does not take start the next task from their initial values, not from what the warm-up
made.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from rsn2.arguments import OptimizerFactory, check_fit_arguments, made_optimizer, unlike
from rsn2.data import Data, Loss, check_data
from rsn2.loop import Lesson, Loop
from rsn2.new_task import add_copies, check_new, share_slots
from rsn2.nn.layer import Candidates, MultitaskLayer
from rsn2.nn.names import check_task_name
from rsn2.resume import FitState, ResumeFile, data_identity, identity
from rsn2.saliency import Start, through
from rsn2.sharing import Share, shared_layers, used_layers
from rsn2.tasks import activated, alone_with, check_converted, multitask_layers, per_task_modules


@dataclass(frozen=True)
class WarmStart:
    """What :func:`warm_up` trained, for ``allocate(..., start=...)``.

    Attributes:
        task: whose it is.
        weights: layer -> dense weight in torch's shape, 0 where another task owns the position.
        biases: layer -> bias ``[rows]``; only layers with bias.
        modules: per-task module -> state dict of the task's copy.
        train_loss: mean loss over the samples of each epoch.
    """

    task: str
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    modules: dict[str, dict[str, Tensor]]
    train_loss: tuple[float, ...]

    def starts(self, layers: Mapping[str, MultitaskLayer], task: str) -> dict[str, Start]:
        """What each of ``layers`` starts the task from.

        Raises:
            ValueError: if the warm-up was of another task or network.
        """
        if task != self.task:
            raise ValueError(f"start: expected a warm-up of task {task!r}. Got one of {self.task!r}.")
        for name, layer in layers.items():
            got = tuple(self.weights[name].shape) if name in self.weights else "none"
            if got != layer.weight_shape:
                raise ValueError(f"start: expected a weight {layer.weight_shape} for layer {name!r}. Got {got}.")
        return {
            name: Start(self.weights[name].to(layer.owners.device), self._bias(name, layer))
            for name, layer in layers.items()
        }

    def fill_copies(self, model: nn.Module, task: str, undo: ExitStack) -> None:
        """Overwrite the task's per-task modules; ``undo`` puts back what they held.

        Raises:
            ValueError: if the warm-up had other per-task modules.
        """
        for name, module in per_task_modules(model).items():
            if name not in self.modules:
                raise ValueError(
                    f"start: expected one of a network with the per-task module {name!r}. Got {[*self.modules]}."
                )
            own = module.of(task)
            before = {key: value.clone() for key, value in own.state_dict().items()}
            undo.callback(own.load_state_dict, before)
            own.load_state_dict(self.modules[name])

    def _bias(self, name: str, layer: MultitaskLayer) -> Tensor | None:
        return self.biases[name].to(layer.owners.device) if layer.initial_bias is not None else None


def warm_up(
    model: nn.Module,
    task: str,
    train: Data,
    *,
    loss: Loss,
    epochs: int,
    optimizer: OptimizerFactory | None = None,
    lr: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    share: Share | None = None,
    flip: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> WarmStart:
    """Train all free weights of a new task's layers densely, so that it is then allocated among trained ones.

    ::

        start = rsn2.warm_up(model, "news", train, loss=loss, epochs=2)
        rsn2.allocate(model, "news", 0.1, loss, batches, start=start)
        rsn2.fit(model, "news", train, val, loss=loss, epochs=20)

    The task's biases and per-task modules are trained along. The network stays as it is, bit by bit, until `allocate`
    takes what it chooses over: earlier tasks are not touched, and later ones find the weights that are still free with
    the values they had before the warm-up.

    Args:
        model: a converted network.
        task: a new name.
        train, loss, epochs, lr, batch_size, seed, resume, progress: as for :func:`rsn2.fit`.
        optimizer: a function from the list of parameters to an optimizer over all of them, or None for Adam with
            ``lr``. No optimizer: what it would hold is made in this call.
        layers, share, flip: as for :func:`rsn2.allocate`; shared slots run, and are not trained. Give `allocate` the
            same ``layers`` and ``share``, and ``seed`` here for the signs of ``flip``, which `allocate` then does not
            draw.

    Raises:
        TaskError: if the task is allocated already, or cannot be, or the network runs a layer that ``layers`` leaves
            out.
        TypeError, ValueError, CheckpointError, TrainingError: as :func:`rsn2.fit`.
    """
    check_task_name(task)
    check_converted(model)
    check_fit_arguments(loss, epochs, batch_size, None, 0.0, seed, has_val=False)
    check_data(train, "train")
    with alone_with(model):
        used = used_layers(multitask_layers(model), layers)
        holders = shared_layers(multitask_layers(model), used, task, share)
        check_new(model, task, {name: layer for name, layer in used.items() if name not in holders})
        model = copy.deepcopy(model)
    used = {name: layer for name, layer in multitask_layers(model).items() if name in used}
    with ExitStack() as kept:  # the copy is thrown away with all that it got
        add_copies(model, task, kept)
        share_slots(used, task, holders, kept)
        kept.pop_all()
    candidates = {
        name: _candidates(layer, Start.of(layer).flipped(seed, task, name) if flip else Start.of(layer))
        for name, layer in used.items()
        if name not in holders
    }

    def trained() -> dict[str, Tensor]:
        own: dict[str, Tensor] = {}
        for name, each in candidates.items():
            own[f"{name}.weight"] = each.weight
            if each.bias is not None:
                own[f"{name}.bias"] = each.bias
        for name, module in per_task_modules(model).items():
            own |= {f"{name}.{key}": tensor for key, tensor in module.of(task).named_parameters()}
            own |= {f"{name}.{key}": tensor for key, tensor in module.of(task).named_buffers()}
        return own

    parameters = list(dict.fromkeys(each for each in trained().values() if isinstance(each, nn.Parameter)))
    made = made_optimizer(parameters, optimizer, lr)
    if any(unlike(made, parameters)):
        raise ValueError(
            "optimizer: expected a function that makes one of all parameters in the list it is given, such as "
            "torch.optim.Adam: a warm-up trains a copy, which is not there before the call. Got one of others."
        )
    state = FitState(trained, made)
    file = None
    if resume is not None:
        settings = {
            "warm_up": True,
            "flip": flip,
            "seed": seed,
            "batch_size": batch_size,
            "train": data_identity(train),
        }
        file = ResumeFile(Path(resume), identity(model, [task], state.own, made, free_in=candidates) | settings)

    @contextmanager
    def running(name: str) -> Iterator[None]:
        with activated(model, name), through({used[where]: each for where, each in candidates.items()}):
            yield

    lessons = {task: Lesson(train, None, loss)}
    Loop(model, lessons, running, epochs, batch_size, None, 0.0, False, seed, progress).run(state, file)
    return WarmStart(
        task,
        {name: each.effective.detach() for name, each in candidates.items()},
        {name: each.bias.detach() for name, each in candidates.items() if each.bias is not None},
        {name: module.of(task).state_dict() for name, module in per_task_modules(model).items()},
        tuple(state.train_loss[task]),
    )


def _candidates(layer: MultitaskLayer, start: Start) -> Candidates:
    """Trainable copies of what is free in a layer."""
    free = layer.owners.free().view(start.weight.shape)
    bias = None if start.bias is None else nn.Parameter(start.bias.detach().clone())
    return Candidates(nn.Parameter(start.weight.detach() * free), bias, None if bool(free.all()) else free)
