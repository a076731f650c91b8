"""The C++ core's own tests, built without torch and run under sanitizers."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
COMPILER = os.environ.get("CXX") or shutil.which("g++", path=PATH) or shutil.which("clang++", path=PATH)


@pytest.mark.skipif(
    not (COMPILER and shutil.which("cmake", path=PATH)), reason="needs CMake and a C++ compiler, as the operators do"
)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_core_is_exact_and_clean_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, "-DRSN2_BUILD_TESTS=ON", f"-DRSN2_SANITIZE={sanitizers}"]
    build = ["cmake", "--build", tmp_path, "--parallel", str(os.cpu_count() or 1)]
    run = ["ctest", "--test-dir", tmp_path, "--output-on-failure"]
    for command in (configure, build, run):
        done = subprocess.run(
            command,
            env=os.environ | {"PATH": PATH},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
