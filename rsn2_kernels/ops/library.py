"""Registration with torch, and the checks that every operator makes before a kernel sees its operands."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rsn2_kernels.pattern import SparsePattern

LIBRARY = torch.library.Library("rsn2", "DEF")


def register(schema: str, implementation: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Define ``rsn2::<schema>`` for all devices, with its shape function; for gradients see `gradients.py`."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rsn2::{name}", fake, lib=LIBRARY)


def checked_operands(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: SparsePattern
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands, in autocast's type where autocast is on (as torch's own linear does).

    Raises:
        TypeError, ValueError: if ``values`` or ``bias`` does not fit ``pattern``, or an operand differs from ``x`` in
            dtype or from ``pattern`` in device.
        NotImplementedError: under forward-mode differentiation.
    """
    if not isinstance(pattern, SparsePattern):
        raise TypeError(f"pattern: expected a SparsePattern. Got {type(pattern).__name__}.")
    operands = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    for name, operand in operands.items():
        if not isinstance(operand, Tensor):
            raise TypeError(f"{name}: expected a tensor. Got {type(operand).__name__}.")
        if not operand.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating-point tensor. Got {operand.dtype}.")
        if operand.device != pattern.device:
            raise ValueError(f"{name}: expected it on {pattern.device}, where the pattern is. Got {operand.device}.")
    if tuple(values.shape) != (pattern.nnz,):
        raise ValueError(f"values: expected shape ({pattern.nnz},), one per owned weight. Got {tuple(values.shape)}.")
    if bias is not None and tuple(bias.shape) != (pattern.shape[0],):
        raise ValueError(f"bias: expected shape ({pattern.shape[0]},), one per row. Got {tuple(bias.shape)}.")

    # Without this check forward mode would return zeros: the operators are registered for reverse mode alone.
    if forward_ad._current_level >= 0:
        for name, operand in operands.items():
            if forward_ad.unpack_dual(operand).tangent is not None:
                raise NotImplementedError(
                    f"{name}: forward-mode derivatives are not supported; use reverse mode (torch.autograd)."
                )

    device = pattern.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        # Autocast leaves float64 as it is.
        operands = {name: t if t.dtype == torch.float64 else t.to(dtype) for name, t in operands.items()}
        x, values, bias = operands["x"], operands["values"], operands.get("bias")
    for name, operand in operands.items():
        if operand.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype}, the dtype of x. Got {operand.dtype}.")
    return x, values, bias
