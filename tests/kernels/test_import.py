"""`import rsn2_kernels` works with no native library and no Triton, and prints nothing.

Each import happens in a process of its own, on a copy of the package's Python files alone.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rsn2
import rsn2_kernels

PACKAGE = Path(rsn2_kernels.__file__).parent

BLOCK_TRITON = """
import sys
class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTriton())
"""
NO_HOME = """
import os, pwd
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
for name in ("HOME", "XDG_CACHE_HOME", "RSN2_CPU_COSTS"):
    os.environ.pop(name, None)
"""
USE = """
import json, torch
import rsn2_kernels as rk
p = rk.SparsePattern.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
v = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
y = rk.linear(torch.tensor([[1.0, 10.0, 100.0]]), v, p)
y.sum().backward()
print(json.dumps([rk.__file__, rk.available_backends(), y.tolist(), v.grad.tolist()]))
"""


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with nothing but ``path`` before the installed packages."""
    inserted = f"import sys; sys.path[:0] = {[str(each) for each in path]}\n"
    return subprocess.run(
        [sys.executable, "-I", "-c", inserted + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def bare_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package without its native libraries."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    return folder


def test_import_prints_nothing() -> None:
    done = python("import rsn2_kernels", PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a user of Windows has a home directory by other means")
def test_import_without_a_home_directory_prints_nothing() -> None:
    done = python(NO_HOME + "import rsn2_kernels", PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_without_native_library_and_triton_prints_nothing(bare_copy: Path) -> None:
    done = python(BLOCK_TRITON + "import rsn2_kernels", bare_copy)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_upper_storey_imports_without_native_library_and_triton(bare_copy: Path) -> None:
    show = "import rsn2, rsn2_kernels as rk; print(rk.__file__, rk.available_backends()['cpu'])"
    done = python(BLOCK_TRITON + show, bare_copy, Path(rsn2.__file__).parents[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(bare_copy)) and "the native library was not built" in done.stdout


def test_linear_and_its_gradient_run_without_native_library_and_triton(bare_copy: Path) -> None:
    done = python(BLOCK_TRITON + USE, bare_copy)
    assert done.returncode == 0, done.stderr
    file, known, y, gradient = json.loads(done.stdout)
    assert Path(file).is_relative_to(bare_copy), "the copy is what was imported"
    assert y == [[201.0, 30.0]] and gradient == [1.0, 100.0, 10.0]
    assert known["reference"] is True and known["dense"] is True
    for name in ("cpu", "cuda", "triton"):
        assert isinstance(known[name], str) and len(known[name].split()) >= 5, name


def test_a_native_library_that_does_not_load_is_a_sentence_not_a_crash(bare_copy: Path, tmp_path: Path) -> None:
    shutil.copytree(bare_copy / PACKAGE.name, tmp_path / PACKAGE.name)
    library = tmp_path / PACKAGE.name / "lib"
    library.mkdir()
    for suffix in (".so", ".dylib", ".dll"):
        (library / f"librsn2_cpu{suffix}").write_bytes(b"not a library")
    done = python(USE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "load" in json.loads(done.stdout)[1]["cpu"]
