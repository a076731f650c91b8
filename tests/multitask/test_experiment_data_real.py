"""The real files, where the environment variable RSN2_DATA names their folder: published counts and means."""

import os
from pathlib import Path

import pytest
import torch

from rsn2.experiments.data import DataSet, Source, load
from rsn2.experiments.data.__main__ import survey

FOLDER = os.environ.get("RSN2_DATA")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="RSN2_DATA does not name a folder with the real files")


def read(*names: str) -> list[DataSet]:
    assert FOLDER is not None
    return list(load(names, Source(Path(FOLDER), hub=False)).values())


def counts(found: DataSet, *parts: str) -> list[int]:
    return torch.bincount(torch.cat([getattr(found, part)[1] for part in parts])).tolist()


def sizes(found: DataSet) -> tuple[int, ...]:
    return tuple(found.facts["samples"][part] for part in ("train", "val", "test"))


def test_every_file_has_its_checksum() -> None:
    assert FOLDER is not None
    assert {state for _, _, state in survey(Path(FOLDER))} == {"ok"}


def test_mnist() -> None:
    (found,) = read("mnist")
    assert sizes(found) == (54_000, 6_000, 10_000)
    assert counts(found, "train", "val") == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.cat([found.train[0], found.val[0]]).double().mean().item() == pytest.approx(0.1307, abs=5e-5)


def test_fashion_mnist() -> None:
    (found,) = read("fashion_mnist")
    assert sizes(found) == (54_000, 6_000, 10_000)
    assert counts(found, "val") == [600] * 10 and counts(found, "test") == [1000] * 10
    assert torch.cat([found.train[0], found.val[0]]).double().mean().item() == pytest.approx(0.2860, abs=5e-5)


def test_boston() -> None:
    (found,) = read("boston")
    assert sizes(found) == (324, 81, 101)
    scaling = found.facts["scaling"]
    price = torch.cat([getattr(found, part)[1] for part in ("train", "val", "test")]).double()
    price = price * scaling["target_scale"] + scaling["target_mean"]
    assert (price.min().item(), price.max().item()) == (5, 50)
    assert price.mean().item() == pytest.approx(22.5328, abs=5e-5)
    assert int((price > 49.999).sum()) == 16


def test_imdb() -> None:
    (found,) = read("imdb")
    assert sizes(found) == (22_500, 2_500, 25_000)
    assert counts(found, "train", "val") == counts(found, "test") == [12_500, 12_500]
    assert found.train[0].max().item() == 9_999
    assert found.facts["test_texts_also_in_train_or_val"] == 123


def test_reuters() -> None:
    (found,) = read("reuters")
    assert sum(sizes(found)) == 11_228 and len(found.classes) == 46
    assert found.facts["documents_read"] == 21_578
    # The order of the paper's table 14, as far as it can be checked: classes 4 and 5 are the two large ones.
    assert found.classes[:6] == ("cocoa", "grain", "veg-oil", "earn", "acq", "wheat")
    assert min(counts(found, "train", "val", "test")) >= 15
    assert all(min(counts(found, part)) > 0 for part in ("train", "val", "test"))


def test_cifar10() -> None:
    (found,) = read("cifar10")
    assert sizes(found) == (45_000, 5_000, 10_000)
    assert counts(found, "train", "val") == [5000] * 10 and counts(found, "test") == [1000] * 10
    assert found.facts["from_jpeg"] == {"train": 77, "test": 21}
    total = torch.zeros(3, dtype=torch.float64)
    for inputs, _ in (found.train, found.val):
        total += inputs.sum(dim=(0, 2, 3), dtype=torch.float64)
    assert (total / (50_000 * 32 * 32)).tolist() == pytest.approx([0.491400, 0.482158, 0.446531], abs=2e-6)


def test_utkface() -> None:
    age, gender, ethnicity = read("utkface_age", "utkface_gender", "utkface_ethnicity")
    parts = ("train", "val", "test")
    assert counts(age, *parts) == [3218, 1659, 7784, 4338, 2100, 2211, 1170, 685, 453, 87]
    assert counts(gender, *parts) == [12_391, 11_314]
    assert counts(ethnicity, *parts) == [10_078, 4_526, 3_434, 3_975, 1_692]
    # All 390 exact copies, and pictures that differ a little.
    assert age.facts["copies"] == 880 and age.facts["groups_of_copies"] == 807
