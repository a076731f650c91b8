"""OwnerMap: who owns each weight position of one layer, disjoint by construction.

A position holds one owner code, 0 (free) or ``task + 1``, written over ``P`` planes of one bit each. One code per
position means that two tasks cannot own one weight: the format has no way to write it down.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rsn2_kernels.bits import WORD_BITS, pack_bits, padding_is_zero, total_bits, unpack_bits, words_per_row

# Codes stay below 2**31, so that they fit the int32 tensor of `OwnerMap.codes`.
MAX_TASK = 2**31 - 2


class OverlapError(ValueError):
    """A claim touches a position that already has an owner."""


class OwnerMap:
    """Owners of the weight positions of one ``[rows, cols]`` layer.

    Memory: ``P * rows * ceil(cols / 64)`` words of 8 bytes, ``P = bit_length(highest task + 1)``, so that T tasks
    numbered from 0 cost ``ceil(log2(T + 1))`` bits per weight. All methods run on the device of the planes, on 64
    positions at a time. Of a GPU, `claim` and `from_planes` wait for a few counts, once per call, and nothing else
    waits or moves data.

    Make one with :meth:`empty`, or with :meth:`from_planes` from words that came out of a file.
    """

    def __init__(self, shape: tuple[int, int], planes: list[Tensor], counts: dict[int, int], device: torch.device):
        self._shape = shape
        self._planes = planes
        self._counts = counts
        self._device = device

    @classmethod
    def empty(cls, shape: Sequence[int], device: torch.device | str | None = None) -> "OwnerMap":
        """A map in which every position is free.

        Args:
            shape: ``(rows, cols)``, both at least 1.
            device: where the planes live; torch's default device if None.

        Raises:
            TypeError, ValueError: if ``shape`` is not two positive ints.
        """
        rows_cols = _checked_shape(shape)
        return cls(rows_cols, [], {}, torch.empty(0, device=device).device)

    @classmethod
    def from_planes(cls, planes: Sequence[Tensor], shape: Sequence[int], tasks: Iterable[int]) -> "OwnerMap":
        """Rebuild a map from stored planes, trusting nothing.

        Args:
            planes: P int64 tensors ``[rows, ceil(cols / 64)]``, least significant plane first.
            shape: ``(rows, cols)``.
            tasks: every task that holds a claim, those with an empty claim included.

        Raises:
            ValueError: if the number, shape or dtype of the planes is wrong, a padding bit is set, or a position
                holds the code of a task that is not in ``tasks``.
        """
        rows_cols = _checked_shape(shape)
        rows, cols = rows_cols
        known = sorted({_checked_task(task) for task in tasks})
        expected = _planes_for(known)
        if len(planes) != expected:
            raise ValueError(f"planes: expected {expected} for tasks {known}. Got {len(planes)}.")
        want = (rows, words_per_row(cols))
        for index, plane in enumerate(planes):
            if plane.dtype != torch.int64 or tuple(plane.shape) != want:
                raise ValueError(f"planes[{index}]: expected int64 of shape {want}. Got {_describe(plane)}.")
        device = planes[0].device if planes else torch.empty(0).device
        owners = cls(rows_cols, [plane.clone(memory_format=torch.contiguous_format) for plane in planes], {}, device)
        facts = [
            *(padding_is_zero(plane, cols).long() for plane in owners._planes),
            *(total_bits(owners._words_of(task)) for task in known),
            *([total_bits(owners._owned())] if planes else []),
        ]
        # One transfer, of all that is to be known.
        told = torch.stack(facts).tolist() if facts else []
        if not all(told[: len(planes)]):
            dirty = told.index(0)
            raise ValueError(f"planes[{dirty}]: bits past column {cols - 1} are set; they must be 0.")
        *counts, owned = told[len(planes) :] or [0]
        owners._counts = dict(zip(known, counts, strict=True))
        if sum(counts) != owned:
            strangers = sorted(set(torch.unique(owners.codes()).tolist()) - {0} - {task + 1 for task in known})
            raise ValueError(f"planes: codes {strangers} belong to no task in {known}.")
        return owners

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        return self._shape

    @property
    def numel(self) -> int:
        """``rows * cols``."""
        return self._shape[0] * self._shape[1]

    @property
    def device(self) -> torch.device:
        """Where the planes live."""
        return self._device

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """The P bit-planes, int64 ``[rows, ceil(cols / 64)]``, least significant first. Read them, don't write."""
        return tuple(self._planes)

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks that hold a claim, ascending; an empty claim counts."""
        return tuple(sorted(self._counts))

    @property
    def nbytes(self) -> int:
        """Bytes held by the planes."""
        return sum(plane.nbytes for plane in self._planes)

    def claim(self, task: int, mask: Tensor) -> None:
        """Make ``task`` the owner of the positions where ``mask`` is True, all of which must be free.

        A second claim of the same task adds to its first.

        Args:
            task: int >= 0.
            mask: bool ``[rows, cols]`` on this map's device.

        Raises:
            OverlapError: if a position is owned already; names the first such position and its owner.
            TypeError, ValueError: if ``task`` or ``mask`` is not as described. Nothing changes in any of these cases.
        """
        task = _checked_task(task)
        self._check_mask(mask)
        words = pack_bits(mask)
        taken = words & self._owned()
        overlap, claimed = torch.stack([total_bits(taken), total_bits(words)]).tolist()
        if overlap:
            row, col = self._first_of(taken)
            raise OverlapError(
                f"mask: position ({row}, {col}) is owned by task {self._owner_of(row, col)}; {overlap} of the "
                f"{claimed} claimed positions are not free."
            )
        missing = (task + 1).bit_length() - len(self._planes)
        planes = [*self._planes, *(torch.zeros_like(words) for _ in range(missing))]
        for index, plane in enumerate(planes):
            if (task + 1) >> index & 1:
                planes[index] = plane | words
        self._planes = planes
        self._counts[task] = self._counts.get(task, 0) + claimed

    def release(self, task: int) -> None:
        """Free every position of ``task``.

        Raises:
            KeyError: if ``task`` holds no claim.
        """
        self._check_known(task)
        kept = ~self._words_of(task)
        self._planes = [plane & kept for plane in self._planes]
        del self._counts[task]
        del self._planes[_planes_for(self._counts) :]

    def mask(self, task: int | Sequence[int]) -> Tensor:
        """Bool ``[rows, cols]``: the positions of one task, or of several together.

        Raises:
            KeyError: if a task holds no claim.
        """
        if not isinstance(task, int | Iterable):
            raise TypeError(f"task: expected an int or several. Got {type(task).__name__}.")
        tasks = [task] if isinstance(task, int) else list(task)
        for each in tasks:
            self._check_known(each)
        if not tasks:
            return torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        words = self._words_of(tasks[0])
        for each in tasks[1:]:
            words = words | self._words_of(each)
        return unpack_bits(words, self._shape[1])

    def free(self) -> Tensor:
        """Bool ``[rows, cols]``: the positions without an owner."""
        return unpack_bits(~self._owned(), self._shape[1])

    def count(self, task: int) -> int:
        """Number of positions that ``task`` owns.

        Raises:
            KeyError: if ``task`` holds no claim.
        """
        self._check_known(task)
        return self._counts[task]

    def codes(self) -> Tensor:
        """Int32 ``[rows, cols]``: 0 where free, else owner + 1."""
        codes = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        for index, plane in enumerate(self._planes):
            codes += unpack_bits(plane, self._shape[1]).to(torch.int32) << index
        return codes

    def to(self, device: torch.device | str) -> "OwnerMap":
        """A copy on another device, or this map if it is there already."""
        target = torch.empty(0, device=device).device
        return self if target == self._device else self.map_planes(lambda plane: plane.to(target), target)

    def map_planes(self, move: Callable[[Tensor], Tensor], device: torch.device) -> "OwnerMap":
        """A map whose planes went through ``move`` (a copy between devices), which must keep every bit."""
        return OwnerMap(self._shape, [move(plane) for plane in self._planes], dict(self._counts), device)

    def __repr__(self) -> str:
        shares = ", ".join(f"{task}: {self._counts[task] / self.numel:.3f}" for task in self.tasks)
        return f"OwnerMap(shape={self._shape}, owned={{{shares}}}, device='{self._device}')"

    def _words_of(self, task: int) -> Tensor:
        """Mask words of one task: the AND over the planes of "this bit equals the code's bit"."""
        words: Tensor | None = None
        for index, plane in enumerate(self._planes):
            matches = plane if (task + 1) >> index & 1 else ~plane
            words = matches if words is None else words & matches
        if words is None:
            raise KeyError(f"task {task} holds no claim.")
        # A code has at least one 1 bit, and the plane of that bit has clean padding: the result has it too.
        return words

    def _owned(self) -> Tensor:
        """Words of the positions that have an owner: the OR over the planes."""
        if not self._planes:
            words = (self._shape[0], words_per_row(self._shape[1]))
            return torch.zeros(words, dtype=torch.int64, device=self._device)
        owned = self._planes[0]
        for plane in self._planes[1:]:
            owned = owned | plane
        return owned

    def _first_of(self, words: Tensor) -> tuple[int, int]:
        """Row and column of the first bit that is set; at least one is."""
        row, word = divmod(int((words != 0).flatten().to(torch.uint8).argmax()), words.shape[1])
        bits = int(words[row, word])
        return row, word * WORD_BITS + (bits & -bits).bit_length() - 1

    def _owner_of(self, row: int, col: int) -> int:
        """Task that owns a position; -1 if it is free."""
        word, bit = divmod(col, WORD_BITS)
        return sum((int(plane[row, word]) >> bit & 1) << index for index, plane in enumerate(self._planes)) - 1

    def _check_known(self, task: int) -> None:
        if isinstance(task, bool) or not isinstance(task, int):
            raise TypeError(f"task: expected an int. Got {type(task).__name__}.")
        if task not in self._counts:
            raise KeyError(f"task {task} holds no claim. Tasks with one: {list(self.tasks)}.")

    def _check_mask(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != self._shape:
            got = _describe(mask) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected a bool tensor of shape {self._shape}. Got {got}.")
        if mask.device != self._device:
            raise ValueError(f"mask: expected it on {self._device}, where the planes are. Got {mask.device}.")


def _planes_for(tasks: Iterable[int]) -> int:
    return (max(tasks, default=-1) + 1).bit_length()


def _checked_task(task: int) -> int:
    if not isinstance(task, int) or isinstance(task, bool):
        raise TypeError(f"task: expected an int. Got {type(task).__name__}.")
    if not 0 <= task <= MAX_TASK:
        raise ValueError(f"task: expected 0 to {MAX_TASK}. Got {task}.")
    return task


def _checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape: expected (rows, cols). Got {shape!r}.")
    if len(shape) != 2 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise ValueError(f"shape: expected (rows, cols), two ints of at least 1. Got {tuple(shape)}.")
    return shape[0], shape[1]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
