"""How much each free weight matters to a task: the criteria of `rsn2.allocate`, and the network they run.

The network is the dense one with its free weights alone: what other tasks own counts as 0.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsn2.buffers import Snapshot
from rsn2.data import Loss, checked_batch, device_of, to_device
from rsn2.nn.layer import Candidates, MultitaskLayer
from rsn2.tasks import activated

Criterion = Literal["gradient", "gradient_x_weight", "magnitude", "random"]
Batches = Iterable[tuple[Any, Any]]

DATA_FREE = ("magnitude", "random")
"""Criteria that need neither loss nor batches."""


class AllocationError(ValueError):
    """A task cannot have the weights it asks for."""


@dataclass(frozen=True)
class Start:
    """What a new task starts from in one layer, of all positions: its dense weight and its bias, before any scaling."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: MultitaskLayer) -> "Start":
        """The pool and the initial bias."""
        assert layer.pool is not None, "checked before any work"
        return cls(layer.pool.detach(), layer.initial_bias)

    def flipped(self, seed: int, task: str, layer: str) -> "Start":
        """Each row, its bias with it, times a sign that depends on the three arguments alone."""
        digest = hashlib.sha256(f"{seed}, {task}, {layer}".encode()).digest()
        # Drawn on the CPU, so that every device draws the same.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.randint(2, (self.weight.shape[0],), generator=generator, device="cpu")
        signs = drawn.to(self.weight) * 2 - 1
        weight = self.weight * signs.view(-1, *[1] * (self.weight.ndim - 1))
        return Start(weight, None if self.bias is None else self.bias * signs)


def fan_in_scale(mask: Tensor) -> Tensor:
    """sqrt(columns / positions in the mask) for each row of ``mask [rows, cols]``, 1 where a row has none; float64."""
    count = mask.sum(1)
    return torch.where(count > 0, (mask.shape[1] / count.clamp(min=1).double()).sqrt(), 1.0)


def saliencies(
    model: nn.Module,
    layers: Mapping[str, MultitaskLayer],
    starts: Mapping[str, Start],
    task: str,
    loss: Loss | None,
    batches: Batches | None,
    criterion: Criterion,
    seed: int,
    scaled: bool,
) -> dict[str, Tensor]:
    """Non-negative saliency ``[rows, cols]`` of every weight of ``layers``, by layer.

    Args:
        scaled: run the network with each row's free weights times sqrt(columns / free in the row).

    Raises:
        AllocationError: if ``batches`` is empty, a gradient is not finite, or a layer takes no part in the loss.
    """
    if criterion == "magnitude":
        return {name: start.weight.flatten(1).abs() for name, start in starts.items()}
    if criterion == "random":
        # Drawn on the CPU, so that every device chooses the same weights.
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(layer.owners.shape, generator=generator, device="cpu").to(layer.owners.device)
            for name, layer in layers.items()
        }
    assert loss is not None and batches is not None
    leaves = {name: _leaf(layer, starts[name], scaled) for name, layer in layers.items()}
    gradients = _gradients(model, layers, starts, leaves, task, loss, batches)
    if criterion == "gradient_x_weight":  # the weights of the network that was differentiated, scaled ones
        return {name: (gradient * leaves[name].detach().flatten(1)).abs() for name, gradient in gradients.items()}
    return {name: gradient.abs() for name, gradient in gradients.items()}


@contextmanager
def through(candidates: Mapping[MultitaskLayer, Candidates]) -> Iterator[None]:
    """Let layers run densely on their candidates inside."""
    try:
        for layer, each in candidates.items():
            layer._candidates = each
        yield
    finally:
        for layer in candidates:
            layer._candidates = None


def told(scalars: Mapping[str, Tensor]) -> dict[str, int]:
    """What integer or bool scalars are, which may be on several devices: the host waits once for all of them."""
    if not scalars:
        return {}
    device = next(iter(scalars.values())).device
    values = torch.stack([scalar.to(device) for scalar in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))


def _gradients(
    model: nn.Module,
    layers: Mapping[str, MultitaskLayer],
    starts: Mapping[str, Start],
    leaves: Mapping[str, Tensor],
    task: str,
    loss: Loss,
    batches: Batches,
) -> dict[str, Tensor]:
    """Gradient of the loss for every candidate weight, ``[rows, cols]`` by layer, summed over the batches.

    Args:
        leaves: the weights that the layers run on, by layer.
    """
    total: dict[str, Tensor] = {}
    if not layers:
        return total
    device = device_of(model)
    candidates = {layer: Candidates(leaves[name], starts[name].bias) for name, layer in layers.items()}
    with activated(model, task), _without_traces(model, task), through(candidates), torch.enable_grad():
        for number, batch in enumerate(batches):
            x, target = to_device(checked_batch(batch, f"batches[{number}]"), device)
            gradients = torch.autograd.grad(loss(model(x), target), list(leaves.values()), allow_unused=True)
            finite = {}
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is None:
                    raise AllocationError(
                        f"layer {name!r} takes no part in the loss of batch {number}. If task {task!r} does not run "
                        "through it, leave it out of layers=[...]."
                    )
                finite[name] = torch.isfinite(gradient).all()
                accumulated = gradient.flatten(1).to(torch.promote_types(gradient.dtype, torch.float32))
                total[name] = total[name] + accumulated if name in total else accumulated
            if wrong := [name for name, all_finite in told(finite).items() if not all_finite]:
                raise AllocationError(
                    f"layer {wrong[0]!r}: the gradient of batch {number} has NaN or infinite entries."
                )
    if not total:
        raise AllocationError("batches: expected at least one (x, target) pair. Got none.")
    return total


def _leaf(layer: MultitaskLayer, start: Start, scaled: bool) -> Tensor:
    """The free weights of a layer, to be differentiated."""
    free = layer.owners.free()
    weight = start.weight * free.view(start.weight.shape)
    if scaled:
        scale = fan_in_scale(free).view(-1, *[1] * (weight.ndim - 1))
        weight = (weight.to(scale.dtype) * scale).to(weight.dtype)
    return weight.detach().requires_grad_()


@contextmanager
def _without_traces(model: nn.Module, task: str) -> Iterator[None]:
    """Put buffers that all tasks share, those of the task's own modules, and the random state back behind the block."""
    before = [Snapshot.shared(model), Snapshot.own(model, [task])]
    device = device_of(model)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for each in before:
            each.put_back()
