"""An operator of this package: registered with torch, and called without its dispatcher where only autograd looks on.

torch's dispatcher and `torch.library.register_autograd`, which flattens every list of tensors through pytree, cost more
than a small product: a training step of a 16 x 16 layer took 150 us with them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rsn2_kernels.tracing import PLAIN, autocasts, is_traced

LIBRARY = torch.library.Library("rsn2", "DEF")


class Operator:
    """``rsn2::<name>``, for all devices. Call it with the arguments of its schema, all of them by position."""

    def __init__(self, schema: str, implementation: Callable[..., Tensor], fake: Callable[..., Tensor], operands: int):
        """Register an operator; what has gradients must be told them by :meth:`differentiate`.

        Args:
            schema: ``name(Tensor ..., ...) -> Tensor``, without default values. Where it has ``int[2] features``, they
                are how many the result of the forward product has, and how many x has: channels of images.
            implementation: what it computes.
            fake: its shape function.
            operands: how many of its first arguments are the tensors, or None, that it may be differentiated in.
        """
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        self.name, self.operands = name, operands
        self._implementation, self._out_of_autocast = implementation, out_of_autocast(implementation)
        LIBRARY.impl(name, self._compared, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rsn2::{name}", fake, lib=LIBRARY)
        self._registered: Any = getattr(torch.ops.rsn2, name).default
        self._names = [argument.name for argument in self._registered._schema.arguments]

    def differentiate(
        self,
        keep: Callable[[Any, list[Any], tuple[Any, ...], Tensor], None],
        backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
    ) -> None:
        """Tell the operator its gradients.

        Args:
            keep: ``(ctx, operands, other arguments, result)``; saves in torch's context of the call what `backward`
                will read.
            backward: ``(ctx, gradient)`` -> the gradients of the operands, None where none is needed.
        """
        self.keep, self.backward = keep, backward
        LIBRARY.impl(self.name, self._autograd, "Autograd", with_keyset=True)

    def __str__(self) -> str:
        return f"rsn2::{self.name}"

    def __call__(self, *arguments: Any) -> Tensor:
        """The result of the operator."""
        operands = arguments[: self.operands]
        if is_watched(operands):
            result: Tensor = self._registered(*arguments)
            return result
        run = self._out_of_autocast if torch._C._is_any_autocast_enabled() else self._implementation
        if torch.is_grad_enabled() and _asks_for_gradients(operands):
            return _record(*operands, arguments[self.operands :], self, run)
        return run(*arguments)

    def _compared(self, *arguments: Any) -> Tensor:
        """What torch's dispatcher runs: captured graphs call it with operands that no function has looked at.

        Raises:
            TypeError, ValueError: where a kernel would read outside an operand, or take its bits for another type's.
        """
        named = dict(zip(self._names, arguments, strict=True))
        if "features" in named:
            self._compare(named)
        return self._out_of_autocast(*arguments)

    def _compare(self, named: dict[str, Any]) -> None:
        """Raise unless the operands, by name, fit the weight that the other arguments tell of, and each other."""
        rows, features = named["features"]
        tasks, index = named.get("tasks"), named["index"]
        first, *others = self._names[: self.operands]
        batch, dtype = named[first].shape[0], named[first].dtype
        if tasks is not None:
            task_of_row, *index = index
            if task_of_row.shape[0] != batch:
                raise ValueError(f"{self}, {first}: expected {task_of_row.shape[0]} rows, one per task. Got {batch}.")
        whole = {"values": (index[1].shape[0],), "bias": (rows,), "biases": (tasks, rows)}
        for name, expected in (("dy", rows), ("x", features)):
            if name in named and named[name].shape[1] != expected:
                got = tuple(named[name].shape)
                raise ValueError(f"{self}, {name}: expected {expected} features in dimension 1. Got {got}.")
        for name in others:
            operand = named[name]
            if operand is None:
                continue
            if operand.dtype != dtype:
                raise TypeError(f"{self}, {name}: expected {dtype}, the dtype of {first}. Got {operand.dtype}.")
            expected, got = whole.get(name, (batch, *operand.shape[1:])), tuple(operand.shape)
            if got != expected:
                raise ValueError(f"{self}, {name}: expected shape {expected}. Got {got}.")

    def _autograd(self, keys: Any, *arguments: Any) -> Tensor:
        """What torch's dispatcher calls first.

        Raises:
            NotImplementedError: under forward-mode differentiation, whose derivatives a kernel would drop.
        """
        if forward_ad._current_level >= 0:
            for name, each in zip(self._names, arguments[: self.operands], strict=False):
                if each is not None and forward_ad.unpack_dual(each).tangent is not None:
                    instead = "use reverse mode (torch.autograd)"
                    raise NotImplementedError(f"{self}, {name}: forward-mode derivatives are not supported; {instead}.")

        def run(*arguments: Any) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                result: Tensor = self._registered.redispatch(keys & torch._C._after_autograd_keyset, *arguments)
                return result

        operands = arguments[: self.operands]
        if torch.is_grad_enabled() and _asks_for_gradients(operands):
            recorded: Tensor = _Recorded.apply(*operands, arguments[self.operands :], self, run)
            return recorded
        return run(*arguments)


class _Recorded(torch.autograd.Function):
    """A call that autograd records: operands, a tuple of the other arguments, the operator, and what computes it."""

    @staticmethod
    def forward(ctx: Any, *call: Any) -> Tensor:
        *operands, others, operator, run = call
        result: Tensor = run(*operands, *others)
        ctx.operator = operator
        operator.keep(ctx, operands, others, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.operator.backward(ctx, gradient), None, None, None)


_record: Callable[..., Tensor] = super(torch.autograd.Function, _Recorded).apply
"""`_Recorded.apply` without its questions about function transforms, 1.6 us, which `is_watched` has asked."""


def is_watched(operands: tuple[Tensor | None, ...]) -> bool:
    """Whether torch's dispatcher must see a call: it is traced, or an operand is more or less than a tensor."""
    for each in operands:
        if each is not None and (type(each) not in PLAIN or each.is_meta):
            return True
    return forward_ad._current_level >= 0 or is_traced()


def _asks_for_gradients(operands: tuple[Tensor | None, ...]) -> bool:
    # A loop: twice as fast as `any` over a generator.
    for each in operands:  # noqa: SIM110
        if each is not None and each.requires_grad:
            return True
    return False


def out_of_autocast(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Operands have their types when an operator gets them: torch's own operators inside must not change them again."""

    def run(x: Tensor, *rest: Any) -> Tensor:
        if not torch._C._is_any_autocast_enabled() or not autocasts(x.device.type):
            return implementation(x, *rest)
        with torch.autocast(x.device.type, enabled=False):
            return implementation(x, *rest)

    return run
