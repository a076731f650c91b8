"""The CUDA sources compile for GPUs that are not here, and their kernels keep everything in registers."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90a", "100")
NVCC = shutil.which("nvcc")

_KERNEL = re.compile(r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<architecture>\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?")


@dataclass(frozen=True)
class Kernel:
    """What ptxas said of one kernel for one architecture; sizes in bytes."""

    name: str
    architecture: str
    registers: int
    stack: int
    spilled: int
    static_shared: int


def compiled(source: Path, folder: Path) -> list[Kernel]:
    """The kernels of a source, for every architecture."""
    assert NVCC is not None
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES]
    command = [NVCC, "-std=c++17", "-O3", "-Xptxas", "-v", *targets, f"--threads={os.cpu_count()}"]
    command += ["-Xcompiler=-Wall", "-c", str(source), "-o", str(folder / "object.o")]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout, done.stdout
    return list(_kernels(done.stdout))


def _kernels(report: str) -> Iterator[Kernel]:
    """Three facts follow each other for every kernel: which, its stack, its registers."""
    for part in report.split("ptxas info    : Compiling")[1:]:
        which, stack, used = _KERNEL.match("Compiling" + part), _STACK.search(part), _USED.search(part)
        assert which and stack and used, part
        bytes_of_stack, stored, loaded = map(int, stack.groups())
        registers, shared = int(used["registers"]), int(used["shared"] or 0)
        yield Kernel(which["name"], which["architecture"], registers, bytes_of_stack, stored + loaded, shared)


def _family(kernel: Kernel) -> str:
    """The name of the function that a kernel is an instance of, out of its mangled name."""
    found = re.search(r"\d([a-z_]+_kernel)", kernel.name)
    assert found, kernel.name
    return found[1]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Kernel]:
    folder = tmp_path_factory.mktemp("cuda")
    found = [kernel for source in SOURCES for kernel in compiled(source, folder)]
    rows = [f"{'kernel':52} {'sm':>5} {'registers':>9} {'spilled':>7} {'stack':>5} {'static shared':>13}"]
    families: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in found:
        families.setdefault((_family(kernel), kernel.architecture), []).append(kernel)
    for (name, architecture), members in sorted(families.items()):
        most = [max(getattr(each, key) for each in members) for key in ("registers", "spilled", "stack")]
        shared = max(each.static_shared for each in members)
        label = f"{name} ({len(members)} instances)"
        rows.append(f"{label:52} {architecture:>5} {most[0]:9} {most[1]:7} {most[2]:5} {shared:13}")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *rows, sep="\n")
    return found


@pytest.mark.skipif(NVCC is None, reason="needs nvcc, as the CUDA operators do")
def test_every_kernel_compiles_for_every_architecture_without_spills(kernels: list[Kernel]) -> None:
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    for architecture in ARCHITECTURES:
        names = {kernel.name for kernel in kernels if kernel.architecture == architecture}
        assert len(names) >= 34, names
    assert [kernel for kernel in kernels if kernel.stack or kernel.spilled] == []
