"""Registration with torch, and the checks that every operator makes before a kernel sees its operands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rsn2_kernels.backends import ACTIVATIONS
from rsn2_kernels.pattern import SparsePattern

LIBRARY = torch.library.Library("rsn2", "DEF")


def register(schema: str, implementation: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Define ``rsn2::<schema>`` for all devices, with its shape function; for gradients see `gradients.py`."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"rsn2::{name}", fake, lib=LIBRARY)


def fused_activation(activation: str | None, operands: tuple[Tensor | None, ...]) -> tuple[str, str]:
    """What an operator applies itself, and what is left to apply behind it: GELU's gradient asks for what came before.

    Raises:
        ValueError: if ``activation`` is neither None nor one of ACTIVATIONS.
    """
    name = "none" if activation is None else activation
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


def _without_autocast(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Operands have their types when an operator gets them: torch's own operators inside must not change them again."""

    def run(x: Tensor, *rest: Any) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return implementation(x, *rest)
        with torch.autocast(x.device.type, enabled=False):
            return implementation(x, *rest)

    return run


def checked_operands(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands, in autocast's type where autocast is on (as torch's own linear does).

    Raises:
        TypeError, ValueError: if ``values`` or ``bias`` does not fit ``pattern``, or an operand differs from ``x`` in
            dtype or from ``pattern`` in device.
        NotImplementedError: under forward-mode differentiation.
    """
    check_pattern("pattern", pattern)
    operands = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    check_floating(operands, pattern.device)
    check_shape("values", values, (pattern.nnz,), "one per owned weight")
    if bias is not None:
        check_shape("bias", bias, (pattern.shape[0],), "one per row")
    operands = in_one_dtype(operands)
    return operands["x"], operands["values"], operands.get("bias")


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
        NotImplementedError: under forward-mode differentiation.
    """
    # Without this check forward mode would return zeros: the operators are registered for reverse mode alone.
    if forward_ad._current_level >= 0:
        for name, operand in operands.items():
            if forward_ad.unpack_dual(operand).tangent is not None:
                raise NotImplementedError(
                    f"{name}: forward-mode derivatives are not supported; use reverse mode (torch.autograd)."
                )

    device = operands["x"].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        # Autocast leaves float64 as it is.
        operands = {name: t if t.dtype == torch.float64 else t.to(dtype) for name, t in operands.items()}
    for name, operand in operands.items():
        if operand.dtype != operands["x"].dtype:
            raise TypeError(f"{name}: expected {operands['x'].dtype}, the dtype of x. Got {operand.dtype}.")
    return operands
