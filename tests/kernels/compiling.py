"""Compile the Triton kernels for GPUs that are not there, with the arguments that the backend launches them with."""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from triton.runtime._async_compile import AsyncCompileMode

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one block may have, by compute capability times 10 (CUDA C++ Programming Guide)."""

# Tensor-core instructions, the widest first: those of a newer chip stand beside those that move its sums.
_MATRIX_INSTRUCTIONS = {"tcgen05": r"\btcgen05\.mma\b", "wgmma": r"\bwgmma\.mma_async\b", "mma": r"\bmma\.sync\b"}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target.

    Attributes:
        name: of the kernel.
        ptx: its text.
        registers: per thread.
        spilled: bytes of local memory per thread: spilled registers, or arrays that a run-time index walks.
        shared: bytes of shared memory per program.
    """

    name: str
    ptx: str
    registers: int
    spilled: int
    shared: int

    def count(self, instruction: str) -> int:
        """How often an instruction, a regular expression, stands in the PTX."""
        return len(re.findall(instruction, self.ptx))

    @property
    def matrix_instruction(self) -> str:
        """What multiplies: "tcgen05", "wgmma", "mma", or "none" for the ordinary cores."""
        found = [name for name, pattern in _MATRIX_INSTRUCTIONS.items() if self.count(pattern)]
        return found[0] if found else "none"

    @property
    def narrow_loads(self) -> int:
        """Asynchronous loads of less than 16 bytes."""
        return self.count(r"cp\.async\.ca\b")

    @property
    def wide_loads(self) -> int:
        """Asynchronous loads of 16 bytes, past the first-level cache."""
        return self.count(r"cp\.async\.cg\.shared\.global[^;]*, 0x10\b")


class _Absent:
    """A driver that names a GPU and has none."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # Triton remembers a kernel per device and asks for the target once: each target is a device of its own.
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


_resources_of: dict[str, Compiled] = {}


@contextmanager
def compiled_for(capability: int) -> Iterator[list[Compiled]]:
    """Inside, every launch compiles its kernel for compute capability ``capability / 10`` and launches nothing.

    The list holds the kernels in the order of their launches, once the block was left. A kernel that this process has
    compiled before, for the same target, is not compiled again. Nothing is taken from Triton's folder of earlier
    compilations, and nothing left there.
    """
    found: list[Compiled] = []
    launched: list[tuple[str, Any]] = []
    launch, parse = JITFunction.run, JITFunction.parse
    one_at_a_time = Lock()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        launched.append((self.__name__, kernel))
        return kernel

    def parse_alone(self: Any) -> Any:
        # Python 3.11 counts the depth of the trees it parses in one place for all threads.
        with one_at_a_time:
            return parse(self)

    active = driver._active
    with TemporaryDirectory() as folder, knobs.cache.scope(), ThreadPoolExecutor(os.cpu_count()) as pool:
        knobs.cache.dir = folder
        driver.set_active(_Absent(capability))
        JITFunction.run, JITFunction.parse = compile_only, parse_alone
        try:
            # Errors come up below, where the kernels are asked for: here they would leave the mode on.
            with AsyncCompileMode(pool, ignore_errors=True):
                yield found
            found += pool.map(_resources, *zip(*launched, strict=True)) if launched else ()
        finally:
            JITFunction.run, JITFunction.parse = launch, parse
            driver._active = active


def _resources(name: str, kernel: Any) -> Compiled:
    if hasattr(kernel, "result"):
        kernel = kernel.result()
    if kernel.hash not in _resources_of:
        _resources_of[kernel.hash] = _disassembled(name, kernel)
    return _resources_of[kernel.hash]


def _disassembled(name: str, kernel: Any) -> Compiled:
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    spilled = numbers["STACK"] + numbers["LOCAL"]
    return Compiled(name, kernel.asm["ptx"], numbers["REG"], spilled, kernel.metadata.shared)
