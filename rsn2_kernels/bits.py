"""Bools to 64-bit words and back, and what is read off the words: the one place that knows the bit order of a mask.

Bit ``c % 64`` of word ``c // 64`` of a row holds column ``c``; the bits past the last column are 0.

A GPU runs kernels of this package where they are built (csrc/cuda/bits.h), and everything runs in torch operators
where they are not: the results are the same. Nothing here waits for a GPU, except where it says so.
"""

import torch
from torch import Tensor

WORD_BITS = 64

_ONES = 0x0101010101010101  # 1 in each byte
_PAIRS = 0x5555555555555555
_FOURS = 0x3333333333333333
_EIGHTS = 0x0F0F0F0F0F0F0F0F
# Times eight bytes of 0 or 1: byte i becomes bit i of the highest byte.
_GATHER = 0x0102040810204080


def words_per_row(cols: int) -> int:
    """Number of 64-bit words that hold ``cols`` bits."""
    return -(-cols // WORD_BITS)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool ``[rows, cols]`` mask (True: any byte but 0) into int64 words ``[rows, ceil(cols / 64)]``."""
    if _has_kernels(mask):
        words: Tensor = torch.ops.rsn2_cuda.pack_bits(mask.contiguous())
        return words
    rows, cols = mask.shape
    width = words_per_row(cols) * WORD_BITS
    # 0 or 1 in each byte: a mask that was read from bytes may hold others for True. Unlike a part of another tensor,
    # what is made here begins where eight bytes may be read as one number.
    whole = mask.view(torch.uint8).clamp(max=1)
    if width > cols or not whole.is_contiguous():
        owned, whole = whole, whole.new_zeros(rows, width)
        whole[:, :cols] = owned
    # Eight bytes become eight bits in one product. Weighting the bytes and adding them takes 17 ms per 10^7
    # positions on one core, this 2 ms.
    octets = (whole.view(torch.int64) * _GATHER).view(torch.uint8).view(rows, width // 8, 8)[:, :, 7]
    return octets.clone(memory_format=torch.contiguous_format).view(torch.int64)


def unpack_bits(words: Tensor, cols: int) -> Tensor:
    """Inverse of :func:`pack_bits`: int64 words ``[rows, ceil(cols / 64)]`` to a bool ``[rows, cols]`` mask.

    The bits past the last column may be anything.
    """
    if _has_kernels(words):
        mask: Tensor = torch.ops.rsn2_cuda.unpack_bits(words.contiguous(), cols)
        return mask
    octets = words.contiguous().view(torch.uint8).flatten().to(torch.int32)
    # By table: comparing every bit takes 17 ms per 10^7 positions on one core, this 2 ms.
    bools = _bools_of_octets(words.device).index_select(0, octets).view(torch.bool)
    return bools.view(words.shape[0], -1)[:, :cols].contiguous()


def count_bits(words: Tensor) -> Tensor:
    """How many bits are set in each of the int64 ``words [rows, n]``: int32 of their shape."""
    if _has_kernels(words):
        counts: Tensor = torch.ops.rsn2_cuda.count_bits(words.contiguous())
        return counts
    # Sums of neighbouring bits, of neighbouring pairs and so on, all of a word at once. The right shifts are
    # arithmetic: what they bring in from the left is masked out.
    pairs = words - ((words >> 1) & _PAIRS)
    fours = (pairs & _FOURS) + ((pairs >> 2) & _FOURS)
    eights = (fours + (fours >> 4)) & _EIGHTS
    return ((eights * _ONES) >> (WORD_BITS - 8)).to(torch.int32)


def total_bits(words: Tensor) -> Tensor:
    """How many bits are set in all of the int64 ``words [rows, n]``: an int64 scalar on their device."""
    return count_bits(words).sum()


def ends_of_words(words: Tensor) -> Tensor:
    """How many bits are set up to the end of each word, in row-major order: int64 of the shape of ``words [rows, n]``.

    The last column, behind a 0, is the row pointers (CSR) of the set bits.
    """
    return count_bits(words).flatten().cumsum(0, dtype=torch.int64).view(words.shape)


def columns_of_bits(words: Tensor, ends: Tensor, nnz: int, cols: int) -> Tensor:
    """The column of each set bit in row-major order, int32 ``[nnz]``. Without kernels it waits for a GPU.

    Args:
        words: int64 ``[rows, ceil(cols / 64)]``, with clean padding.
        ends: what :func:`ends_of_words` says of them.
        nnz: the last of ``ends``.
        cols: the columns.
    """
    if _has_kernels(words):
        col: Tensor = torch.ops.rsn2_cuda.columns_of_bits(words.contiguous(), ends, nnz)
        return col
    return unpack_bits(words, cols).nonzero()[:, 1].to(torch.int32)


def padding_is_zero(words: Tensor, cols: int) -> Tensor:
    """Whether every bit past the last column is 0: a bool scalar on the device of the words."""
    used = cols % WORD_BITS
    # An arithmetic shift keeps a set padding bit visible: what is left of a clean word is 0.
    tail = words[:, -1] >> used if used else words[:, :0]
    return ~tail.any()


def _has_kernels(operand: Tensor) -> bool:
    """Whether the operand is on a GPU, and the library of its kernels is loaded."""
    return operand.is_cuda and hasattr(torch.ops.rsn2_cuda, "pack_bits") and not torch.compiler.is_compiling()


def _bools_of_octets(device: torch.device) -> Tensor:
    """The eight bools of each octet, as the bytes of an int64: ``[256]``."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return (bits & 1).to(torch.uint8).view(torch.int64).flatten()
