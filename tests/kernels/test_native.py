"""The C++ core's own tests, built without torch: under sanitizers, and by a compiler that optimizes little."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
COMPILER = os.environ.get("CXX") or shutil.which("g++", path=PATH) or shutil.which("clang++", path=PATH)


pytestmark = pytest.mark.skipif(
    not (COMPILER and shutil.which("cmake", path=PATH)), reason="needs CMake and a C++ compiler, as the operators do"
)


def succeed(*commands: list[str]) -> None:
    """Run them in order; the output of one that fails is the assertion's."""
    for command in commands:
        done = subprocess.run(
            command,
            env=os.environ | {"PATH": PATH},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def configure(folder: Path, *options: str) -> list[str]:
    """CMake's command for the tests."""
    return ["cmake", "-S", str(ROOT), "-B", str(folder), "-DRSN2_BUILD_TESTS=ON", *options]


def build(folder: Path, *options: str) -> list[str]:
    """CMake's command for what was configured there."""
    return ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1), *options]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_core_is_exact_and_clean_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    run = ["ctest", "--test-dir", str(tmp_path), "--output-on-failure"]
    succeed(configure(tmp_path, f"-DRSN2_SANITIZE={sanitizers}"), build(tmp_path), run)


def test_the_promises_on_bits_do_not_lean_on_the_optimizer(tmp_path: Path) -> None:
    """At -O1 gcc multiplies and adds at once where it is told to, and nowhere else."""
    lightly = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1")
    program = str(tmp_path / "csrc" / "tests" / "test_cpu")
    succeed(configure(tmp_path, *lightly), build(tmp_path, "--target", "test_cpu"), [program])
