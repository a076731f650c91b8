"""Operands laid out once for all products of a training step, where the backend would lay them out for each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels.backends import triton
from rsn2_kernels.ops.library import empty_matrix
from rsn2_kernels.ops.operator import Operator


def feature_major(x: Tensor, rest: Sequence[Any]) -> Tensor:
    """``x [batch, features]`` as the backend reads it: a differentiable copy for the Triton kernels, else ``x``.

    Args:
        x: the operand.
        rest: the last arguments of the operator; the very last is the backend.
    """
    # No question about the batch: it may be symbolic.
    if rest[-1] != "triton" or x.stride(0) == 1:
        return x
    return _FEATURE_MAJOR(x)


def channels_last(x: Tensor, rest: Sequence[Any]) -> Tensor:
    """``x [N, C, H, W]`` as the backend reads it: channels-last for the Triton kernels, else ``x``."""
    return x.contiguous(memory_format=torch.channels_last) if rest[-1] == "triton" else x


def _feature_major_fake(x: Tensor) -> Tensor:
    return empty_matrix(x, x.shape[0], x.shape[1], "triton")


_FEATURE_MAJOR = Operator("feature_major(Tensor x) -> Tensor", triton.feature_major, _feature_major_fake, operands=1)
_FEATURE_MAJOR.differentiate(lambda ctx, *call: None, lambda ctx, gradient: (gradient,))
