"""The C++ core for a processor that is not x86: it compiles for 64-bit ARM, and where that can be run its tests pass.

A cross compiler is g++ for aarch64, or clang as the wheel `ziglang` brings it. What it makes runs on such a machine, or
on this one with the user-mode emulator of qemu.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
NATIVE = platform.machine() == "aarch64"
EMULATOR = next(filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None)


def compilers() -> dict[str, str]:
    """Name -> command of every C++ compiler for aarch64-linux that is here."""
    found = {}
    if NATIVE and (native := os.environ.get("CXX") or shutil.which("g++", path=PATH)):
        found["native"] = native
    if gcc := shutil.which("aarch64-linux-gnu-g++"):
        found["g++"] = gcc
    if importlib.util.find_spec("ziglang"):
        found["zig"] = f"{sys.executable} -m ziglang c++ --target=aarch64-linux-musl"
    return found


COMPILERS = compilers()


@pytest.mark.skipif(not COMPILERS, reason="needs a C++ compiler for aarch64: g++-aarch64-linux-gnu, or pip's ziglang")
@pytest.mark.skipif(not shutil.which("cmake", path=PATH), reason="needs CMake, as the operators do")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_core_compiles_for_arm_and_keeps_its_promises_there(compiler: str, tmp_path: Path) -> None:
    # What make says of a make above it is no warning of the compiler.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    environment |= {"PATH": PATH, "CXX": COMPILERS[compiler]}
    environment |= {f"ZIG_{which}_CACHE_DIR": str(tmp_path / "zig") for which in ("GLOBAL", "LOCAL")}
    options = ["-DRSN2_BUILD_TESTS=ON"]
    if not NATIVE:
        options += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    targets = programs = ["test_rounding", "test_cpu"]
    if compiler == "zig":
        # It would build its C and C++ libraries first, which takes minutes; so not even CMake's own trials link.
        environment["CXXFLAGS"] = "-c"
        options += ["-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY", "-DCMAKE_HAVE_LIBC_PTHREAD=ON"]
        targets, programs = ["rsn2_microkernel_baseline", "rsn2_cpu_core"], []
    build = tmp_path / "build"
    commands = [
        ["cmake", "-S", str(ROOT), "-B", str(build), *options],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1), "--target", *targets],
    ]
    if NATIVE or EMULATOR:
        emulator = [EMULATOR] if EMULATOR and not NATIVE else []
        commands += [[*emulator, str(build / "csrc" / "tests" / program)] for program in programs]
    for command in commands:
        # What asks for "-o -" gets a file of that name from zig, in the folder where it runs.
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        assert "warning:" not in done.stdout, done.stdout
