"""Whether torch follows what is called, or it simply runs."""

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

PLAIN = (Tensor, torch.nn.Parameter)
"""Types whose instances are tensors and nothing beside."""

# Asked once, here: torch.compile of torch 2.11 does not follow the question.
_AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))


def is_traced() -> bool:
    """Whether torch.compile, an exporter, a mode or a function transform follows what is called.

    A default device is a mode too, but it changes nothing that names its device.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and _has_function_mode())
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device. Some have none, and torch refuses to answer for them."""
    return device in _AUTOCAST and torch.is_autocast_enabled(device)


def _has_function_mode() -> bool:
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return not all(isinstance(mode, DeviceContext) for mode in modes)


def serves_later_calls(made: object) -> bool:
    """Whether what was made of an index may be remembered by it.

    An exporter runs calls on tensors without data, and a function transform wraps what is made inside: neither must
    stay behind for real calls. The tensors of a tuple show it; what holds none must be made where nothing follows.
    """
    tensors = [part for part in made if isinstance(part, Tensor)] if isinstance(made, tuple) else []
    if not tensors:
        return not is_traced()
    return all(type(each) is Tensor and not _is_wrapped(each) for each in tensors)


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a function transform made this tensor. Not asked in torch.compile, which cannot trace the question."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
