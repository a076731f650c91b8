"""Splits that are the same on every machine and for every version of numpy."""

import numpy as np
import numpy.typing as npt

from rsn2.experiments.data.dataset import DataError

Ints = npt.NDArray[np.int64]

# Not a training seed: every run is scored on the same samples.
SPLIT_SEED = 0


def hold_out(rows: Ints, share: float, strata: Ints | None = None, groups: Ints | None = None) -> tuple[Ints, Ints]:
    """Split rows in two, the second part with ``share`` of them.

    Drawn with ``numpy.random.RandomState``, whose stream numpy keeps for good.

    Args:
        rows: numbers of samples, ``[n]``.
        share: of the second part, in (0, 1).
        strata: of all samples; each gives its share, rounded, and what rounding leaves is made good by the next. A
            group counts to the stratum of its first sample.
        groups: of all samples; those of a group stay together. A group too large for what is left is passed over.

    Returns:
        The two parts, ascending.

    Raises:
        DataError: if one of them would be empty.
    """
    ids = rows if groups is None else groups[rows]
    _, first, group, sizes = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    stratum = np.zeros(len(first), np.int64) if strata is None else strata[rows][first]
    order = np.random.RandomState(SPLIT_SEED).permutation(len(first))
    held = np.zeros(len(first), dtype=bool)
    due = 0.0
    for each in np.unique(stratum):
        own = order[stratum[order] == each]
        due += share * float(sizes[own].sum())
        for number in own:
            if sizes[number] <= due + 0.5:
                held[number] = True
                due -= sizes[number]
    second = held[group]
    if second.all() or not second.any():
        raise DataError(f"{len(rows)} samples cannot be split with a share of {share}.")
    return np.sort(rows[~second]), np.sort(rows[second])


def same(values: list[str]) -> Ints:
    """A group for each distinct value, numbered in the order of first appearance, ``[n]``."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
