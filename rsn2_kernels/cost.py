"""Predicted seconds of a call by each backend that could run it: of the CPU by cpu_cost.py, of a GPU by gpu_cost.py.

They are those of one product: the forward one, or of a call that trains the mean one of its three.
"""

import torch

from rsn2_kernels import cpu_cost, gpu_cost, plans
from rsn2_kernels.backends import registry
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry


def predicted(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    geometry: ConvGeometry | None = None,
    trains: bool = False,
) -> dict[str, float]:
    """Backend or mixture -> seconds; 0 where there is nothing to choose from.

    Args:
        op: one of `registry.OPERATORS`.
        weight: a pattern, or a group for "grouped_linear".
        batch: columns that the weight is multiplied with, those of all tasks together.
        dtype: of the operands.
        device: where the call would run.
        geometry: of a convolution.
        trains: whether gradients are recorded.
    """
    if device.type == "cuda":
        return _on_gpu(op, weight, batch, dtype, device, geometry, trains)
    if device.type == "cpu":
        return _on_cpu(op, weight, batch, dtype, trains)
    return {"dense": 0.0}


def cheapest(seconds: dict[str, float]) -> str:
    """The name of the lowest cost, the first of equals."""
    # Plain comparisons: torch.compile traces this with a batch that may be symbolic.
    best = next(iter(seconds))
    for name, cost in seconds.items():
        if cost < seconds[best]:
            best = name
    return best


def _on_cpu(op: str, weight: CsrIndex, batch: int, dtype: torch.dtype, trains: bool) -> dict[str, float]:
    # A grouped product is one product per task.
    op = op.removeprefix("grouped_")
    forward = cpu_cost.seconds(op, weight, batch, dtype, "forward")
    if not trains or len(forward) == 1:
        return forward
    of_products = [forward, *(cpu_cost.seconds(op, weight, batch, dtype, product) for product in ("dx", "dvalues"))]
    return {
        name: sum(costs[backend] for costs, backend in zip(of_products, backends, strict=True)) / len(backends)
        for name, backends in registry.ON_CPU.items()
    }


def _on_gpu(
    op: str,
    weight: CsrIndex,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    geometry: ConvGeometry | None,
    trains: bool,
) -> dict[str, float]:
    """The first call for a weight counts what its windows would visit, and waits for the device."""
    able = [name for name in ("cuda", "triton") if registry.why_not(name, device, dtype, op) is None]
    if not able:
        return {"dense": 0.0}
    visits = plans.visits(weight, geometry)
    tasks = weight.stacks
    each = -(-batch // tasks)
    grouped = op == "grouped_linear"
    # Grouped, the vendor's library runs one product per task, and the rows are gathered and scattered for each.
    costs = {"dense": gpu_cost.dense_seconds(visits, each, dtype, launches=5 * tasks if grouped else 2)}
    if "cuda" in able:
        forward = gpu_cost.compact_seconds(weight, batch, dtype, grouped)
        costs["cuda"] = (forward + 2 * costs["dense"]) / 3 if trains else forward
    if "triton" in able:
        visiting = gpu_cost.visiting_seconds(visits, each, dtype)
        sampling = gpu_cost.sampling_seconds(visits, each, dtype)
        costs["triton"] = (2 * visiting + sampling) / 3 if trains else visiting
    return costs
