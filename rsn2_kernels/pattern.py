"""SparsePattern: the index structure of one task's weights, derived from its mask.

Values live outside the pattern, in one dense ``[nnz]`` tensor in row-major order of the owned positions. The pattern
says where they belong.
"""

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rsn2_kernels.backends import triton
from rsn2_kernels.bits import columns_of_bits, ends_of_words, pack_bits
from rsn2_kernels.csr import MAX_NNZ, CsrIndex, expand, gather
from rsn2_kernels.tracing import unfollowed

if TYPE_CHECKING:
    from rsn2_kernels.group import PatternGroup


class SparsePattern(CsrIndex):
    """Which positions of a ``[rows, cols]`` weight one task owns. Immutable; make one with :meth:`from_mask`."""

    __slots__ = ("__weakref__", "_groups")

    def __init__(self, shape: tuple[int, int], crow: Tensor, col: Tensor):
        super().__init__(1, shape, crow, col)
        self._groups: dict[tuple[ref[SparsePattern], ...], PatternGroup] = {}

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
        with unfollowed(mask):
            words = pack_bits(mask)
            ends = ends_of_words(words)
            # The host waits for this number, and for the index as a whole.
            nnz = int(ends[-1, -1])
            if nnz > MAX_NNZ:
                raise ValueError(f"mask: at most {MAX_NNZ} owned positions per layer. Got {nnz}.")
            crow = torch.zeros(rows + 1, dtype=torch.int32, device=mask.device)
            crow[1:] = ends[:, -1]
            return cls((rows, cols), crow, columns_of_bits(words, ends, nnz, cols))

    @property
    def density(self) -> float:
        """``nnz / (rows * cols)``."""
        return self.nnz / (self._shape[0] * self._shape[1])

    @property
    def groups(self) -> "dict[tuple[ref[SparsePattern], ...], PatternGroup]":
        """The groups that begin with this pattern; :meth:`PatternGroup.of` keeps them here."""
        return self._groups

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
        run = triton.gather if _has_kernels(dense) else gather
        return run(dense, self._crow, self._col)

    def unpack(self, values: Tensor) -> Tensor:
        """A dense ``[rows, cols]`` tensor with ``values`` at the owned positions, 0 elsewhere. Differentiable.

        Raises:
            ValueError: if ``values`` is not ``[nnz]`` on the pattern's device.
        """
        if tuple(values.shape) != (self.nnz,) or values.device != self.device:
            raise ValueError(
                f"values: expected shape ({self.nnz},) on {self.device}. Got {tuple(values.shape)} on {values.device}."
            )
        run = triton.expand if _has_kernels(values) else expand
        return run(values, self._crow, self._col, self._shape[1])

    def to(self, device: torch.device | str) -> "SparsePattern":
        """This pattern with its index tensors on another device."""
        # Of an empty tensor, whose device has its number: "cuda" is the current one.
        target = torch.empty(0, device=device).device
        if target == self.device:
            return self
        # Made in inference mode, the index could not be saved for the backward pass of a later call.
        with torch.inference_mode(False):
            return SparsePattern(self._shape, self._crow.to(target), self._col.to(target))

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """What is copied or pickled: no groups either, which hold other tasks' patterns."""
        return None, super().__getstate__()[1] | {"_groups": {}}

    def __repr__(self) -> str:
        return f"SparsePattern(shape={self._shape}, nnz={self.nnz}, density={self.density:.4f}, device='{self.device}')"


def _has_kernels(operand: Tensor) -> bool:
    """Whether a GPU packs with kernels of this package, which read the pattern once and need no memory beside it.

    They know nothing of derivatives, of functions that are mapped and of graphs: torch operators do that work there.
    """
    if not operand.is_cuda or operand.requires_grad or torch.compiler.is_compiling():
        return False
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(operand)
    if transformed or forward_ad.unpack_dual(operand).tangent is not None:
        return False
    return triton.why_not(operand.device, operand.dtype) is None
