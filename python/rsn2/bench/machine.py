"""The machine: what it is, which commit runs on it, and the bounds that it was measured to have."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from rsn2.bench.timing import Call, interleaved
from rsn2.experiments import extras

# More than the caches of a CPU or a GPU hold.
_COPIED_BYTES = 256 << 20
_SIDE = {"cpu": 1024, "cuda": 8192}

Peaks = dict[str, float]


def facts(device: torch.device | str = "cpu") -> dict[str, object]:
    """What a results file says of the machine and the versions."""
    found: dict[str, object] = {
        "torch": torch.__version__,
        "rsn2-kernels": extras.version("rsn2-kernels"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "device": str(device),
    }
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def load() -> float | None:
    """Processes that wanted to run over the last minute, on average; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def commit() -> str:
    """The commit of the sources that run, with "-dirty" if they were changed; "unknown" outside of a repository."""
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    try:
        # Installed into an environment inside some other repository, the sources are not that repository's.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        done = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that can be had on a device now; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def peaks(dtypes: list[str], device: torch.device | str = "cpu", seconds: float = 0.3) -> Peaks:
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


def best(measured: Sequence[Mapping[str, float]]) -> Peaks:
    """The best of several measurements: less is contention."""
    return {
        name: max(each[name] for each in measured if name in each) for name in {k for each in measured for k in each}
    }


def cpu_model() -> str:
    """The processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
