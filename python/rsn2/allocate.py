"""RSN2's weight selection: saliency of the free weights, an exact number of them per task, one claim.

Algorithm 1 of *The Multiple Subnetwork Hypothesis*, with the count made exact: of the positions that no task owns, a
task of density d takes the round(d * positions) with the largest saliency, ties going to the lower position. In blocks
of several positions it takes the blocks with the largest sums, and the number that comes nearest.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rsn2.blocks import Granularity, Grid, check_granularity
from rsn2.data import checked_batch, device_of, to_device
from rsn2.nn.layer import MultitaskLayer, TaskError
from rsn2.nn.names import SUM_TOLERANCE, check_task_name
from rsn2.selection import largest, nearest
from rsn2.tasks import activated, check_converted, multitask_layers, per_task_modules

Criterion = Literal["gradient", "gradient_x_weight", "magnitude", "random"]
Scope = Literal["layer", "global"]
Rescale = Literal["fan_in"]
Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Any, Any]]

_DATA_FREE = ("magnitude", "random")


class AllocationError(ValueError):
    """A task cannot have the weights it asks for."""


def allocate(
    model: nn.Module,
    task: str,
    density: float,
    loss: Loss | None = None,
    batches: Batches | None = None,
    *,
    criterion: Criterion = "gradient",
    scope: Scope = "layer",
    rescale: Rescale | None = None,
    granularity: Granularity | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Give a new task its own weights in every multitask layer, and its copies of the per-task modules.

    The saliency of a weight comes from the loss of the task through the candidates only: the free weights, all others
    being 0. The network runs in the mode it is in; call ``model.eval()`` first to keep dropout out of the choice.

    Args:
        model: a converted network.
        task: a new name of letters, digits, ``_`` and ``-``.
        density: share of all positions that the task gets, in (0, 1]; over all tasks at most 1 in sum. With five tasks
            of 0.2 the last one gets what rounding leaves.
        loss: ``loss(model(x), target) -> scalar``; not used by "magnitude" and "random".
        batches: ``(x, target)`` pairs, at least one; the gradients of all of them are added.
        criterion: saliency of a weight w with gradient g: |g|, |g w|, |w|, or uniform noise from ``seed``.
        scope: keep round(density * positions) in each layer, or over all layers together.
        rescale: "fan_in" multiplies each row's values once by sqrt(columns / owned in the row), so that a sparse row
            starts with the output variance of the dense one; None is the paper's form.
        granularity: rows and columns of the blocks that are claimed as wholes, by the sum of the saliency over their
            free positions; of a convolution, filters of a group and input channels of one kernel position. Blocks are
            taken by falling sum until one more would take the number of weights further from round(density *
            positions). A block ends where the layer or group does. None, like (1, 1), is the paper's form: single
            weights, and exactly that number.
        seed: of the "random" criterion.

    Returns:
        Layer name -> number of weights that the task owns there. A layer where the task owns nothing, or almost only
        weights without saliency (units that are dead on all of its data), is named in a warning.

    Raises:
        TaskError: if the task is allocated already, a per-task module has no part for it, or a layer is finalized.
        AllocationError: if the density is out of range or more than what is left, ``batches`` is empty, a gradient is
            not finite, or a layer takes no part in the loss.
        ValueError: if another argument is not one of what is listed here. Nothing has changed after any error.
    """
    layers = multitask_layers(model)
    _check_arguments(model, layers, task, density, loss, batches, criterion, scope, rescale, granularity)
    blocks = None if granularity is None or tuple(granularity) == (1, 1) else granularity
    with ExitStack() as undo:
        _add_copies(model, task, undo)
        saliencies = _saliencies(model, layers, task, loss, batches, criterion, seed)
        masks = _select(layers, saliencies, density, scope, blocks)
        undo.pop_all()
    chosen = _told({name: mask.count_nonzero() for name, mask in masks.items()})
    telling = _told({name: (mask & (saliencies[name] > 0)).count_nonzero() for name, mask in masks.items()})
    if empty := [name for name in masks if not chosen[name]]:
        fix = "" if blocks is None else f" Blocks smaller than {blocks} may fit its share."
        warnings.warn(
            f"task {task!r} owns no weight in {empty}: these layers put out its bias alone.{fix}", stacklevel=2
        )
    # Less than a tenth of what was chosen has any saliency: the rest was chosen by position alone.
    if silent := [name for name in masks if 10 * telling[name] < chosen[name]]:
        warnings.warn(
            f"task {task!r} owns almost only weights of saliency 0 in {silent}: the free weights carry no signal of "
            f"its data there, and it will hardly learn. Leave more weights free, or allocate it earlier.",
            stacklevel=2,
        )
    for name, layer in layers.items():
        layer.add_task(task, masks[name], density, _fan_in_scale(masks[name]) if rescale else None)
    return {name: layer.owners.count(layer.slot(task)) for name, layer in layers.items()}


def _check_arguments(
    model: nn.Module,
    layers: dict[str, MultitaskLayer],
    task: str,
    density: float,
    loss: Loss | None,
    batches: Batches | None,
    criterion: str,
    scope: str,
    rescale: str | None,
    granularity: object,
) -> None:
    check_task_name(task)
    check_converted(model)
    for name, value, choices in (
        ("criterion", criterion, get_args(Criterion)),
        ("scope", scope, get_args(Scope)),
        ("rescale", rescale, (None, *get_args(Rescale))),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {choices}. Got {value!r}.")
    check_granularity(granularity)
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise AllocationError(f"density: expected a number in (0, 1]. Got {density!r}.")
    if criterion not in _DATA_FREE and (loss is None or batches is None):
        raise ValueError(f"loss, batches: the {criterion!r} criterion needs both.")
    for name, layer in layers.items():
        if task in layer.slots:
            raise TaskError(f"task {task!r} is allocated already, in layer {name!r}.")
        if layer.pool is None:
            raise TaskError(f"task {task!r} cannot be added: layer {name!r} is finalized, its free weights are gone.")
        spent = sum(layer.densities.values())
        if spent + density > 1 + SUM_TOLERANCE:
            raise AllocationError(
                f"density: {density} is more than the {max(0.0, 1 - spent):.4g} that {list(layer.slots)} leave "
                f"in layer {name!r}."
            )
    for name, module in per_task_modules(model).items():
        if task not in module.tasks and module.template is None:
            raise TaskError(f"task {task!r} has no module in {name!r}, which has no template to copy.")


def _add_copies(model: nn.Module, task: str, undo: ExitStack) -> None:
    """Copy the templates for the task; ``undo`` takes the copies back."""
    for module in per_task_modules(model).values():
        if task not in module.tasks:
            module.add_task(task)
            undo.callback(module.remove_task, task)


@contextmanager
def _without_traces(model: nn.Module, task: str) -> Iterator[None]:
    """Put the running statistics of the task's own modules, and the random state, back behind the block."""
    buffers = [buffer for module in per_task_modules(model).values() for buffer in module.of(task).buffers()]
    before = [buffer.clone() for buffer in buffers]
    device = device_of(model)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _saliencies(
    model: nn.Module,
    layers: dict[str, MultitaskLayer],
    task: str,
    loss: Loss | None,
    batches: Batches | None,
    criterion: Criterion,
    seed: int,
) -> dict[str, Tensor]:
    """Non-negative saliency ``[rows, cols]`` of every weight, by layer."""
    pools = {name: _pool(layer).flatten(1) for name, layer in layers.items()}
    if criterion == "magnitude":
        return {name: pool.abs() for name, pool in pools.items()}
    if criterion == "random":
        # Drawn on the CPU, so that every device chooses the same weights.
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(pool.shape, generator=generator).to(pool.device) for name, pool in pools.items()}
    assert loss is not None and batches is not None
    gradients = _gradients(model, layers, task, loss, batches)
    if criterion == "gradient_x_weight":
        return {name: (gradient * pools[name]).abs() for name, gradient in gradients.items()}
    return {name: gradient.abs() for name, gradient in gradients.items()}


def _gradients(
    model: nn.Module, layers: dict[str, MultitaskLayer], task: str, loss: Loss, batches: Batches
) -> dict[str, Tensor]:
    """Gradient of the loss for every candidate weight, ``[rows, cols]`` by layer, summed over the batches."""
    total: dict[str, Tensor] = {}
    device = device_of(model)
    with (
        activated(model, task),
        _without_traces(model, task),
        _through_candidates(layers) as candidates,
        torch.enable_grad(),
    ):
        for number, batch in enumerate(batches):
            x, target = to_device(checked_batch(batch, f"batches[{number}]"), device)
            gradients = torch.autograd.grad(loss(model(x), target), list(candidates.values()), allow_unused=True)
            finite = {}
            for name, gradient in zip(candidates, gradients, strict=True):
                if gradient is None:
                    raise AllocationError(f"layer {name!r} takes no part in the loss of batch {number}.")
                finite[name] = torch.isfinite(gradient).all()
                accumulated = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
                total[name] = total[name] + accumulated if name in total else accumulated
            if wrong := [name for name, all_finite in _told(finite).items() if not all_finite]:
                raise AllocationError(
                    f"layer {wrong[0]!r}: the gradient of batch {number} has NaN or infinite entries."
                )
    if not total:
        raise AllocationError("batches: expected at least one (x, target) pair. Got none.")
    return total


@contextmanager
def _through_candidates(layers: dict[str, MultitaskLayer]) -> Iterator[dict[str, Tensor]]:
    """Let every layer run densely on its free weights, and give these weights as leaves to differentiate."""
    candidates = {}
    try:
        for name, layer in layers.items():
            pool = _pool(layer)
            candidates[name] = (pool * layer.owners.free().view(pool.shape)).requires_grad_()
            layer._candidates = candidates[name]
        yield candidates
    finally:
        for layer in layers.values():
            layer._candidates = None


def _select(
    layers: dict[str, MultitaskLayer],
    saliencies: dict[str, Tensor],
    density: float,
    scope: Scope,
    granularity: Granularity | None,
) -> dict[str, Tensor]:
    """The task's mask in every layer."""
    free = {name: layer.owners.free() for name, layer in layers.items()}
    if granularity is not None:
        return _select_blocks(layers, saliencies, free, density, scope, granularity)
    if scope == "layer" or not layers:
        return {
            name: largest(saliencies[name], free[name], _count(density, {name: layer}, f"layer {name!r}"))
            for name, layer in layers.items()
        }
    device = next(iter(saliencies.values())).device
    flat = torch.cat([saliency.flatten().to(device, torch.float32) for saliency in saliencies.values()])
    flat_free = torch.cat([mask.flatten().to(device) for mask in free.values()])
    chosen = largest(flat, flat_free, _count(density, layers, "the network"))
    parts = chosen.split([mask.numel() for mask in free.values()])
    return {name: part.view(free[name].shape).to(free[name].device) for name, part in zip(free, parts, strict=True)}


def _select_blocks(
    layers: dict[str, MultitaskLayer],
    saliencies: dict[str, Tensor],
    free: dict[str, Tensor],
    density: float,
    scope: Scope,
    granularity: Granularity,
) -> dict[str, Tensor]:
    """The task's mask in every layer, in whole blocks: the free positions of each that is chosen."""
    grids = {name: Grid.of(layer, granularity) for name, layer in layers.items()}
    masks = {}
    for names in [list(layers)] if scope == "global" and layers else [[name] for name in layers]:
        ranked = {name: layers[name] for name in names}
        where = "the network" if scope == "global" else f"layer {names[0]!r}"
        count = _count(density, ranked, where, max(grids[name].largest for name in names))
        device = free[names[0]].device
        scores = [grids[name].sums(saliencies[name].double().masked_fill(~free[name], 0)).to(device) for name in names]
        sizes = [grids[name].sums(free[name].long()).to(device) for name in names]
        chosen = nearest(torch.cat(scores), torch.cat(sizes), count)
        for name, part in zip(names, chosen.split([len(part) for part in sizes]), strict=True):
            masks[name] = grids[name].spread(part.to(free[name].device)) & free[name]
    return masks


def _count(density: float, layers: dict[str, MultitaskLayer], where: str, largest_block: int = 1) -> int:
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


def _told(scalars: dict[str, Tensor]) -> dict[str, int]:
    """What integer or bool scalars are, which may be on several devices: the host waits once for all of them."""
    if not scalars:
        return {}
    device = next(iter(scalars.values())).device
    values = torch.stack([scalar.to(device) for scalar in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))


def _fan_in_scale(mask: Tensor) -> Tensor:
    """sqrt(columns / owned) for each row, 1 where a row owns nothing."""
    owned = mask.sum(1)
    return torch.where(owned > 0, (mask.shape[1] / owned.clamp(min=1).double()).sqrt(), 1.0)


def _pool(layer: MultitaskLayer) -> Tensor:
    assert layer.pool is not None, "checked before any work"
    return layer.pool.detach()
