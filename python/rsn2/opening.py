"""Modules of several layers, taken apart so that `convert` can replace each layer, and put back if it cannot."""

from collections.abc import Callable, Collection, Iterable

from torch import nn

from rsn2.nn.attention import MultitaskMultiheadAttention
from rsn2.nn.layer import MultitaskLayer
from rsn2.nn.per_task import PerTask
from rsn2.nn.transformer import MultitaskTransformerEncoder, MultitaskTransformerEncoderLayer

OPENED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.TransformerEncoder: MultitaskTransformerEncoder.opened,
    nn.TransformerEncoderLayer: MultitaskTransformerEncoderLayer.opened,
    nn.MultiheadAttention: MultitaskMultiheadAttention.opened,
}
"""What makes a module of the same result, and of parts that have multitask forms, out of each."""


class Opening:
    """A network whose composed modules are opened.

    Attributes:
        model: the network; another module than was given if that is itself composed.
        names: of the modules that were opened.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[str, nn.Module], bool]):
        """Open the modules of `OPENED` that are ``wanted(name, module)``, from the outside in.

        Raises:
            ValueError: if one of them has hooks or a forward of its own; every module is back in its place then.
        """
        self.model = model
        self.names: list[str] = []
        self._before: list[tuple[nn.Module, str, nn.Module]] = []
        made: dict[int, nn.Module] = {}
        try:
            self.model = self._open(model, "", wanted, made)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put every module back."""
        for parent, name, module in reversed(self._before):
            put(parent, name, module)

    def _open(
        self, module: nn.Module, name: str, wanted: Callable[[str, nn.Module], bool], made: dict[int, nn.Module]
    ) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        result = module
        if type(module) in OPENED and wanted(name, module):
            # Encoders keep their parts, attention none.
            check_bare(name, module.modules() if isinstance(module, nn.MultiheadAttention) else [module])
            result = OPENED[type(module)](module)
            self.names.append(name)
        made[id(module)] = result
        made[id(result)] = result
        if isinstance(result, PerTask | MultitaskLayer):
            return result  # multitask already, whatever it is made of
        for key, child in list(result._modules.items()):
            if child is None:
                continue
            replacement = self._open(child, f"{name}.{key}" if name else key, wanted, made)
            if replacement is not child:
                self._before.append((result, key, child))
                put(result, key, replacement)
        return result


def put(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Make ``child`` the module that ``parent`` has under this name, and that it runs."""
    parent._modules[name] = child
    if uncompiled(parent) is child and parent is not child:
        parent.__setstate__(parent.__getstate__())  # its forward is bound to the module that it wrapped


def is_bare(module: nn.Module) -> bool:
    """Whether a call of the module runs the forward of its class and nothing else: no hook, and none of its own."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks) and ("forward" not in vars(module) or uncompiled(module) is not module)


def check_bare(name: str, modules: Iterable[nn.Module]) -> None:
    """Raise if one of the modules that are to be replaced, under this name, does more than its class: see `is_bare`.

    Raises:
        ValueError: names the module.
    """
    if not all(map(is_bare, modules)):
        what = "hooks, or a forward of its own"
        raise ValueError(f"{name}: it has {what}, which its replacement would not have; add them afterwards.")


def uncompiled(model: nn.Module) -> nn.Module:
    """The network that ``torch.compile`` wraps, in which every name is another, or else the network itself."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def is_below(name: str, above: Collection[str]) -> bool:
    """Whether a module is one of ``above`` or inside one of them."""
    return any(name == each or each == "" or name.startswith(f"{each}.") for each in above)
