"""CsrIndex: where the owned weights of one or several stacked matrices stand, and what is derived from that.

By rows (CSR) for the forward product and the value gradients; by columns for the gradient of the input, built when a
backward pass first asks for it; and whatever else a backend reads, made once and remembered.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rsn2_kernels.bits import pack_bits
from rsn2_kernels.tracing import serves_later_calls, settle, unfollowed

MAX_NNZ = 2**31 - 1

Derived = TypeVar("Derived")


class CsrIndex:
    """Owned positions of matrices of one shape ``[rows, cols]``, stacked. Immutable.

    Row r of matrix s is row ``s * rows + r`` of the stack, and likewise column c in the column order. The values of the
    matrices follow each other in one tensor.

    Attributes (read-only):
        stacks: number of matrices.
        shape: ``(rows, cols)`` of each.
        nnz: owned positions of all of them.
        crow: int32 ``[stacks * rows + 1]``; the values of row r are ``crow[r]`` to ``crow[r + 1]``.
        col: int32 ``[nnz]``; the column of each value, ascending within a row, in ``[0, cols)``.
    """

    __slots__ = ("_col", "_crow", "_derived", "_shape", "_stacks")

    def __init__(self, stacks: int, shape: tuple[int, int], crow: Tensor, col: Tensor):
        self._stacks = stacks
        self._shape = shape
        self._crow = crow
        self._col = col
        self._derived: dict[Hashable, Any] = {}
        settle(col)

    @property
    def stacks(self) -> int:
        """Number of matrices."""
        return self._stacks

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)`` of each matrix."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of owned positions."""
        return self._col.shape[0]

    @property
    def crow(self) -> Tensor:
        """Row pointers, int32 ``[stacks * rows + 1]``."""
        return self._crow

    @property
    def col(self) -> Tensor:
        """Column of each value, int32 ``[nnz]``."""
        return self._col

    @property
    def device(self) -> torch.device:
        """Where the index tensors live."""
        return self._col.device

    @property
    def nbytes(self) -> int:
        """Bytes of the index tensors that exist now: with the column order and the plans once they were built."""
        tensors = {id(part): part for part in (self._crow, self._col)}
        # A copy: another thread may add to them.
        for made in list(self._derived.values()):
            if isinstance(made, tuple):
                tensors |= {id(part): part for part in made if isinstance(part, Tensor)}
        return sum(part.nbytes for part in tensors.values())

    def index(self, with_columns: bool) -> list[Tensor]:
        """The index tensors an operator takes: ``[crow, col]``, with ``[crow_t, row_t, perm]`` behind if asked."""
        return [self._crow, self._col, *(self.by_column() if with_columns else ())]

    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed order, made on first use.

        Returns:
            crow_t: int32 ``[stacks * cols + 1]``; the weights of column c are ``crow_t[c]`` to ``crow_t[c + 1]``.
            row_t: int32 ``[nnz]``; the row of each of them, in ``[0, rows)``, ascending within a column.
            perm: int32 ``[nnz]``; where its value stands in the ``[nnz]`` values.
        """
        return self.derived("by column", self._sorted_by_column)

    def _sorted_by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `by_column` returns."""
        rows, cols = self._shape
        row, column = row_of_each_value(self._crow, self._col), self._col
        if self._stacks > 1:
            # int64: there may be more than 2**31 columns in the stack.
            column = (row // rows).to(torch.int64) * cols + column
            row = row % rows
        # Shapes below depend on nnz alone, never on data, so that torch.compile can trace a first backward pass.
        sorted_column, perm = torch.sort(column, stable=True)
        bounds = torch.arange(self._stacks * cols + 1, dtype=column.dtype, device=self.device)
        crow_t = torch.searchsorted(sorted_column, bounds, out_int32=True)
        return crow_t, row[perm], perm.to(torch.int32)

    def words(self) -> Tensor:
        """The mask as words, int64 ``[stacks * rows, ceil(cols / 64)]``: see `bits`. Built on first use."""
        key = "words"

        def build() -> tuple[Tensor]:
            owned = torch.ones(self.nnz, dtype=torch.bool, device=self.device)
            return (pack_bits(expand(owned, self._crow, self._col, self._shape[1])),)

        (words,) = self.derived(key, build)
        return words

    def derived(self, key: Hashable, build: Callable[[], Derived]) -> Derived:
        """What ``build`` makes of this index, made once and remembered: what backends add to it."""
        if key in self._derived:
            found: Derived = self._derived[key]
            return found
        with unfollowed(self._col):
            built = build()
            serves = serves_later_calls(built)
        if serves:
            settle(self._col)
            self._derived[key] = built
        return built

    def remembers(self, key: Hashable) -> bool:
        """Whether `derived` has made what is under ``key``."""
        return key in self._derived

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """What is copied or pickled: not what can be made again."""
        slots = {name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())} - {"__weakref__"}
        return None, {name: getattr(self, name) for name in slots} | {"_derived": {}}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """Copied or loaded in inference mode, the tensors could not be saved for the backward pass of a later call."""
        with torch.inference_mode(False):
            for name, held in state[1].items():
                inferred = isinstance(held, Tensor) and held.is_inference()
                setattr(self, name, held.clone() if inferred else held)


def row_of_each_value(crow: Tensor, col: Tensor) -> Tensor:
    """The row of each value, int32 ``[nnz]``, from the CSR pointers."""
    rows = torch.arange(crow.shape[0] - 1, dtype=torch.int32, device=crow.device)
    return torch.repeat_interleave(rows, crow.diff(), output_size=col.shape[0])


def flat_positions(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Row-major position ``row * cols + col`` of each value, int64 ``[nnz]``."""
    # In place: at 8 bytes per value, what is made on the way counts.
    return row_of_each_value(crow, col).to(torch.int64).mul_(cols).add_(col)


def gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """What is owned of a dense ``[rows, cols]`` weight, packed ``[nnz]``."""
    return dense.reshape(-1)[flat_positions(crow, col, dense.shape[1])]


def expand(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The dense ``[rows, cols]`` weight of packed ``values`` ``[nnz]``."""
    rows = crow.shape[0] - 1
    dense = values.new_zeros(rows * cols)
    return dense.index_put((flat_positions(crow, col, cols),), values).view(rows, cols)
