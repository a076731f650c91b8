"""How tasks are allocated and trained: settings that every experiment has."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rsn2.allocate import Criterion, Rescale, Scope
from rsn2.blocks import Granularity

OptimizerName = Literal["adam", "adamw", "sgd"]
Precision = Literal["float32", "bfloat16"]


def computed_in(precision: Precision, device: torch.device | str) -> AbstractContextManager[None]:
    """Forward passes inside compute in this type where torch's autocast says they may; parameters stay float32."""
    dtype = getattr(torch, precision)
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True)
class Training:
    """How tasks are trained, or a control.

    Attributes:
        optimizer: "adam", "adamw" or "sgd".
        lr: learning rate.
        lr_patience: epochs without progress of the validation loss before the learning rate falls; None: never.
        lr_factor: what it is multiplied by then.
        weight_decay: of the optimizer; decoupled from the gradient for "adamw" alone.
        momentum: of "sgd".
        epochs: at most.
        batch_size: samples per step.
        patience: epochs without progress of the validation loss before training stops; None: never.
        min_delta: how much lower a validation loss must be to count as progress.
        seed: of the order of the samples and of dropout.
    """

    optimizer: OptimizerName = "adam"
    lr: float = 1e-3
    lr_patience: int | None = None
    lr_factor: float = 0.3
    weight_decay: float = 0.0
    momentum: float = 0.0
    epochs: int = 100
    batch_size: int = 512
    patience: int | None = None
    min_delta: float = 0.0
    seed: int = 0

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        return kinds[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay)

    @property
    def moments(self) -> int:
        """Copies of each parameter that the optimizer keeps: Adam's two moments, or SGD's momentum if it has one."""
        return int(self.momentum > 0) if self.optimizer == "sgd" else 2

    @property
    def scheduler(self) -> Callable[[torch.optim.Optimizer], ReduceLROnPlateau] | None:
        """What makes the scheduler of an optimizer; None where the learning rate stays."""
        if self.lr_patience is None:
            return None
        return partial(
            ReduceLROnPlateau,
            factor=self.lr_factor,
            patience=self.lr_patience - 1,  # torch counts the epochs that it still allows
            threshold=self.min_delta,
            threshold_mode="abs",
        )


@dataclass(frozen=True)
class Allocation:
    """How a task's weights are chosen; see :func:`rsn2.allocate`.

    Attributes:
        criterion, scope, rescale, granularity, flip: as there.
        samples: number of samples of the training part whose gradient is taken, drawn by the training's seed; None:
            all of them.
    """

    criterion: Criterion = "gradient"
    scope: Scope = "layer"
    rescale: Rescale | None = None
    granularity: Granularity | None = None
    flip: bool = False
    samples: int | None = None

    def part_of(self, data: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """The samples whose gradient is taken."""
        x, target = data
        if self.samples is None or self.samples >= len(x):
            return data
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed), device="cpu")[: self.samples]
        return x[chosen], target[chosen]
