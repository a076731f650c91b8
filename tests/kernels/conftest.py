"""The backends under test: each that can run on this machine, found when the tests start."""

import pytest

import rsn2_kernels as rk

RUNNABLE = [name for name, status in rk.available_backends().items() if status is True]


@pytest.fixture(scope="session", params=RUNNABLE)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that can run here."""
    return str(request.param)


@pytest.fixture(scope="session", params=["linear", "conv2d", "grouped_linear"])
def operator(request: pytest.FixtureRequest) -> str:
    """The name of a differentiable operator."""
    return str(request.param)
