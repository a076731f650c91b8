"""The Hugging Face hub, through the package `datasets`. Code of a hub repository is never run."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from rsn2 import extras
from rsn2.experiments.data.dataset import DataError


def installed() -> bool:
    """Whether `datasets` can be imported, and is that package."""
    try:
        return hasattr(extras.load("datasets"), "load_dataset")
    except extras.MissingPackageError:
        return False


def table(path: str, columns: Iterable[str], **options: Any) -> Any:
    """One split of a data set: a `datasets.Dataset` that has ``columns``.

    Args:
        path: on the hub, or the name of a builder of `datasets`.
        columns: that will be used.
        options: of `datasets.load_dataset`.

    Raises:
        DataError: if it cannot be had, or a column is missing; names the place.
    """
    try:
        found = extras.load("datasets").load_dataset(path, **options)
    except Exception as error:  # whatever the package, the network or the hub raises
        raise DataError(f"{path} on the Hugging Face hub: {type(error).__name__}: {error}") from error
    missing = [column for column in columns if column not in found.column_names]
    if missing:
        raise DataError(f"{path} on the Hugging Face hub: expected columns {missing}. Got {found.column_names}.")
    return found


def labels(found: Any, column: str) -> npt.NDArray[np.int64]:
    """A column of whole numbers, ``[n]``.

    Raises:
        DataError: if a value is none.
    """
    values = list(found[column])
    if unfit := [value for value in values if not isinstance(value, int | np.integer)]:
        raise DataError(f"column {column!r} on the Hugging Face hub: expected whole numbers. Got {unfit[0]!r}.")
    return np.array(values, dtype=np.int64)


def values(found: Any, column: str) -> npt.NDArray[np.float64]:
    """A column of numbers, ``[n]``.

    Raises:
        DataError: if a value is none.
    """
    try:
        return np.array([float(value) for value in found[column]], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {column!r} on the Hugging Face hub: expected numbers: {error}") from error


def pictures(found: Any, column: str, mode: str) -> npt.NDArray[np.uint8]:
    """A column of pictures of one size as ``[n, height, width]`` ("L") or ``[n, height, width, 3]`` ("RGB").

    Raises:
        DataError: if there are none, or their sizes differ.
    """
    arrays = [np.asarray(picture.convert(mode), dtype=np.uint8) for picture in found[column]]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise DataError(f"column {column!r} on the Hugging Face hub: expected pictures of one size. Got {shapes}.")
    return np.stack(arrays)
