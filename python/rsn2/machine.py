"""The machine: what it is, what runs on it and which commit, for what is written about a run; and its memory."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from rsn2 import extras
from rsn2_kernels.cpu_cost import processor

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def facts(device: torch.device | str = "cpu") -> dict[str, object]:
    """What a results file says of the machine and the versions."""
    found: dict[str, object] = {
        "torch": torch.__version__,
        "rsn2-kernels": extras.version("rsn2-kernels"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": processor(),
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


def keep_memory() -> None:
    """Let the C library keep what large tensors free, where it is glibc.

    By itself it maps a tensor of some megabytes anew in each call, or it does not: that depends on what was freed
    before. Each page mapped costs a fault, so that a call, or a step of training on images, takes half as long again in
    one process as in another. The process then keeps the most that tensors ever took at once.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, _NEVER)
