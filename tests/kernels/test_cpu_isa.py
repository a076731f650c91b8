"""Every instruction set of the native CPU operators keeps the contract, each in a process of its own.

The library chooses once per process, from what the processor has or from RSN2_CPU_ISA.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rsn2_kernels as rk

STATUS = rk.available_backends()["cpu"]
HERE = Path(__file__).parent


pytestmark = [
    pytest.mark.skipif(STATUS is not True, reason=str(STATUS)),
    pytest.mark.skipif("RSN2_CPU_ISA" in os.environ, reason="this process has its instruction set already"),
]


def run(isa: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty ``folder``, with this process's modules, capped at one instruction set."""
    environment = {**os.environ, "RSN2_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512", "avx2", "baseline"])
def test_every_instruction_set_keeps_the_contract(isa: str, tmp_path: Path) -> None:
    files = [str(HERE / name) for name in ("test_contract_linear.py", "test_contract_conv.py", "test_cpu_words.py")]
    some = "cpu and awkward_sizes and not torch.float16"  # float16 differs from bfloat16 in the conversion alone
    done = run(isa, tmp_path, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", some, *files)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_an_unknown_instruction_set_makes_the_backend_unavailable_and_says_why(tmp_path: Path) -> None:
    done = run("sse9", tmp_path, "-c", "import rsn2_kernels as rk; print(rk.available_backends()['cpu'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "RSN2_CPU_ISA must be avx512_bf16, avx512, avx2 or baseline; got 'sse9'"


def test_an_empty_name_caps_nothing(tmp_path: Path) -> None:
    done = run("", tmp_path, "-c", "import rsn2_kernels as rk; print(rk.available_backends()['cpu'])")
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_an_unknown_instruction_set_is_refused_by_name(tmp_path: Path) -> None:
    call = (
        "import torch, rsn2_kernels as rk; "
        "p = rk.SparsePattern.from_mask(torch.ones(2, 2, dtype=torch.bool)); "
        "rk.linear(torch.ones(1, 2), torch.ones(4), p, backend='cpu')"
    )
    done = run("sse9", tmp_path, "-c", call)
    assert done.returncode == 1, "the process must end with an exception, not a crash"
    assert "RSN2_CPU_ISA" in done.stderr and "sse9" in done.stderr
