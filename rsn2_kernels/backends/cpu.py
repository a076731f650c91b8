"""The C++ operators for the CPU: loads the native library and hands the calls over.

Only owned weights are visited, in all three products of every operator. The library is built at install time; where
it is missing, `unavailable` says why and the other backends serve.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsn2_kernels.backends import Index, activated, words_of
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry, Pair

# What RSN2_CPU_ISA may name; the library chooses at its first product, and would refuse another name at each.
_ISAS = ("avx512_bf16", "avx512", "avx2", "baseline")


def _load() -> str | None:
    """Load the native library; None if it is there, else the reason in one sentence."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    library = Path(__file__).parent.parent / "lib" / f"librsn2_cpu{suffix}"
    if not library.exists():
        return (
            "the native library was not built: install from source where CMake and a C++ compiler are "
            "(pip install . --no-build-isolation)"
        )
    isa = os.environ.get("RSN2_CPU_ISA")
    if isa and isa not in _ISAS:
        return f"RSN2_CPU_ISA must be avx512_bf16, avx512, avx2 or baseline; got {isa!r}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"the native library does not load with torch {torch.__version__}: {error}"
    return None


unavailable = _load()


def _operator(name: str) -> Any:
    """An operator of the library, without the search for an overload at every call."""
    return getattr(torch.ops.rsn2_cpu, name).default if unavailable is None else None


_linear, _linear_dx, _linear_dvalues, _linear_gradients = map(
    _operator, ("linear", "linear_dx", "linear_dvalues", "linear_gradients")
)
_grouped_linear, _grouped_linear_dx, _grouped_linear_dvalues = map(
    _operator, ("grouped_linear", "grouped_linear_dx", "grouped_linear_dvalues")
)
_conv2d, _conv2d_dx, _conv2d_dvalues = map(_operator, ("conv2d", "conv2d_dx", "conv2d_dvalues"))
_expand, _gather, _bit_worth = map(_operator, ("expand", "gather", "bit_worth"))

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

NARROW = 1 << 16
"""Rows or columns whose indices fit 16 bits. torch has few operators for uint16: an int16 tensor holds their bits."""


BIT_BATCH = 8
"""The most rows of x, of one task, that go by the bits of a mask."""

# Where one position in so many is owned, the bits of a mask are quicker than indices for copies (Zen 5); and for each
# product of 1 to `BIT_BATCH` rows of x, as the library says of the instructions that it uses; 0: never.
_COPIES_WORTH_BITS = 8
WORTH_BITS = {
    product: [0 if unavailable else _bit_worth(number, batch) for batch in range(1, BIT_BATCH + 1)]
    for number, product in enumerate(("forward", "dx", "dvalues"))
}
_WORD = 64


def index(
    weight: CsrIndex,
    with_columns: bool,
    geometry: ConvGeometry | None,
    batch: int | None = None,
    trains: bool = False,
) -> list[Tensor]:
    """The index tensors of a weight; those of linear products with 16-bit columns and rows where they fit.

    With a ``batch``, the rows of x: and with the words of the mask, if a copy is quicker by them, or a product of so
    few rows, or of few among the tasks of a stack, or a gradient where the call ``trains``; else with none, which says
    that the sums for one row may run in any order.
    """
    tensors = weight.index(with_columns)
    if geometry is None:
        for place, size in ((1, weight.shape[1]), (3, weight.shape[0])):
            if place < len(tensors) and size <= NARROW:
                tensors[place] = _narrow(weight, place, tensors[place])
    if batch is None:
        return tensors
    few = [batch] if weight.stacks == 1 else range(1, BIT_BATCH + 1)
    products = list(WORTH_BITS) if trains else ["forward"]
    serve = any(is_worth_bits(weight, rows, product) for rows in few for product in products)
    return tensors + (mask_words(weight, serve) or _no_words(weight))


def is_worth_bits(weight: CsrIndex, batch: int, product: str = "forward") -> bool:
    """Whether a product with so many rows of x, but for float64, is quicker by the bits of the mask.

    The kernels ask again, for each task of a stack.
    """
    rows, cols = weight.shape
    if not 1 <= batch <= BIT_BATCH:
        return False
    return WORTH_BITS[product][batch - 1] * weight.nnz >= weight.stacks * rows * -(-cols // _WORD) * _WORD


def mask_words(weight: CsrIndex, serve: bool = False) -> list[Tensor]:
    """``[weight.words()]`` where copies are quicker by them, or they ``serve`` products; else nothing."""
    rows, cols = weight.shape
    copies = unavailable is None and _COPIES_WORTH_BITS * weight.nnz >= weight.stacks * rows * cols
    return [weight.words()] if copies or serve else []


def _no_words(weight: CsrIndex) -> list[Tensor]:
    """``[int64 [stacks * rows, 0]]``."""
    return list(
        weight.derived("no words", lambda: (weight.crow.new_empty(weight.crow.shape[0] - 1, 0, dtype=torch.int64),))
    )


def _narrow(weight: CsrIndex, place: int, wide: Tensor) -> Tensor:
    """The same indices in 16 bits."""
    (narrow,) = weight.derived(("cpu", place), lambda: (wide.to(torch.int16),))
    return narrow


def has_kernels(operand: Tensor) -> bool:
    """Whether `expand` and `gather` take this operand."""
    return unavailable is None and operand.device.type == "cpu" and operand.dtype in DTYPES


def expand(values: Tensor, index: Index, cols: int) -> Tensor:
    """The dense ``[rows, cols]`` weight of packed ``values``, without derivatives."""
    dense: Tensor = _expand(values.contiguous(), index[0], index[1], words_of(index), cols)
    return dense


def gather(dense: Tensor, index: Index) -> Tensor:
    """What is owned of a dense ``[rows, cols]`` weight, packed, without derivatives."""
    values: Tensor = _gather(dense.contiguous(), index[0], index[1], words_of(index))
    return values


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """Sparse rows times a panel of packed x."""
    bias = None if bias is None else bias.contiguous()
    result: Tensor = _linear(x, values.contiguous(), bias, index[0], index[1], words_of(index))
    return result if activation == "none" else activated(result, activation)


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """The same product over the column order, or for a small batch each row added to where it belongs."""
    result: Tensor = _linear_dx(dy, values.contiguous(), *index[:5], words_of(index))
    return result


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """One dot product per owned weight."""
    result: Tensor = _linear_dvalues(dy, x, index[0], index[1], words_of(index))
    return result


def linear_gradients(dy: Tensor, x: Tensor, values: Tensor, index: Index) -> tuple[Tensor, Tensor]:
    """`linear_dx` and `linear_dvalues` in one call, which is 3 us less than two."""
    dx, dvalues = _linear_gradients(dy, x, values.contiguous(), *index[:5], words_of(index))
    return dx, dvalues


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry, activation: str = "none"
) -> Tensor:
    """Direct sparse convolution, vectors along the output positions."""
    bias = None if bias is None else bias.contiguous()
    result: Tensor = _conv2d(x, values.contiguous(), bias, index[0], index[1], *geometry)
    return result if activation == "none" else activated(result, activation)


def conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
    """The same convolution over the column order."""
    result: Tensor = _conv2d_dx(dy, values.contiguous(), *index[2:5], size, *geometry)
    return result


def conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
    """One dot product over the output positions per owned weight."""
    result: Tensor = _conv2d_dvalues(dy, x, index[0], index[1], *geometry)
    return result


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """Rows sorted by task, then the product of `linear` for each task that has rows."""
    return grouped_linear_apart(x, [values], [] if biases is None else [biases.flatten()], index, tasks)


def grouped_linear_apart(
    x: Tensor, values: Sequence[Tensor], biases: Sequence[Tensor], index: Index, tasks: int
) -> Tensor:
    """`grouped_linear` without derivatives, with values and biases in one vector, or in one for each task."""
    task_of_row, crow, col = index[:3]
    own, added = ([each.contiguous() for each in operand] for operand in (values, biases))
    result: Tensor = _grouped_linear(x, own, added, task_of_row.contiguous(), crow, col, words_of(index), tasks)
    return result


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dx`."""
    task_of_row, *rest = index[:6]
    rows, words = task_of_row.contiguous(), words_of(index)
    result: Tensor = _grouped_linear_dx(dy, values.contiguous(), rows, *rest, words, tasks)
    return result


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dvalues`."""
    task_of_row, crow, col = index[:3]
    result: Tensor = _grouped_linear_dvalues(dy, x, task_of_row.contiguous(), crow, col, words_of(index), tasks)
    return result
