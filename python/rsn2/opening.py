"""Modules of several layers, taken apart so that `convert` can replace each layer, and put back if it cannot."""

from collections.abc import Callable, Collection, Iterable

from torch import nn

from rsn2.nn.attention import MultitaskMultiheadAttention
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
            ValueError: if one of them has hooks; every module is back in its place then.
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
            parent._modules[name] = module

    def _open(
        self, module: nn.Module, name: str, wanted: Callable[[str, nn.Module], bool], made: dict[int, nn.Module]
    ) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        result = module
        if type(module) in OPENED and wanted(name, module):
            # Encoders keep their parts, attention none.
            check_no_hooks(name, module.modules() if isinstance(module, nn.MultiheadAttention) else [module])
            result = OPENED[type(module)](module)
            self.names.append(name)
        made[id(module)] = result
        made[id(result)] = result
        for key, child in list(result._modules.items()):
            if child is None:
                continue
            replacement = self._open(child, f"{name}.{key}" if name else key, wanted, made)
            if replacement is not child:
                self._before.append((result, key, child))
                result._modules[key] = replacement
        return result


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called when the module runs, forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def check_no_hooks(name: str, modules: Iterable[nn.Module]) -> None:
    """Raise if one of the modules that are to be replaced, under this name, has hooks, which would not run then.

    Raises:
        ValueError: names the module.
    """
    if any(has_hooks(module) for module in modules):
        raise ValueError(f"{name}: it has hooks, which its replacement would not have; add them afterwards.")


def uncompiled(model: nn.Module) -> nn.Module:
    """The network that ``torch.compile`` wraps, in which every name is another, or else the network itself."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def is_below(name: str, above: Collection[str]) -> bool:
    """Whether a module is one of ``above`` or inside one of them."""
    return any(name == each or each == "" or name.startswith(f"{each}.") for each in above)
