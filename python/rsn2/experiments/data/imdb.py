"""IMDB reviews: 25,000 + 25,000 labelled texts (Maas et al., ACL 2011), 10,000 words, 128 per text.

One JSON object a line: split ("train", "test"), label (1: positive) and text. ``<br />`` counts as a space; `text`
says how words are numbered. Reviews with the same text stay on one side of the validation split; the published
test part is kept as it is, and `facts` counts its texts that the training and validation parts have too.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rsn2.experiments.data import hub
from rsn2.experiments.data.dataset import DataError
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect
from rsn2.experiments.data.splits import hold_out, same
from rsn2.experiments.data.text import encode, vocabulary

WORDS = 10_000
LENGTH = 128
CLASSES = ("negative", "positive")
VALIDATION_SHARE = 0.1
_PER_CLASS = 12_500
_HUB = "stanfordnlp/imdb"
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


@dataclass(frozen=True)
class _Reviews:
    """Texts and labels of the parts "train" and "test"; ``where``: their file or place."""

    where: str
    texts: dict[str, list[str]]
    labels: dict[str, list[int]]


def _from_files(blobs: Sequence[Blob]) -> _Reviews:
    (blob,) = blobs
    texts: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for number, line in enumerate(blob.content().split(b"\n"), start=1):
        if not line:
            continue
        where = f"{blob.path}, line {number}"
        try:
            review = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: expected a JSON object. {error}") from error
        keys = review.keys() if isinstance(review, dict) else ()
        expect({"split", "label", "text"} <= set(keys), where, "split, label and text", sorted(keys))
        expect(review["split"] in ("train", "test"), where, "split 'train' or 'test'", repr(review["split"]))
        expect(isinstance(review["text"], str), where, "a text", type(review["text"]).__name__)
        expect(type(review["label"]) is int and review["label"] in (0, 1), where, "label 0 or 1", review["label"])
        texts[review["split"]].append(review["text"])
        labels[review["split"]].append(review["label"])
    return _Reviews(str(blob.path), texts, labels)


def _from_hub() -> _Reviews:
    tables = {part: hub.table(_HUB, ("text", "label"), split=part) for part in ("train", "test")}
    texts = {part: [str(text) for text in table["text"]] for part, table in tables.items()}
    labels = {part: hub.labels(table, "label").tolist() for part, table in tables.items()}
    for part, found in labels.items():
        expect(set(found) <= {0, 1}, f"{_HUB}, {part}", "labels 0 and 1", sorted(set(found)))
    return _Reviews(_HUB, texts, labels)


def _prepare(raw: _Reviews, strict: bool) -> Prepared:
    for part, labels in raw.labels.items():
        counts = [labels.count(label) for label in (0, 1)]
        holds = counts == [_PER_CLASS] * 2 if strict else min(counts) > 0
        expect(holds, f"{raw.where}, {part}", f"{_PER_CLASS} reviews of each class", counts)
    texts = {part: [_BREAK.sub(" ", text) for text in found] for part, found in raw.texts.items()}
    target = np.array(raw.labels["train"], np.int64)
    groups = same(texts["train"])
    train, val = hold_out(np.arange(len(target)), VALIDATION_SHARE, strata=target, groups=groups)
    numbers = vocabulary((texts["train"][row] for row in train), WORDS)
    tensors = {}
    for part, origin, rows in (
        ("train", "train", train),
        ("val", "train", val),
        ("test", "test", np.arange(len(texts["test"]))),
    ):
        chosen = [texts[origin][row] for row in rows]
        tensors[f"{part}.inputs"] = torch.from_numpy(encode(chosen, numbers, LENGTH))
        tensors[f"{part}.imdb"] = torch.from_numpy(np.array(raw.labels[origin], np.int64)[rows])
    seen = set(texts["train"])
    facts = {
        "split": f"test as published; validation: {VALIDATION_SHARE:g} of the training part, stratified by class, "
        "equal texts together",
        "vocabulary": WORDS,
        "distinct_words": len(numbers),
        "test_texts_also_in_train_or_val": sum(text in seen for text in texts["test"]),
    }
    return Prepared(tensors, {"imdb": list(CLASSES)}, facts)


RECIPE = Recipe(
    name="imdb",
    targets=("imdb",),
    kind="classification",
    files=(
        File(
            "imdb/imdb_50k.jsonl.xz",
            17_509_536,
            "a877ce2de045410581d714f01ef62d81142b303bc45de739e9211b474495fef9",
            "xz",
            "6defcff91b2172588eec863f6b67f8951eb6a065783d598c4e6ef79946f8f1b2",
        ),
    ),
    where="wherever this file is kept (docs/data.md describes its format; the texts are those of "
    "https://ai.stanford.edu/~amaas/data/sentiment/)",
    hub=_HUB,
    from_files=_from_files,
    from_hub=_from_hub,
    prepare=_prepare,
)
