"""CIFAR-10: 50,000 + 10,000 pictures, 32 x 32 RGB (Krizhevsky 2009), as lossless WebP mosaics in one npz file.

98 of the 60,000 pictures of that file come from JPEG copies; `facts` counts them.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from rsn2.experiments.data import images, mosaic
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect

SIDE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_COUNTS = {"train": (5000,) * 10, "test": (1000,) * 10}
_HUB = "uoft-cs/cifar10"


def _from_files(blobs: Sequence[Blob]) -> images.Images:
    (blob,) = blobs
    found = mosaic.arrays(blob)
    pictures, labels, copies = {}, {}, {}
    for part in ("train", "test"):
        pictures[part] = mosaic.images(blob, found, part, SIDE)
        n = len(pictures[part])
        labels[part] = mosaic.array(blob, found, f"y_{part}", (n,), "ui")
        index = mosaic.array(blob, found, f"{part}_index", (n,), "ui")
        expect(bool((index == np.arange(n)).all()), f"{blob.path}, {part}_index", "the original order", "another")
        copies[part] = int(mosaic.array(blob, found, f"{part}_from_jpeg", (n,), "b").sum())
    return images.Images(
        where={part: (f"{blob.path}, {part}", f"{blob.path}, array 'y_{part}'") for part in labels},
        images=pictures,
        labels=labels,
        facts={"from_jpeg": copies},
    )


def _prepare(raw: images.Images, strict: bool) -> Prepared:
    return images.prepare("cifar10", CLASSES, (SIDE, SIDE, 3), _COUNTS if strict else None, raw)


RECIPE = Recipe(
    name="cifar10",
    targets=("cifar10",),
    kind="classification",
    files=(
        File(
            "cifar10/cifar10_full_50k_10k.npz",
            101_069_836,
            "cb1314890d41aabb8f0493d016d3710a65ec424d9e6e65881e2dfccd80379afc",
        ),
    ),
    where="wherever this file is kept (docs/data.md describes its format)",
    hub=_HUB,
    from_files=_from_files,
    from_hub=partial(images.from_hub, _HUB, "img", "RGB"),
    prepare=_prepare,
)
