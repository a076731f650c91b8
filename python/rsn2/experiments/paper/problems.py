"""Problems from the data sets: what an experiment changes in them, and the parts that a short run takes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rsn2.experiments.data import DataSet
from rsn2.experiments.experiment import Part, Problem


def problem(data: DataSet, samples: int | None = None) -> Problem:
    """What there is to learn in a data set.

    Args:
        data: the set; its parts are in random order, or become so by ``samples``.
        samples: at most as many of the training part, and in proportion of the others; None: all.
    """
    whole = Problem.of(data.train, data.val, data.test, data.classes)
    if samples is None or samples >= len(data.train[0]):
        return whole
    share = samples / len(data.train[0])
    return replace(whole, train=_some(whole.train, share), val=_some(whole.val, share), test=_some(whole.test, share))


def of_classes(whole: Problem, chosen: Sequence[int]) -> Problem:
    """The samples of some classes, which are numbered anew in the order of ``chosen``."""
    number = torch.full((len(whole.classes),), -1)
    number[list(chosen)] = torch.arange(len(chosen))

    def part(data: Part) -> Part:
        x, target = data
        kept = number[target] >= 0
        return x[kept], number[target[kept]]

    return replace(
        whole,
        train=part(whole.train),
        val=part(whole.val),
        test=part(whole.test),
        classes=tuple(whole.classes[each] for each in chosen),
    )


def resized(whole: Problem, side: int) -> Problem:
    """Images ``[n, channels, side, side]``, interpolated (bilinear)."""

    def part(data: Part) -> Part:
        x, target = data
        pieces = [F.interpolate(piece, size=(side, side), mode="bilinear") for piece in x.split(1024)]
        return torch.cat(pieces), target

    return replace(whole, train=part(whole.train), val=part(whole.val), test=part(whole.test))


def _some(data: Part, share: float) -> Part:
    x, target = data
    count = max(1, round(share * len(x)))
    rows: Tensor = torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")[:count]
    return x[rows], target[rows]
