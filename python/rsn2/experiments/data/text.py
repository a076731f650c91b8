"""Words and their numbers.

A text is put in lower case and cut into words: runs of letters and digits, with single apostrophes inside
("don't"). Everything else separates words. Number 0 pads, number 1 stands for every word outside the
vocabulary, and the most frequent words of the training part follow, ties in alphabetical order. Texts are
cut, or padded, at their end, as in the paper.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

PADDING, UNKNOWN = 0, 1
_FIRST_WORD = 2

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def vocabulary(texts: Iterable[str], size: int) -> dict[str, int]:
    """The numbers of the most frequent words, 2 to ``size - 1``."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: size - _FIRST_WORD]
    return {word: number for number, word in enumerate(ranked, start=_FIRST_WORD)}


def encode(texts: Sequence[str], numbers: Mapping[str, int], length: int) -> npt.NDArray[np.int32]:
    """The numbers of each text's first words, ``[texts, length]``."""
    result = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(result, texts, strict=True):
        found = [numbers.get(match[0], UNKNOWN) for match in islice(_WORD.finditer(text.lower()), length)]
        row[: len(found)] = found
    return result
