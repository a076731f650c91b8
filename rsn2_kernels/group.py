"""PatternGroup: the patterns of several tasks as one index, for a batch whose rows belong to different tasks."""

from collections.abc import Sequence
from weakref import ref

import torch

from rsn2_kernels.csr import MAX_NNZ, CsrIndex
from rsn2_kernels.pattern import SparsePattern
from rsn2_kernels.tracing import serves_later_calls, unfollowed

# Groups that one pattern remembers: enough for the batches of a training loop, few enough to forget old ones.
REMEMBERED = 8


class PatternGroup(CsrIndex):
    """The stacked index of patterns that have one shape and device, one stack per task. Get one with :meth:`of`."""

    __slots__ = ()

    def __init__(self, patterns: Sequence[SparsePattern]):
        counts = torch.stack([each.crow for each in patterns]).diff(dim=1).flatten()
        crow = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        super().__init__(len(patterns), patterns[0].shape, crow, torch.cat([each.col for each in patterns]))

    @classmethod
    def of(cls, patterns: Sequence[SparsePattern]) -> "PatternGroup":
        """The group of these patterns in this order. The first of them remembers it for the next call.

        Args:
            patterns: at least one, all of one shape and device.

        Raises:
            ValueError: if they own more than 2**31 - 1 positions together.
        """
        nnz = sum(each.nnz for each in patterns)
        if nnz > MAX_NNZ:
            raise ValueError(f"ps: expected at most {MAX_NNZ} owned positions in all. Got {nnz}.")
        first, key = patterns[0], cls._key(patterns)
        group = first.groups.get(key)
        if group is None:
            with unfollowed(first.col):
                group = cls(patterns)
            if serves_later_calls((group.crow, group.col)):
                first.groups[key] = group
                # Steps that other threads may come between: each leaves a dict that the others can work on.
                for oldest in list(first.groups)[:-REMEMBERED]:
                    first.groups.pop(oldest, None)
        return group

    @classmethod
    def is_known(cls, patterns: Sequence[SparsePattern]) -> bool:
        """Whether the first of these patterns remembers their group."""
        return cls._key(patterns) in patterns[0].groups

    @staticmethod
    def _key(patterns: Sequence[SparsePattern]) -> tuple[ref[SparsePattern], ...]:
        # Patterns are equal only to themselves, and so are references to those that died: no cycle keeps any alive.
        return tuple(map(ref, patterns))

    def __repr__(self) -> str:
        return f"PatternGroup(tasks={self.stacks}, shape={self._shape}, nnz={self.nnz}, device='{self.device}')"
