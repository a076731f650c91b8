"""What the operators share: checks before a kernel sees the operands, and empty results for the shape functions."""

import torch
from torch import Tensor

from rsn2_kernels.backends import ACTIVATIONS
from rsn2_kernels.pattern import SparsePattern
from rsn2_kernels.tracing import PLAIN, autocasts


def fused_activation(activation: str | None, operands: tuple[Tensor | None, ...]) -> tuple[str, str]:
    """What an operator applies itself, and what is left to apply behind it: GELU's gradient asks for what came before.

    Raises:
        ValueError: if ``activation`` is neither None nor one of ACTIVATIONS.
    """
    if activation is None:
        return "none", "none"
    name = activation
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected None or one of {ACTIVATIONS}. Got {activation!r}.")
    recorded = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in operands)
    return ("none", name) if name == "gelu" and recorded else (name, "none")


def empty_matrix(x: Tensor, batch: int, features: int, backend: str) -> Tensor:
    """A result ``[batch, features]`` as the backend lays it out: feature-major from the Triton kernels."""
    return x.new_empty(features, batch).t() if backend == "triton" else x.new_empty(batch, features)


def empty_images(x: Tensor, images: int, channels: int, height: int, width: int, backend: str) -> Tensor:
    """A result ``[images, channels, height, width]`` as the backend lays it out: channels-last in Triton."""
    if backend == "triton":
        return x.new_empty(images, height, width, channels).permute(0, 3, 1, 2)
    return x.new_empty(images, channels, height, width)


def checked_operands(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands, in autocast's type where autocast is on (as torch's own linear does).

    Raises:
        TypeError, ValueError: if ``values`` or ``bias`` does not fit ``pattern``, or an operand differs from ``x`` in
            dtype or from ``pattern`` in device.
    """
    if _fit_as_they_are(x, values, bias, pattern):
        return x, values, bias
    check_pattern("pattern", pattern)
    operands = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    check_floating(operands, pattern.device)
    check_shape("values", values, (pattern.nnz,), "one per owned weight")
    if bias is not None:
        check_shape("bias", bias, (pattern.shape[0],), "one per row")
    operands = in_one_dtype(operands)
    return operands["x"], operands["values"], operands.get("bias")


def _fit_as_they_are(x: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern) -> bool:
    """Whether nothing is left to convert or to refuse: in one expression, as this is asked before every product."""
    return (
        not torch.compiler.is_compiling()
        and type(pattern) is SparsePattern
        and type(x) in PLAIN
        and type(values) in PLAIN
        and (bias is None or type(bias) in PLAIN)
        and x.dtype == values.dtype
        and x.dtype.is_floating_point
        and values.shape == (pattern.nnz,)
        and x.device == values.device == pattern.device
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device and bias.shape == pattern.shape[:1]))
        and not torch._C._is_any_autocast_enabled()
    )


def check_pattern(name: str, pattern: SparsePattern) -> None:
    """Raise TypeError unless the argument ``name`` is a pattern."""
    if not isinstance(pattern, SparsePattern):
        raise TypeError(f"{name}: expected a SparsePattern. Got {type(pattern).__name__}.")


def check_shape(name: str, operand: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise ValueError unless the argument ``name`` has ``shape``, ``what`` saying why."""
    if tuple(operand.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, {what}. Got {tuple(operand.shape)}.")


def check_floating(operands: dict[str, Tensor], device: torch.device) -> None:
    """Raise TypeError or ValueError unless all are floating-point tensors on the device of the pattern."""
    for name, operand in operands.items():
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name}: expected a tensor. Got {type(operand).__name__}.")
        if not operand.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating-point tensor. Got {operand.dtype}.")
        if operand.device != device:
            raise ValueError(f"{name}: expected it on {device}, where the pattern is. Got {operand.device}.")


def in_one_dtype(operands: dict[str, Tensor]) -> dict[str, Tensor]:
    """The operands, in autocast's type where autocast is on.

    Args:
        operands: by name, "x" among them, all on one device.

    Raises:
        TypeError: if one differs from "x" in dtype.
    """
    device = operands["x"].device.type
    if autocasts(device):
        dtype = torch.get_autocast_dtype(device)
        # Autocast leaves float64 as it is.
        operands = {name: t if t.dtype == torch.float64 else t.to(dtype) for name, t in operands.items()}
    for name, operand in operands.items():
        if operand.dtype != operands["x"].dtype:
            raise TypeError(f"{name}: expected {operands['x'].dtype}, the dtype of x. Got {operand.dtype}.")
    return operands
