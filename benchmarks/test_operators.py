"""Operators on packed weights beside the dense library: run with `make bench`.

Each group is one problem; its rows are the dense library on a dense weight, on weight times mask (what sparse multitask
networks did so far), and every backend that runs here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import rsn2_kernels as rk

BACKENDS = [name for name, status in rk.available_backends().items() if status is True and name != "reference"]
DENSITIES = (0.05, 0.1, 0.2)


def _timed(benchmark: Any, call: Callable[[], torch.Tensor], inputs: list[torch.Tensor], backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            benchmark(call)
        return

    def step() -> None:
        torch.autograd.grad(call().sum(), inputs)

    benchmark(step)


@pytest.mark.parametrize("runner", ["dense", "masked dense", *(f"backend {name}" for name in BACKENDS)])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("problem", ["linear 512x1000x1000", "linear 1x4096x4096", "conv3x3 64->64 28x28 batch 16"])
def test_operator(benchmark: Any, problem: str, density: float, backward: bool, runner: str) -> None:
    torch.set_num_threads(1)
    benchmark.group = f"{problem}, density {density}, {'forward+backward' if backward else 'forward'}, 1 thread"
    convolution = problem.startswith("conv")
    batch, cols, rows = {"linear 512": (512, 1000, 1000), "linear 1x4": (1, 4096, 4096)}.get(
        problem[:10], (16, 576, 64)
    )
    torch.manual_seed(0)
    x = torch.randn(16, 64, 28, 28) if convolution else torch.randn(batch, cols)
    weight = torch.randn(rows, cols)
    mask = torch.rand(rows, cols) < density
    pattern = rk.SparsePattern.from_mask(mask)
    values = pattern.pack(weight)
    inputs = [x.requires_grad_(), (values if runner.startswith("backend") else weight).requires_grad_()]
    name = runner.removeprefix("backend ")

    def dense(w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w.view(64, 64, 3, 3), padding=1) if convolution else F.linear(x, w)

    def packed() -> torch.Tensor:
        if convolution:
            return rk.conv2d(x, values, pattern, padding=1, kernel_size=3, backend=name)
        return rk.linear(x, values, pattern, backend=name)

    calls = {"dense": lambda: dense(weight), "masked dense": lambda: dense(weight * mask)}
    _timed(benchmark, calls.get(runner, packed), inputs, backward)
