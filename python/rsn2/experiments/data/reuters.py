"""Reuters-21578, Distribution 1.0: newswire texts of 1987, 30,000 words, 512 per text.

A document's class is its first topic; topics with at least 15 documents are kept: 46 classes, 11,228 documents.
Classes are numbered in the order of their first document, which is the numbering of the paper's table 14. A text
is the title and the body, with character references resolved; `text` says how words are numbered. Documents with
the same text stay on one side of every split. Copyright Reuters Ltd.; free for research only.
"""

import html
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rsn2.experiments.data import hub
from rsn2.experiments.data.dataset import DataError
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect
from rsn2.experiments.data.splits import hold_out, same
from rsn2.experiments.data.text import encode, vocabulary

WORDS = 30_000
LENGTH = 512
FEWEST = 15
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2
_ALL, _KEPT, _CLASSES = 21_578, 11_228, 46
_HUB = "ucirvine/reuters21578"
_ARCHIVE = f"hf://datasets/{_HUB}@28838256a1eb63d578641ac9e6c2916006c8b549/data/reuters21578.tar.gz"

_DOCUMENT = re.compile(r"<REUTERS\b([^>]*)>(.*?)</REUTERS>", re.DOTALL)
_NUMBER = re.compile(r'\bNEWID="(\d+)"')
_TOPICS = re.compile(r"<TOPICS>(.*?)</TOPICS>", re.DOTALL)
_TOPIC = re.compile(r"<D>(.*?)</D>")
_TEXT = re.compile(r"<TEXT[^>]*>(.*)</TEXT>", re.DOTALL)
_TITLE = re.compile(r"<TITLE>(.*?)</TITLE>", re.DOTALL)
_BODY = re.compile(r"<BODY>(.*?)</BODY>", re.DOTALL)
_OTHERS = re.compile(r"<(TITLE|AUTHOR|DATELINE)>.*?</\1>", re.DOTALL)


@dataclass(frozen=True)
class _Document:
    """``number``: NEWID, 1 to 21578; ``topics``: in their order; ``text``: title and body."""

    number: int
    topics: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class _Collection:
    """Documents in the order of their numbers; ``where``: their file or place."""

    where: str
    documents: list[_Document]


def _parse(where: str, texts: Iterable[str]) -> _Collection:
    """The documents of SGML texts.

    Raises:
        DataError: if one lacks its number, topics or text, or two have one number; names the document.
    """
    documents = []
    for content in texts:
        found = _DOCUMENT.findall(content)
        opened = content.count("<REUTERS ")
        expect(opened == len(found), where, f"{opened} whole documents in one of its files", len(found))
        for attributes, inside in found:
            number, topics, text = _NUMBER.search(attributes), _TOPICS.search(inside), _TEXT.search(inside)
            if number is None or topics is None or text is None:
                raise DataError(f"{where}: a document without NEWID, TOPICS or TEXT: <REUTERS{attributes}>.")
            title, body = _TITLE.search(text[1]), _BODY.search(text[1])
            # Unprocessed and brief documents have no body element: what is left of the text is the body.
            parts = (title[1] if title else "", body[1] if body else _OTHERS.sub(" ", text[1]))
            names = tuple(_TOPIC.findall(topics[1]))
            documents.append(_Document(int(number[1]), names, html.unescape(" ".join(parts))))
    documents.sort(key=lambda document: document.number)
    numbers = [document.number for document in documents]
    expect(len(set(numbers)) == len(numbers) > 0, where, "documents with different NEWID", f"{len(numbers)} documents")
    return _Collection(where, documents)


def _from_files(blobs: Sequence[Blob]) -> _Collection:
    (blob,) = blobs
    texts = []
    try:
        with tarfile.open(fileobj=io.BytesIO(blob.content()), mode="r:") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".sgm"):
                    file = archive.extractfile(member)
                    assert file is not None, "it is a file"
                    texts.append(file.read().decode("latin-1"))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{blob.path}: cut short or damaged, no tar archive: {error}") from error
    return _parse(str(blob.path), texts)


def _from_hub() -> _Collection:
    # The repository's own loader is code, which is not run: its archive is read as text, a document per file.
    options = {"data_files": _ARCHIVE, "sample_by": "document", "encoding": "latin-1", "split": "train"}
    found = hub.table("text", ("text",), **options)
    return _parse(_HUB, (text for text in found["text"] if "<REUTERS " in text))


def _prepare(raw: _Collection, strict: bool) -> Prepared:
    with_topic = [document for document in raw.documents if document.topics]
    counts = Counter(document.topics[0] for document in with_topic)
    kept = [document for document in with_topic if counts[document.topics[0]] >= FEWEST]
    classes = list(dict.fromkeys(document.topics[0] for document in kept))
    if strict:
        got = (len(raw.documents), len(classes), len(kept))
        expected = f"{_ALL} documents, {_CLASSES} topics with {FEWEST} of them or more, {_KEPT} documents of those"
        expect(got == (_ALL, _CLASSES, _KEPT), raw.where, expected, got)
    expect(len(classes) > 1, raw.where, f"two topics with at least {FEWEST} documents", classes)
    target = np.array([classes.index(document.topics[0]) for document in kept], np.int64)
    texts = [document.text for document in kept]
    groups = same(texts)
    rest, test = hold_out(np.arange(len(kept)), TEST_SHARE, strata=target, groups=groups)
    train, val = hold_out(rest, VALIDATION_SHARE, strata=target, groups=groups)
    numbers = vocabulary((texts[row] for row in train), WORDS)
    tensors = {}
    for part, rows in (("train", train), ("val", val), ("test", test)):
        tensors[f"{part}.inputs"] = torch.from_numpy(encode([texts[row] for row in rows], numbers, LENGTH))
        tensors[f"{part}.reuters"] = torch.from_numpy(target[rows])
    facts = {
        "split": f"test: {TEST_SHARE:g} of the documents, validation: {VALIDATION_SHARE:g} of the others, stratified "
        "by class, equal texts together",
        "vocabulary": WORDS,
        "distinct_words": len(numbers),
        "documents_read": len(raw.documents),
        "distinct_texts": len(set(texts)),
    }
    return Prepared(tensors, {"reuters": classes}, facts)


RECIPE = Recipe(
    name="reuters",
    targets=("reuters",),
    kind="classification",
    files=(
        File(
            "reuters/reuters21578.tar.xz",
            4_864_292,
            "ea016a807b103ade6071318fb019170820a62d59527e6bf8987a3bd422c9b23e",
            "xz",
            "94bb022a6b75a902e3f2271c1af608241e2dbaf9babbca5cb64cef8c37391f6d",
        ),
    ),
    where="wherever this file is kept (docs/data.md describes its format; its texts are those of "
    "https://archive.ics.uci.edu/dataset/137)",
    hub=_HUB,
    from_files=_from_files,
    from_hub=_from_hub,
    prepare=_prepare,
)
