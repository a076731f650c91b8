"""Builds the native operators by calling CMake; everything else about the package is in pyproject.toml.

RSN2_BUILD_NATIVE=0 leaves them out, =1 makes it an error that they cannot be built. Unset: they are built
where CMake, a C++ compiler and torch are found, and otherwise the package is installed without them, which
works. A compiler that is found and fails is always an error. RSN2_BUILD_CUDA says the same of the CUDA operators,
which need nvcc besides; for which GPUs they are built, csrc/cuda/CMakeLists.txt says.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
# CMake and ninja of this Python's environment are found even where it was not activated.
os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))


def torch_is_recent() -> bool:
    """Whether this Python has a torch with the stable ABI the operators use, without importing it here."""
    test = "import torch; raise SystemExit(tuple(map(int, torch.__version__.split('.')[:2])) < (2, 10))"
    return subprocess.run([sys.executable, "-c", test], check=False, capture_output=True).returncode == 0


def why_not_native() -> str | None:
    """The reason the native operators are left out, or None if they are to be built."""
    if os.environ.get("RSN2_BUILD_NATIVE") == "0":
        return "RSN2_BUILD_NATIVE=0"
    if not shutil.which("cmake"):
        return "CMake was not found"
    if not any(map(shutil.which, ("ninja", "make"))):
        return "neither ninja nor make was found"
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "no C++ compiler was found"
    if not torch_is_recent():
        return f"{sys.executable} has no torch 2.10 or newer (with pip, use --no-build-isolation)"
    return None


REASON = why_not_native()


class BuildPython(build_py):
    """Says once, with the Python files, what is not built."""

    def run(self) -> None:
        if REASON:
            message = f"rsn2-kernels: the native CPU operators are not built: {REASON}."
            if os.environ.get("RSN2_BUILD_NATIVE") == "1":
                raise SystemExit(message)
            print(f"{message} The package works without them, on torch's own operators.", file=sys.stderr)
        super().run()


class BuildNative(build_ext):
    """One CMake build whose libraries land in rsn2_kernels/lib."""

    def library_dir(self) -> Path:
        in_place = self.inplace or self.editable_mode
        return (ROOT if in_place else Path(self.build_lib).resolve()) / "rsn2_kernels" / "lib"

    def run(self) -> None:
        generator, tool = ("Ninja", "ninja") if shutil.which("ninja") else ("Unix Makefiles", "make")
        # Not build_temp, which is new for every editable install: this one makes the next build incremental.
        # One per generator, because CMake refuses a directory that another generator has used.
        build = ROOT / "build" / f"cmake-{tool}"
        configure = [
            *("cmake", "-S", ROOT, "-B", build, "-G", generator),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool)}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-DRSN2_OUTPUT_DIR={self.library_dir()}",
            f"-DRSN2_BUILD_CUDA={'OFF' if os.environ.get('RSN2_BUILD_CUDA') == '0' else 'ON'}",
        ]
        subprocess.run(configure, check=True)
        cuda = f"rsn2-kernels: the CUDA operators are {(self.library_dir() / 'cuda.txt').read_text().strip()}."
        if "not built" in cuda and os.environ.get("RSN2_BUILD_CUDA") == "1":
            raise SystemExit(cuda)
        print(cuda, file=sys.stderr)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for pattern in ("librsn2_*", "cuda.txt") for path in self.library_dir().glob(pattern)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """The library needs a platform but no Python ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    # Named so that setuptools knows the package is not pure; CMake knows the sources.
    ext_modules=[] if REASON else [Extension("rsn2_kernels.lib.rsn2_cpu", sources=[])],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative, "bdist_wheel": Wheel},
)
