"""The masks that benchmarks/occupancy.py looks at: networks, their tasks on real data, and what each task claims."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

import rsn2
from row_orders import blocked

TASKS = 5
BATCH = 512
ELEMENTS = (1, 1)
# What the predictions are for: rows of a linear network's batch, and images of the convolutional network's.
PREDICTED_ROWS, PREDICTED_IMAGES = 4096, 64
Batch = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """One network to which tasks are allocated."""

    network: str
    granularity: tuple[int, int]
    density: float


class Product(NamedTuple):
    """One layer of one task: its mask and what the products with it are.

    Attributes:
        mask: bool ``[rows, cols]``.
        taps: positions of the kernel; 1 for a linear layer.
        batch: columns of the other operand in the predictions: rows, or output pixels.
    """

    mask: Tensor
    taps: int
    batch: int


def linear_network(width: int) -> nn.Sequential:
    """784 pixels, six hidden layers with ReLU, ten classes."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([784, *[width] * 6]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutional_network() -> nn.Sequential:
    """The paper's: 3 x 3 convolutions of 32, 32, 64 and 64 filters, two poolings, linear 256, 256 and ten classes."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for channels, filters in ((1, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(channels, filters, 3), nn.ReLU()]
        if channels == filters:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for inputs, outputs in ((1024, 256), (256, 256)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "fc 1000": partial(linear_network, 1000),
    "conv": convolutional_network,
    "fc 4096": partial(linear_network, 4096),
}


def batches(network: str, data: dict[str, Batch]) -> list[Batch]:
    """What each task is allocated with, in turn."""
    mnist, fashion = data["mnist"], data["fashion_mnist"]
    if network == "conv":
        sources = [fashion] * TASKS
    else:
        sources = [mnist, fashion, permuted(mnist, 1), permuted(fashion, 2), permuted(mnist, 3)]
    parts = [slice(task * BATCH, (task + 1) * BATCH) for task in range(TASKS)]
    return [(images[part], classes[part]) for (images, classes), part in zip(sources, parts, strict=True)]


def permuted(data: Batch, seed: int) -> Batch:
    """The images with their pixels in another order."""
    order = torch.randperm(784, generator=torch.Generator().manual_seed(seed))
    return data[0][:, order], data[1]


def allocated(case: Case, data: dict[str, Batch]) -> Iterator[tuple[str, int, Product, float]]:
    """Every layer of every task: number of the layer, of the task, the product, its share of weights without gradient.

    A gradient is 0 where no sample has both an input and a gradient of the output that are not: such weights are tied,
    and those of a block are if all its weights that could be claimed are.
    """
    torch.manual_seed(0)
    network = NETWORKS[case.network]()
    model = rsn2.convert(network, per_task=[str(len(network) - 1)])
    layers = [layer for layer in model.modules() if isinstance(layer, rsn2.nn.MultitaskLayer)]
    seen: dict[nn.Module, dict[str, Tensor]] = {layer: {} for layer in layers}

    def watch(layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        seen[layer]["x"] = inputs[0].detach()
        if y.requires_grad:
            y.register_hook(lambda dy: seen[layer].update(dy=dy.detach()))

    for layer in layers:
        layer.register_forward_hook(watch)
    for task, batch in enumerate(batches(case.network, data), start=1):
        granularity = None if case.granularity == ELEMENTS else case.granularity
        rsn2.allocate(model, f"task{task}", case.density, nn.functional.cross_entropy, [batch], granularity=granularity)
        for number, layer in enumerate(layers, start=1):
            mask = layer.owners.mask(layer.slot(f"task{task}"))
            x, dy = ((seen[layer][name] != 0).float() for name in ("x", "dy"))
            kernel = layer.weight_shape[2:]
            together = nn.grad.conv2d_weight(x, layer.weight_shape, dy).flatten(1) if kernel else dy.t() @ x
            touched = blocked(mask & (together > 0.5), *case.granularity)
            for side, length in enumerate(case.granularity):
                touched = touched.repeat_interleave(length, side).narrow(side, 0, mask.shape[side])
            tied = (mask & ~touched).sum() / mask.sum().clamp(min=1)
            rows = PREDICTED_IMAGES if case.network == "conv" else PREDICTED_ROWS
            yield str(number), task, Product(mask, math.prod(kernel), rows * math.prod(dy.shape[2:])), float(tied)
