"""Parameters whose elements lie one behind the other in memory, so that all of them are one tensor, too."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def join(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor ``[sum of sizes]`` of all elements, in which the parameters are from now on. They keep their values.

    Args:
        parameters: at least one, one-dimensional, of one dtype and device. Moved only if they do not lie so already.
    """
    if not _lie_joined(parameters):
        whole = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, whole.split([each.numel() for each in parameters]), strict=True):
            parameter.data = part
    return parameters[0].detach().as_strided((sum([each.numel() for each in parameters]),), (1,))


def _lie_joined(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether each begins where the one before it ends, all in the storage of the first."""
    start = at = parameters[0].data_ptr()
    for each in parameters:
        if each.numel() and (each.data_ptr() != at or not each.is_contiguous()):
            return False
        at += each.nbytes
    storage = parameters[0].untyped_storage()
    return at - start <= storage.nbytes() - (start - storage.data_ptr())
