"""The CUDA operators for small batches: weights are read in their compact form, once, and x waits in shared memory.

The forward products of `linear` and `grouped_linear`; their gradients are those of the ``dense`` backend. The library
is built at install time where nvcc is. ``RSN2_CUDA_EMULATED=<library>`` in the environment loads another one instead,
in which the same kernels run on the CPU: for tests.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from rsn2_kernels.backends import ACTIVATIONS, Index, dense
from rsn2_kernels.compact import Compact

OPERATORS = ("linear", "grouped_linear")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_LIBRARY = Path(__file__).parent.parent / "lib" / "librsn2_cuda.so"
_EMULATED = os.environ.get("RSN2_CUDA_EMULATED")
# Rows of x begin at multiples of this many elements, so that eight of them are one load.
_ALIGNMENT = 8


def _load() -> str | None:
    """Load the library; None if it is there, else the reason in one sentence."""
    if not _EMULATED:
        if not torch.cuda.is_available():
            return "there is no GPU here that torch can use"
        if torch.version.hip is not None:
            return "it is written for NVIDIA GPUs"
        if not _LIBRARY.exists():
            return f"the CUDA operators are {_built()}"
    try:
        torch.ops.load_library(_EMULATED or _LIBRARY)
    except OSError as error:
        return f"the CUDA library does not load with torch {torch.__version__}: {error}"
    return None


def _built() -> str:
    """What the build said: "built for <capabilities> with nvcc <version>", or "not built: <why>"."""
    note = _LIBRARY.with_name("cuda.txt")
    return note.read_text().strip() if note.exists() else "not built: the package was installed without native code"


def _runs_on(major: int, minor: int) -> bool:
    """Whether the library holds code that a GPU of this compute capability runs."""
    for each in _built().partition("built for ")[2].partition(" with ")[0].split():
        name, _, ptx = each.partition("+")
        built = tuple(map(int, name.rstrip("af").split(".")))
        specific = name[-1] in "af"
        if built == (major, minor) or (not specific and built[0] == major and built[1] <= minor):
            return True
        if ptx and not specific and built <= (major, minor):
            return True
    return False


unavailable = _load()
"""Why the backend cannot run in this process, in one sentence; None if it can."""

emulated = unavailable is None and bool(_EMULATED)
"""Whether the kernels run on the CPU in this process."""

_native = torch.ops.rsn2_cuda


def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a call cannot run here, in one sentence; None if it can."""
    if op not in OPERATORS:
        return f"it has no {op}"
    if dtype not in DTYPES:
        return f"it is not made for {dtype}"
    if emulated:
        return None if device.type == "cpu" else "it is emulated in this process, on the CPU"
    if device.type != "cuda":
        return f"it runs on an NVIDIA GPU, and the operands are on {device.type}"
    chip = torch.cuda.get_device_properties(device)
    if not _runs_on(chip.major, chip.minor):
        return f"{chip.name} has compute capability {chip.major}.{chip.minor}, and the library was {_built()}"
    return None


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """A team of threads per row of the weight, or its tiles on the tensor cores where the batch is larger."""
    rows = index[0].shape[0] - 1
    bias = None if bias is None else bias.contiguous()
    code = ACTIVATIONS.index(activation)
    result: Tensor = _native.linear(_batch_major(x), _packed(values), bias, *_compact(index, 1), rows, code)
    return result


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """What ``dense`` does."""
    return dense.linear_dx(dy, values, _plain(index))


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """What ``dense`` does."""
    return dense.linear_dvalues(dy, x, _plain(index))


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """A team of threads per row of each batch row's own weight, all in one launch."""
    rows = (index[1].shape[0] - 1) // tasks
    biases = None if biases is None else biases.contiguous()
    task_of_row = index[0].contiguous()
    result: Tensor = _native.grouped_linear(
        _batch_major(x), _packed(values), biases, task_of_row, *_compact(index, 2), tasks, rows
    )
    return result


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """What ``dense`` does."""
    return dense.grouped_linear_dx(dy, values, _plain(index), tasks)


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """What ``dense`` does."""
    return dense.grouped_linear_dvalues(dy, x, _plain(index), tasks)


def _compact(index: Index, columns: int) -> list[Tensor]:
    """The columns, which stand at a place of the index, and the compact form, behind what every backend gets."""
    return [index[columns], *index[-len(Compact._fields) :]]


def _plain(index: Index) -> Index:
    """The tensors that every backend gets."""
    return index[: -len(Compact._fields)]


def _packed(values: Tensor) -> Tensor:
    """The values as the kernels load them, sixteen bytes at a time, with no negation left to do."""
    values = values.resolve_neg().contiguous()
    return values if values.data_ptr() % 16 == 0 else values.clone()


def _batch_major(x: Tensor) -> Tensor:
    """``x`` with rows that begin where loads of eight elements may begin, with no negation left to do."""
    x = x.resolve_neg()
    batch, cols = x.shape
    in_place = x.stride(1) == 1 and (batch <= 1 or x.stride(0) % _ALIGNMENT == 0) and x.data_ptr() % 16 == 0
    if in_place:
        return x
    copy = x.new_empty(batch, -(-cols // _ALIGNMENT) * _ALIGNMENT)[:, :cols]
    return copy.copy_(x)
