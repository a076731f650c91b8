"""RSN2's weight selection: saliency of the free weights, an exact number of them per task, one claim.

Algorithm 1 of *The Multiple Subnetwork Hypothesis*, with the count made exact: of the positions that no task owns, a
task of density d takes the round(d * positions) with the largest saliency, ties going to the lower position. In blocks
of several positions it takes the blocks with the largest sums, and the number that comes nearest.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, get_args

from torch import Tensor, nn

from rsn2.blocks import Granularity, check_granularity
from rsn2.choice import Scope, choose
from rsn2.data import Loss
from rsn2.new_task import add_copies, check_new, share_slots
from rsn2.nn.layer import MultitaskLayer
from rsn2.nn.names import SUM_TOLERANCE, check_task_name
from rsn2.saliency import DATA_FREE, AllocationError, Batches, Criterion, Start, fan_in_scale, saliencies, told
from rsn2.sharing import Share, shared_layers, used_layers
from rsn2.tasks import alone_with, check_converted, multitask_layers
from rsn2.warm_up import WarmStart

__all__ = ["AllocationError", "Criterion", "Rescale", "Scope", "allocate"]

Rescale = Literal["fan_in"]


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
    layers: Sequence[str] | None = None,
    share: Share | None = None,
    flip: bool = False,
    start: WarmStart | None = None,
) -> dict[str, int]:
    """Give a new task its own weights in the multitask layers it runs through, and its copies of per-task modules.

    The saliency of a weight comes from the loss of the task through the candidates only: the free weights, all others
    being 0. The network runs in the mode it is in; call ``model.eval()`` first to keep dropout out of the choice. Other
    threads that want the network wait meanwhile.

    Args:
        model: a converted network.
        task: a new name of letters, digits, ``_`` and ``-``.
        density: share of all positions that the task gets, in (0, 1]; over all tasks at most 1 in sum. With five tasks
            of 0.2 the last one gets what rounding leaves.
        loss: ``loss(model(x), target) -> scalar``; not used by "magnitude" and "random".
        batches: ``(x, target)`` pairs, at least one; the gradients of all of them are added.
        criterion: saliency of a weight w with gradient g: |g|, |g w|, |w|, or uniform noise from ``seed``.
        scope: keep round(density * positions) in each layer; as many in each of its columns, so that no task takes an
            input from the others; or over all of the task's layers together.
        rescale: "fan_in" multiplies each row's values once by sqrt(columns / owned in the row), so that a sparse row
            starts with the output variance of the dense one; in the network that is differentiated, by sqrt(columns /
            free in the row), so that what earlier tasks left carries a signal of that size too. None is the paper's
            form.
        granularity: rows and columns of the blocks that are claimed as wholes, by the sum of the saliency over their
            free positions; of a convolution, filters of a group and input channels of one kernel position. Blocks are
            taken by falling sum until one more would take the number of weights further from round(density *
            positions). A block ends where the layer or group does. None, like (1, 1), is the paper's form: single
            weights, and exactly that number.
        seed: of the "random" criterion, and of the signs of ``flip``.
        layers: names or patterns of the multitask layers that the task runs through (``["image.*", "shared"]``); None
            means all. In the others it gets nothing and spends no density, so that other tasks can have them wholly,
            and they do not run as this task. Per-task modules have a part for it all the same.
        share: task -> names or patterns of the task's layers (``{"age": ["conv*"]}``) in which it gets no weights of
            its own but the slot of that task: the same values and biases. Such a slot costs no density. From now on it
            is trained only by :func:`rsn2.fit_together` with all of its tasks, and stays as it is in any other fit.
        flip: draw a sign for each row, anew for each task, and start from the free weights and the bias times it. Units
            that are dead for the tasks so far, whose weights are what is left, can then live. False is the paper's
            form.
        start: start from weights that :func:`rsn2.warm_up` trained for this task, instead of the network's own.

    Returns:
        Name of each of the task's layers -> number of weights that it owns there, shared ones included. A layer where
        it owns nothing, or almost only weights without saliency (units that are dead on all of its data), is named in
        a warning.

    Raises:
        TaskError: if the task is allocated already, a per-task module has no part for it, a layer is finalized, a task
            to share with has nothing allocated, or the network runs a layer that ``layers`` leaves out.
        AllocationError: if the density is out of range or more than what is left, ``batches`` is empty, a gradient is
            not finite, or a layer takes no part in the loss.
        ValueError: if another argument is not one of what is listed here. Nothing has changed after any error.
    """
    check_task_name(task)
    check_converted(model)
    _check_options(criterion, scope, rescale, granularity, flip, start)
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise AllocationError(f"density: expected a number in (0, 1]. Got {density!r}.")
    if criterion not in DATA_FREE and (loss is None or batches is None):
        raise ValueError(f"loss, batches: the {criterion!r} criterion needs both.")
    blocks = None if granularity is None or tuple(granularity) == (1, 1) else granularity
    with alone_with(model), ExitStack() as undo:
        used = used_layers(multitask_layers(model), layers)
        holders = shared_layers(multitask_layers(model), used, task, share)
        own = {name: layer for name, layer in used.items() if name not in holders}
        check_new(model, task, own)
        _check_room(own, density)
        starts = {name: Start.of(layer) for name, layer in own.items()}
        if flip:
            starts = {name: each.flipped(seed, task, name) for name, each in starts.items()}
        if start is not None:
            starts = start.starts(own, task)
        add_copies(model, task, undo)
        if start is not None:
            start.fill_copies(model, task, undo)
        share_slots(used, task, holders, undo)
        found = saliencies(model, own, starts, task, loss, batches, criterion, seed, scaled=rescale is not None)
        masks = choose(own, found, density, scope, blocks)
        for name, layer in own.items():
            scale = fan_in_scale(masks[name]) if rescale else None
            layer.add_task(task, masks[name], density, scale, initial=starts[name].weight, bias=starts[name].bias)
            undo.callback(layer.remove_task, task)
        for warning in _warnings(task, masks, found, blocks):
            warnings.warn(warning, stacklevel=2)  # may be an error, and that is undone too
        undo.pop_all()
        return {name: layer.owners.count(layer.slot(task)) for name, layer in used.items()}


def _warnings(
    task: str, masks: Mapping[str, Tensor], found: Mapping[str, Tensor], blocks: Granularity | None
) -> list[str]:
    """What to say of the layers in which the task, with these masks and saliencies, will not learn."""
    chosen = told({name: mask.count_nonzero() for name, mask in masks.items()})
    telling = told({name: (mask & (found[name] > 0)).count_nonzero() for name, mask in masks.items()})
    said = []
    if empty := [name for name in masks if not chosen[name]]:
        fix = "" if blocks is None else f" Blocks smaller than {blocks} may fit its share."
        said.append(f"task {task!r} owns no weight in {empty}: these layers put out its bias alone.{fix}")
    # Less than a tenth of what was chosen has any saliency: the rest was chosen by position alone.
    if silent := [name for name in masks if 10 * telling[name] < chosen[name]]:
        said.append(
            f"task {task!r} owns almost only weights of saliency 0 in {silent}: the free weights carry no signal of "
            f"its data there, and it will hardly learn. Leave more weights free, allocate it earlier, or with "
            f"flip=True."
        )
    return said


def _check_options(
    criterion: str, scope: str, rescale: str | None, granularity: object, flip: object, start: object
) -> None:
    for name, value, choices in (
        ("criterion", criterion, get_args(Criterion)),
        ("scope", scope, get_args(Scope)),
        ("rescale", rescale, (None, *get_args(Rescale))),
        ("flip", flip, (False, True)),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {choices}. Got {value!r}.")
    check_granularity(granularity)
    if scope == "column" and granularity is not None:
        raise ValueError(f"granularity: the scope 'column' claims single weights. Got {granularity!r}.")
    if start is not None and not isinstance(start, WarmStart):
        raise ValueError(f"start: expected what rsn2.warm_up returned, or None. Got {type(start).__name__}.")
    if start is not None and flip:
        raise ValueError("flip: the weights of start are trained with their signs; give flip to rsn2.warm_up.")


def _check_room(layers: Mapping[str, MultitaskLayer], density: float) -> None:
    for name, layer in layers.items():
        spent = sum(layer.densities.values())
        if spent + density > 1 + SUM_TOLERANCE:
            raise AllocationError(
                f"density: {density} is more than the {max(0.0, 1 - spent):.4g} that {list(layer.slots)} leave "
                f"in layer {name!r}."
            )
