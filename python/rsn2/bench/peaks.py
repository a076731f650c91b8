"""Bounds that the machine was measured to have."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from rsn2.bench.timing import Call, interleaved

# More than the caches of a CPU or a GPU hold.
_COPIED_BYTES = 256 << 20
_SIDE = {"cpu": 1024, "cuda": 8192}

Peaks = dict[str, float]


def measure_peaks(dtypes: list[str], device: torch.device | str = "cpu", seconds: float = 0.3) -> Peaks:
    """What the machine reaches, the best of several calls.

    Returns:
        "bytes": per second of a copy of more than the caches hold, read and written ones counted; and for each dtype
        multiply-adds per second of a large dense product.
    """
    side = _SIDE.get(torch.device(device).type, 1024)
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"bytes": lambda: target.copy_(source)}
    amounts: dict[str, float] = {"bytes": 2 * source.nbytes}
    for name in dtypes:
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
        calls[name] = lambda a=a, b=b: F.linear(a, b)  # type: ignore[misc]
        amounts[name] = side**3
    found = interleaved(calls, seconds, device=device)
    return {name: amounts[name] / min(samples) for name, samples in found.items()}


def best_of(measured: Sequence[Mapping[str, float]]) -> Peaks:
    """The best of several measurements: less is contention."""
    names = dict.fromkeys(name for each in measured for name in each)
    return {name: max(each[name] for each in measured if name in each) for name in names}
