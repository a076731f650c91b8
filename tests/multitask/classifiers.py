"""A small classifier with dropout and per-task batch norm, and data for it, for the tests of training and resuming."""

from functools import partial

import torch
from torch import Tensor, nn

import rsn2
from rsn2.ownership import own_tensors

LOSS = nn.functional.cross_entropy
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "sgd-momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}


def network(*tasks: str, dropout: float = 0.3) -> nn.Module:
    """A small network with dropout and per-task batch norm; the same weights at every call."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(10, 33),
        nn.BatchNorm1d(33),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(33, 32),
        nn.Linear(32, 3),
    )
    model = rsn2.convert(plain, per_task=["5"])
    for task in tasks:
        rsn2.allocate(model, task, 0.3, criterion="random", seed=len(task))
    return model


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``count`` rows of 10 features, and which of the first three is the largest."""
    x = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(dim=1)


TRAIN, VAL = samples(130), samples(70, seed=1)


def bits(model: nn.Module, task: str) -> dict[str, bytes]:
    """The bytes of all that training a task may change."""
    own = own_tensors(model, task)
    return {name: tensor.detach().flatten().view(torch.uint8).numpy().tobytes() for name, tensor in own.items()}


class Scripted:
    """A loss that gives the validation the values of a script, and the training its true loss."""

    def __init__(self, model: nn.Module, values: list[float]):
        self.model, self.values = model, iter(values)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if not self.model.training:
            return torch.tensor(next(self.values))
        return LOSS(output, target)
