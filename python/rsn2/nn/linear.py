"""MultitaskLinear: nn.Linear for many tasks."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.nn.joined import join
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
        own = [self.slot(task) for task in mixture.tasks]
        # One index of all tasks serves every mixture. Where gradients are wanted it is those of the batch: the others
        # shall have none, rather than zeros, on which momentum and weight decay would act.
        slots = list(dict.fromkeys(own)) if torch.is_grad_enabled() else [int(slot) for slot in self.values]
        place = {slot: number for number, slot in enumerate(slots)}
        task_of_sample = mixture.numbered(tuple(place[slot] for slot in own), x.device)
        values, biases = self._of_slots(slots)
        patterns = [self.pattern(slot) for slot in slots]
        task_of_row = task_of_sample.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
        return rk.grouped_linear(x, values, patterns, task_of_row, biases)

    def _of_slots(self, slots: list[int]) -> tuple[list[Tensor] | Tensor, list[Tensor] | Tensor | None]:
        """Values and biases of some slots, each one tensor where that needs no copy at every call."""
        biased = self.initial_bias is not None
        # A layer that takes no further task may lay them together for good; for a GPU's kernels each has to begin at an
        # aligned address.
        if not torch.is_grad_enabled() and self.pool is None and self._like.device.type == "cpu":
            biases = join(list(self.biases.parameters())).view(len(slots), -1) if biased else None
            return join(list(self.values.parameters())), biases
        keys = [str(slot) for slot in slots]
        return [self.values[key] for key in keys], [self.biases[key] for key in keys] if biased else None
