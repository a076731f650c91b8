"""Batches: where they must be, and how tensors become them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Data = tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]]
"""``(x, target)`` tensors with the samples along the first dimension, or an iterable of such batches (a DataLoader)."""


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in its tuples, lists and dicts on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def batches_of(data: Data, batch_size: int, shuffle_seed: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Batches of ``data``, in order or in the order that ``shuffle_seed`` gives; an iterable of batches comes as it is.

    Raises:
        ValueError: if the two tensors differ in their number of samples, or ``batch_size`` is below 1.
    """
    pair = as_tensor_pair(data)
    if pair is None:
        yield from data  # type: ignore[misc]  # an iterable of batches, by the check above
        return
    x, target = pair
    if x.shape[0] != target.shape[0]:
        raise ValueError(f"data: expected as many targets as samples. Got {target.shape[0]} and {x.shape[0]}.")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1. Got {batch_size}.")
    if shuffle_seed is not None:
        order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(shuffle_seed))
        order = order.to(x.device)
        x, target = x[order], target[order]
    yield from zip(x.split(batch_size), target.split(batch_size), strict=True)


def as_tensor_pair(data: object) -> tuple[Tensor, Tensor] | None:
    """``data`` if it is ``(x, target)`` as two tensors, else None."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return data
    return None
