"""Bools to 64-bit words and back: the one place that knows the bit order of a mask.

Bit ``c % 64`` of word ``c // 64`` of a row holds column ``c``; the bits past the last column are 0.
"""

import torch
from torch import Tensor

WORD_BITS = 64


def words_per_row(cols: int) -> int:
    """Number of 64-bit words that hold ``cols`` bits."""
    return -(-cols // WORD_BITS)


def _bit_values(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool ``[rows, cols]`` mask into int64 words ``[rows, ceil(cols / 64)]``."""
    rows, cols = mask.shape
    words = words_per_row(cols)
    padded = mask.new_zeros((rows, words * WORD_BITS), dtype=torch.uint8)
    padded[:, :cols] = mask
    octets = (padded.view(rows, words * 8, 8) * _bit_values(mask.device)).sum(-1, dtype=torch.uint8)
    return octets.view(torch.int64)


def unpack_bits(words: Tensor, cols: int) -> Tensor:
    """Inverse of :func:`pack_bits`: int64 words ``[rows, ceil(cols / 64)]`` to a bool ``[rows, cols]`` mask."""
    octets = words.contiguous().view(torch.uint8)
    bits = (octets.unsqueeze(-1) & _bit_values(words.device)) != 0
    return bits.view(words.shape[0], -1)[:, :cols].contiguous()


def padding_is_zero(words: Tensor, cols: int) -> bool:
    """Whether every bit past the last column is 0."""
    used = cols % WORD_BITS
    if used == 0 or words.shape[0] == 0:
        return True
    # An arithmetic shift keeps a set padding bit visible: what is left of a clean word is 0.
    tail = words[:, -1] >> used
    return not bool(tail.any())
