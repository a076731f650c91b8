"""Whether torch follows what is called, or it simply runs; and how what serves later calls is made all the same."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

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


@contextmanager
def unfollowed(index: Tensor) -> Iterator[None]:
    """Where something is made of an index to serve later calls: no mode of torch sees it, if the index is real.

    A mode may run without data, as an exporter's does, or count operators, as selective checkpointing does, which must
    find as many of them when it runs the call again. Tensors made in inference mode could not be saved for a backward
    pass.
    """
    real = type(index) is Tensor and not torch.compiler.is_dynamo_compiling()
    # Asked first: disabling none takes some slow imports.
    with torch.inference_mode(False), _disable_current_modes() if real and is_traced() else nullcontext():
        yield


def settle(made: Tensor) -> None:
    """Wait for the GPU that makes an index: later calls may read it on other streams. A CUDA graph makes its own."""
    real = type(made) is Tensor and not torch.compiler.is_dynamo_compiling()
    if real and made.is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream(made.device).synchronize()


def is_captured(index: Tensor) -> bool:
    """Whether a CUDA graph is captured: what is made of the index has no data before the graph runs."""
    return index.is_cuda and torch.cuda.is_current_stream_capturing()


def serves_later_calls(made: object) -> bool:
    """Whether what was made of an index may be remembered by it.

    An exporter runs calls on tensors without data, a function transform wraps what is made inside, and a CUDA graph
    makes it when it runs: none of these must stay behind for real calls. The tensors of a tuple show it; what holds
    none must be made where nothing follows.
    """
    tensors = [part for part in made if isinstance(part, Tensor)] if isinstance(made, tuple) else []
    if not tensors:
        return not is_traced()
    return all(type(each) is Tensor and not _is_fleeting(each) for each in tensors)


def _is_fleeting(tensor: Tensor) -> bool:
    """Whether a function transform or a CUDA graph makes this tensor. torch.compile cannot trace the question."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or is_captured(tensor)
