"""The data of the experiments: what loaders give, and which splits they make, on tiny files."""

import dataclasses
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_data
from rsn2.experiments import data
from rsn2.experiments.data import cache, duplicates, mosaic, splits, text, utkface
from rsn2.experiments.data.dataset import PARTS, DataError, DataSet

BLOB = data.Blob(data.File("a.npz", 0, ""), Path("a.npz"), b"", "")


def same_bits(first: DataSet, second: DataSet) -> bool:
    pairs = [(a, b) for part in PARTS for a, b in zip(getattr(first, part), getattr(second, part), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs) and first.classes == second.classes and first.facts == second.facts


SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "boston": (13,),
    "imdb": (128,),
    "reuters": (512,),
    "cifar10": (3, 32, 32),
    "utkface_age": (3, 48, 48),
    "utkface_gender": (3, 48, 48),
    "utkface_ethnicity": (3, 48, 48),
}


@pytest.mark.parametrize("name", data.NAMES)
def test_every_loader_gives_three_parts_of_its_shape_and_range(name: str, folder: Path) -> None:
    found = tiny_data.one(name, folder)
    assert found.name == name
    for part in PARTS:
        inputs, target = getattr(found, part)
        assert inputs.shape[1:] == SHAPES[name]
        assert found.facts["samples"][part] == len(inputs) == len(target) > 0
        if name in ("imdb", "reuters"):
            assert inputs.dtype == torch.int64
            assert inputs.min() >= 0 and inputs.max() < 30_000
        else:
            assert inputs.dtype == torch.float32
        if len(SHAPES[name]) == 3:
            assert inputs.min() >= 0 and 0.5 < inputs.max() <= 1
        if found.kind == "classification":
            assert target.dtype == torch.int64 and int(target.max()) < len(found.classes)
    assert json.loads(json.dumps(found.facts))["source"] == "folder"
    assert set(found.facts["files"]) <= {file.path for recipe in data.RECIPES for file in recipe.files}


def test_names_and_kinds_are_those_of_the_paper(folder: Path) -> None:
    sets = data.load(data.NAMES, tiny_data.source(folder))
    assert list(sets) == list(data.NAMES)
    assert [name for name, found in sets.items() if found.kind == "regression"] == ["boston"]
    assert sets["boston"].outputs == 1
    assert {name: len(found.classes) for name, found in sets.items() if found.classes} == {
        "mnist": 10,
        "fashion_mnist": 10,
        "imdb": 2,
        "reuters": 3,
        "cifar10": 10,
        "utkface_age": 10,
        "utkface_gender": 2,
        "utkface_ethnicity": 5,
    }


def test_unknown_names_are_told(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"names: expected some of .*'mnist'.* Got \['minst'\]"):
        data.load(["minst"], tiny_data.source(folder))


def test_the_three_face_tasks_share_their_images_in_memory(folder: Path) -> None:
    age, gender = data.load(["utkface_age", "utkface_gender"], tiny_data.source(folder)).values()
    for part in PARTS:
        assert getattr(age, part)[0].data_ptr() == getattr(gender, part)[0].data_ptr()


@pytest.mark.parametrize("name", data.NAMES)
def test_loading_twice_gives_the_same_bits_whatever_was_drawn_before(name: str, folder: Path) -> None:
    first = tiny_data.one(name, folder)
    np.random.seed(7)
    torch.manual_seed(7)
    assert same_bits(tiny_data.one(name, folder), first)


@pytest.mark.parametrize("name", data.NAMES)
def test_a_cache_gives_the_same_bits_without_parsing(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tiny_data.source(folder, cache=tmp_path / "cache")
    first = data.load([name], kept)[name]
    recipe = next(recipe for recipe in data.RECIPES if name in recipe.targets)
    assert [path.name[: len(recipe.name)] for path in (tmp_path / "cache").iterdir()] == [recipe.name]

    def unused(*_: object) -> Any:
        raise AssertionError("the cache was not used")

    blind = dataclasses.replace(recipe, from_files=unused)
    assert same_bits(blind.load(kept)[name], first)
    assert same_bits(tiny_data.one(name, folder), first)


def test_a_damaged_cache_is_made_anew(folder: Path, tmp_path: Path) -> None:
    kept = tiny_data.source(folder, cache=tmp_path)
    first = data.load(["boston"], kept)["boston"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert same_bits(data.load(["boston"], kept)["boston"], first)
    assert cache.find(tmp_path, "boston", file.stem.removeprefix("boston-")) is not None


def test_another_file_is_another_cache_entry(own: Path, tmp_path: Path) -> None:
    kept = tiny_data.source(own, cache=tmp_path)
    data.load(["boston"], kept)
    path = tiny_data.file_of("boston", own)
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\r\n")
    assert sum(data.load(["boston"], kept)["boston"].facts["samples"].values()) == 61


# What is in the tensors


def test_pixels_and_classes_are_those_of_the_file(folder: Path) -> None:
    found = tiny_data.one("mnist", folder)
    raw = gzip.decompress(tiny_data.file_of("mnist", folder, 2).read_bytes())
    labels = gzip.decompress(tiny_data.file_of("mnist", folder, 3).read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    assert torch.equal(found.test[0], torch.from_numpy(pixels.astype(np.float32)) / 255)
    assert found.test[1].tolist() == list(labels[8:])


def test_mosaics_come_back_in_order() -> None:
    images = np.random.RandomState(5).randint(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    packed = {name: np.asarray(value) for name, value in tiny_data.mosaics("x", images, per=5, cols=2).items()}
    assert np.array_equal(mosaic.images(BLOB, packed, "x", 32), images)


def test_pictures_that_come_from_jpeg_copies_are_counted(folder: Path) -> None:
    assert tiny_data.one("cifar10", folder).facts["from_jpeg"] == {"train": 2, "test": 2}


def test_features_are_standardised_and_prices_scaled_on_the_training_part(folder: Path) -> None:
    found = tiny_data.one("boston", folder)
    x, price = found.train
    assert x.mean(dim=0).abs().max() < 1e-5
    assert (x.std(dim=0, correction=0) - 1).abs().max() < 1e-5
    assert (price.min(), price.max()) == (0, 1)
    scaling = found.facts["scaling"]
    rows = np.loadtxt(tiny_data.file_of("boston", folder), delimiter=",", skiprows=1)
    back = (
        torch.cat([getattr(found, part)[1] for part in PARTS])[:, 0] * scaling["target_scale"] + scaling["target_mean"]
    )
    assert sorted(back.tolist()) == pytest.approx(sorted(rows[:, 13].tolist()), abs=1e-4)


def test_houses_are_parted_as_in_keras() -> None:
    train, test = data.boston.as_in_keras(506)
    assert (len(train), len(test)) == (404, 102)
    assert sorted([*train, *test]) == list(range(506))
    # The first rows of its two parts: crim 1.23247 with a price of 15.2, and 18.0846 with 7.2.
    assert 22 in train and 415 in test


def test_words_are_numbered_by_frequency_in_the_training_part() -> None:
    assert text.words("It's THE end -- l'été, 'quoted' a_b 3.5%") == [
        "it's", "the", "end", "l'été", "quoted", "a", "b", "3", "5",
    ]  # fmt: skip
    numbers = text.vocabulary(["b b b a", "c c a"], size=4)
    assert numbers == {"b": 2, "a": 3}
    assert text.encode(["b c a b", "", "a"], numbers, 3).tolist() == [[2, 1, 3], [0, 0, 0], [3, 0, 0]]


@pytest.mark.parametrize("name", ["imdb", "reuters"])
def test_the_vocabulary_is_that_of_the_training_part_alone(name: str, own: Path) -> None:
    if name == "imdb":  # the documents of the other set have a word of their own each, their number
        rows = [(split, number) for split in ("train", "test") for number in range(40)]
        lines = [json.dumps({"split": s, "label": n % 2, "text": f"the {s}{n}"}) for s, n in rows]
        tiny_data.file_of("imdb", own).write_bytes(lzma.compress("\n".join(lines).encode()))
    found = tiny_data.one(name, own)
    assert not (found.train[0] == text.UNKNOWN).any()
    for part in ("val", "test"):
        assert (getattr(found, part)[0] == text.UNKNOWN).any(dim=1).all()


def test_reviews_lose_their_line_breaks(folder: Path) -> None:
    found = tiny_data.one("imdb", folder)
    words = {word for review in tiny_data.reviews(np.random.RandomState(0)) for word in text.words(review["text"])}
    assert "br" in words
    assert found.facts["distinct_words"] == len(words) - 1


def test_a_document_counts_to_its_first_topic_in_the_order_of_first_documents(tmp_path: Path) -> None:
    tiny_data.write_reuters(tmp_path / "reuters", np.random.RandomState(3))
    found = tiny_data.one("reuters", tmp_path)
    content = "".join(tiny_data.sgm_files(np.random.RandomState(3)).values())
    first = re.findall(r"<TOPICS><D>(.*?)</D>", content)
    assert found.classes == tuple(dict.fromkeys(topic for topic in first if topic != "cocoa"))
    counts = torch.bincount(torch.cat([getattr(found, part)[1] for part in PARTS]))
    expected = {topic: tiny_data.DOCUMENTS_PER_TOPIC + (topic == "earn") for topic in found.classes}
    assert dict(zip(found.classes, counts.tolist(), strict=True)) == expected
    assert found.facts["documents_read"] == 3 * tiny_data.DOCUMENTS_PER_TOPIC + 14 + 3 + 1


def test_ages_are_in_classes_of_ten_years() -> None:
    ages = np.array([0, 1, 10, 11, 20, 21, 80, 81, 90, 91, 116])
    assert utkface.age_class(ages).tolist() == [0, 0, 0, 1, 1, 2, 7, 8, 8, 9, 9]


# Splits


def test_a_part_holds_its_share_of_every_class() -> None:
    strata = np.repeat([0, 1, 2], [100, 50, 7])
    rest, held = splits.hold_out(np.arange(157), 0.2, strata)
    assert np.bincount(strata[held]).tolist() == [20, 10, 1]
    assert sorted([*rest, *held]) == list(range(157))
    assert held.tolist() == sorted(held)


def test_a_split_is_the_one_it_always_was() -> None:
    _, held = splits.hold_out(np.arange(20), 0.25)
    assert held.tolist() == np.sort(np.random.RandomState(0).permutation(20)[:5]).tolist() == [1, 8, 10, 18, 19]


def test_groups_stay_on_one_side_and_shares_are_not_exceeded() -> None:
    draw = np.random.RandomState(1)
    groups, strata = draw.randint(0, 60, 200), draw.randint(0, 3, 200)
    rest, held = splits.hold_out(np.arange(200), 0.3, strata, groups)
    assert not set(groups[rest]) & set(groups[held])
    assert 45 <= len(held) <= 60


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="1 samples cannot be split"):
        splits.hold_out(np.arange(1), 0.2)


def test_near_copies_are_found_and_stay_on_one_side(tmp_path: Path) -> None:
    tiny_data.write_utkface(tmp_path / "utkface", np.random.RandomState(3))
    found = tiny_data.one("utkface_age", tmp_path)
    assert (found.facts["copies"], found.facts["groups_of_copies"]) == (tiny_data.COPIES, tiny_data.COPIES)
    where = {}
    for part in PARTS:
        for image in getattr(found, part)[0].mul(255).round().to(torch.uint8):
            where[image.permute(1, 2, 0).numpy().tobytes()] = part
    arrays = tiny_data.utkface_arrays(np.random.RandomState(3))
    packed = {name: np.asarray(value) for name, value in arrays.items()}
    images = mosaic.images(BLOB, packed, "img", 48)
    for first, copy in zip(images[: tiny_data.COPIES], images[-tiny_data.COPIES :], strict=True):
        assert where[first.tobytes()] == where[copy.tobytes()]


def test_near_copies_are_exactly_the_pairs_below_the_limit() -> None:
    draw = np.random.RandomState(2)
    base = draw.randint(60, 190, (30, 16, 16, 3))
    images = np.concatenate([base, base + draw.randint(0, 12, (30, 1, 1, 1)) * draw.choice([-1, 1], base.shape)])
    images = images.astype(np.uint8)
    found = duplicates.near_copies(images, 6.0)
    flat = images.reshape(60, -1).astype(np.float64)
    near = np.sqrt(np.square(flat[:, None] - flat[None]).mean(axis=2)) < 6.0
    assert np.array_equal(near, found[:, None] == found[None])
    assert 5 < near.sum() - 60 < 55


def test_equal_texts_stay_on_one_side(folder: Path) -> None:
    found = tiny_data.one("imdb", folder)
    sides = [{tuple(row) for row in getattr(found, part)[0].tolist()} for part in ("train", "val")]
    assert not sides[0] & sides[1]
