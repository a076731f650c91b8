"""The emulator on which CUDA kernels are tested: it gives their code its meaning, and catches what is wrong in it.

The C++ tests compare every primitive with its definition, and run kernels with planted defects. The defects that
only a sanitizer sees end the process, so each of them runs in its own.
"""

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


# What a product needs between bringing x to shared memory and reading it, and before it loads eight bytes at once.
STAGED = "    stage(cells, product, batch_row, first, last);\n"
BARRIER = "    __syncthreads();\n"
WITHIN = "if (first + kOctet <= static_cast<uint32_t>(weight.nnz)) {"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | {"PATH": PATH, "TSAN_OPTIONS": "halt_on_error=1"},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def build(directory: Path, sanitizers: str, root: Path = ROOT, program: str = "test_emulator") -> Path:
    """One of the C++ tests, not optimized: they take longer to compile than to run."""
    options = ("-DRSN2_BUILD_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug", f"-DRSN2_SANITIZE={sanitizers}")
    configured = run("cmake", "-S", root, "-B", directory, *options)
    assert configured.returncode == 0, configured.stdout
    built = run("cmake", "--build", directory, "--parallel", str(os.cpu_count() or 1), "--target", program)
    assert built.returncode == 0, built.stdout
    return directory / "csrc" / "tests" / program


@pytest.fixture(scope="module")
def checks_addresses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("address"), "address,undefined")


@pytest.fixture(scope="module")
def checks_races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("thread"), "thread")


@pytest.mark.parametrize("program", ["checks_addresses", "checks_races"])
def test_primitives_do_what_cuda_says_and_planted_defects_show(program: str, request: pytest.FixtureRequest) -> None:
    done = run(request.getfixturevalue(program))
    assert done.returncode == 0, done.stdout
    assert "all emulator tests passed" in done.stdout


@pytest.mark.parametrize(
    ("defect", "report"),
    [
        ("read_past_global", "AddressSanitizer: heap-buffer-overflow"),
        ("read_past_shared", "AddressSanitizer: heap-buffer-overflow"),
        ("write_past_shared_array", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned_read", "misaligned address"),
    ],
)
def test_an_access_outside_a_buffer_is_reported(checks_addresses: Path, defect: str, report: str) -> None:
    done = run(checks_addresses, defect)
    assert done.returncode != 0, done.stdout
    assert report in done.stdout
    assert "row_sums.cu" in done.stdout, "the report names the place in the kernel"


@pytest.mark.parametrize("defect", ["no_barrier_after_load", "no_barrier_before_load", "no_warp_barrier"])
def test_a_race_is_reported(checks_races: Path, defect: str) -> None:
    done = run(checks_races, defect)
    assert done.returncode != 0, done.stdout
    assert "ThreadSanitizer: data race" in done.stdout
    assert "row_sums.cu" in done.stdout, "the report names the place in the kernel"


@pytest.mark.parametrize(
    ("source", "right", "wrong", "sanitizers", "report"),
    [
        ("gemv.cu", STAGED + BARRIER, STAGED, "thread", "ThreadSanitizer: data race"),
        (
            "gemm.cu",
            "    wait_copies<0>();\n" + BARRIER,
            "    wait_copies<0>();\n",
            "thread",
            "ThreadSanitizer: data race",
        ),
        ("octets.h", WITHIN, "if (true) {", "address,undefined", "AddressSanitizer: heap-buffer-overflow"),
    ],
    ids=["race in gemv", "race in gemm", "out of bounds in gemv"],
)
def test_a_defect_planted_in_a_copy_of_a_kernel_is_caught(
    source: str, right: str, wrong: str, sanitizers: str, report: str, tmp_path: Path
) -> None:
    for name in ("CMakeLists.txt", "csrc"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    planted = tmp_path / "csrc" / "cuda" / source
    before = planted.read_text()
    assert before.count(right) == 1, "what is to be planted does not fit the kernel any more"
    planted.write_text(before.replace(right, wrong))
    done = run(build(tmp_path / "build", sanitizers, tmp_path, "test_cuda_linear"))
    assert done.returncode != 0, done.stdout
    assert report in done.stdout
    assert source in done.stdout, "the report names the place in the kernel"


@pytest.mark.parametrize("program", ["checks_addresses", "checks_races"])
def test_nothing_is_reported_of_the_same_kernel_without_a_defect(program: str, request: pytest.FixtureRequest) -> None:
    done = run(request.getfixturevalue(program), "none")
    assert done.returncode == 0, done.stdout
    assert done.stdout == "nothing stopped none\n"
