"""Turn an ordinary network into one that holds many tasks, in place."""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from rsn2.nn import MultitaskConv1d, MultitaskConv2d, MultitaskConv3d, MultitaskLayer, MultitaskLinear, PerTask
from rsn2.nn.layer import TaskError
from rsn2.opening import Opening, check_bare, is_below, put, uncompiled
from rsn2.ownership import check_apart
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
# Of these, the types above and those that are opened are known. A norm of another type would hold statistics of all
# tasks, and the forward that an encoder inherits looks into its parts for what no multitask layer has.
_NO_OTHERS = (nn.modules.batchnorm._NormBase, nn.TransformerEncoder, nn.TransformerEncoderLayer)


def convert(model: nn.Module, exclude: Sequence[str] = (), per_task: Sequence[str] = ()) -> nn.Module:
    """Replace linear layers and convolutions by multitask layers, and norms by per-task norms, in place.

    Those are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``.

    ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` become their multitask
    forms, with the same names for their parts and ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj`` in attention.

    The weights become the pool that tasks claim from; nothing is allocated yet. Only exact types are replaced, never
    subclasses, and what is already multitask stays as it is. An ``nn.Embedding`` stays what it is, shared by all tasks:
    freeze it (``requires_grad_(False)``), or name it in ``per_task``.

    What walks over all modules then meets the norms of all tasks: ``torch.optim.swa_utils.update_bn`` would reset the
    statistics of every task. It is for the network that :func:`rsn2.extract` returns.

    Args:
        model: the network; if it is itself one layer, use the return value.
        exclude: names of modules to leave alone with all below them, but for what is named in ``per_task``, under
            whatever other names they have. Their parameters are shared by all tasks and belong to none, so
            :func:`rsn2.parameters` does not return them.
        per_task: names of modules of which every task gets its own dense copy (a head, say). What is frozen in them is
            frozen in the copies.

    Returns:
        The converted network: ``model`` itself, unless it is one layer, or itself one of the modules named above.

    Raises:
        ValueError: if a name is not in the network; if one in ``exclude`` is in ``per_task`` too, or inside of what is;
            if a module has no multitask form (a transposed convolution, a decoder layer, attention with
            ``add_bias_kv``, a norm, encoder or encoder layer of a subclass), or is more than its type says (frozen,
            with hooks, a forward of its own or a parametrization, or with a parameter that another module uses too);
            names the module. If a task's part of a :class:`PerTask` shares a tensor with another part of the network.
        TaskError: if the network has tasks already, and something is left to convert. Nothing has changed then.
    """
    _check_sequences(exclude=exclude, per_task=per_task)
    inner = uncompiled(model)
    if inner is not model:
        put(model, "_orig_mod", convert(inner, exclude, per_task))
        return model
    check_apart(model)
    uses = _uses_of_parameters(model)
    left, own = _chosen(model, exclude, per_task)
    copied = {part for module in own for part in module.modules()}

    def wanted(name: str, module: nn.Module) -> bool:
        inside = any(is_below(each, [name]) for each in per_task)
        if module in copied or (module in left and not inside):
            return False
        if isinstance(module, nn.MultiheadAttention):
            _check_attention(name, module, uses)
        return True

    opening = Opening(model, wanted)
    try:
        _check_names(opening.model, exclude, per_task)
        copies, shared = _plan(opening.model, *_chosen(opening.model, exclude, per_task))
        held = any(layer.slots for layer in multitask_layers(opening.model).values())
        if (copies or shared or opening.names) and held:
            what = [*opening.names, *copies, *shared]
            raise TaskError(f"model: it has the tasks {tasks(model)}; {what} can only be converted before.")
        return apply_plan(opening.model, copies, shared)
    except BaseException:
        opening.undo()
        raise


def _check_sequences(**arguments: object) -> None:
    for argument, given in arguments.items():
        if isinstance(given, str):
            raise ValueError(f"{argument}: expected a sequence of names. Got the string {given!r}.")


def _chosen(model: nn.Module, exclude: Sequence[str], per_task: Sequence[str]) -> tuple[set[nn.Module], set[nn.Module]]:
    """The modules that stay as they are, and those that ``per_task`` names; of names that there are.

    Modules rather than names, since one may have several. Those of ``per_task`` are not entered: where one is inside
    of what is excluded, the more specific name is the one that counts.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    own = {names[name] for name in per_task if name in names}
    entered = set(own)
    left = {part for name in exclude if name in names for _, part in names[name].named_modules(entered)}
    return left, own


def _check_names(model: nn.Module, exclude: Sequence[str], per_task: Sequence[str]) -> None:
    """Raise unless all are names of the network, and none that is excluded is to be copied."""
    names = dict(model.named_modules(remove_duplicate=False))
    for argument, given in (("exclude", exclude), ("per_task", per_task)):
        for name in given:
            if name not in names:
                raise ValueError(f"{argument}: no module is named {name!r}. There are {[n for n in names if n]}.")
    for whole in per_task:
        parts = set(names[whole].modules())
        for name in exclude:
            if names[name] in parts:
                raise ValueError(
                    f"exclude: expected nothing of {whole!r}, of which each task gets a copy, since per_task names it. "
                    f"Got {name!r}."
                )


def _plan(model: nn.Module, left: set[nn.Module], own: set[nn.Module]) -> tuple[list[str], list[str]]:
    """Names of the modules that become per-task copies, and of those that become multitask layers."""
    copies: list[str] = []
    shared: list[str] = []
    stop: list[str] = []
    uses = _uses_of_parameters(model)
    for name, module in model.named_modules():
        if module in left or is_below(name, stop):
            continue
        if isinstance(module, PerTask | MultitaskLayer):
            if module in own:
                raise ValueError(f"per_task: {name!r} is a {type(module).__name__} already.")
            stop.append(name)
        elif module in own or type(module) in _NORMS:
            _check_replaceable(name, module, uses)
            copies.append(name)
            stop.append(name)
        elif type(module) in SHARED_FORMS or is_parametrized(module):
            _check_plain(name, module)
            _check_replaceable(name, module, uses)
            _check_trainable(name, module)
            shared.append(name)
        elif type(module) in _NOT_YET or isinstance(module, _NO_OTHERS):
            raise ValueError(f"{name}: {type(module).__name__} has no multitask form; name it in exclude or per_task.")
    return copies, shared


def _check_attention(name: str, module: nn.MultiheadAttention, uses: Counter[int]) -> None:
    """Raise if attention cannot be taken apart into its projections."""
    _check_plain(name, module)
    _check_replaceable(name, module, uses)
    _check_trainable(name, module)
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError(
            f"{name}: attention with add_bias_kv or add_zero_attn has no multitask form; name it in exclude or "
            "per_task."
        )


def _check_replaceable(name: str, module: nn.Module, uses: Counter[int]) -> None:
    """Raise if a replacement would no longer share a parameter that the module shares with another."""
    inside = _uses_of_parameters(module)
    if any(uses[parameter] > count for parameter, count in inside.items()):
        raise ValueError(f"{name}: a parameter of it is used by another module too; name it in exclude.")


def _check_plain(name: str, module: nn.Module) -> None:
    """Raise if a layer of many tasks would lose what makes the module's parameters."""
    if any(is_parametrized(part) for part in module.modules()):
        raise ValueError(f"{name}: it is parametrized, which conversion would drop; name it in exclude or per_task.")


def _check_trainable(name: str, module: nn.Module) -> None:
    """Raise if the module is frozen, which a layer of many tasks cannot be."""
    if not all(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"{name}: it is frozen (requires_grad is False), and tasks would train it; name it in exclude or per_task."
        )


def apply_plan(model: nn.Module, copies: Iterable[str], shared: Iterable[str]) -> nn.Module:
    """Replace the modules named in ``copies`` by per-task copies, those in ``shared`` by multitask layers.

    Raises:
        ValueError: if one of them has hooks or a forward of its own; nothing has changed then.
    """
    modules = dict(model.named_modules())
    copies, shared = list(copies), list(shared)
    for name in (*copies, *shared):
        check_bare(name, modules[name].modules())
    made: dict[int, nn.Module] = {id(modules[name]): PerTask(template=modules[name]) for name in copies}
    made |= {id(modules[name]): SHARED_FORMS[type(modules[name])].from_dense(modules[name]) for name in shared}
    if id(model) in made:
        return made[id(model)].train(model.training)
    for parent in modules.values():
        # Not named_children, which would give a module that is registered under two names once only.
        for name, child in list(parent._modules.items()):
            if id(child) in made and child is not None:
                put(parent, name, made[id(child)].train(child.training))
    return model


def _uses_of_parameters(model: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
