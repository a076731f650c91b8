"""Which backends there are, and why one cannot run a call.

On the CPU each of the three products of a training step may have a backend of its own: such a mixture has a name like
any backend, "cpu/dense/dense" for forward, dx and dvalues.
"""

import itertools
from types import SimpleNamespace
from typing import cast

import torch

from rsn2_kernels.backends import Backend, cpu, cuda, dense, reference, triton

OPERATORS = ("linear", "conv2d", "grouped_linear")

ON_CPU = {
    "/".join(names) if len(set(names)) > 1 else names[0]: names
    for names in itertools.product(("dense", "cpu"), repeat=3)
}
"""What may run on the CPU without being asked for -> the backends of its forward product, of dx, and of dvalues."""

_MODULES = cast(
    dict[str, Backend], {"reference": reference, "dense": dense, "cpu": cpu, "cuda": cuda, "triton": triton}
)


def is_mixture(backend: str) -> bool:
    """Whether a name is that of a backend for each of the three products."""
    return "/" in backend


def _mixture(*backends: str) -> Backend:
    """The forward products of the first of three backends, the ``_dx`` of the second, the ``_dvalues`` of the third."""
    functions = {
        op + product: getattr(_MODULES[backend], op + product)
        for product, backend in zip(("", "_dx", "_dvalues"), backends, strict=True)
        for op in OPERATORS
    }
    return cast(Backend, SimpleNamespace(**functions))


_MODULES |= {name: _mixture(*names) for name, names in ON_CPU.items() if is_mixture(name)}


def module(name: str) -> Backend:
    """The module of a backend, or what serves as one for a mixture, that is known to be available."""
    return _MODULES[name]


def available_backends() -> dict[str, bool | str]:
    """For each backend True, or in one sentence why it cannot run on this machine."""
    return {
        "reference": True,
        "dense": True,
        "cpu": cpu.unavailable or True,
        "cuda": cuda.unavailable or True,
        "triton": triton.unavailable or True,
    }


def why_not(backend: str, device: torch.device, dtype: torch.dtype, op: str = "linear") -> str | None:
    """Why a backend or mixture cannot run an operator with operands of this kind; None if it can."""
    known = available_backends()
    if backend not in _MODULES:
        return f"there is no such backend; there are {sorted(known)}"
    runs_cpu = backend == "cpu" or is_mixture(backend)
    status = known["cpu" if runs_cpu else backend]
    if isinstance(status, str):
        return status
    if runs_cpu and device.type != "cpu":
        return f"it runs on the CPU, and the operands are on {device.type}"
    if runs_cpu and dtype not in cpu.DTYPES:
        return f"it has no kernels for {dtype}"
    if backend == "cuda":
        return cuda.why_not(op, device, dtype)
    if backend == "triton":
        return triton.why_not(device, dtype)
    return None
