"""What the build of the CUDA operators says: what was built, what was not, and why; and what the package makes of it.

CMake configures, and nothing compiles.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from rsn2_kernels.backends import cuda

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
NVCC = shutil.which("nvcc")
COMPILER = os.environ.get("CXX") or shutil.which("g++", path=PATH) or shutil.which("clang++", path=PATH)

needs_cmake = pytest.mark.skipif(
    not (COMPILER and shutil.which("cmake", path=PATH)), reason="needs CMake and a C++ compiler, as the operators do"
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def configured(folder: Path, *options: str, **environment: str) -> tuple[int, str, str]:
    """Status and output of CMake, and what it wrote for the package to read."""
    library = folder / "lib"
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPYTHON_EXECUTABLE={sys.executable}", *options]
    inherited = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"}
    done = subprocess.run(
        [*command, f"-DRSN2_OUTPUT_DIR={library}"],
        env=inherited | {"PATH": PATH} | environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    note = library / "cuda.txt"
    return done.returncode, " ".join(done.stdout.split()), note.read_text().strip() if note.exists() else ""


@needs_cmake
def test_it_says_that_it_was_told_not_to(tmp_path: Path) -> None:
    status, output, note = configured(tmp_path, "-DRSN2_BUILD_CUDA=OFF")
    assert status == 0 and note == "not built: the build was told not to"
    assert f"CUDA operators: {note}" in output


@needs_cmake
def test_it_names_an_nvcc_that_does_not_work(tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    status, _, note = configured(tmp_path / "build", CUDACXX=str(broken))
    assert status == 0 and note.startswith(f"not built: {broken} does not work with ")


@needs_cmake
@needs_nvcc
def test_the_gpus_asked_for_are_those_it_is_built_for(tmp_path: Path) -> None:
    status, _, note = configured(tmp_path, TORCH_CUDA_ARCH_LIST="9.0a;10.0+PTX")
    assert status == 0 and note.startswith("built for 9.0a 10.0+PTX with nvcc ")


@needs_cmake
@needs_nvcc
@pytest.mark.parametrize(
    ("asked", "why"),
    [("7.5", "the kernels need compute capability 8.0"), ("99.0", "does not know it"), ("Hopper", 'found "Hopper"')],
)
def test_a_gpu_that_cannot_be_built_for_is_an_error_that_says_why(asked: str, why: str, tmp_path: Path) -> None:
    status, output, note = configured(tmp_path, TORCH_CUDA_ARCH_LIST=asked)
    assert status != 0 and note == ""
    assert "TORCH_CUDA_ARCH_LIST" in output and why in output


@pytest.mark.parametrize(
    ("built", "runs_on", "not_on"),
    [
        ("built for 8.0 9.0 10.0+PTX with nvcc 13.0.88", [(8, 0), (8, 6), (9, 0), (10, 0), (10, 3), (12, 0)], [(7, 5)]),
        ("built for 9.0a with nvcc 13.0.88", [(9, 0)], [(8, 0), (9, 1), (10, 0)]),
        ("built for 8.6 with nvcc 13.0.88", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("built for 8.0+PTX with nvcc 13.0.88", [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        ("not built: nvcc was not found", [], [(8, 0), (9, 0)]),
    ],
)
def test_it_runs_on_gpus_that_what_was_built_serves(
    built: str, runs_on: list[tuple[int, int]], not_on: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rules of binary and PTX compatibility in the CUDA C++ Programming Guide."""
    monkeypatch.setattr(cuda, "_built", lambda: built)
    assert all(cuda._runs_on(*chip) for chip in runs_on)
    assert not any(cuda._runs_on(*chip) for chip in not_on)


@pytest.mark.skipif(torch.cuda.is_available() or cuda.emulated, reason="the backend can run")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    assert cuda.unavailable == "there is no GPU here that torch can use"
