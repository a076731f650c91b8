"""The Hugging Face hub, with a stand-in for `datasets`: what is asked of it, and what is made of its answers."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_data
from rsn2.experiments import data
from rsn2.experiments.data import mosaic
from rsn2.experiments.data.dataset import PARTS, DataError, MissingDataError

HUB = data.Source(accept_unknown=True)
BLOB = data.Blob(data.File("a.npz", 0, ""), Path("a.npz"), b"", "")


class Table:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, columns: Mapping[str, list[Any]]):
        self.columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, row, strict=True))


class Stub(ModuleType):
    """`datasets` with tables of its own; ``calls`` keeps what it was asked for."""

    def __init__(self, tables: Mapping[tuple[str, str], Table]):
        super().__init__("datasets")
        self.tables = tables
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(self, path: str, **options: Any) -> Table:
        self.calls.append((path, options))
        assert "trust_remote_code" not in options
        if (path, options["split"]) not in self.tables:
            raise ConnectionError("no route to the hub")
        return self.tables[path, options["split"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data.write_data(tmp_path_factory.mktemp("tiny"))


def install(monkeypatch: pytest.MonkeyPatch, tables: Mapping[tuple[str, str], Table]) -> Stub:
    stub = Stub(tables)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    return stub


def equal(name: str, folder: Path) -> bool:
    """Whether the hub gives the same bits as the folder."""
    here = data.load([name], data.Source(folder, hub=False, accept_unknown=True))[name]
    there = data.load([name], HUB)[name]
    assert there.facts["source"] == "hub" and there.facts["hub"]
    pairs = [(a, b) for part in PARTS for a, b in zip(getattr(here, part), getattr(there, part), strict=True)]
    return here.classes == there.classes and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "place"), [("mnist", "ylecun/mnist"), ("fashion_mnist", "zalando-datasets/fashion_mnist")]
)
def test_idx_sets(name: str, place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        blobs = [
            data.Blob(file, folder / file.path, (folder / file.path).read_bytes(), "")
            for file in next(recipe for recipe in data.RECIPES if recipe.name == name).files
            if part in file.path
        ]
        images = np.frombuffer(blobs[0].content(), np.uint8, offset=16).reshape(-1, 28, 28)
        labels = list(blobs[1].content()[8:])
        tables[place, split] = Table({"image": [Image.fromarray(image) for image in images], "label": labels})
    stub = install(monkeypatch, tables)
    assert equal(name, folder)
    assert stub.calls == [(place, {"split": "train"}), (place, {"split": "test"})]


def test_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mosaic.arrays(
        data.Blob(BLOB.file, BLOB.path, (folder / "cifar10/cifar10_full_50k_10k.npz").read_bytes(), "")
    )
    tables = {}
    for part in ("train", "test"):
        images = mosaic.images(BLOB, found, part, 32)
        columns = {"img": [Image.fromarray(image) for image in images], "label": found[f"y_{part}"].tolist()}
        tables["uoft-cs/cifar10", part] = Table(columns)
    install(monkeypatch, tables)
    assert equal("cifar10", folder)


def test_imdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_data.write_imdb(tmp_path / "imdb", np.random.RandomState(0))
    reviews = tiny_data.reviews(np.random.RandomState(0))
    tables = {}
    for part in ("train", "test"):
        own = [review for review in reviews if review["split"] == part]
        columns = {key: [review[key] for review in own] for key in ("text", "label")}
        tables["stanfordnlp/imdb", part] = Table(columns)
    install(monkeypatch, tables)
    assert equal("imdb", tmp_path)


def test_boston_with_its_columns_in_another_order_and_in_capitals(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.loadtxt(folder / "boston/BostonHousing.csv", delimiter=",", skiprows=1)
    names = [*data.boston.FEATURES, data.boston.TARGET]
    columns = {name.upper(): rows[:, index].tolist() for index, name in reversed(list(enumerate(names)))}
    stub = install(monkeypatch, {("maxcembalest/boston_housing", "train"): Table(columns)})
    assert equal("boston", folder)
    assert stub.calls[0][1]["data_files"] == "boston_housing.csv"
    del columns["LSTAT"]
    with pytest.raises(DataError, match=r"expected columns \['lstat'\]"):
        data.load(["boston"], HUB)


def test_reuters_reads_the_archive_as_text_and_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_data.write_reuters(tmp_path / "reuters", np.random.RandomState(0))
    texts = [*tiny_data.sgm_files(np.random.RandomState(0)).values(), "a file that lists topics"]
    stub = install(monkeypatch, {("text", "train"): Table({"text": texts[::-1]})})
    assert equal("reuters", tmp_path)
    ((_, options),) = stub.calls
    assert options["sample_by"] == "document" and options["encoding"] == "latin-1"
    assert options["data_files"].startswith("hf://datasets/ucirvine/reuters21578@")


def test_faces_take_their_labels_from_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_data.write_utkface(tmp_path / "utkface", np.random.RandomState(0))
    arrays = tiny_data.utkface_arrays(np.random.RandomState(0))
    images = mosaic.images(BLOB, {name: np.asarray(value) for name, value in arrays.items()}, "img", 48)
    order = np.argsort(arrays["name"])
    ordered = {key: arrays[key][order] for key in ("age", "gender", "ethnicity", "name")}
    path = tmp_path / "utkface/utkface_48_rgb_webp90.npz"
    np.savez(path, **tiny_data.mosaics("img", images[order]), **ordered)
    keys = [f"UTKFace/{name.decode()}" for name in arrays["name"]]
    columns = {
        "__key__": [*keys, "UTKFace/61_1_20170109142408075"],
        "jpg.chip.jpg": [Image.fromarray(image) for image in [*images, images[0]]],
    }
    install(monkeypatch, {("py97/UTKFace-Cropped", "train"): Table(columns)})
    assert equal("utkface_age", tmp_path)
    assert equal("utkface_ethnicity", tmp_path)


def test_larger_faces_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.RandomState(0)
    faces = [Image.fromarray(draw.randint(0, 256, (200, 200, 3)).astype(np.uint8)) for _ in range(40)]
    keys = [f"UTKFace/{number % 2 * 60 + 5}_0_0_{number:017}" for number in range(40)]
    columns = {"__key__": keys, "jpg.chip.jpg": faces}
    install(monkeypatch, {("py97/UTKFace-Cropped", "train"): Table(columns)})
    assert data.load(["utkface_age"], HUB)["utkface_age"].train[0].shape[1:] == (3, 48, 48)
    columns["jpg.chip.jpg"][3] = faces[3].resize((200, 100))
    with pytest.raises(DataError, match=r"expected a square picture. Got \(200, 100\)"):
        data.load(["utkface_age"], HUB)


def test_the_folder_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = install(monkeypatch, {})
    found = data.load(["boston"], data.Source(folder, accept_unknown=True))["boston"]
    assert found.facts["source"] == "folder" and not stub.calls


def test_what_the_hub_raises_is_told_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    with pytest.raises(DataError, match="ylecun/mnist on the Hugging Face hub: ConnectionError: no route to the hub"):
        data.load(["mnist"], data.Source(tmp_path))
    install(monkeypatch, {("ylecun/mnist", "train"): Table({"picture": [], "label": []})})
    with pytest.raises(DataError, match=r"expected columns \['image'\]. Got \['picture', 'label'\]"):
        data.load(["mnist"], HUB)


def test_the_hub_must_give_the_published_numbers_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text": ["good", "bad"], "label": [1, 0]}
    install(monkeypatch, {("stanfordnlp/imdb", part): Table(columns) for part in ("train", "test")})
    with pytest.raises(DataError, match="expected 12500 reviews of each class"):
        data.load(["imdb"], data.Source())


def test_values_on_the_hub_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {("stanfordnlp/imdb", part): Table({"text": ["a"], "label": [None]}) for part in ("train", "test")}
    houses = Table({name: ["?"] for name in (*data.boston.FEATURES, data.boston.TARGET)})
    install(monkeypatch, {**tables, ("maxcembalest/boston_housing", "train"): houses})
    with pytest.raises(DataError, match="column 'label' on the Hugging Face hub: expected whole numbers"):
        data.load(["imdb"], HUB)
    with pytest.raises(DataError, match="column 'crim' on the Hugging Face hub: expected numbers"):
        data.load(["boston"], HUB)


def test_another_package_of_that_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    with pytest.raises(MissingDataError, match="the package `datasets` is not installed"):
        data.load(["mnist"], HUB)
