"""Which positions a task takes, given how much each matters: so many of each layer, column or network, or whole blocks.

`selection.py` knows tensors and counts; here is what a density means in a layer that others have taken from.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rsn2.blocks import Granularity, Grid
from rsn2.nn.layer import MultitaskLayer
from rsn2.saliency import AllocationError
from rsn2.selection import largest, largest_by_column, nearest

Scope = Literal["layer", "column", "global"]

Layers = Mapping[str, MultitaskLayer]


def choose(
    layers: Layers,
    saliencies: Mapping[str, Tensor],
    density: float,
    scope: Scope,
    granularity: Granularity | None,
) -> dict[str, Tensor]:
    """The task's mask ``[rows, cols]`` in each of ``layers``, those that it gets weights of its own in.

    Raises:
        AllocationError: if fewer positions are free than rounding explains.
    """
    free = {name: layer.owners.free() for name, layer in layers.items()}
    if granularity is not None:
        return _choose_blocks(layers, saliencies, free, density, scope, granularity)
    if scope == "layer" or not layers:
        return {
            name: largest(saliencies[name], free[name], _count(density, {name: layer}, f"layer {name!r}"))
            for name, layer in layers.items()
        }
    if scope == "column":
        return {name: _by_column(name, layer, saliencies[name], free[name], density) for name, layer in layers.items()}
    device = next(iter(saliencies.values())).device
    flat = torch.cat([saliency.flatten().to(device, torch.float32) for saliency in saliencies.values()])
    flat_free = torch.cat([mask.flatten().to(device) for mask in free.values()])
    chosen = largest(flat, flat_free, _count(density, layers, "its layers"))
    parts = chosen.split([mask.numel() for mask in free.values()])
    return {name: part.view(free[name].shape).to(free[name].device) for name, part in zip(free, parts, strict=True)}


def _by_column(name: str, layer: MultitaskLayer, saliency: Tensor, free: Tensor, density: float) -> Tensor:
    """As many of each column as `_quotas` says; what columns that are full cannot give comes from all others."""
    count = _count(density, {name: layer}, f"layer {name!r}")
    quotas = _quotas(density, layer)
    chosen = largest_by_column(saliency, free, quotas)
    missing = min(count, int(quotas.sum())) - int(chosen.count_nonzero())
    return chosen | largest(saliency, free & ~chosen, missing) if missing > 0 else chosen


def _choose_blocks(
    layers: Layers,
    saliencies: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    density: float,
    scope: Scope,
    granularity: Granularity,
) -> dict[str, Tensor]:
    """The task's mask in every layer, in whole blocks: the free positions of each that is chosen."""
    grids = {name: Grid.of(layer, granularity) for name, layer in layers.items()}
    masks = {}
    for names in [list(layers)] if scope == "global" and layers else [[name] for name in layers]:
        ranked = {name: layers[name] for name in names}
        where = "its layers" if scope == "global" else f"layer {names[0]!r}"
        count = _count(density, ranked, where, max(grids[name].largest for name in names))
        device = free[names[0]].device
        scores = [grids[name].sums(saliencies[name].double().masked_fill(~free[name], 0)).to(device) for name in names]
        sizes = [grids[name].sums(free[name].long()).to(device) for name in names]
        chosen = nearest(torch.cat(scores), torch.cat(sizes), count)
        for name, part in zip(names, chosen.split([len(part) for part in sizes]), strict=True):
            masks[name] = grids[name].spread(part.to(free[name].device)) & free[name]
    return masks


def _count(density: float, layers: Layers, where: str, largest_block: int = 1) -> int:
    """round(density * positions) over ``layers``, less what the roundings of earlier tasks took from the last one.

    Blocks are assumed to be as large for the earlier tasks as for this one.
    """
    positions = sum(layer.owners.numel for layer in layers.values())
    left = sum(layer.owners.numel - sum(map(layer.owners.count, layer.owners.tasks)) for layer in layers.values())
    wanted = round(density * positions)
    # In each layer an earlier task may have taken more than its share: up to half a position by rounding the count, and
    # up to half a block, whole positions, by rounding to blocks. This one's count may be half a position too large.
    roundings = max(len(layer.densities) for layer in layers.values()) * len(layers)
    if wanted - left > roundings * (largest_block // 2 + 0.5) + 0.5:
        raise AllocationError(
            f"density: {density} of {where} is {wanted} positions, and {left} of {positions} are free "
            f"(density {left / positions:.4g})."
        )
    return min(wanted, left)


def _quotas(density: float, layer: MultitaskLayer) -> Tensor:
    """How many of each column a task takes, int64 ``[cols]``; in sum round(density * positions), or one off.

    Column c of all tasks up to a density s holds floor(rows * s + (c + 0.5) / columns) positions. Floors that are
    spread evenly add to the rounded sum; and since a task takes the difference of two such numbers, tasks whose
    densities add to 1 fill every column, without a gap.
    """
    rows, cols = layer.owners.shape
    spread = (torch.arange(cols, dtype=torch.float64, device="cpu") + 0.5) / cols
    spent = sum(layer.densities.values())
    # Sums of densities such as 5 x 0.2 are off by the rounding of binary fractions.
    upto = [(round(rows * share, 6) + spread).floor().long() for share in (spent, spent + density)]
    return upto[1] - upto[0]
