"""Packed disjoint masks and the operators that run on them: the lower storey of rsn2-kernels.

mask -> :class:`OwnerMap` -> :class:`SparsePattern` -> :func:`linear`, :func:`conv2d`, :func:`grouped_linear`
"""

from rsn2_kernels.backends.registry import available_backends
from rsn2_kernels.dispatch import BackendError
from rsn2_kernels.explanation import Explanation, explain
from rsn2_kernels.ops.conv import conv2d
from rsn2_kernels.ops.grouped import grouped_linear
from rsn2_kernels.ops.linear import linear
from rsn2_kernels.owners import OverlapError, OwnerMap
from rsn2_kernels.pattern import SparsePattern

__all__ = [
    "BackendError",
    "Explanation",
    "OverlapError",
    "OwnerMap",
    "SparsePattern",
    "available_backends",
    "conv2d",
    "explain",
    "grouped_linear",
    "linear",
]
