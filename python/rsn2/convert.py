"""Turn an ordinary network into one that holds many tasks, in place."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rsn2.nn import MultitaskConv2d, MultitaskLayer, MultitaskLinear, PerTask
from rsn2.nn.layer import TaskError
from rsn2.tasks import multitask_layers, tasks

SHARED_FORMS: dict[type[nn.Module], type[MultitaskLinear] | type[MultitaskConv2d]] = {
    nn.Linear: MultitaskLinear,
    nn.Conv2d: MultitaskConv2d,
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
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def convert(model: nn.Module, exclude: Sequence[str] = (), per_task: Sequence[str] = ()) -> nn.Module:
    """Replace ``nn.Linear`` and ``nn.Conv2d`` by multitask layers, and norms by per-task norms, in place.

    The weights become the pool that tasks claim from; nothing is allocated yet. Only exact types are replaced, never
    subclasses, and what is already multitask stays as it is.

    Args:
        model: the network; if it is itself one layer, use the return value.
        exclude: names of modules to leave alone with all below them. Their parameters are shared by all tasks and
            belong to none, so :func:`rsn2.parameters` does not return them.
        per_task: names of modules of which every task gets its own dense copy (a head, say).

    Returns:
        The converted network: ``model`` itself, unless it is one layer.

    Raises:
        ValueError: if a name is not in the network, a module has no multitask form (one- and three-dimensional or
            transposed convolution, attention, a norm of a subclass), or is more than its type says (frozen, with hooks
            or a parametrization, or with a parameter that another module uses too); names the module.
        TaskError: if the network has tasks already, and something is left to convert. Nothing has changed then.
    """
    names = dict(model.named_modules())
    for argument, given in (("exclude", exclude), ("per_task", per_task)):
        if isinstance(given, str):
            raise ValueError(f"{argument}: expected a sequence of names. Got the string {given!r}.")
        for name in given:
            if name not in names:
                raise ValueError(f"{argument}: no module is named {name!r}. There are {[n for n in names if n]}.")
    copies, shared = _plan(model, set(exclude), set(per_task))
    if (copies or shared) and any(layer.slots for layer in multitask_layers(model).values()):
        raise TaskError(f"model: it has the tasks {tasks(model)}; {[*copies, *shared]} can only be converted before.")
    return apply_plan(model, copies, shared)


def _plan(model: nn.Module, exclude: set[str], per_task: set[str]) -> tuple[list[str], list[str]]:
    """Names of the modules that become per-task copies, and of those that become multitask layers."""
    copies: list[str] = []
    shared: list[str] = []
    stop = list(exclude)
    uses = _uses_of_parameters(model)
    for name, module in model.named_modules():
        if any(_is_below(name, above) for above in stop):
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
        return made[id(model)]
    for parent in modules.values():
        # Not named_children, which would give a module that is registered under two names once only.
        for name, child in list(parent._modules.items()):
            if id(child) in made and child is not None:
                setattr(parent, name, made[id(child)].train(child.training))
    return model


def _is_below(name: str, above: str) -> bool:
    return name == above or above == "" or name.startswith(f"{above}.")


def _uses_of_parameters(model: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
