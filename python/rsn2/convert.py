"""Turn an ordinary network into one that holds many tasks, in place."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rsn2.nn import MultitaskConv1d, MultitaskConv2d, MultitaskConv3d, MultitaskLayer, MultitaskLinear, PerTask
from rsn2.nn.layer import TaskError
from rsn2.opening import Opening, is_below
from rsn2.tasks import multitask_layers, tasks

SHARED_FORMS: dict[
    type[nn.Module], type[MultitaskLinear] | type[MultitaskConv1d] | type[MultitaskConv2d] | type[MultitaskConv3d]
] = {
    nn.Linear: MultitaskLinear,
    nn.Conv1d: MultitaskConv1d,
    nn.Conv2d: MultitaskConv2d,
    nn.Conv3d: MultitaskConv3d,
}
"""What each dense layer becomes."""

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.RMSNorm,
)
_NOT_YET = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.TransformerDecoderLayer,
)


def convert(model: nn.Module, exclude: Sequence[str] = (), per_task: Sequence[str] = ()) -> nn.Module:
    """Replace linear layers and convolutions by multitask layers, and norms by per-task norms, in place.

    Those are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``.

    ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` become their multitask
    forms, with the same names for their parts and ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj`` in attention.

    The weights become the pool that tasks claim from; nothing is allocated yet. Only exact types are replaced, never
    subclasses, and what is already multitask stays as it is. An ``nn.Embedding`` stays what it is, shared by all tasks:
    freeze it (``requires_grad_(False)``), or name it in ``per_task``.

    Args:
        model: the network; if it is itself one layer, use the return value.
        exclude: names of modules to leave alone with all below them. Their parameters are shared by all tasks and
            belong to none, so :func:`rsn2.parameters` does not return them.
        per_task: names of modules of which every task gets its own dense copy (a head, say).

    Returns:
        The converted network: ``model`` itself, unless it is one layer, or itself one of the modules named above.

    Raises:
        ValueError: if a name is not in the network, a module has no multitask form (a transposed convolution, a decoder
            layer, attention with ``add_bias_kv``, a norm of a subclass), or is more than its type says (frozen, with
            hooks or a parametrization, or with a parameter that another module uses too); names the module.
        TaskError: if the network has tasks already, and something is left to convert. Nothing has changed then.
    """
    names = dict(model.named_modules())
    _check_sequences(exclude=exclude, per_task=per_task)
    left = {*exclude, *per_task}
    uses = _uses_of_parameters(model)

    def wanted(name: str, module: nn.Module) -> bool:
        if is_below(name, left):
            return False
        _check_openable(name, module, uses)
        return True

    opening = Opening(model, wanted)
    try:
        names |= dict(opening.model.named_modules())
        for argument, given in (("exclude", exclude), ("per_task", per_task)):
            for name in given:
                if name not in names:
                    raise ValueError(f"{argument}: no module is named {name!r}. There are {[n for n in names if n]}.")
        copies, shared = _plan(opening.model, set(exclude), set(per_task))
        held = any(layer.slots for layer in multitask_layers(opening.model).values())
        if (copies or shared or opening.names) and held:
            what = [*opening.names, *copies, *shared]
            raise TaskError(f"model: it has the tasks {tasks(model)}; {what} can only be converted before.")
    except BaseException:
        opening.undo()
        raise
    return apply_plan(opening.model, copies, shared)


def _check_sequences(**arguments: object) -> None:
    for argument, given in arguments.items():
        if isinstance(given, str):
            raise ValueError(f"{argument}: expected a sequence of names. Got the string {given!r}.")


def _check_openable(name: str, module: nn.Module, uses: Counter[int]) -> None:
    """Raise if taking the module apart would lose something that it has besides its parts."""
    if isinstance(module, nn.MultiheadAttention):
        _check_replaceable(name, module, uses)
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError(
                f"{name}: attention with add_bias_kv or add_zero_attn has no multitask form; name it in exclude or "
                "per_task."
            )
    elif module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise ValueError(f"{name}: it has hooks, which conversion would drop; add them behind it.")


def _plan(model: nn.Module, exclude: set[str], per_task: set[str]) -> tuple[list[str], list[str]]:
    """Names of the modules that become per-task copies, and of those that become multitask layers."""
    copies: list[str] = []
    shared: list[str] = []
    stop = list(exclude)
    uses = _uses_of_parameters(model)
    for name, module in model.named_modules():
        if is_below(name, stop):
            continue
        if isinstance(module, PerTask | MultitaskLayer):
            if name in per_task:
                raise ValueError(f"per_task: {name!r} is a {type(module).__name__} already.")
            stop.append(name)
        elif name in per_task or type(module) in _NORMS:
            _check_replaceable(name, module, uses)
            copies.append(name)
            stop.append(name)
        elif type(module) in SHARED_FORMS or is_parametrized(module):
            _check_replaceable(name, module, uses)
            shared.append(name)
        elif type(module) in _NOT_YET or isinstance(module, nn.modules.batchnorm._NormBase):
            raise ValueError(f"{name}: {type(module).__name__} has no multitask form; name it in exclude or per_task.")
    return copies, shared


def _check_replaceable(name: str, module: nn.Module, uses: Counter[int]) -> None:
    """Raise if a replacement would lose something that the module has besides its parameters."""
    advice = "name it in exclude"
    for part in module.modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise ValueError(f"{name}: it has hooks, which conversion would drop; add them behind it, or {advice}.")
        if is_parametrized(part):
            raise ValueError(f"{name}: it is parametrized, which conversion would drop; {advice}.")
    for parameter in module.parameters():
        if uses[id(parameter)] > 1:
            raise ValueError(f"{name}: a parameter of it is used by another module too; {advice}.")
        if not parameter.requires_grad:
            raise ValueError(f"{name}: it is frozen (requires_grad is False), and tasks would train it; {advice}.")


def apply_plan(model: nn.Module, copies: Iterable[str], shared: Iterable[str]) -> nn.Module:
    """Replace the modules named in ``copies`` by per-task copies, those in ``shared`` by multitask layers."""
    modules = dict(model.named_modules())
    made: dict[int, nn.Module] = {id(modules[name]): PerTask(template=modules[name]) for name in copies}
    made |= {id(modules[name]): SHARED_FORMS[type(modules[name])].from_dense(modules[name]) for name in shared}
    if id(model) in made:
        return made[id(model)].train(model.training)
    for parent in modules.values():
        # Not named_children, which would give a module that is registered under two names once only.
        for name, child in list(parent._modules.items()):
            if id(child) in made and child is not None:
                setattr(parent, name, made[id(child)].train(child.training))
    return model


def _uses_of_parameters(model: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
