"""Batches: what can be one, where they must be, and how tensors become them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rsn2.arguments import check_int

Data = tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]]
"""``(x, target)`` tensors with the samples along the first dimension, or an iterable of such batches (a DataLoader)."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(model(x), target) -> scalar``, the mean over the batch."""

_DATA = "(x, target) tensors or an iterable of such pairs"


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU if it has none."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in its tuples, lists and dicts on ``device``."""
    if isinstance(batch, Tensor):
        # A copy to the CPU that goes on in the background would be read before it is there.
        return batch.to(device, non_blocking=device.type != "cpu")
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def check_data(data: object, name: str) -> None:
    """Raise unless the argument ``name`` can be `Data`; the batches of an iterable are looked at when they come.

    Raises:
        TypeError: if it is neither ``(x, target)`` tensors nor an iterable of batches.
        ValueError: if the two tensors hold no samples, or differ in their number of samples.
    """
    if isinstance(data, Dataset):
        raise TypeError(
            f"{name}: expected {_DATA}. Got {type(data).__name__}, which gives single samples: wrap it in a "
            "torch.utils.data.DataLoader."
        )
    pair = as_tensor_pair(data)
    if pair is not None:
        x, target = pair
        if x.ndim == 0 or target.ndim == 0:
            raise ValueError(
                f"{name}: expected the samples along the first dimension. Got a tensor without dimensions."
            )
        if x.shape[0] != target.shape[0]:
            raise ValueError(f"{name}: expected as many targets as samples. Got {target.shape[0]} and {x.shape[0]}.")
        if x.shape[0] == 0:
            raise ValueError(f"{name}: expected at least one sample. Got none: x has shape {tuple(x.shape)}.")
        return
    # Two batches are two pairs, so two of anything else were meant as (x, target).
    meant_as_pair = isinstance(data, tuple | list) and len(data) == 2 and not _all_pairs(data)
    if meant_as_pair or isinstance(data, Tensor | str | dict) or not isinstance(data, Iterable):
        raise TypeError(f"{name}: expected {_DATA}. Got {_kind(data)}.")


def checked_batch(batch: object, name: str) -> tuple[Any, Any]:
    """``batch`` as the pair ``(x, target)``; ``name`` is the argument that it came from.

    ``x`` is a tensor or a tuple, list or dict that holds one; the target is whatever the loss takes but an array of
    another library, which no device but the CPU could take.

    Raises:
        TypeError: if it is no tuple or list of two, or its parts are no tensors.
        ValueError: if it holds no samples.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{name}: expected batches that are pairs (x, target). Got {_kind(batch)}.")
    x, target = batch
    first = first_tensor(x)
    if first is None or (hasattr(target, "__array__") and not isinstance(target, Tensor)):
        raise TypeError(
            f"{name}: expected batches (x, target) of tensors. Got {_kind(batch)}; torch.as_tensor makes a tensor of "
            "an array."
        )
    if first.ndim == 0 or first.shape[0] == 0:
        raise ValueError(
            f"{name}: expected at least one sample in each batch, along the first dimension. Got x of shape "
            f"{tuple(first.shape)}."
        )
    return x, target


def first_tensor(value: object) -> Tensor | None:
    """The first tensor in a nest of tuples, lists and dicts; None if there is none."""
    if isinstance(value, Tensor):
        return value
    parts: Iterable[object] = ()
    if isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def batches_of(
    data: Data, batch_size: int, shuffle_seed: int | None = None, name: str = "data"
) -> Iterator[tuple[Any, Any]]:
    """Batches of ``data``, in order or in the order that ``shuffle_seed`` gives; an iterable of batches comes as it is.

    Args:
        data: the samples.
        batch_size: samples per batch, at least 1; an iterable brings its own.
        shuffle_seed: of the order of two tensors. Where they are shuffled, for training, a single sample that is left
            over joins the batch before it: batch norm has no use for one alone.
        name: the argument of the caller that errors are about.

    Raises:
        TypeError: if ``data`` is neither ``(x, target)`` tensors nor an iterable of such pairs, or ``batch_size`` is
            no int. A batch of an iterable is refused when it comes.
        ValueError: if there are no samples, the two tensors differ in their number of samples, or ``batch_size`` is
            below 1.
    """
    check_data(data, name)
    check_int("batch_size", batch_size, least=1)
    pair = as_tensor_pair(data)
    if pair is None:
        return (checked_batch(batch, name) for batch in data)
    x, target = pair
    whole, rest = divmod(x.shape[0], batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    if shuffle_seed is not None:
        if whole and rest == 1:
            sizes[-2:] = [batch_size + 1]
        generator = torch.Generator().manual_seed(shuffle_seed)
        order = torch.randperm(x.shape[0], generator=generator, device="cpu").to(x.device)
        x, target = x[order], target[order]
    return zip(x.split(sizes), target.split(sizes), strict=True)


def generators_of(data: Data | None) -> list[torch.Generator]:
    """Generators of its own that a DataLoader, or its sampler, draws from."""
    batch_sampler = getattr(data, "batch_sampler", None)
    owners = (data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return [each for each in found if isinstance(each, torch.Generator)]


def as_tensor_pair(data: object) -> tuple[Tensor, Tensor] | None:
    """``data`` if it is ``(x, target)`` as two tensors, else None."""
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return data
    return None


def _all_pairs(batches: Iterable[object]) -> bool:
    return all(isinstance(batch, tuple | list) for batch in batches)


def _kind(value: object) -> str:
    """The type of a value, with those of the parts of a short tuple or list."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list) and len(value) <= 4:
        return f"{kind} ({', '.join(type(part).__name__ for part in value)})"
    return kind
