"""Images that are copies of one another but for compression: found, and put in one group."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rsn2.experiments.data.splits import Ints

_BLOCK = 8
_ROWS = 1000


def near_copies(images: npt.NDArray[np.uint8], limit: float) -> Ints:
    """Groups of images, numbered from 0, ``[n]``: two whose pixels differ by less than ``limit`` share one.

    Args:
        images: ``[n, side, side, channels]``, the side divisible by 8.
        limit: root of the mean squared difference, in grey levels of 0..255. Exact: the difference of the means of
            8 x 8 blocks is never larger than that of the pixels, so comparing those first misses no pair.
    """
    blocks = _block_means(images)
    norms = blocks.square().sum(dim=1)
    ceiling = blocks.shape[1] * limit * limit
    group = list(range(len(images)))
    for start in range(0, len(images), _ROWS):
        own = slice(start, start + _ROWS)
        distance = torch.addmm(norms[None, start:], blocks[own], blocks[start:].T, alpha=-2) + norms[own, None]
        # A thousandth more than the ceiling leaves room for float32.
        for first, second in (distance < ceiling * 1.001 + 1).nonzero().add_(start).tolist():
            if first < second and _difference(images[first], images[second]) < limit:
                _join(group, first, second)
    roots = np.array([_root(group, number) for number in range(len(group))])
    result: Ints = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    return result


def _block_means(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """``[n, blocks]``, around the mean image so that float32 has digits to spare."""
    parts = [
        F.avg_pool2d(torch.from_numpy(images[at : at + _ROWS]).permute(0, 3, 1, 2).float(), _BLOCK).flatten(1)
        for at in range(0, len(images), _ROWS)
    ]
    means = torch.cat(parts)
    return means - means.mean(dim=0)


def _difference(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.square(first.astype(np.int32) - second).mean()))


def _root(group: list[int], number: int) -> int:
    while group[number] != number:
        number = group[number]
    return number


def _join(group: list[int], first: int, second: int) -> None:
    low, high = sorted((_root(group, first), _root(group, second)))
    group[high] = low
