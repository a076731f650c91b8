"""GPU benchmarks of variants: the kernels with other tiles, launches and windows than those that run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rsn2_kernels as rk
from gpu_bench import Bench, Call, Record, release
from gpu_operators import CONV, ConvSet, LinearSet, block_mask, bound
from rsn2_kernels import plans
from rsn2_kernels.backends import triton as kernels
from rsn2_kernels.plan import HEIGHTS, Plan, survey_linear

# ---- what is varied

TILINGS = tuple(
    kernels.gemm.Tiling(*each)
    for each in (
        (256, 64, 8, 3), (256, 64, 8, 4), (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 4, 6), (128, 64, 8, 3),
        (128, 64, 4, 7), (128, 128, 8, 3), (256, 32, 8, 6),
    )
)  # fmt: skip
SAMPLED: tuple[Record, ...] = (
    {"num_stages": 4}, {"num_stages": 3}, {"num_stages": 5}, {"num_stages": 6}, {"num_stages": 3, "maxnreg": 128},
    {"num_stages": 3, "DEPTH": 128}, {"num_stages": 3, "num_warps": 4},
)  # fmt: skip
CONVOLVED = tuple(
    kernels.conv._Tiling(*each)
    for each in (
        (128, 8, 3), (128, 8, 2), (128, 4, 3), (128, 4, 2), (256, 8, 3), (256, 8, 2), (64, 4, 3), (64, 4, 2),
        (256, 4, 2),
    )
)  # fmt: skip
SAMPLED_CONVOLUTIONS: tuple[Record, ...] = (
    {}, {"num_stages": 2}, {"num_stages": 4}, {"num_stages": 5}, {"num_warps": 8}, {"DEPTH": 128},
    {"DEPTH": 32, "num_stages": 5},
)  # fmt: skip


class Constants:
    """A kernel that is launched with some of its compile-time constants replaced."""

    def __init__(self, kernel: Any, **constants: Any):
        self.kernel, self.constants = kernel, constants

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        launch = self.kernel[grid]
        return lambda *arguments, **given: launch(*arguments, **(given | self.constants))


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A name of a module with another value for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def timed_once(bench: Bench, calls: list[Call], **labels: Any) -> Record:
    """Seconds of one configuration, or why it does not run."""
    try:
        seconds, _ = bench.medians({"it": calls})
        row = {**labels, "seconds": seconds["it"]}
    except Exception as error:
        # An error of the device itself ends this case.
        bench.synchronize()
        row = {**labels, "error": f"{type(error).__name__}: {error}"[:300]}
    bench.report(row)
    return row


# ---- linear products


def one_mask(bench: Bench) -> tuple[rk.SparsePattern, list[LinearSet]]:
    """The mask of layer 4, task 1, and its operands."""
    mask = bench.linear_masks(bench.sizes.width, 1, 0.1)[2][2]
    pattern = rk.SparsePattern.from_mask(mask)
    count = bench.sets(bench.sizes.batch * pattern.shape[1] * 2)
    return pattern, [LinearSet(pattern, bench.sizes.batch, bench.dtype) for _ in range(count)]


def heights(bench: Bench) -> Record:
    """The product and the sampled product on windows of every height, with the tiles that are chosen today."""
    pattern, sets = one_mask(bench)
    rows = []
    for height in HEIGHTS:
        plan = Plan.build(survey_linear(1, pattern.crow, pattern.col, pattern.shape[1]), height)
        labels = {"height": height, "visited": visited(plan, pattern)}
        with torch.no_grad():
            rows.append(timed_once(bench, multiplications(bench, plan, pattern, sets), kernel="multiply", **labels))
            rows.append(timed_once(bench, samplings(plan, pattern, sets), kernel="sample", **labels))
    return {"rows": rows}


def multiplications(bench: Bench, plan: Plan, pattern: rk.SparsePattern, sets: Sequence[LinearSet]) -> list[Call]:
    """The forward product of each set, expansion included."""
    rows, batch = pattern.shape[0], bench.sizes.batch
    return [
        lambda s=s: kernels.gemm.multiply(s.x_feature.detach().t(), s.v.detach(), None, plan, rows, batch) for s in sets
    ]


def samplings(plan: Plan, pattern: rk.SparsePattern, sets: Sequence[LinearSet]) -> list[Call]:
    """dW of each set."""
    return [
        lambda s=s: kernels.sddmm.sample(s.dy_feature.t(), s.x_feature.detach().t(), pattern.nnz, plan) for s in sets
    ]


def masks(bench: Bench) -> Iterator[tuple[Record, Plan, rk.SparsePattern, list[LinearSet]]]:
    """Masks from few to all positions visited, one after the other: labels, and what the products take."""
    width = bench.sizes.width
    single, blocks = (bench.linear_masks(width, 1, 0.1, granularity) for granularity in (None, (64, 64)))
    found: dict[str, Tensor] = {
        "RSN2, layer 4, task 1": single[2][2],
        "RSN2, layer 2, task 1": single[0][2],
        "RSN2, 64 x 64, layer 4, task 1": blocks[2][2],
        "random": torch.rand(width, width, device=bench.device) < 0.1,
    }
    for name, mask in found.items():
        pattern = rk.SparsePattern.from_mask(mask)
        plan = plans.plan(pattern)
        count = bench.sets(bench.sizes.batch * width * 2)
        sets = [LinearSet(pattern, bench.sizes.batch, bench.dtype) for _ in range(count)]
        yield {"mask": name, "visited": visited(plan, pattern)}, plan, pattern, sets
        release()


def visited(plan: Plan, pattern: rk.SparsePattern) -> float:
    """Share of the positions that a plan visits."""
    return int(plan.used.sum()) * plan.height / (pattern.shape[0] * pattern.shape[1])


@torch.no_grad()
def tiles_of_products(bench: Bench) -> Record:
    """The forward product, expansion included."""
    rows = []
    for labels, plan, pattern, sets in masks(bench):
        rows.append(timed_once(bench, [lambda s=s: F.linear(s.x, s.w) for s in sets], what="dense", **labels))
        for tiling in TILINGS:
            with replaced(kernels.gemm, "tiling", lambda *_, tiling=tiling, **__: tiling):
                calls = multiplications(bench, plan, pattern, sets)
                rows.append(timed_once(bench, calls, **labels, **tiling._asdict()))
    return {"rows": rows}


@torch.no_grad()
def tiles_of_samples(bench: Bench) -> Record:
    """dW, and of blocks, whose chunks are few, parts of the batch."""
    rows = []
    for labels, plan, pattern, sets in masks(bench):
        rows.append(timed_once(bench, [lambda s=s: s.dy.t() @ s.x for s in sets], what="dense", **labels))
        for constants in SAMPLED:
            with replaced(kernels.sddmm, "_sample", Constants(kernels.sddmm._sample, **constants)):
                rows.append(timed_once(bench, samplings(plan, pattern, sets), **labels, **constants))
        if "64 x 64" in labels["mask"]:
            rows += in_parts(
                bench, lambda plan=plan, p=pattern, sets=sets: samplings(plan, p, sets), (1, 2, 4, 8), labels
            )
    return {"rows": rows}


def in_parts(bench: Bench, calls: Callable[[], list[Call]], counts: Sequence[int], labels: Record) -> list[Record]:
    """One row per number of parts that the batch is summed in."""
    rows = []
    for parts in counts:
        with replaced(kernels.schedule, "parts_of", lambda *_, parts=parts: parts):
            rows.append(timed_once(bench, calls(), parts=parts, **labels))
    return rows


# ---- convolutions


@torch.no_grad()
def tiles_of_convolutions(bench: Bench) -> Record:
    """The convolution and its sampled product, on random blocks."""
    pattern = rk.SparsePattern.from_mask(block_mask(bench, 0.1, 64))
    nbytes = bench.sizes.images * bench.sizes.image**2 * bench.sizes.channels * 2
    sets = [ConvSet(pattern, bench.sizes, bench.dtype) for _ in range(bench.sets(nbytes))]
    rows = [timed_once(bench, [bound(CONV["forward"]["dense"], s) for s in sets], what="dense")]
    for tiling in CONVOLVED:
        with replaced(kernels.conv, "_tiling", lambda *_, tiling=tiling: tiling):
            calls = [bound(CONV["forward"]["triton"], s) for s in sets]
            rows.append(timed_once(bench, calls, kernel="convolve", **tiling._asdict()))

    def sampled() -> list[Call]:
        return [bound(CONV["dW"]["triton"], s) for s in sets]

    for constants in SAMPLED_CONVOLUTIONS:
        with replaced(kernels.conv, "_sample_conv", Constants(kernels.conv._sample_conv, **constants)):
            rows.append(timed_once(bench, sampled(), kernel="sample_conv", **constants))
    return {"rows": rows + in_parts(bench, sampled, (1, 2, 4, 8, 16, 32), {"kernel": "sample_conv"})}
