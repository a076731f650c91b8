"""Data sets in MNIST's format: four gzipped IDX files (http://yann.lecun.com/exdb/mnist)."""

import math
import struct
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from rsn2.experiments.data import images
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect

SIDE = 28
NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_MAGIC = b"\0\0\x08"  # unsigned bytes; the fourth byte is the number of dimensions


def parse(blob: Blob, dimensions: int) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, in the shape it states.

    Raises:
        DataError: if it is none, has other dimensions, or another length than it states; names the file.
    """
    data, where = blob.content(), str(blob.path)
    expect(data[:4] == _MAGIC + bytes([dimensions]), where, f"an IDX file, {dimensions} dimensions", data[:4])
    start = 4 + 4 * dimensions
    expect(len(data) >= start, where, f"a header of {start} bytes", len(data))
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    size = start + math.prod(shape)
    expect(len(data) == size, where, f"{size} bytes for {shape}", len(data))
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def recipe(
    name: str,
    classes: Sequence[str],
    files: Sequence[File],
    where: str,
    place: str,
    counts: Mapping[str, Sequence[int]],
) -> Recipe[images.Images]:
    """The recipe of a data set of ``[n, 28, 28]`` images.

    Args:
        name: of the data set.
        classes: names.
        files: those of `NAMES`, in that order.
        where: to get them.
        place: on the Hugging Face hub, with columns "image" and "label" and splits "train" and "test".
        counts: "train" and "test" -> published samples per class.
    """

    def from_files(blobs: Sequence[Blob]) -> images.Images:
        train, train_labels, test, test_labels = blobs
        return images.Images(
            where={
                "train": (str(train.path), str(train_labels.path)),
                "test": (str(test.path), str(test_labels.path)),
            },
            images={"train": parse(train, 3), "test": parse(test, 3)},
            labels={"train": parse(train_labels, 1), "test": parse(test_labels, 1)},
        )

    def prepare(raw: images.Images, strict: bool) -> Prepared:
        return images.prepare(name, classes, (SIDE, SIDE), counts if strict else None, raw)

    return Recipe(
        name=name,
        targets=(name,),
        kind="classification",
        files=tuple(files),
        where=where,
        hub=place,
        from_files=from_files,
        from_hub=partial(images.from_hub, place, "image", "L"),
        prepare=prepare,
    )
