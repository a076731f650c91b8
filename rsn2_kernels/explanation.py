"""`explain`: which backend a call without a name would run, in numbers and in a sentence."""

from dataclasses import dataclass

import torch

from rsn2_kernels import cost, cpu_cost
from rsn2_kernels.backends import registry
from rsn2_kernels.geometry import Pair, check_filters, checked_geometry
from rsn2_kernels.pattern import SparsePattern


@dataclass(frozen=True)
class Explanation:
    """The backend that `backend=None` runs, and how it was chosen.

    Attributes:
        backend: name of the choice; "cpu/dense/dense" and the like where forward, dx and dvalues have different ones.
        seconds: predicted seconds of one forward product, or of a third of a training step, per backend that could run
            it; 0 where there is nothing to choose from, and so nothing was predicted.
        unavailable: why each other backend could not.
        reason: the choice in one sentence.
    """

    backend: str
    seconds: dict[str, float]
    unavailable: dict[str, str]
    reason: str

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}"]
        if len(self.seconds) > 1:
            lines += [f"  {name:10} {1e3 * seconds:10.4f} ms predicted" for name, seconds in self.seconds.items()]
        lines += [f"  {name:10} not used: {why}" for name, why in self.unavailable.items()]
        return "\n".join(lines)


def explain(
    op: str,
    pattern: SparsePattern,
    batch: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    kernel_size: int | Pair = 1,
    groups: int = 1,
    training: bool = False,
) -> Explanation:
    """Say which backend `backend=None` would run, what each is predicted to cost, and why.

    Args:
        op: "linear", "conv2d" or "grouped_linear".
        pattern: of the weight; for grouped_linear that of one task, whose rows are then the batch.
        batch: columns that the weight is multiplied with: rows of x, or for conv2d N * OH * OW.
        dtype: of the operands.
        device: where the call would run.
        kernel_size, groups: of a conv2d; what a GPU would visit depends on them.
        training: whether gradients are recorded; the seconds are then those of a third of a training step.

    Raises:
        ValueError: if ``op`` is not an operator, ``batch`` is negative, ``dtype`` is not a floating-point one, or the
            pattern is not that of a convolution with this ``kernel_size`` and ``groups``.
    """
    if op not in registry.OPERATORS:
        raise ValueError(f"op: expected one of {registry.OPERATORS}. Got {op!r}.")
    if batch < 0:
        raise ValueError(f"batch: expected at least 0. Got {batch}.")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype. Got {dtype}.")
    geometry = checked_geometry(kernel_size, 1, 0, 1, groups) if op == "conv2d" else None
    if geometry is not None:
        check_filters(pattern.shape, geometry)
    where = torch.device(device)
    predicted = cost.predicted(op, pattern, batch, dtype, where, geometry, training)
    best = cost.cheapest(predicted)
    known = registry.available_backends()
    seconds = {name: each for name, each in predicted.items() if name in known or name == best}
    unavailable = {name: why for name in known if (why := registry.why_not(name, where, dtype, op)) is not None}
    unavailable["reference"] = "it is the definition the others are tested against; ask for it by name"
    others = {name: each / max(seconds[best], 1e-9) for name, each in seconds.items() if name != best}
    against = ", ".join(f"{ratio:.1f}x the time on {name}" for name, ratio in others.items())
    reason = f"predicted fastest at density {pattern.density:.3f} and batch {batch} ({against})"
    if where.type == "cpu":
        reason += f", by costs {cpu_cost.COSTS.origin}"
    if not others:
        reason = f"the only backend for {dtype} on {where.type}"
    return Explanation(best, seconds, unavailable, reason)
