"""Triton kernels for NVIDIA GPUs: tensor cores on the parts of a weight that own anything.

A `Plan` says which parts; it is made once per pattern and travels in the index, behind what every backend gets. With
``TRITON_INTERPRET=1`` in the environment the same kernels run on the CPU, interpreted: for tests.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from rsn2_kernels.backends import Index, columns
from rsn2_kernels.geometry import ConvGeometry, Pair
from rsn2_kernels.gpu_cost import DTYPES
from rsn2_kernels.plan import ALIGNMENT, Plan

try:
    from triton.runtime.interpreter import InterpretedFunction

    from rsn2_kernels.backends.triton import conv, expansion, gemm, layout, sddmm

    _missing = None
except ImportError as error:
    _missing = f"Triton is not installed here ({error})"

interpreted = _missing is None and isinstance(gemm._multiply, InterpretedFunction)
"""Whether the kernels run on the CPU in this process."""


def _status() -> str | None:
    if _missing is not None or interpreted:
        return _missing
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs"
    return None if torch.cuda.is_available() else "there is no GPU here that torch can use"


unavailable = _status()
"""Why the backend cannot run in this process, in one sentence; None if it can."""

_FIELDS = len(Plan._fields)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on a device, in one sentence; None if they can."""
    if interpreted:
        return None if device.type == "cpu" else "it is interpreted in this process, on the CPU"
    if device.type != "cuda":
        return f"it runs on an NVIDIA GPU, and the operands are on {device.type}"
    if dtype not in DTYPES:
        return f"its tiles are not made for {dtype}"
    chip = torch.cuda.get_device_properties(device)
    return (
        None if chip.major >= 8 else f"it needs compute capability 8.0, and {chip.name} has {chip.major}.{chip.minor}"
    )


def linear(x: Tensor, values: Tensor, bias: Tensor | None, index: Index, activation: str = "none") -> Tensor:
    """Condensed windows times the feature-major batch; the result is feature-major, seen through ``.t()``."""
    with _device_of(x):
        plan, rows, bias = _plan(index), index[0].shape[0] - 1, None if bias is None else _packed(bias)
        return gemm.multiply(_feature_major(x), _packed(values), bias, plan, rows, x.shape[0], activation).t()


def linear_dx(dy: Tensor, values: Tensor, index: Index) -> Tensor:
    """The same product with the plan of the transposed weight."""
    with _device_of(dy):
        plan = _transposed(index)
        return gemm.multiply(_feature_major(dy), _packed(values), None, plan, columns(index), dy.shape[0]).t()


def linear_dvalues(dy: Tensor, x: Tensor, index: Index) -> Tensor:
    """A dense product per chunk, of which the owned entries are written."""
    with _device_of(x):
        return sddmm.sample(_feature_major(dy), _feature_major(x), index[1].shape[0], _plan(index))


def grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, tasks: int) -> Tensor:
    """The product of `linear`, each block of the sorted rows with the windows of its task, in one launch."""
    with _device_of(x):
        rows = (index[1].shape[0] - 1) // tasks
        biases = None if biases is None else _packed(biases)
        return _grouped(x, values, biases, index, tasks, _plan(index), rows, without_task=torch.nan)


def grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, tasks: int) -> Tensor:
    """The same product with the plan of the transposed weights."""
    with _device_of(dy):
        cols = (index[3].shape[0] - 1) // tasks
        return _grouped(dy, values, None, index, tasks, _transposed(index), cols, without_task=0.0)


def grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, tasks: int) -> Tensor:
    """The products of `linear_dvalues`, each chunk over the rows of its task."""
    with _device_of(x):
        groups = layout.group_rows(index[0], tasks, ALIGNMENT)
        dy_t, x_t = (layout.sorted_by_task(each.resolve_neg(), groups) for each in (dy, x))
        return sddmm.sample(dy_t, x_t, index[2].shape[0], _plan(index), groups)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Index, geometry: ConvGeometry, activation: str = "none"
) -> Tensor:
    """Implicit product over the runs of channels that own anything; channels-last."""
    with _device_of(x):
        rows = (index[0].shape[0] - 1) // geometry.groups
        size = geometry.output_size(x.shape[2], x.shape[3])
        values, bias = _packed(values), None if bias is None else _packed(bias)
        return conv.convolve(x.resolve_neg(), values, bias, _plan(index), rows, size, geometry, False, activation)


def conv2d_dx(dy: Tensor, values: Tensor, index: Index, size: Pair, geometry: ConvGeometry) -> Tensor:
    """The same product with the plan of the transposed weight, its taps led back."""
    with _device_of(dy):
        channels = columns(index) // (geometry.kernel_size[0] * geometry.kernel_size[1])
        plan = _transposed(index)
        return conv.convolve(dy.resolve_neg(), _packed(values), None, plan, channels, size, geometry, True)


def conv2d_dvalues(dy: Tensor, x: Tensor, index: Index, geometry: ConvGeometry) -> Tensor:
    """A dense product per chunk over the output pixels, of which the owned entries are written."""
    with _device_of(x):
        return conv.sample_conv(dy.resolve_neg(), x.resolve_neg(), index[1].shape[0], _plan(index), geometry)


def expand(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The dense ``[rows, cols]`` weight of packed ``values [nnz]``, for the vendor's library."""
    with _device_of(values):
        return expansion.expand(_packed(values), crow, col, cols)


def gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The packed values ``[nnz]`` of a dense ``[rows, cols]`` weight."""
    with _device_of(dense):
        return expansion.gather(dense.resolve_neg(), crow, col)


def feature_major(x: Tensor) -> Tensor:
    """A feature-major copy of ``x [batch, features]``, which the products read as it is if the batch is 16 n."""
    with _device_of(x):
        return layout.transposed(x.resolve_neg(), x.shape[0]).t()


def _grouped(
    x: Tensor,
    values: Tensor,
    biases: Tensor | None,
    index: Index,
    tasks: int,
    plan: Plan,
    rows: int,
    without_task: float,
) -> Tensor:
    batch = x.shape[0]
    block = gemm.tiling(x.dtype, plan.height, -(-batch // tasks), plain=True).block
    groups = layout.group_rows(index[0], tasks, block)
    x_t = layout.sorted_by_task(x.resolve_neg(), groups)
    y = gemm.multiply(x_t, _packed(values), biases, plan, rows, groups.slots, groups=groups, without_task=without_task)
    return layout.in_batch_order(y, groups, batch)


def _packed(operand: Tensor) -> Tensor:
    """Values or biases as the kernels read them. They know nothing of the negation that torch may leave to readers."""
    return operand.resolve_neg().contiguous()


def _feature_major(x: Tensor) -> Tensor:
    return layout.feature_major(x.resolve_neg())


def _plan(index: Index) -> Plan:
    """The plan of the weight, behind the tensors that every backend gets."""
    start = len(index) % _FIELDS
    return Plan(*index[start : start + _FIELDS])


def _transposed(index: Index) -> Plan:
    """The plan of the transposed weight, behind the other."""
    return Plan(*index[len(index) - _FIELDS :])


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
