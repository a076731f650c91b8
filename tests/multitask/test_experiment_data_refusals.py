"""Data that the experiments refuse: missing, damaged, or not what it should be, on tiny files."""

import dataclasses
import gzip
import hashlib
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_data
from rsn2 import extras
from rsn2.experiments import data
from rsn2.experiments.data.__main__ import main
from rsn2.experiments.data.dataset import DataError, MissingDataError
from rsn2.experiments.data.files import File, read_checked

BLOB = data.Blob(data.File("a.npz", 0, ""), Path("a.npz"), b"", "")


def test_a_missing_source_says_what_to_get_and_where(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as error:
        data.load(["fashion_mnist"], data.Source(tmp_path, hub=False))
    for word in ("fashion_mnist/t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5", "5,148", "zalandoresearch", "datasets"):
        assert word in str(error.value)
    with pytest.raises(MissingDataError, match="no data folder was given"):
        data.load(["boston"], data.Source(hub=False))
    with pytest.raises(MissingDataError, match="nowhere: no such folder"):
        data.load(["boston"], data.Source(tmp_path / "nowhere"))


def test_one_missing_file_of_several_is_named(own: Path) -> None:
    tiny_data.file_of("mnist", own, 1).unlink()
    with pytest.raises(MissingDataError, match=r"of its files, mnist/train-labels-idx1-ubyte.gz are missing in"):
        tiny_data.one("mnist", own)


@pytest.mark.parametrize("name", tiny_data.RECIPES)
def test_another_checksum_is_refused_unless_it_is_accepted(name: str, folder: Path) -> None:
    target = tiny_data.RECIPES[name].targets[0]
    with pytest.raises(DataError, match=r"expected .* bytes with SHA-256 .* Got .*accept_unknown=True") as error:
        data.load([target], data.Source(folder, hub=False))
    assert str(tiny_data.file_of(name, folder)) in str(error.value)


def test_another_gzip_header_over_the_same_content_is_accepted(tmp_path: Path) -> None:
    content = b"digits"
    first, second = gzip.compress(content, mtime=1), gzip.compress(content, mtime=2)
    file = File("a.gz", len(first), _sha256(first), "gzip", _sha256(content))
    (tmp_path / "a.gz").write_bytes(second)
    assert read_checked(tmp_path, file, accept_unknown=False).content() == content
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"others"))
    with pytest.raises(DataError, match="expected"):
        read_checked(tmp_path, file, accept_unknown=False)
    (tmp_path / "a.gz").write_bytes(first[:-3])
    with pytest.raises(DataError, match="interrupted while it was copied"):
        read_checked(tmp_path, file, accept_unknown=False)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", tiny_data.RECIPES)
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_named(name: str, damage: str, own: Path) -> None:
    path = tiny_data.file_of(name, own)
    whole = path.read_bytes()
    # A CSV file that is cut between two rows is a shorter table, so it is cut inside a row.
    path.write_bytes({"cut": whole[: len(whole) // 2 + 3], "empty": b"", "garbage": b"garbage" * 99}[damage])
    with pytest.raises(DataError) as error:
        data.load([tiny_data.RECIPES[name].targets[0]], tiny_data.source(own))
    assert str(path) in str(error.value)


def idx_of(shape: tuple[int, ...], value: int = 0) -> bytes:
    return tiny_data.idx(np.full(shape, value))


@pytest.mark.parametrize(
    ("number", "content", "said"),
    [
        (0, lambda: idx_of((120, 27, 28)), r"uint8 images of shape \(28, 28\)"),
        (0, lambda: idx_of((120, 784)), "an IDX file, 3 dimensions"),
        (0, lambda: idx_of((119, 28, 28)), "expected 119 labels. Got 120"),
        (1, lambda: idx_of((120,), 10), r"labels 0\.\.9\. Got 10\.\.10"),
        (1, lambda: gzip.compress(gzip.decompress(idx_of((120,))) + b"\0"), r"128 bytes for \(120,\). Got 129"),
    ],
    ids=["side", "dimensions", "count", "label", "length"],
)
def test_idx_files_must_hold_what_they_should(number: int, content: Callable[[], bytes], said: str, own: Path) -> None:
    tiny_data.file_of("mnist", own, number).write_bytes(content())
    with pytest.raises(DataError, match=said):
        tiny_data.one("mnist", own)


def npz_with(path: Path, **changes: Any) -> None:
    with np.load(path) as archive:
        arrays: dict[str, Any] = dict(archive)
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("cifar10", {"y_train": np.full(120, 10)}, r"labels 0\.\.9"),
        ("cifar10", {"y_train": np.zeros(119, int)}, r"'y_train': expected kind 'ui', shape \(120,\)"),
        ("cifar10", {"y_test": np.zeros(40)}, "Got float64"),
        ("cifar10", {"train_index": np.arange(120)[::-1]}, "the original order"),
        ("cifar10", {"test_webp_0": np.zeros(9, np.uint8)}, "'test_webp_0': no whole WebP picture"),
        ("cifar10", {"train_webp_1": None}, "'train_webp_1': expected uint8 bytes"),
        ("cifar10", {"train_cols": np.int64(5)}, "train_webp_0"),
        ("cifar10", {"train_side": np.int64(16)}, "images of side 32"),
        ("cifar10", {"y_test": None}, "'y_test': expected it to be there"),
        ("cifar10", {"y_test": np.array([{}] * 40, dtype=object)}, "no npz file of plain arrays"),
        ("utkface", {"gender": np.full(60, 2)}, "array 'name'"),
        ("utkface", {"age": np.zeros(59, int)}, "'age'"),
        ("utkface", {"name": None}, "'name'"),
    ],
)
def test_npz_files_must_hold_what_they_should(name: str, changes: dict[str, Any], said: str, own: Path) -> None:
    npz_with(tiny_data.file_of(name, own), **changes)
    with pytest.raises(DataError, match=said) as error:
        data.load([tiny_data.RECIPES[name].targets[0]], tiny_data.source(own))
    assert str(tiny_data.file_of(name, own)) in str(error.value)


@pytest.mark.parametrize(("column", "value"), [("age", 117), ("gender", 2), ("ethnicity", 5)])
def test_face_labels_out_of_range_are_refused(column: str, value: int, own: Path) -> None:
    path = tiny_data.file_of("utkface", own)
    with np.load(path) as archive:
        arrays = {name: archive[name].copy() for name in ("age", "gender", "ethnicity")}
    arrays[column][0] = value
    rows = zip(*arrays.values(), strict=True)
    npz_with(path, **arrays, name=np.array(["_".join(map(str, row)) + "_2017" for row in rows]).astype("S"))
    with pytest.raises(DataError, match=rf"expected .* 0\.\.\d+\. Got 0?.*\.\.{value}"):
        tiny_data.one("utkface_age", own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 2}, "line 1: expected label 0 or 1. Got 2"),
        ({"label": True}, "label 0 or 1"),
        ({"split": "unsup"}, "split 'train' or 'test'. Got 'unsup'"),
        ({"text": None}, "expected a text. Got NoneType"),
    ],
)
def test_reviews_must_hold_what_they_should(change: dict[str, Any], said: str, own: Path) -> None:
    line = json.dumps({"split": "train", "label": 0, "text": "a", **change})
    tiny_data.file_of("imdb", own).write_bytes(lzma.compress(line.encode()))
    with pytest.raises(DataError, match=said):
        tiny_data.one("imdb", own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiny_data.document(1, ("a",), "t", "b") + tiny_data.document(1, ("a",), "t", "b"), "different NEWID"),
        (tiny_data.document(1, ("a",), "t", "b").replace("<TOPICS>", "<TOPIX>"), "without NEWID, TOPICS or TEXT"),
        (tiny_data.document(1, ("a",), "t", "b").replace("</REUTERS>", ""), "1 whole documents"),
        (tiny_data.document(1, ("a",), "t", "b"), "two topics with at least 15 documents"),
    ],
    ids=["number", "topics", "end", "few"],
)
def test_documents_must_hold_what_they_should(content: str, said: str, own: Path) -> None:
    tiny_data.file_of("reuters", own).write_bytes(tiny_data.reuters_archive({"a.sgm": content}))
    with pytest.raises(DataError, match=said):
        tiny_data.one("reuters", own)


def test_prices_must_be_prices(own: Path) -> None:
    path = tiny_data.file_of("boston", own)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:], lines[1].rpartition(",")[0] + ",51"]))
    with pytest.raises(DataError, match=r"prices in \(0, 50\]"):
        tiny_data.one("boston", own)
    path.write_text("\n".join([lines[0].replace("lstat", "lstate"), *lines[1:]]))
    with pytest.raises(DataError, match="expected columns"):
        tiny_data.one("boston", own)


@pytest.mark.parametrize("name", tiny_data.RECIPES)
def test_the_published_numbers_of_samples_are_asked_for(name: str, own: Path) -> None:
    recipe = tiny_data.RECIPES[name]
    known = []
    for file in recipe.files:
        raw = (own / file.path).read_bytes()
        known.append(dataclasses.replace(file, size=len(raw), sha256=_sha256(raw)))
    with pytest.raises(DataError, match=r"expected .* Got"):
        dataclasses.replace(recipe, files=tuple(known)).load(data.Source(own, hub=False))


def test_without_pillow_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(extras.MissingPackageError, match=r"PIL.Image is not installed: pip install 'rsn2-kernels"):
        tiny_data.one("cifar10", folder)


def test_the_survey_names_every_file(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_data.file_of("imdb", own).unlink()
    assert main([str(own)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert [line.split()[-1] for line in lines if "imdb" in line] == ["missing"]
    assert sum("unknown checksum" in line for line in lines) == 12
