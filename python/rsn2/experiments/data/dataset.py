"""A data set as the experiments take it: inputs and targets in three parts, and what they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rsn2.experiments.config import Kind

PARTS = ("train", "val", "test")


class DataError(ValueError):
    """Data cannot be used; the message names the file or the place on the hub, and what was expected."""


class MissingDataError(DataError):
    """Data is not there; the message says what to get, where, and under which names and checksums."""


@dataclass(frozen=True)
class DataSet:
    """One task's data.

    Attributes:
        name: such as "mnist" or "utkface_age".
        kind: "classification" or "regression".
        classes: names in the order of their numbers; empty for regression.
        train, val, test: ``(inputs, target)``, the samples along the first dimension. Inputs are float32 images
            ``[n, channels, height, width]`` in 0..1, int64 word numbers ``[n, length]``, or float32 features
            ``[n, features]``. Targets are class numbers, int64 ``[n]``, or values, float32 ``[n, 1]``.
        facts: where it comes from and how it was made, as JSON can hold it, for reports.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what holds for every data set.

        Raises:
            DataError: if a part is empty, or its sizes, types or ranges are not as described above.
        """
        shape, dtype = self.train[0].shape[1:], self.train[0].dtype
        for part in PARTS:
            inputs, target = getattr(self, part)
            where = f"{self.name}, {part}"
            if len(inputs) == 0 or len(inputs) != len(target):
                raise DataError(f"{where}: expected as many targets as inputs. Got {len(target)} and {len(inputs)}.")
            if inputs.shape[1:] != shape or inputs.dtype != dtype:
                raise DataError(f"{where}: expected inputs like those of train, {dtype} {tuple(shape)}.")
            if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
                raise DataError(f"{where}: expected finite inputs.")
            if self.kind == "regression":
                fits = target.dtype == torch.float32 and target.shape == (len(inputs), 1)
                if not fits or not bool(torch.isfinite(target).all()):
                    raise DataError(f"{where}: expected finite float32 targets [n, 1].")
            else:
                fits = target.dtype == torch.int64 and target.ndim == 1
                if not fits or int(target.min()) < 0 or int(target.max()) >= len(self.classes):
                    raise DataError(f"{where}: expected int64 class numbers below {len(self.classes)}.")

    @property
    def outputs(self) -> int:
        """Number of a network's outputs: one per class, or one."""
        return len(self.classes) or 1
