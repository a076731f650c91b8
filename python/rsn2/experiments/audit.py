"""What a finished task answers with, bit by bit, so that a change is noticed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rsn2.ownership import own_tensors
from rsn2.tasks import slots_of


def bits_of(model: nn.Module, task: str) -> dict[str, Tensor]:
    """A copy of all that a task answers with: values, biases, per-task modules, and where its values stand."""
    own = {name: tensor.detach().clone() for name, tensor in own_tensors(model, task).items()}
    for name, layer, slot in slots_of(model, task):
        own[f"{name}.mask"] = layer.owners.mask(slot)
    return own


def count_changed(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> int:
    """Number of values that are not the same bits; all of a tensor that came, went or changed its shape."""
    count = 0
    for name in {*now, *before}:
        pair = [tensors[name].detach() for tensors in (now, before) if name in tensors]
        if len(pair) == 2 and pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype:
            first, second = (tensor.reshape(-1, 1).view(torch.uint8) for tensor in pair)
            count += int((first != second).any(dim=1).sum())
        else:
            count += max(tensor.numel() for tensor in pair)
    return count
