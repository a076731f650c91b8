"""Whether torch follows what is called, or it simply runs."""

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
"""Types whose instances are tensors and nothing beside."""


def is_traced() -> bool:
    """Whether torch.compile, an exporter, a mode or a function transform follows what is called."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
    )
