"""Masks to measure with: random, of whole blocks, two of every four, and as RSN2 chooses them on real data."""

import itertools
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rsn2 import extras
from rsn2.allocate import allocate
from rsn2.bench.cases import Case
from rsn2.bench.work import UnavailableError
from rsn2.convert import convert
from rsn2.tasks import multitask_layers

BLOCK = 16


def masks(case: Case) -> list[Tensor]:
    """A bool mask ``[rows, cols]`` for each task of a product, the same in every run.

    Raises:
        UnavailableError: if the shape does not divide into blocks, or scikit-learn, whose digits are the real data, is
            not installed.
    """
    rows, cols = (case.shape[0], case.shape[1] * 9) if case.op == "conv2d" else case.shape
    generator = torch.Generator().manual_seed(0)
    if case.mask == "random":
        return [torch.rand(rows, cols, generator=generator) < case.density for _ in range(case.tasks)]
    if case.mask == "rsn2":
        return [_allocated(case.op == "conv2d", case.shape[:2], case.density)] * case.tasks
    if case.mask == "blocks":
        _check_divides(rows, cols, BLOCK)
        blocks = torch.rand(rows // BLOCK, cols // BLOCK, generator=generator) < case.density
        return [blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)] * case.tasks
    if case.mask == "2:4":
        _check_divides(rows, cols, 4)
        pairs = torch.tensor([[c in pair for c in range(4)] for pair in itertools.combinations(range(4), 2)])
        drawn = torch.randint(len(pairs), (rows, cols // 4), generator=generator)
        return [pairs[drawn].view(rows, cols)] * case.tasks
    raise ValueError(f"mask: expected random, rsn2, blocks or 2:4. Got {case.mask!r}.")


def _check_divides(rows: int, cols: int, block: int) -> None:
    if rows % block or cols % block:
        raise UnavailableError(f"a {rows} x {cols} weight does not divide into blocks of {block}")


@lru_cache(maxsize=4)
def _allocated(convolution: bool, shape: tuple[int, int], density: float) -> Tensor:
    """What the first task gets of the middle layer of three, by the gradient on the 1797 digits of scikit-learn."""
    outputs, inputs = shape
    if convolution:
        network = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, inputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(outputs * 64, 10),
        )
    else:
        network = nn.Sequential(
            nn.Linear(64, inputs), nn.ReLU(), nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 10)
        )
    try:
        datasets: Any = extras.load("sklearn.datasets")
    except extras.MissingPackageError as error:
        raise UnavailableError(str(error)) from error
    images, labels = (torch.from_numpy(each) for each in datasets.load_digits(return_X_y=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in network:
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.reset_parameters()
        convert(network)
        batches = [(images.float() / 16, labels)]
        allocate(network, "digits", density, nn.functional.cross_entropy, batches)
    middle = list(multitask_layers(network).values())[1]
    return middle.owners.mask(middle.slot("digits"))
