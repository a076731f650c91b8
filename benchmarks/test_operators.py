"""Single calls under pytest-benchmark: `make bench`, or with -k and --benchmark-compare what pytest-benchmark can do.

The cases are those of `rsn2 bench --quick`, and every call is checked against the reference before it is timed. Figures
beside their bounds, with interleaved baselines and a verdict on the noise, are what `rsn2 bench` is for.
"""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from rsn2.bench.cases import PRODUCTS, Case, quick
from rsn2.bench.operators import work
from rsn2.bench.work import Work

CASES = [case for case in quick() if case.op in PRODUCTS and not case.compiled and max(case.shape) <= 1024]
CALLS = ("dense", "separate", "masked", "torch CSR", "rsn2", "rsn2 cpu", "rsn2 dense")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache(maxsize=1)
def calls_of(case: Case) -> Work:
    """Made and checked once for all calls of a case, which follow each other."""
    return work(case, "cpu")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_call(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    found = calls_of(case)
    if name not in found.calls:
        pytest.skip(found.unavailable[name])
    benchmark.group = case.key
    benchmark(found.calls[name])
