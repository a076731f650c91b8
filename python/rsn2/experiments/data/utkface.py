"""UTKFace, aligned and cropped: 23,705 faces, 48 x 48 RGB, with age, gender and ethnicity as the set gives them.

For non-commercial research only; faces of real people with estimated labels: keep them out of anything published.
Three data sets, utkface_age (classes of ten years, as in the paper), utkface_gender and utkface_ethnicity, share
their images and their split.

390 of the original files are byte-for-byte copies of another, many under other labels. The npz file holds them after
lossy compression, where copies are equal no longer: faces that differ by less than `SAME_FACE` stay on one side of
every split. That limit is well above what compression does (about 3.7 per face, 5.2 between two), so it also puts
together pictures that were saved twice or cropped a little differently.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rsn2 import extras
from rsn2.experiments.data import hub, mosaic
from rsn2.experiments.data.duplicates import near_copies
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect
from rsn2.experiments.data.splits import Ints, hold_out

SIDE = 48
AGES = ("0-10", "11-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71-80", "81-90", "91+")
GENDERS = ("male", "female")
ETHNICITIES = ("white", "black", "asian", "indian", "other")
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
# Grey levels, root mean square. Of the 23,705 faces, 961 pairs are nearer than this and 50 lie between 10 and 12: the
# pairs thin out here. 399 are nearer than 3.5 and make 384 copies, close to the 390 exact ones.
SAME_FACE = 10.0
_OLDEST = 116
_COUNTS = (
    (3218, 1659, 7784, 4338, 2100, 2211, 1170, 685, 453, 87),
    (12391, 11314),
    (10078, 4526, 3434, 3975, 1692),
)
_HUB = "py97/UTKFace-Cropped"
_REVISION = "e80f21fb21fa3631380c3cb634b79be3ac2f4cba"
_PICTURE, _KEY = "jpg.chip.jpg", "__key__"
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+")


@dataclass(frozen=True)
class _Faces:
    """``images`` uint8 ``[n, 48, 48, 3]``; ``labels`` ``[n, 3]``: age in years, gender, ethnicity."""

    where: str
    images: npt.NDArray[np.uint8]
    labels: Ints


def _from_files(blobs: Sequence[Blob]) -> _Faces:
    (blob,) = blobs
    found = mosaic.arrays(blob)
    images = mosaic.images(blob, found, "img", SIDE)
    columns = [mosaic.array(blob, found, name, (len(images),), "ui") for name in ("age", "gender", "ethnicity")]
    labels = np.stack(columns, axis=1).astype(np.int64)
    names = mosaic.array(blob, found, "name", (len(images),), "S")
    for row, name in zip(labels.tolist(), names.tolist(), strict=True):
        start = "_".join(map(str, row)) + "_"
        expect(name.decode("latin-1").startswith(start), f"{blob.path}, array 'name'", f"{start}...", name)
    return _Faces(str(blob.path), images, labels)


def _from_hub() -> _Faces:
    resampling = extras.load("PIL.Image").Resampling.BICUBIC
    found = hub.table(_HUB, (_PICTURE, _KEY), revision=_REVISION, split="train")
    faces = {}
    for row in found:
        name = row[_KEY].rsplit("/", 1)[-1]
        match = _NAME.match(name)
        if match is None or row[_PICTURE] is None:
            continue  # three files of the set lack a label in their name
        picture = row[_PICTURE].convert("RGB")
        expect(picture.width == picture.height, f"{_HUB}, {name}", "a square picture", picture.size)
        pixels = np.asarray(picture.resize((SIDE, SIDE), resampling), dtype=np.uint8)
        faces[name] = (pixels, [int(value) for value in match.groups()])
    expect(len(faces) > 0, _HUB, "faces", "none")
    ordered = [faces[name] for name in sorted(faces)]
    return _Faces(_HUB, np.stack([face for face, _ in ordered]), np.array([label for _, label in ordered], np.int64))


def age_class(age: Ints) -> Ints:
    """The number of each age's class: 0 for 0-10 years, 1 for 11-20, ..., 9 for 91 and more."""
    return np.clip((age - 1) // 10, 0, len(AGES) - 1)


def _prepare(raw: _Faces, strict: bool) -> Prepared:
    age, gender, ethnicity = raw.labels.T
    for name, values, most in (("ages", age, _OLDEST), ("genders", gender, 1), ("ethnicities", ethnicity, 4)):
        span = (int(values.min()), int(values.max()))
        expect(span[0] >= 0 and span[1] <= most, raw.where, f"{name} 0..{most}", f"{span[0]}..{span[1]}")
    targets = {"utkface_age": age_class(age), "utkface_gender": gender, "utkface_ethnicity": ethnicity}
    classes = {"utkface_age": AGES, "utkface_gender": GENDERS, "utkface_ethnicity": ETHNICITIES}
    if strict:
        for (name, values), counts in zip(targets.items(), _COUNTS, strict=True):
            got = tuple(np.bincount(values, minlength=len(counts)).tolist())
            expect(got == counts, f"{raw.where}, {name}", f"{counts} faces per class", got)
    groups = near_copies(raw.images, SAME_FACE)
    strata = (targets["utkface_age"] * len(GENDERS) + gender) * len(ETHNICITIES) + ethnicity
    rest, test = hold_out(np.arange(len(age)), TEST_SHARE, strata, groups)
    train, val = hold_out(rest, VALIDATION_SHARE, strata, groups)
    tensors = {}
    pixels = torch.from_numpy(raw.images).permute(0, 3, 1, 2)
    for part, rows in (("train", train), ("val", val), ("test", test)):
        tensors[f"{part}.inputs"] = pixels[torch.from_numpy(rows)].contiguous()
        for name, values in targets.items():
            tensors[f"{part}.{name}"] = torch.from_numpy(values[rows].copy())
    sizes = np.bincount(groups)
    facts = {
        "split": f"test: {TEST_SHARE:g} of the faces, validation: {VALIDATION_SHARE:g} of the others, stratified by "
        "age, gender and ethnicity, near copies together",
        "copies": int(len(groups) - len(sizes)),
        "groups_of_copies": int((sizes > 1).sum()),
        "images": f"{SIDE} x {SIDE}",
    }
    return Prepared(tensors, {name: list(names) for name, names in classes.items()}, facts)


RECIPE = Recipe(
    name="utkface",
    targets=("utkface_age", "utkface_gender", "utkface_ethnicity"),
    kind="classification",
    files=(
        File(
            "utkface/utkface_48_rgb_webp90.npz",
            18_451_619,
            "eb012b7e8bd13c7c02ef777a3150b71157c2c332a693a82ac0cd823969ac8fb4",
        ),
    ),
    where="wherever this file is kept (docs/data.md describes its format; the faces are those of "
    "https://susanqq.github.io/UTKFace/)",
    hub=_HUB,
    from_files=_from_files,
    from_hub=_from_hub,
    prepare=_prepare,
)
