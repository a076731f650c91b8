"""Exactly so many of the largest, ties by position: what sorting everything chooses, on every device."""

import pytest
import torch
from torch import Tensor

from rsn2 import selection
from rsn2.selection import largest, nearest

# More than are sorted at once, and no multiple of anything.
MANY = 301_007
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def saliencies(kind: str, *shape: int) -> Tensor:
    """Non-negative float32 saliencies."""
    values = uniform(*shape)
    if kind == "zeros":
        return torch.zeros_like(values)
    if kind == "few values":
        return (values * 4).floor()
    if kind == "signed zeros":
        return torch.where(values > 0.5, -0.0, torch.where(values > 0.25, 0.0, values))
    if kind == "mostly zeros":
        return torch.where(values > 0.999, values, 0.0)
    if kind == "subnormal":
        return values * 1e-40
    if kind == "infinite":
        return torch.where(values > 0.7, torch.inf, values)
    if kind == "sorted":
        return values.flatten().sort().values.view(shape)
    if kind == "periodic":
        return values.flatten()[:9].repeat(values.numel() // 9 + 1)[: values.numel()].view(shape)
    assert kind == "uniform"
    return values


KINDS = (
    "uniform", "zeros", "few values", "signed zeros", "mostly zeros", "subnormal", "infinite", "sorted", "periodic",
)  # fmt: skip


def by_sorting(saliency: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The same choice, by a stable sort of everything."""
    ranked = saliency.double().masked_fill(~candidates, -1).flatten().sort(descending=True, stable=True).indices
    return torch.zeros(saliency.numel(), dtype=torch.bool).index_fill(0, ranked[:count], True).view(saliency.shape)


def counts(candidates: Tensor) -> set[int]:
    """None, one, some, all but one, all."""
    free = int(candidates.sum())
    return {0, min(1, free), free // 5, free // 2, max(free - 1, 0), free}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_choice_of_a_stable_sort(kind: str, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (1, 65), (5, 64), (33, 1), (7, 1000)):
        saliency = saliencies(kind, *shape).to(dtype)
        for density in (0.0, 0.3, 1.0):
            candidates = uniform(*shape).flip(0, 1) < density
            for count in counts(candidates):
                assert torch.equal(largest(saliency, candidates, count), by_sorting(saliency, candidates, count))


@pytest.mark.parametrize("kind", KINDS)
def test_many_are_chosen_without_sorting_them(kind: str) -> None:
    saliency = saliencies(kind, MANY)
    for density in (0.4, 1.0):
        candidates = uniform(MANY).flip(0) < density
        for count in counts(candidates):
            assert torch.equal(largest(saliency, candidates, count), by_sorting(saliency, candidates, count))


@pytest.mark.parametrize("where", ["below", "above", "least", "greatest", "next to it"])
def test_a_sample_that_misleads_costs_time_alone(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = selection._bracket

    def misled(codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if where == "below":
            return honest(codes, min(k + len(codes) // 10, len(codes)))
        if where == "above":
            return honest(codes, max(k - len(codes) // 10, 1))
        if where == "next to it":
            exact = codes.sort(descending=True).values[k - 1]
            return exact, exact
        extreme = codes.min() if where == "least" else codes.max()
        return extreme, extreme

    monkeypatch.setattr(selection, "_bracket", misled)
    # Few values: taking the least or greatest away is a long way else.
    saliency = (uniform(MANY) * 50).floor()
    candidates = uniform(MANY).flip(0) < 0.9
    for count in counts(candidates) - {0}:
        assert torch.equal(largest(saliency, candidates, count), by_sorting(saliency, candidates, count))


def test_strides_do_not_matter_and_operands_stay_as_they_are() -> None:
    saliency, candidates = saliencies("few values", 50, 70), uniform(70, 50).t() < 0.5
    before = saliency.clone(), candidates.clone()
    found = largest(saliency.t().contiguous().t(), candidates, 300)
    assert torch.equal(found, by_sorting(saliency, candidates, 300))
    assert torch.equal(saliency, before[0]) and torch.equal(candidates, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_the_same_on_a_gpu(kind: str) -> None:
    for shape in ((7, 1000), (MANY,)):
        saliency, candidates = saliencies(kind, *shape), uniform(*shape).flip(0) < 0.6
        for count in counts(candidates):
            there = largest(saliency.cuda(), candidates.cuda(), count)
            assert torch.equal(there.cpu(), largest(saliency, candidates, count))
    scores, sizes = saliencies(kind, 1000).double(), (uniform(1000) * 20).long()
    assert torch.equal(nearest(scores.cuda(), sizes.cuda(), 3000).cpu(), nearest(scores, sizes, 3000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_choosing_blocks_does_not_wait_for_a_gpu() -> None:
    scores, sizes = uniform(1000).double().cuda(), (uniform(1000) * 20).long().cuda()
    nearest(scores, sizes, 3000)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nearest(scores, sizes, 3000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
