"""The epochs of a fit: batches of one task or several, one optimizer, early stopping, and a file to go on from.

An interrupted and resumed run ends in the same bits as an uninterrupted one. Each random draw of an epoch (shuffling,
dropout, the order of a DataLoader) comes from generators seeded with (seed, epoch), buffers that all tasks share are at
the beginning of each what they were at that of the first, and whether to stop follows from the losses so far; so the
resume file holds tensors, optimizer scalars and losses, and no other state.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rsn2.buffers import Snapshot
from rsn2.data import Data, Loss, batches_of, device_of, generators_of, to_device
from rsn2.evaluation import mean_over, mode, samples_of, scalar
from rsn2.resume import FitState, ResumeFile, copy_into


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or a gradient is not finite, or an epoch has no data."""


@dataclass(frozen=True)
class Lesson:
    """What one task is trained with; the names are what errors call the data."""

    train: Data
    val: Data | None
    loss: Loss
    train_name: str = "train"
    val_name: str = "val"


@dataclass(frozen=True)
class Loop:
    """A run over the epochs; the arguments of `rsn2.fit` under their names.

    Attributes:
        model: the network.
        lessons: task -> what it is trained with. A step takes one batch of every task that has one left in its epoch.
        running: makes the network run as a task inside the block.
    """

    model: nn.Module
    lessons: Mapping[str, Lesson]
    running: Callable[[str], AbstractContextManager[None]]
    epochs: int
    batch_size: int
    patience: int | None
    min_delta: float
    restore_best: bool
    seed: int
    progress: bool

    def run(self, state: FitState, file: ResumeFile | None) -> int | None:
        """Train what ``state`` holds until the epochs are over or patience is; how many were in the file, if any."""
        state.train_loss.update({task: [] for task in self.lessons})
        state.val_loss.update({task: [] for task, each in self.lessons.items() if each.val is not None})
        resumed_from = None
        with ExitStack() as stack:
            stack.enter_context(self.running(next(iter(self.lessons))))  # holds the network from first to last
            if file is not None and file.path.exists():
                file.read_into(state, self.epochs)
                resumed_from = state.epoch
            elif file is not None:
                file.write(state)
            stack.enter_context(_only_trained(self.model, state))
            stack.enter_context(_best_at_the_end(state))
            stack.callback(state.optimizer.zero_grad)
            show = stack.enter_context(_bar(" + ".join(self.lessons), self.epochs, self.progress))
            show(state)
            while state.epoch < self.epochs and not self.should_stop(state):
                self._epoch(state)
                state.schedule(state.epoch)
                if best_epoch(state.total_val_loss) == state.epoch and self.restore_best:
                    state.best = {name: tensor.detach().clone() for name, tensor in state.own.items()}
                if file is not None:
                    file.write(state)
                show(state)
        return resumed_from

    def should_stop(self, state: FitState) -> bool:
        """Whether the last ``patience`` validation losses, summed over the tasks, were all without progress."""
        counted, waited = math.inf, 0
        for value in state.total_val_loss:
            if value < counted - self.min_delta:
                counted, waited = value, 0
            else:
                waited += 1
        return self.patience is not None and waited >= self.patience

    def _epoch(self, state: FitState) -> None:
        """One epoch; the state is as before if it does not come to its end, but for the parameters that were trained.

        Buffers of the tasks' own are as before too where a loss or gradient was not finite: nothing would bring running
        statistics back that have seen one.
        """
        start = time.perf_counter()
        number = state.epoch + 1
        epoch_seed = _epoch_seed(self.seed, number)
        data = [data for lesson in self.lessons.values() for data in (lesson.train, lesson.val)]
        with _seeded(epoch_seed, device_of(self.model), data), self._buffers_stay():
            train_loss = self._train(state.optimizer, number, epoch_seed)
            val_loss = self._validate(number)
        for task, value in train_loss.items():
            state.train_loss[task].append(value)
        for task, value in val_loss.items():
            state.val_loss[task].append(value)
        state.seconds.append(time.perf_counter() - start)

    @contextmanager
    def _buffers_stay(self) -> Iterator[None]:
        """Put buffers that all tasks share back behind the block, and say so if one moved; their own, if it fails."""
        shared, own = Snapshot.shared(self.model), Snapshot.own(self.model, self.lessons)
        try:
            yield
        except TrainingError:
            own.put_back()
            raise
        finally:
            moved = shared.put_back()
        if moved:
            warnings.warn(
                f"fit put {moved} back, which training moved and all tasks share: name their modules in "
                "convert(..., per_task=[...]), so that each task has its own.",
                stacklevel=1,
            )

    def _validate(self, epoch: int) -> dict[str, float]:
        """The mean validation loss of each task that has validation data."""
        found = {}
        for task, lesson in self.lessons.items():
            if lesson.val is None:
                continue
            with self.running(task):
                of_data = mean_over(self.model, task, lesson.val, lesson.loss, {}, self.batch_size, lesson.val_name)
            _check_finite(of_data["loss"], f"task {task!r}, epoch {epoch}: the validation loss")
            found[task] = of_data["loss"]
        return found

    def _train(self, optimizer: Optimizer, epoch: int, epoch_seed: int) -> dict[str, float]:
        """The steps of an epoch; the mean loss over the samples of each task."""
        total, samples = dict.fromkeys(self.lessons, 0.0), dict.fromkeys(self.lessons, 0)
        device = device_of(self.model)
        left = {
            task: enumerate(batches_of(lesson.train, self.batch_size, epoch_seed, lesson.train_name), start=1)
            for task, lesson in self.lessons.items()
        }
        with mode(self.model, training=True):
            while left:
                batches = {task: batch for task, rest in left.items() if (batch := next(rest, None)) is not None}
                left = {task: left[task] for task in batches}
                if not batches:
                    break
                optimizer.zero_grad()
                for task, (number, batch) in batches.items():
                    x, target = to_device(batch, device)
                    with self.running(task):
                        result = scalar(self.lessons[task].loss(self.model(x), target))
                        value = result.item()
                        _check_finite(value, f"task {task!r}, epoch {epoch}, batch {number}: the loss")
                        torch.autograd.backward(result)
                    total[task] += value * samples_of(x)
                    samples[task] += samples_of(x)
                names, number = list(batches), max(number for number, _ in batches.values())
                who = f"task {names[0]!r}" if len(names) == 1 else f"tasks {names}"
                where = f"{who}, epoch {epoch}, batch {number}"
                _check_finite(_largest_gradient(optimizer), f"{where}: the largest gradient")
                optimizer.step()
                # Inside a caller's autocast torch keeps narrow copies of parameters until the context ends.
                torch.clear_autocast_cache()
        for task, count in samples.items():
            if count == 0:
                raise TrainingError(
                    f"{self.lessons[task].train_name}: epoch {epoch} has no samples; expected an iterable that starts "
                    "anew."
                )
        return {task: total[task] / samples[task] for task in total}


def best_epoch(val_loss: Sequence[float]) -> int | None:
    """The first epoch, from 1, with the lowest loss."""
    return min(range(len(val_loss)), key=val_loss.__getitem__) + 1 if val_loss else None


def _largest_gradient(optimizer: Optimizer) -> float:
    """Largest magnitude of all gradients; NaN if one is. Unlike a sum of squares it is finite if they all are."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    # A layer in which the task owns nothing has an empty gradient, and that has no maximum.
    return get_total_norm([gradient for gradient in dense if gradient.numel()], norm_type=math.inf).item()


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"{what} is {value}. Lower the learning rate, or look at the data.")


@contextmanager
def _best_at_the_end(state: FitState) -> Iterator[None]:
    """Put the best epoch's copy back behind the block, however that ends."""
    try:
        yield
    finally:
        if state.best:
            copy_into(state.own, state.best)


@contextmanager
def _only_trained(model: nn.Module, state: FitState) -> Iterator[None]:
    """Keep every parameter that is not trained without gradients inside: what tasks share, and what others own."""
    trained = {id(tensor) for tensor in state.own.values()}
    fixed = [each for each in model.parameters() if each.requires_grad and id(each) not in trained]
    try:
        for parameter in fixed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def _epoch_seed(seed: int, epoch: int) -> int:
    """63 bits that depend on both numbers; seed + epoch would give seed 1 the epochs of seed 0."""
    return int.from_bytes(hashlib.sha256(f"{seed}, {epoch}".encode()).digest()[:8], "little") >> 1


@contextmanager
def _seeded(seed: int, device: torch.device, data: Sequence[Data | None]) -> Iterator[None]:
    """Seed the generators of the CPU, of ``device`` and of ``data`` inside; behind, they go on as before."""
    on_gpu = device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if on_gpu else []))
        for generator in {generator for each in data for generator in generators_of(each)}:
            stack.callback(generator.set_state, generator.get_state())
            generator.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _bar(name: str, epochs: int, progress: bool) -> Iterator[Callable[[FitState], None]]:
    """A function that shows how far a fit is; it does nothing where nobody looks."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        line = bar.add_task(name, total=epochs, losses="")

        def show(state: FitState) -> None:
            last = {
                kind: sum(each[-1] for each in losses.values() if each)
                for kind, losses in (("train", state.train_loss), ("val", state.val_loss))
                if any(losses.values())
            }
            losses = ", ".join(f"{kind} {value:.4f}" for kind, value in last.items())
            bar.update(line, completed=state.epoch, losses=losses)

        yield show
