"""What `batches_of` and `checked_batch` take, and how they say what they do not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rsn2.data import batches_of, checked_batch, to_device

X, TARGET = torch.arange(10.0).view(5, 2), torch.arange(5)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """An iterable of single samples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X, TARGET, strict=True)


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (TensorDataset(X, TARGET), r"TensorDataset, .* wrap it in a torch\.utils\.data\.DataLoader"),
        (Stream(), r"Stream, .* wrap it in a torch\.utils\.data\.DataLoader"),
        ((X.numpy(), TARGET.numpy()), r"Got tuple \(ndarray, ndarray\)"),
        ([X.numpy(), TARGET.numpy()], r"Got list \(ndarray, ndarray\)"),
        ((X, TARGET.numpy()), r"Got tuple \(Tensor, ndarray\)"),
        ([X, TARGET], r"Got list \(Tensor, Tensor\)"),
        (X, r"Got Tensor of shape \(5, 2\)"),
        ({"x": X}, "Got dict"),
        ("mnist", "Got str"),
        (3, "Got int"),
    ],
)
def test_what_is_no_data_is_refused_at_once(data: Any, came: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^data: expected \(x, target\) tensors or an iterable of such pairs\. .*{came}"
    ):
        batches_of(data, 2)


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        (X, r"pairs \(x, target\)\. Got Tensor of shape \(5, 2\)"),
        ((X,), r"pairs \(x, target\)\. Got tuple \(Tensor\)"),
        ((X, TARGET, X), r"pairs \(x, target\)\. Got tuple \(Tensor, Tensor, Tensor\)"),
        ({"x": X, "target": TARGET}, "Got dict"),
        (X[:2], "Got Tensor"),  # two rows are no pair
        ((X.numpy(), TARGET.numpy()), r"of tensors\. Got tuple \(ndarray, ndarray\)"),
        ((X, TARGET.numpy()), r"of tensors\. Got tuple \(Tensor, ndarray\)"),
        ((["text"], TARGET), r"of tensors\. Got tuple \(list, Tensor\)"),
        ((X, np.float64(1)), r"Got tuple \(Tensor, float64\)"),
    ],
)
def test_a_batch_that_is_no_pair_of_tensors_is_refused(batch: Any, came: str) -> None:
    with pytest.raises(TypeError, match=f"^batches: expected batches .*{came}"):
        checked_batch(batch, "batches")
    # As the third of three, since two batches that are no pairs look like (x, target).
    stream = batches_of([(X, TARGET), (X, TARGET), batch], 2, name="train")
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(TypeError, match=r"^train: expected batches "):
        next(stream)


@pytest.mark.parametrize(
    "batch", [(X, TARGET), [X, TARGET], ((X, X), TARGET), ({"x": X}, [TARGET]), (X, None)], ids=lambda _: ""
)
def test_pairs_come_as_they_are(batch: Any) -> None:
    x, target = checked_batch(batch, "batches")
    assert x is batch[0]
    assert target is batch[1]
    assert list(batches_of([(x, target)], 2)) == [(x, target)]


def test_two_batches_in_a_list_are_two_batches() -> None:
    assert len(list(batches_of([(X, TARGET), [X, TARGET]], 2))) == 2
    assert len(list(batches_of(DataLoader(TensorDataset(X, TARGET), batch_size=3), 2))) == 2


def test_samples_are_counted_along_the_first_dimension() -> None:
    for pair in ((X[:0], TARGET[:0]), (X, TARGET[:4]), (torch.tensor(1.0), torch.tensor(1))):
        with pytest.raises(ValueError, match=r"^data: expected "):
            batches_of(pair, 2)
    for batch in ((X[:0], TARGET[:0]), (torch.tensor(1.0), TARGET)):
        with pytest.raises(ValueError, match=r"^batches: expected at least one sample in each batch"):
            checked_batch(batch, "batches")
    with pytest.raises(ValueError, match=r"^batch_size: "):
        batches_of((X, TARGET), 0)
    with pytest.raises(TypeError, match=r"^batch_size: "):
        batches_of((X, TARGET), 2.0)  # type: ignore[arg-type]


class Moved(Tensor):
    """A tensor that says how it was moved."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Any:  # type: ignore[override]
        return device.type, non_blocking


def test_only_a_move_away_from_the_cpu_may_go_on_in_the_background() -> None:
    batch = (Moved(), {"x": [Moved()]})
    for device, background in (("cpu", False), ("cuda", True)):
        moved = (device, background)
        assert to_device(batch, torch.device(device)) == (moved, {"x": [moved]})
