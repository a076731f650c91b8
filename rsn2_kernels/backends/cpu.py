"""The C++ operators for the CPU: loads the native library and hands the calls over.

Only owned weights are visited, in all three products of every operator. The library is built at install time; where
it is missing, `unavailable` says why and the other backends serve.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from rsn2_kernels.backends import Index, activated
from rsn2_kernels.backends.by_task import dvalues_by_task, dx_by_task, linear_by_task
from rsn2_kernels.geometry import ConvGeometry, Pair


def _load() -> str | None:
    """Load the native library; None if it is there, else the reason in one sentence."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    library = Path(__file__).parent.parent / "lib" / f"librsn2_cpu{suffix}"
    if not library.exists():
        return (
            "the native library was not built: install from source where CMake and a C++ compiler are "
            "(pip install . --no-build-isolation)"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"the native library does not load with torch {torch.__version__}: {error}"
    return None


unavailable = _load()
_native = torch.ops.rsn2_cpu


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """Sparse rows times a panel of packed x."""
    result: Tensor = _native.linear(x, values.contiguous(), bias, index[0], index[1])
    return activated(result, activation)


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """The same product over the column order."""
    result: Tensor = _native.linear_dx(dy, values.contiguous(), *index[2:])
    return result


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """One dot product per owned weight."""
    result: Tensor = _native.linear_dvalues(dy, x, index[0], index[1])
    return result


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry, activation: str = "none"
) -> Tensor:
    """Direct sparse convolution, vectors along the output positions."""
    result: Tensor = _native.conv2d(x, values.contiguous(), bias, index[0], index[1], *geometry)
    return activated(result, activation)


def conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
    """The same convolution over the column order."""
    result: Tensor = _native.conv2d_dx(dy, values.contiguous(), *index[2:], size, *geometry)
    return result


def conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
    """One dot product over the output positions per owned weight."""
    result: Tensor = _native.conv2d_dvalues(dy, x, index[0], index[1], *geometry)
    return result


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """One native product per task that has rows, on the rows sorted by task."""
    return linear_by_task(linear, x, values, biases, index, tasks)


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dx`."""
    return dx_by_task(linear_dx, dy, values, index, tasks)


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """The same with `linear_dvalues`."""
    return dvalues_by_task(linear_dvalues, dy, x, index, tasks)
