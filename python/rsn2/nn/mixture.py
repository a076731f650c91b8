"""Mixture: which task each sample of a batch is for."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Mixture:
    """Which task each sample of a batch is for, as the layers want to know it; made by :func:`rsn2.use_tasks`.

    Attributes:
        tasks: those that occur, each once, in the order of their first samples.
        counts: how many samples each of them has.
    """

    def __init__(self, task_of_sample: Sequence[str]):
        counted = Counter(task_of_sample)
        self.tasks = tuple(counted)
        self.counts = tuple(counted.values())
        place = {task: number for number, task in enumerate(self.tasks)}
        # Made in inference mode, tensors could not be saved for a backward pass.
        with torch.inference_mode(False):
            self._place_of_sample = torch.tensor([place[task] for task in task_of_sample])
            self._order = self._place_of_sample.argsort(stable=True)
        self._sorted = torch.equal(self._order, torch.arange(len(self)))
        self._numbered: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self._place_of_sample)

    def numbered(self, numbers: tuple[int, ...], device: torch.device) -> Tensor:
        """The number of each sample's task, int64 ``[samples]``, where ``numbers`` has one for each of `tasks`."""
        key = numbers, device
        if key not in self._numbered:  # most layers number their tasks alike
            with torch.inference_mode(False):
                self._numbered[key] = torch.tensor(numbers)[self._place_of_sample].to(device)
        return self._numbered[key]

    def check(self, x: object) -> None:
        """Raise unless ``x`` is a tensor with as many samples along its first dimension.

        Raises:
            TypeError: if it is none. What a :class:`~rsn2.nn.PerTask` gave by task can only go to another one.
            ValueError: if it holds another number of samples.
        """
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x: expected a tensor of all samples; only a PerTask takes them by task. Got {type(x).__name__}."
            )
        if x.dim() == 0 or x.shape[0] != len(self):
            raise ValueError(
                f"x: expected {len(self)} samples along the first dimension, as tasks were given for. "
                f"Got shape {tuple(x.shape)}."
            )

    def each(self, x: Tensor | Mapping[str, Tensor], run: Callable[[str, Tensor], Any]) -> Any:
        """What ``run(task, samples)`` gives for every task's samples: joined in the batch's order, or a dict by task.

        Args:
            x: the batch, or each task's samples, where they differ in shape.
            run: called once for each of `tasks`.

        Returns:
            As `joined`.

        Raises:
            ValueError: if ``x`` does not hold as many samples.
        """
        return self.joined({task: run(task, samples) for task, samples in self.parts(x).items()})

    def joined(self, outputs: Mapping[str, Any]) -> Any:
        """What the modules of `tasks` put out, each for its samples, in the batch's order.

        Returns:
            One tensor, where those of all tasks have one shape but for the number of samples, and one dtype; else a
            dict from task to tensor. Of tuples, a tuple of these; of None, None.

        Raises:
            ValueError: if a task's tensor has not its number of samples.
        """
        kinds = {(type(each), len(each) if isinstance(each, tuple) else 0) for each in outputs.values()}
        if len(kinds) == 1 and isinstance(first := next(iter(outputs.values())), tuple):
            places = range(len(first))
            return tuple(self.joined({task: each[place] for task, each in outputs.items()}) for place in places)
        if all(each is None for each in outputs.values()):
            return None
        for task, output, count in zip(self.tasks, outputs.values(), self.counts, strict=True):
            if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != count:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"task {task!r}: expected a tensor with {count} samples of its module. Got {got}.")
        if len({(output.shape[1:], output.dtype) for output in outputs.values()}) > 1:
            return dict(outputs)
        together = torch.cat(list(outputs.values()))
        return together if self._sorted else together.index_select(0, self._order.argsort().to(together.device))

    def parts(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's samples."""
        if isinstance(x, Mapping):
            counts = {task: part.shape[0] for task, part in x.items()}
            wanted = dict(zip(self.tasks, self.counts, strict=True))
            if counts != wanted:
                raise ValueError(f"x: expected samples of {wanted}, as tasks were given for. Got {counts}.")
            return {task: x[task] for task in self.tasks}
        self.check(x)
        if not self._sorted:
            x = x.index_select(0, self._order.to(x.device))
        return dict(zip(self.tasks, x.split(self.counts), strict=True))
