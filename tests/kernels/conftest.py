"""The backends under test: each that can run on the device under test, the CPU or with `--device cuda` a GPU."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import rsn2_kernels as rk
from rsn2_kernels.backends import cuda, registry, triton

from . import cases

if triton.interpreted:
    from .interpreter import repair

    repair()

HERE = Path(__file__).parent
# The files whose operands follow `--device`; the others are about what is done on a CPU.
ON_ANY_DEVICE = ("test_contract_autograd", "test_contract_conv", "test_contract_grouped", "test_contract_linear")
ON_A_GPU = ("test_bits", "test_gpu")
# Whose tests are about one operator without being parametrised by it.
OPERATOR_OF = {"test_contract_conv": "conv2d", "test_contract_grouped": "grouped_linear"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the operands of the tests are")


def pytest_configure(config: pytest.Config) -> None:
    if triton.interpreted or cuda.emulated:
        _draw_fewer_examples()
    if config.getoption("--device", default="cpu") == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU here.")
    cases.device = torch.device("cuda")
    _draw_fewer_examples()
    # The tolerances are those of sums in float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # The reference adds with atomics otherwise. What is allocated and never written is NaN under this setting.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    config.addinivalue_line("filterwarnings", "ignore:.*deterministic")


def _draw_fewer_examples() -> None:
    """On a GPU kernels are compiled for every new shape; the interpreter and the emulator are slow."""
    settings.register_profile("fewer", settings.get_profile("repeatable"), max_examples=5)
    settings.load_profile("fewer")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a ``backend`` runs on each that can run on the device."""
    if "backend" in metafunc.fixturenames:
        dtype = torch.float32  # every backend takes it
        names = [name for name in rk.available_backends() if registry.why_not(name, cases.device, dtype) is None]
        metafunc.parametrize("backend", names, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if triton.interpreted:
        dropped = [item for item in items if _same_source(item)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
    for item in items:
        if item.path.parent == HERE and (why := _why_skipped(item)) is not None:
            item.add_marker(pytest.mark.skip(reason=why))


def _same_source(item: pytest.Item) -> bool:
    """Whether, interpreted, a test runs what another one runs, for time.

    The kernels of all types are one source, and each operand is laid out by itself.
    """
    parameters = _parameters(item)
    dtype = parameters.get("dtype")
    if not (isinstance(item, pytest.Function) and item.originalname == "test_any_strides"):
        return dtype in (torch.float64, torch.float16)
    layouts = {parameters["x_layout"], parameters["dy_layout"]}
    return dtype in (torch.float64, torch.float16, torch.bfloat16) or len(layouts - {"contiguous"}) > 1


def _why_skipped(item: pytest.Item) -> str | None:
    """Why a test does not run on the device, or with its backend; None if it does."""
    parameters = _parameters(item)
    if cases.device.type != "cpu":
        if item.path.stem in ON_A_GPU:
            return None
        if item.path.stem not in ON_ANY_DEVICE or "backend" not in parameters:
            return "what it tests does not run on the device"
    if "backend" not in parameters:
        return None
    op = parameters.get("operator", OPERATOR_OF.get(item.path.stem, "linear"))
    dtype = parameters.get("dtype", torch.float32)
    if not dtype.is_floating_point:
        dtype = torch.float32  # that of the operands; the parameter is that of the ids
    return registry.why_not(parameters["backend"], cases.device, dtype, op)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """What a test is parametrised with."""
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(scope="session", params=["linear", "conv2d", "grouped_linear"])
def operator(request: pytest.FixtureRequest) -> str:
    """The name of a differentiable operator."""
    return str(request.param)
