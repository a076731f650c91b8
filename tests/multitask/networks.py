"""Small networks and data that the tests of the upper storey share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rsn2

LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shapes": nn.functional.cross_entropy,
    "sizes": nn.functional.mse_loss,
}
FEATURES = {"shapes": 8, "sizes": 5}


def plain_network(seed: int = 0) -> nn.Sequential:
    """Two tasks with input layers and heads of their own around shared linear, norm and convolution layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        rsn2.nn.PerTask({"shapes": nn.Linear(8, 32), "sizes": nn.Linear(5, 32)}),
        nn.ReLU(),
        nn.Linear(32, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        nn.Linear(40, 32, bias=False),
        nn.LayerNorm(32),
        nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, 6, 3, padding=1),
        nn.Flatten(),
        rsn2.nn.PerTask({"shapes": nn.Linear(96, 3), "sizes": nn.Linear(96, 1)}),
    )


def network(seed: int = 0) -> nn.Module:
    """The plain network, converted; nothing is allocated."""
    return rsn2.convert(plain_network(seed))


def samples(task: str, count: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and targets of a task."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES[task], generator=generator)
    if task == "shapes":
        return x, torch.randint(3, (count,), generator=generator)
    return x, torch.randn(count, 1, generator=generator)


def allocated(*tasks: str, density: float = 0.3, seed: int = 0) -> nn.Module:
    """The network with these tasks allocated by gradient."""
    model = network(seed)
    for task in tasks:
        rsn2.allocate(model, task, density, LOSS[task], [samples(task)])
    return model


def train(model: nn.Module, task: str, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    """A few optimizer steps on the task's samples."""
    x, target = samples(task)
    with rsn2.use_task(model, task):
        for _ in range(steps):
            optimizer.zero_grad()
            LOSS[task](model(x), target).backward()
            optimizer.step()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor of the network, owner planes included."""
    state = {}
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            state[key] = value.clone()
        else:
            state |= {f"{key}.{number}": plane.clone() for number, plane in enumerate(value.get("planes", []))}
    return state


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Bitwise equality of two snapshots, names included."""
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
