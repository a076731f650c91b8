"""`extract`: one task's part of a network as a small network of its own, without the hidden units it has no use for."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from rsn2.nn import (
    MultitaskLayer,
    MultitaskLinear,
    MultitaskMultiheadAttention,
    MultitaskTransformerEncoder,
    MultitaskTransformerEncoderLayer,
)
from rsn2.opening import is_bare, put, uncompiled
from rsn2.tasks import alone_with, check_allocated, multitask_layers, per_task_modules

# What maps every number on its own, so that a unit behind it is still the unit before it.
_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Identity, nn.Dropout),
)
_FUNCTIONS = (
    *(torch.relu, torch.tanh, torch.sigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.tanh, F.sigmoid),
)
_METHODS = ("relu", "tanh", "sigmoid")

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def extract(model: nn.Module, task: str) -> nn.Module:
    """A copy of the network that answers as one task, and holds nothing of the others.

    Hidden units that are of no use to the task are gone, exactly: those that none of its weights leaves, and those that
    none enters, which are constant and part of the next layer's bias instead. That is done between two
    :class:`MultitaskLinear` layers with nothing but activations and dropout between them, in a network whose forward
    ``torch.fx`` can trace and has no optional arguments, on which it may branch; other networks keep their units. A
    forward that computes with the width of a layer (``self.a.out_features``) would find another one there.

    To keep it, use ``torch.export`` (run it once before, if it was moved to another device) or ``torch.save`` of the
    module: a file of :func:`rsn2.save` is loaded into an architecture, and there is none with the sizes that are left.

    Args:
        model: a network in which ``task`` is allocated. It stays as it is, and shares no memory with the copy. Of one
            that ``torch.compile`` wraps, the copy is not compiled.
        task: the one to take out.

    Returns:
        The same network in eval mode, with multitask layers that hold this task alone and need no
        :func:`rsn2.use_task`, and with the task's own module in place of each :class:`PerTask`. No parameter asks for a
        gradient. It answers with the bits of the original where all units stayed, else up to rounding.

    Raises:
        TaskError: if nothing is allocated to the task.
    """
    model = uncompiled(model)
    with alone_with(model):
        check_allocated(model, task)
        memo: dict[int, object] = {id(layer): layer.alone(task) for layer in multitask_layers(model).values()}
        for module in per_task_modules(model).values():
            memo[id(module)] = copy.deepcopy(module.of(task), memo)
        alone = copy.deepcopy(model, memo).eval().requires_grad_(False)
    return _without_idle_units(alone, task)


@dataclass
class _Weight:
    """A linear weight in coordinates: ``values[k]`` stands at ``(rows[k], cols[k])``."""

    rows: Tensor
    cols: Tensor
    values: Tensor
    bias: Tensor | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, layer: MultitaskLinear, task: str) -> "_Weight":
        slot = layer.slot(task)
        rows, cols = layer.owners.mask(slot).nonzero(as_tuple=True)
        bias = layer.biases[str(slot)].detach() if layer.initial_bias is not None else None
        return cls(rows, cols, layer.values[str(slot)].detach(), bias, layer.owners.shape)

    def keep(self, chosen: Tensor) -> bool:
        """Forget all but the chosen entries; whether there were others."""
        self.rows, self.cols, self.values = self.rows[chosen], self.cols[chosen], self.values[chosen]
        return not bool(chosen.all())

    def add_constants(self, inputs: Tensor, where: Tensor) -> None:
        """Make the inputs that are constant part of the bias, and forget their weights."""
        constant = where[self.cols]
        if self.bias is not None:
            added = self.values[constant].double() * inputs[self.cols[constant]].double()
            total = self.bias.double().index_add(0, self.rows[constant], added)
            self.bias = total.to(self.bias.dtype)
        self.keep(~constant)

    def layer(self, task: str, density: float) -> MultitaskLinear:
        """The layer of this weight, which holds the task alone."""
        dense = self.values.new_zeros(self.shape)
        mask = torch.zeros(self.shape, dtype=torch.bool, device=dense.device)
        dense[self.rows, self.cols] = self.values
        mask[self.rows, self.cols] = True
        plain = skip_init(
            nn.Linear, self.shape[1], self.shape[0], self.bias is not None, device=dense.device, dtype=dense.dtype
        )
        made = MultitaskLinear.from_dense(plain)
        made.add_task(task, mask, density, initial=dense, bias=self.bias)
        return made.alone(task).eval().requires_grad_(False)


@dataclass
class _Reader:
    """A layer that reads hidden units, and what maps the units on their way to it."""

    name: str
    mapped: tuple[Callable[[Tensor], Tensor], ...]

    def inputs(self, units: Tensor) -> Tensor:
        """What the layer reads where the units are these."""
        for function in self.mapped:
            units = function(units)
        return units


class _Tracer(fx.Tracer):
    """Follows the network down to multitask layers and torch's modules."""

    leaves = (
        MultitaskLayer,
        MultitaskMultiheadAttention,
        MultitaskTransformerEncoder,
        MultitaskTransformerEncoderLayer,
    )

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _without_idle_units(model: nn.Module, task: str) -> nn.Module:
    """The network of one task, its layers made anew where a hidden unit can go."""
    readers = _readers_of_layers(model)
    layers = multitask_layers(model)
    weights = {
        name: _Weight.of(layer, task)
        for name in dict.fromkeys([*readers, *(each.name for found in readers.values() for each in found)])
        if isinstance(layer := layers[name], MultitaskLinear)
    }
    while any([_drop_idle(weights[name], found, weights) for name, found in readers.items()]):
        pass
    for name, found in readers.items():
        used = torch.zeros(weights[name].shape[0], dtype=torch.bool, device=weights[name].rows.device)
        for each in found:
            used[weights[each.name].cols] = True
        used[0] |= not bool(used.any())  # a layer has a unit, and be it a useless one
        _keep_units(used, weights[name], [weights[each.name] for each in found])
    for name, weight in weights.items():
        if weight.shape != layers[name].owners.shape:
            slot = layers[name].slot(task)
            model = _replaced(model, layers[name], weight.layer(task, layers[name].densities[slot]))
    return model


def _drop_idle(weight: _Weight, readers: list[_Reader], weights: dict[str, _Weight]) -> bool:
    """Forget the weights of a layer whose unit nothing reads, and of its readers at units that are constant."""
    device, units = weight.rows.device, weight.shape[0]
    entered = torch.zeros(units, dtype=torch.bool, device=device)
    entered[weight.rows] = True
    constants = torch.zeros(units, dtype=weight.values.dtype, device=device) if weight.bias is None else weight.bias
    inputs = {each.name: each.inputs(constants.clone()) for each in readers}
    constant = ~entered
    for each in readers:
        if weights[each.name].bias is None:  # nowhere to go but for zeros
            constant &= inputs[each.name] == 0
        constant &= inputs[each.name].isfinite()
    changed = False
    left = torch.zeros(units, dtype=torch.bool, device=device)
    for each in readers:
        reader = weights[each.name]
        changed |= bool(constant[reader.cols].any())
        reader.add_constants(inputs[each.name], constant)
        left[reader.cols] = True
    return weight.keep(left[weight.rows]) or changed


def _keep_units(used: Tensor, weight: _Weight, readers: list[_Weight]) -> None:
    """Number the units that are used anew, in the layer that makes them and in those that read them."""
    number = used.cumsum(0) - 1
    count = int(used.sum())
    weight.rows = number[weight.rows]
    weight.bias = None if weight.bias is None else weight.bias[used]
    weight.shape = (count, weight.shape[1])
    for reader in readers:
        reader.cols = number[reader.cols]
        reader.shape = (reader.shape[0], count)


def _readers_of_layers(model: nn.Module) -> dict[str, list[_Reader]]:
    """Linear layer -> the linear layers that read its units, in order, if nothing else does."""
    arguments = signature(type(model).forward).parameters.values()
    if any(each.default is not Parameter.empty or each.kind in _VARIADIC for each in arguments):
        return {}  # whether one is given decides what runs, and a tracer gives all of them
    try:
        graph = _Tracer().trace(copy.deepcopy(model))  # a copy, since forward may keep what it has seen
    except Exception:  # whatever a forward does with what is no tensor
        return {}
    modules = dict(model.named_modules())
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    # A parameter that is used by itself may be a layer's.
    looked_at = tuple(str(node.target) for node in graph.nodes if node.op == "get_attr")

    def linear(node: fx.Node) -> bool:
        name = str(node.target)
        return (
            node.op == "call_module"
            and type(modules[name]) is MultitaskLinear
            and is_bare(modules[name])
            and bool(modules[name].slots)
            and calls[id(modules[name])] == 1
            and len(node.args) == 1
            and not node.kwargs
            and not any(each.startswith(f"{name}.") for each in looked_at)
        )

    def mapping(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
        if not node.args or any(isinstance(each, fx.Node) for each in (*node.args[1:], *node.kwargs.values())):
            return None
        rest, options = node.args[1:], node.kwargs
        if node.op == "call_module":
            module: nn.Module = modules[str(node.target)]
            return module if type(module) in _MODULES and is_bare(module) else None
        if node.op == "call_function" and node.target in _FUNCTIONS:
            return lambda units: node.target(units, *rest, **options)  # type: ignore[operator]
        if node.op == "call_method" and node.target in _METHODS:
            return lambda units: getattr(units, str(node.target))(*rest, **options)
        return None

    def in_place(node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(modules[str(node.target)], "inplace", False))
        return node.kwargs.get("inplace", False) is not False or any(each is True for each in node.args)

    def readers(
        node: fx.Node, mapped: tuple[Callable[[Tensor], Tensor], ...] = (), alone: bool = True
    ) -> list[_Reader] | None:
        """``alone``: nothing has read the units, under whatever name, but the functions in ``mapped``."""
        found: list[_Reader] = []
        alone = alone and len(node.users) == 1
        for user in node.users:
            if linear(user):
                found.append(_Reader(str(user.target), mapped))
                continue
            function = mapping(user)
            if in_place(user) and not alone:
                return None  # the others may read what it has written
            behind = None if function is None else readers(user, (*mapped, function), alone)
            if behind is None:
                return None
            found += behind
        return found

    return {str(node.target): found for node in graph.nodes if linear(node) and (found := readers(node))}


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The network with another module in the place, or the places, of one."""
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child is old:
                put(parent, name, new)
    return new if model is old else model
