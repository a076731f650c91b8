"""MultitaskLinear: nn.Linear for many tasks."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.nn.layer import MultitaskLayer
from rsn2.nn.mixture import Mixture


class MultitaskLinear(MultitaskLayer):
    """``y = x W_task.T + b_task`` over ``[..., in_features]``, with every task's weights in one ``[out, in]`` matrix.

    Starts with nothing allocated, weights and bias drawn as ``nn.Linear`` draws them.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        bias: whether each task has a bias ``[out_features]``.
        device, dtype: of the weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dense = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        super().__init__(dense.weight, dense.bias)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_dense(cls, linear: nn.Linear) -> Self:
        """A multitask layer whose pool is the weight of ``linear``."""
        layer = cls.__new__(cls)
        MultitaskLayer.__init__(layer, linear.weight, linear.bias)
        layer.in_features = linear.in_features
        layer.out_features = linear.out_features
        return layer

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Torch's shape of the dense weight."""
        return (self.out_features, self.in_features)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _packed(self, x: Tensor, values: Tensor, pattern: rk.SparsePattern, bias: Tensor | None) -> Tensor:
        return rk.linear(x, values, pattern, bias)

    def _mixed(self, x: Tensor, mixture: Mixture) -> Tensor:
        mixture.check(x)
        if x.dim() < 2:
            raise ValueError(f"x: expected shape [samples, ..., {self.in_features}]. Got {tuple(x.shape)}.")
        # All slots, so that one index serves every mixture. Those that are not of this one get no gradient, rather than
        # one of zeros, on which momentum and weight decay would act.
        slots = [int(slot) for slot in self.values]
        place = {slot: number for number, slot in enumerate(slots)}
        own = [self.slot(task) for task in mixture.tasks]
        task_of_sample = mixture.numbered(tuple(place[slot] for slot in own), x.device)
        return rk.grouped_linear(
            x,
            _of_slots(self.values, own),
            [self.pattern(slot) for slot in slots],
            task_of_sample.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]),
            _of_slots(self.biases, own) if self.initial_bias is not None else None,
        )


def _of_slots(parameters: nn.ParameterDict, own: list[int]) -> list[Tensor]:
    """What every slot has; detached but for its own."""
    trained = {str(slot) for slot in own} if torch.is_grad_enabled() else parameters.keys()
    return [each if slot in trained else each.detach() for slot, each in parameters.items()]
