"""Labelled images that come in two parts: checked, a validation part held out, channels first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rsn2.experiments.data import hub
from rsn2.experiments.data.recipe import Prepared, expect
from rsn2.experiments.data.splits import hold_out

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Images:
    """As read.

    Attributes:
        where: file or place of the images and of the labels, for errors: part -> (images, labels).
        images: "train" and "test", uint8 ``[n, height, width]`` or ``[n, height, width, channels]``.
        labels: "train" and "test", whole numbers ``[n]``.
        facts: to be reported.
    """

    where: Mapping[str, tuple[str, str]]
    images: Mapping[str, npt.NDArray[np.uint8]]
    labels: Mapping[str, npt.NDArray[Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(
    name: str, classes: Sequence[str], shape: tuple[int, ...], counts: Mapping[str, Sequence[int]] | None, raw: Images
) -> Prepared:
    """Check images and labels, and hold a tenth of the training part out, stratified by class.

    Args:
        name: of the target.
        classes: names.
        shape: of one image.
        counts: "train" and "test" -> samples per class that must be there; None takes any.
        raw: as read.

    Raises:
        DataError: if sizes, types or ranges are not as expected; names file or place.
    """
    for part in ("train", "test"):
        images, labels = raw.images[part], raw.labels[part]
        pictures, numbers = raw.where[part]
        fits = images.dtype == np.uint8 and images.shape[1:] == shape
        expect(fits, pictures, f"uint8 images of shape {shape}", f"{images.dtype} {images.shape}")
        expect(labels.ndim == 1 and labels.dtype.kind in "ui", numbers, "whole numbers [n]", labels.shape)
        expect(len(labels) == len(images) > 0, numbers, f"{len(images)} labels", len(labels))
        low, high = int(labels.min()), int(labels.max())
        expect(low >= 0 and high < len(classes), numbers, f"labels 0..{len(classes) - 1}", f"{low}..{high}")
        if counts is not None:
            got = np.bincount(labels, minlength=len(classes)).tolist()
            expect(got == list(counts[part]), numbers, f"{list(counts[part])} samples per class", got)
    target = raw.labels["train"].astype(np.int64)
    train, val = hold_out(np.arange(len(target)), VALIDATION_SHARE, strata=target)
    tensors = {}
    for part, origin, rows in (("train", "train", train), ("val", "train", val), ("test", "test", None)):
        images, labels = raw.images[origin], raw.labels[origin]
        if rows is not None:
            images, labels = images[rows], labels[rows]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        tensors[f"{part}.inputs"] = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        tensors[f"{part}.{name}"] = torch.from_numpy(labels.astype(np.int64))
    split = f"test as published; validation: {VALIDATION_SHARE:g} of the training part, stratified by class"
    return Prepared(tensors, {name: list(classes)}, {"split": split, **raw.facts})


def from_hub(place: str, column: str, mode: str) -> Images:
    """The splits "train" and "test" of a data set on the hub: pictures in ``column``, classes in "label".

    Raises:
        DataError: if it cannot be had; names the place.
    """
    tables = {part: hub.table(place, (column, "label"), split=part) for part in ("train", "test")}
    return Images(
        where={part: (f"{place}, {part}",) * 2 for part in tables},
        images={part: hub.pictures(table, column, mode) for part, table in tables.items()},
        labels={part: hub.labels(table, "label") for part, table in tables.items()},
    )
