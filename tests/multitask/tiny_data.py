"""A data folder in the formats of the real one, with few and synthetic samples: noise, colours and made-up words.

Loaders take it with ``Source(folder, accept_unknown=True)``.
"""

import csv
import gzip
import io
import json
import lzma
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rsn2.experiments import data
from rsn2.experiments.data.boston import FEATURES, TARGET
from rsn2.experiments.data.dataset import DataSet
from rsn2.experiments.data.idx import NAMES

Pixels = npt.NDArray[np.uint8]
RECIPES = {recipe.name: recipe for recipe in data.RECIPES}

PER_CLASS = {"train": 12, "test": 4}
FACES = 60
COPIES = 6
TOPICS = ("grain", "earn", "acq")
DOCUMENTS_PER_TOPIC = 20
_GOOD, _BAD = ("fine", "bright", "warm", "lively"), ("dull", "grey", "cold", "slow")
_NEUTRAL = ("the", "a", "story", "actor", "scene", "isn't", "2nd", "music")


def write_data(folder: Path) -> Path:
    """Write all seven sources below ``folder``, and return it."""
    draw = np.random.RandomState(0)
    for name in ("mnist", "fashion_mnist"):
        write_idx_set(folder / name, draw)
    write_boston(folder / "boston", draw)
    write_imdb(folder / "imdb", draw)
    write_reuters(folder / "reuters", draw)
    write_cifar10(folder / "cifar10", draw)
    write_utkface(folder / "utkface", draw)
    return folder


def idx(array: npt.NDArray[Any]) -> bytes:
    """A gzipped IDX file of unsigned bytes."""
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def write_idx_set(folder: Path, draw: np.random.RandomState) -> None:
    """Ten classes, each with a bright row of its own."""
    folder.mkdir(parents=True)
    files = iter(NAMES)
    for part in ("train", "test"):
        labels = draw.permutation(np.repeat(np.arange(10), PER_CLASS[part]))
        images = draw.randint(0, 60, (len(labels), 28, 28))
        images[np.arange(len(labels)), labels * 2 + 3] = 250
        (folder / next(files)).write_bytes(idx(images))
        (folder / next(files)).write_bytes(idx(labels))


def write_boston(folder: Path, draw: np.random.RandomState) -> None:
    """Prices that follow from two of the features."""
    folder.mkdir(parents=True)
    x = draw.normal(size=(60, len(FEATURES))).round(4)
    price = np.clip(22 + 6 * x[:, 5] - 5 * x[:, 12], 5, 50).round(1)
    with (folder / "BostonHousing.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*FEATURES, TARGET], *np.column_stack([x, price]).tolist()])


def reviews(draw: np.random.RandomState) -> list[dict[str, Any]]:
    """Made-up reviews, both classes in both parts; two of the training part are the same text."""
    result = []
    for split in ("train", "test"):
        for number in range(40):
            label = number % 2
            words = [*draw.choice(_GOOD if label else _BAD, 4), *draw.choice(_NEUTRAL, 20)]
            text = " ".join(draw.permutation(words)) + ".<br /><br />The End, é."
            result.append({"split": split, "label": label, "id": number, "rating": 9 * label + 1, "text": text})
    result[2]["text"] = result[0]["text"]
    return result


def write_imdb(folder: Path, draw: np.random.RandomState) -> None:
    """The reviews, one JSON object a line."""
    folder.mkdir(parents=True)
    lines = [json.dumps(review, ensure_ascii=False) for review in reviews(draw)]
    (folder / "imdb_50k.jsonl.xz").write_bytes(lzma.compress(("\n".join(lines) + "\n").encode()))


def document(number: int, topics: tuple[str, ...], title: str, body: str) -> str:
    """One document of the Reuters collection."""
    named = "".join(f"<D>{topic}</D>" for topic in topics)
    return (
        f'<REUTERS TOPICS="{"YES" if topics else "NO"}" LEWISSPLIT="TRAIN" OLDID="9" NEWID="{number}">\n'
        f"<DATE>26-FEB-1987</DATE>\n<TOPICS>{named}</TOPICS>\n<PLACES><D>usa</D></PLACES>\n"
        f"<TEXT>&#2;\n<TITLE>{title}</TITLE>\n<DATELINE>    NOWHERE, Feb 26 - </DATELINE><BODY>{body}\n"
        "&#3;</BODY></TEXT>\n</REUTERS>\n"
    )


def sgm_files(draw: np.random.RandomState) -> dict[str, str]:
    """Two files: three topics with 20 documents, one with too few, and documents without one."""
    topics = [(topic, "trade") for topic in draw.permutation(np.repeat(TOPICS, DOCUMENTS_PER_TOPIC)).tolist()]
    topics += [("cocoa",)] * 14 + [()] * 3
    documents = []
    for number, own in enumerate(topics, start=1):
        words = " ".join(draw.choice(_NEUTRAL, 6))
        documents.append(document(number, own, f"{own[0] if own else 'none'} &amp; more", f"{words} {number} Zürich"))
    documents.append(
        '<REUTERS TOPICS="YES" NEWID="999"><TOPICS><D>earn</D></TOPICS>\n'
        '<TEXT TYPE="UNPROC">no body here</TEXT></REUTERS>'
    )
    head = '<!DOCTYPE lewis SYSTEM "lewis.dtd">\n'
    return {"reut2-000.sgm": head + "".join(documents[:30]), "reut2-001.sgm": head + "".join(documents[30:])}


def write_reuters(folder: Path, draw: np.random.RandomState) -> None:
    """The files in a tar archive, beside one that is no SGML."""
    folder.mkdir(parents=True)
    (folder / "reuters21578.tar.xz").write_bytes(reuters_archive({**sgm_files(draw), "README.txt": "<REUTERS none"}))


def reuters_archive(files: dict[str, str]) -> bytes:
    """A tar.xz file of latin-1 texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, text in files.items():
            data = text.encode("latin-1")
            member = tarfile.TarInfo(f"reuters21578/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def mosaics(prefix: str, images: Pixels, per: int = 32, cols: int = 4) -> dict[str, Any]:
    """The arrays of images ``[n, side, side, 3]``, losslessly packed."""
    n, side = images.shape[:2]
    arrays: dict[str, Any] = {f"{prefix}_{key}": value for key, value in zip(("n", "side"), (n, side), strict=True)}
    arrays |= {f"{prefix}_per": per, f"{prefix}_cols": cols}
    for number, start in enumerate(range(0, n, per)):
        tiles = images[start : start + per]
        rows = -(-len(tiles) // cols)
        grid = np.zeros((rows * cols, side, side, 3), np.uint8)
        grid[: len(tiles)] = tiles
        picture = grid.reshape(rows, cols, side, side, 3).swapaxes(1, 2).reshape(rows * side, cols * side, 3)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="WEBP", lossless=True)
        arrays[f"{prefix}_webp_{number}"] = np.frombuffer(buffer.getvalue(), np.uint8)
    return arrays


def cifar10_arrays(draw: np.random.RandomState) -> dict[str, Any]:
    """Ten classes, each with a colour of its own."""
    colours = draw.randint(0, 200, (10, 1, 1, 3))
    arrays: dict[str, Any] = {}
    for part, per_class in PER_CLASS.items():
        labels = draw.permutation(np.repeat(np.arange(10), per_class)).astype(np.uint8)
        images = (colours[labels] + draw.randint(0, 50, (len(labels), 32, 32, 3))).astype(np.uint8)
        arrays |= mosaics(part, images)
        arrays[f"y_{part}"] = labels
        arrays[f"{part}_index"] = np.arange(len(labels), dtype=np.int32)
        arrays[f"{part}_from_jpeg"] = np.arange(len(labels)) < 2
    return arrays


def write_cifar10(folder: Path, draw: np.random.RandomState) -> None:
    """The arrays in an npz file."""
    folder.mkdir(parents=True)
    np.savez(folder / "cifar10_full_50k_10k.npz", **cifar10_arrays(draw))


def utkface_arrays(draw: np.random.RandomState) -> dict[str, Any]:
    """Noise for faces; the last ones are the first ones again, slightly changed and under other labels."""
    images = draw.randint(0, 256, (FACES, 48, 48, 3))
    images[-COPIES:] = np.clip(images[:COPIES] + draw.randint(-3, 4, (COPIES, 48, 48, 3)), 0, 255)
    age = np.array([1, 15, 25, 35, 45, 55, 65, 75, 85, 116] * (FACES // 10), np.uint8)
    gender = draw.randint(0, 2, FACES).astype(np.uint8)
    ethnicity = draw.randint(0, 5, FACES).astype(np.uint8)
    labels = enumerate(zip(age, gender, ethnicity, strict=True))
    names = [f"{a}_{g}_{e}_{20170000000000000 + number}".encode() for number, (a, g, e) in labels]
    arrays = mosaics("img", images.astype(np.uint8))
    return arrays | {"age": age, "gender": gender, "ethnicity": ethnicity, "name": np.array(names)}


def write_utkface(folder: Path, draw: np.random.RandomState) -> None:
    """The arrays in an npz file."""
    folder.mkdir(parents=True)
    np.savez(folder / "utkface_48_rgb_webp90.npz", **utkface_arrays(draw))


def source(folder: Path, **options: Any) -> data.Source:
    """The folder as a place to load from."""
    return data.Source(folder, hub=False, accept_unknown=True, **options)


def one(name: str, folder: Path) -> DataSet:
    """One set of the folder."""
    return data.load([name], source(folder))[name]


def file_of(name: str, folder: Path, number: int = 0) -> Path:
    """A file that a set is loaded from."""
    return folder / RECIPES[name].files[number].path
