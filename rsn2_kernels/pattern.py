"""SparsePattern: the index structure of one task's weights, derived from its mask.

Values live outside the pattern, in one dense ``[nnz]`` tensor in row-major order of the owned positions. The pattern
says where they belong: by rows (CSR) for the forward product and the value gradients, by columns for the gradient
of the input. The column order is built when a backward pass first asks for it.
"""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rsn2_kernels.group import PatternGroup

MAX_NNZ = 2**31 - 1

Derived = TypeVar("Derived")


class SparsePattern:
    """Which positions of a ``[rows, cols]`` weight one task owns. Immutable; make one with :meth:`from_mask`.

    Attributes (read-only):
        shape: ``(rows, cols)``.
        nnz: number of owned positions.
        crow: int32 ``[rows + 1]``; the values of row r are ``crow[r]`` to ``crow[r + 1]``.
        col: int32 ``[nnz]``; the column of each value, ascending within a row.
    """

    __slots__ = ("_by_column", "_col", "_crow", "_derived", "_groups", "_shape")

    def __init__(self, shape: tuple[int, int], crow: Tensor, col: Tensor):
        self._shape = shape
        self._crow = crow
        self._col = col
        self._by_column: tuple[Tensor, Tensor, Tensor] | None = None
        self._derived: dict[Hashable, Any] = {}
        self._groups: dict[tuple[SparsePattern | None, ...], PatternGroup] = {}

    @classmethod
    def from_mask(cls, mask: Tensor) -> "SparsePattern":
        """The pattern of a bool ``[rows, cols]`` mask, on the mask's device.

        Raises:
            ValueError: if ``mask`` is not a two-dimensional bool tensor with at least one row and column, or owns
                more than 2**31 - 1 positions.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2 or mask.numel() == 0:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: expected a non-empty bool tensor [rows, cols]. Got {got}.")
        rows, cols = mask.shape
        counts = mask.sum(dim=1)
        crow = torch.zeros(rows + 1, dtype=torch.int64, device=mask.device)
        torch.cumsum(counts, 0, out=crow[1:])
        if int(crow[-1]) > MAX_NNZ:
            raise ValueError(f"mask: at most {MAX_NNZ} owned positions per layer. Got {int(crow[-1])}.")
        col = mask.nonzero()[:, 1]
        return cls((rows, cols), crow.to(torch.int32), col.to(torch.int32))

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)``."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of owned positions."""
        return self._col.shape[0]

    @property
    def density(self) -> float:
        """``nnz / (rows * cols)``."""
        return self.nnz / (self._shape[0] * self._shape[1])

    @property
    def crow(self) -> Tensor:
        """Row pointers, int32 ``[rows + 1]``."""
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
        return index_nbytes(self._crow, self._col, self._by_column, self._derived)

    @property
    def groups(self) -> "dict[tuple[SparsePattern | None, ...], PatternGroup]":
        """The groups that begin with this pattern; :meth:`PatternGroup.of` keeps them here."""
        return self._groups

    def derived(self, key: Hashable, build: Callable[[], Derived]) -> Derived:
        """What ``build`` makes of this pattern, made once and remembered: what backends add to the index."""
        return remembered(self._derived, key, build, self._col)

    def remembers(self, key: Hashable) -> bool:
        """Whether `derived` has made what is under ``key``."""
        return key in self._derived

    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The transposed order, built on first use.

        Returns:
            crow_t: int32 ``[cols + 1]``; the weights of column c are ``crow_t[c]`` to ``crow_t[c + 1]``.
            row_t: int32 ``[nnz]``; the row of each of them, ascending within a column.
            perm: int32 ``[nnz]``; where its value stands in the ``[nnz]`` values.
        """
        if self._by_column is None:
            crow_t, perm = column_order(self._col, self._shape[1])
            by_column = (crow_t, row_of_each_value(self._crow, self._col)[perm], perm.to(torch.int32))
            # An exporter runs this on tensors without data, which must not stay behind for real calls.
            if type(crow_t) is not Tensor:
                return by_column
            self._by_column = by_column
        return self._by_column

    def mask(self) -> Tensor:
        """The bool ``[rows, cols]`` mask that this pattern was made from."""
        return self.unpack(torch.ones(self.nnz, dtype=torch.bool, device=self.device))

    def pack(self, dense: Tensor) -> Tensor:
        """The owned values of a dense ``[rows, cols]`` tensor, ``[nnz]`` in row-major order. Differentiable.

        Raises:
            ValueError: if the shape or device differs from the pattern's.
        """
        if tuple(dense.shape) != self._shape or dense.device != self.device:
            raise ValueError(
                f"dense: expected shape {self._shape} on {self.device}. Got {tuple(dense.shape)} on {dense.device}."
            )
        return dense.reshape(-1)[flat_positions(self._crow, self._col, self._shape[1])]

    def unpack(self, values: Tensor) -> Tensor:
        """A dense ``[rows, cols]`` tensor with ``values`` at the owned positions, 0 elsewhere. Differentiable.

        Raises:
            ValueError: if ``values`` is not ``[nnz]`` on the pattern's device.
        """
        if tuple(values.shape) != (self.nnz,) or values.device != self.device:
            raise ValueError(
                f"values: expected shape ({self.nnz},) on {self.device}. Got {tuple(values.shape)} on {values.device}."
            )
        return expand(values, self._crow, self._col, self._shape[1])

    def to(self, device: torch.device | str) -> "SparsePattern":
        """This pattern with its index tensors on another device."""
        if torch.device(device) == self.device:
            return self
        return SparsePattern(self._shape, self._crow.to(device), self._col.to(device))

    def index(self, with_columns: bool) -> list[Tensor]:
        """The index tensors an operator takes: ``[crow, col]``, with ``[crow_t, row_t, perm]`` behind if asked."""
        return [self._crow, self._col, *(self.by_column() if with_columns else ())]

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """What is copied or pickled: not what can be made again, nor groups, which hold other tasks' patterns."""
        return None, {name: getattr(self, name) for name in self.__slots__} | {"_groups": {}, "_derived": {}}

    def __repr__(self) -> str:
        return f"SparsePattern(shape={self._shape}, nnz={self.nnz}, density={self.density:.4f}, device='{self.device}')"


def row_of_each_value(crow: Tensor, col: Tensor) -> Tensor:
    """The row of each value, int32 ``[nnz]``, from the CSR pointers."""
    rows = torch.arange(crow.shape[0] - 1, dtype=torch.int32, device=crow.device)
    return torch.repeat_interleave(rows, crow.diff(), output_size=col.shape[0])


def remembered(store: dict[Hashable, Any], key: Hashable, build: Callable[[], Derived], index: Tensor) -> Derived:
    """``store[key]``, built if it is not there, unless ``index`` is a tensor without data, of an exporter."""
    if key not in store:
        # Made in inference mode, the tensors could not be saved for the backward pass of a later call.
        with torch.inference_mode(False):
            built = build()
        if type(index) is not Tensor:
            return built
        store[key] = built
    found: Derived = store[key]
    return found


def index_nbytes(crow: Tensor, col: Tensor, by_column: tuple[Tensor, ...] | None, derived: dict[Hashable, Any]) -> int:
    """Bytes of an index and of what was derived from it, each tensor once."""
    tensors = {id(part): part for part in (crow, col, *(by_column or ()))}
    for made in derived.values():
        if isinstance(made, tuple):
            tensors |= {id(part): part for part in made if isinstance(part, Tensor)}
    return sum(part.nbytes for part in tensors.values())


def column_order(col: Tensor, cols: int) -> tuple[Tensor, Tensor]:
    """Where each of ``cols`` columns begins once the values are sorted by column, int32, and that order, int64."""
    # Shapes depend on nnz alone, never on data, so that torch.compile can trace a first backward pass.
    sorted_col, order = torch.sort(col, stable=True)
    bounds = torch.arange(cols + 1, dtype=col.dtype, device=col.device)
    return torch.searchsorted(sorted_col, bounds, out_int32=True), order


def flat_positions(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Row-major position ``row * cols + col`` of each value, int64 ``[nnz]``."""
    return row_of_each_value(crow, col).to(torch.int64) * cols + col


def expand(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The dense ``[rows, cols]`` weight of packed ``values`` ``[nnz]``."""
    rows = crow.shape[0] - 1
    dense = values.new_zeros(rows * cols)
    return dense.index_put((flat_positions(crow, col, cols),), values).view(rows, cols)
