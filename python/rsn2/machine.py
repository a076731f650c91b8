"""The machine, for what is written about a run: what it is, what runs on it, and which commit."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from rsn2 import extras
from rsn2_kernels.cpu_cost import processor


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
