"""Exactly so many of the largest: which weights, or blocks of them, a task takes.

Equal saliencies are told apart by position, and only integers are compared and added, in no order that matters: every
device gives the same mask. A GPU keeps all data; the host learns a few counts.
"""

import torch
from torch import Tensor

from rsn2_kernels.bits import count_bits, pack_bits, unpack_bits

# Up to here all codes are sorted. A bracket must be able to leave something out: see _bracket.
_FEW = 1 << 16
# Between the rank that is expected in a sample of m and either end of the bracket lie so many times sqrt(m) elements.
# That is six standard deviations of the true rank or more: the bracket fails to hold it once in 10^9 draws.
_MARGIN = 3
# 2**32 over the golden ratio: its multiples, modulo 2**32, are spread evenly and repeat no period of the weights.
_SPREAD = 2654435769


def largest(saliency: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` candidates with the largest saliency; ties go to the lower row-major position.

    Args:
        saliency: floating, non-negative, not NaN; any shape.
        candidates: bool, same shape.
        count: at most the number of candidates.

    Returns:
        Bool, same shape, exactly ``count`` True. It depends on the saliencies alone, not on device or thread count.
    """
    if count == 0:
        return torch.zeros_like(candidates)
    codes = _codes(saliency).masked_fill_(~candidates, -1).flatten()
    threshold = _kth_largest(codes, count)
    above = pack_bits((codes > threshold)[None])
    ties = pack_bits((codes == threshold)[None])
    chosen = above | _first(ties, count - count_bits(above).sum())
    return unpack_bits(chosen, codes.shape[0]).view(saliency.shape)


def nearest(scores: Tensor, sizes: Tensor, count: int) -> Tensor:
    """The blocks to claim: the first of the ranking, as many as come nearest to ``count`` positions.

    Blocks are taken by falling score, ties by rising number, until one more would take the sum of sizes further from
    ``count`` than it is. At equal distance the block is taken. What is claimed differs from ``count`` by at most half
    the size of a block, unless all blocks together are fewer.

    Args:
        scores: non-negative float64 ``[blocks]``.
        sizes: int64 ``[blocks]``, the free positions of each; with 0, it makes no difference whether a block is taken.
        count: at least 0.

    Returns:
        Bool ``[blocks]``. It depends on the arguments alone, not on device or thread count.
    """
    order = scores.sort(descending=True, stable=True).indices
    ranked = sizes[order]
    # One more comes no further from the count as long as the middle of its positions does not lie beyond the count.
    ends = ranked.cumsum(0)
    taken = 2 * ends - ranked <= 2 * count
    return torch.empty_like(taken).scatter_(0, order, taken)


def _codes(saliency: Tensor) -> Tensor:
    """New integers in the order of the saliencies: their bits, which of numbers without a sign are in that order."""
    exact = saliency if saliency.dtype in (torch.float32, torch.float64) else saliency.float()
    # abs: -0.0 is 0.0.
    return exact.abs().view(torch.int32 if exact.dtype == torch.float32 else torch.int64)


def _kth_largest(codes: Tensor, k: int) -> Tensor:
    """The k-th largest of integers ``[n]`` of at least -1, k from 1 on.

    The k-th largest lies between two numbers whose ranks in a sample are a little above and a little below; what is
    not between them is only counted. A sample that misleads costs time, nothing else.

    Measured for all of `largest` with benchmarks/selection.py on one core, a fifth of 10^8 float32 saliencies taken,
    in seconds and in bytes of memory per weight beside the operands: 1.1 s and 7.5; by ``torch.topk`` 3.0 s and 22,
    and ``torch.kthvalue``, the threshold alone, 1.2 s and 12. Of 10^7: 0.08 s, 0.20 s and 0.11 s.
    """
    while codes.shape[0] > _FEW:
        low, high = _bracket(codes, k)
        not_below, above = codes >= high, codes > low
        ends, found = torch.stack([not_below.count_nonzero(), above.count_nonzero()]).tolist()
        if ends >= k:
            beyond = codes > high
            if int(beyond.count_nonzero()) < k:
                return high
            codes = codes[beyond.nonzero().squeeze(1)]
        elif found < k:
            below = codes < low
            k -= codes.shape[0] - int(below.count_nonzero())
            if k <= 0:
                return low
            codes = codes[below.nonzero().squeeze(1)]
        else:
            k -= ends
            codes = codes[(above ^ not_below).nonzero().squeeze(1)]
    return codes.sort(descending=True).values[k - 1]


def _bracket(codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Two numbers of which the first is probably less, and the second greater, than the k-th largest of ``codes``.

    Together with the sample, what is left between them is to be least: both are about ``(6 n) ** (2 / 3)`` then.
    """
    n = codes.shape[0]
    size = int((2 * _MARGIN * n) ** (2 / 3))
    number = torch.arange(size, device=codes.device)
    # One of each of `size` stretches of equal length.
    within = ((number * _SPREAD & 0xFFFFFFFF) * (n // size)) >> 32
    sample = codes[number * n // size + within].sort().values
    rank, margin = (n - k) * size // n, int(_MARGIN * size**0.5)
    # Behind the ends of the sample, numbers that no code reaches.
    low = sample[rank - margin] if rank >= margin else torch.full_like(sample[0], -2)
    high = sample[rank + margin] if rank + margin < size else torch.full_like(low, torch.iinfo(codes.dtype).max)
    return low, high


def _first(words: Tensor, count: Tensor) -> Tensor:
    """The first ``count`` of the set bits of ``words [1, n]``, all if they are fewer."""
    counts = count_bits(words)[0]
    ends = counts.cumsum(0)
    whole = ends <= count
    # The word in which the last of them lies; the words before it are kept as they are.
    cut = whole.count_nonzero().clamp(max=counts.shape[0] - 1)[None]
    bits = unpack_bits(words[:, cut], 64)
    left = count - (ends - counts)[cut]
    kept = torch.where(whole, words[0], 0)
    return kept.index_copy(0, cut, pack_bits(bits & (bits.cumsum(1) <= left))[0])[None]


def largest_by_column(saliency: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Mask of the ``counts[c]`` candidates with the largest saliency in each column; ties go to the lower row.

    Args:
        saliency: floating, non-negative, not NaN; ``[rows, cols]``.
        candidates: bool, same shape.
        counts: int64 ``[cols]``, non-negative; a column with fewer candidates gives all of them.

    Returns:
        Bool, same shape. It depends on the arguments alone, not on device or thread count.
    """
    codes = _codes(saliency).masked_fill_(~candidates, -1)
    order = codes.sort(dim=0, descending=True, stable=True).indices
    taken = torch.arange(codes.shape[0], device=codes.device)[:, None] < counts.to(codes.device)[None]
    return torch.empty_like(taken).scatter_(0, order, taken) & candidates
