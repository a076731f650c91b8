"""Snapshot: buffers that training or allocation may move, and how they are put back."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsn2.opening import uncompiled
from rsn2.ownership import shared_buffers
from rsn2.tasks import per_task_modules


class _Kept(NamedTuple):
    name: str
    module: nn.Module
    key: str
    buffer: Tensor
    version: int
    value: Tensor


class Snapshot:
    """What some buffers are: the tensors, and their bits.

    A module may write into a buffer or put another tensor into its place, of whatever shape.
    """

    def __init__(self, modules: Iterable[tuple[nn.Module, Iterable[str]]]):
        """Take down the buffers of these modules that have these names in them."""
        self._kept = []
        for whole, names in modules:
            for name in names:
                path, _, key = name.rpartition(".")
                buffer = whole.get_buffer(name)
                value = buffer.detach().clone()
                self._kept.append(_Kept(name, whole.get_submodule(path), key, buffer, _version(buffer), value))

    @classmethod
    def shared(cls, model: nn.Module) -> "Snapshot":
        """Of the buffers that all tasks share."""
        return cls([(uncompiled(model), shared_buffers(model))])

    @classmethod
    def own(cls, model: nn.Module, tasks: Iterable[str]) -> "Snapshot":
        """Of the buffers that are some tasks' own."""
        modules = [module.of(task) for module in per_task_modules(model).values() for task in tasks]
        return cls([(module, dict(module.named_buffers())) for module in modules])

    def put_back(self) -> list[str]:
        """Make them as they were; the names of those that were not."""
        moved = [each for each in self._kept if _has_moved(each)]
        for each in moved:
            each.module._buffers[each.key] = each.buffer
            if each.buffer.layout == torch.strided and each.buffer.shape == each.value.shape:
                with torch.no_grad():
                    each.buffer.copy_(each.value)
            else:
                each.buffer.data = each.value
        torch.clear_autocast_cache()  # as behind each step of a fit
        return [each.name for each in moved]


def _has_moved(kept: _Kept) -> bool:
    now, value = kept.module._buffers.get(kept.key), kept.value
    if now is None or now.layout != value.layout or now.dtype != value.dtype or now.shape != value.shape:
        return True
    if now.layout != torch.strided:  # these cannot be compared
        return now is not kept.buffer or _version(now) != kept.version
    # By value: who writes through `.data` leaves the version as it is.
    return not torch.allclose(now, value, 0.0, 0.0, equal_nan=True)


def _version(buffer: Tensor) -> int:
    """Counts writes; of a tensor of inference mode, which cannot be written outside of it, always the same."""
    return 0 if buffer.is_inference() else buffer._version
