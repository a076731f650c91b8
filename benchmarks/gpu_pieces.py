"""GPU benchmarks of what the operators are made of: the machine's ceilings, single kernels, and tile sizes."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import rsn2_kernels as rk
from gpu_bench import Bench, Call, Record
from gpu_operators import CONV, ConvSet, LinearSet, block_mask, bound, mask_figures
from rsn2_kernels import plans
from rsn2_kernels.backends import triton as kernels
from rsn2_kernels.plan import HEIGHTS, Plan, survey_linear

# ---- pieces, ceilings and tile sizes


def ceilings(bench: Bench) -> Record:
    """What this GPU does at most: a large matrix product, and a copy of more than its caches."""
    rows: list[Record] = []
    side = bench.sizes.matrix
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        seconds, _ = bench.medians({"product": [lambda a=a, b=b: a @ b]})
        rows.append({"what": f"{side}^3 product", "dtype": str(dtype), "flops": 2 * side**3 / seconds["product"]})
    source = torch.randint(0, 100, (bench.sizes.copied,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds, _ = bench.medians({"copy": [lambda: target.copy_(source)]})
    rows.append({"what": "copy", "bytes_per_second": 2 * source.nbytes / seconds["copy"]})
    return {"rows": rows}


def pieces(bench: Bench) -> Record:
    """The parts of the products on one mask, each in seconds and bytes per second that it must move."""
    sizes = bench.sizes
    mask = bench.linear_masks(sizes.width, 1, 0.1)[2][2]
    pattern = rk.SparsePattern.from_mask(mask)
    builds = []
    for _ in range(3):
        fresh = rk.SparsePattern.from_mask(mask)
        bench.synchronize()
        start = time.perf_counter()
        made = plans.plan(fresh), plans.plan(fresh, transposed=True)
        bench.synchronize()
        builds.append(time.perf_counter() - start)
    plan = made[0]
    rows: list[Record] = [
        {
            "what": "both plans",
            "seconds": statistics.median(builds),
            "first": builds[0],
            "bytes": sum(each.nbytes for each in made),
            "pattern_bytes": fresh.nbytes,
        }
    ]
    dtype = bench.dtype
    count = bench.sets(sizes.batch * sizes.width * 2)
    xs = [torch.randn(sizes.batch, sizes.width, device=bench.device).to(dtype) for _ in range(count)]
    dense = [torch.randn(sizes.width, sizes.width, device=bench.device).to(dtype) for _ in range(count)]
    vs = [pattern.pack(each) for each in dense]
    crow, col, cols = pattern.crow, pattern.col, sizes.width
    tile_bytes = plan.chunks * plan.width * plan.height * 2
    task_of_row = torch.randint(0, 5, (5 * sizes.rows_per_task,), device=bench.device)
    parts: dict[str, tuple[list[Call], int]] = {
        "expand": ([lambda v=v: kernels.expand(v, crow, col, cols) for v in vs], mask.numel() * 2 + pattern.nnz * 6),
        "gather": ([lambda w=w: kernels.gather(w, crow, col) for w in dense], pattern.nnz * 8),
        "transposition": ([lambda x=x: kernels.layout.feature_major(x) for x in xs], 2 * xs[0].nbytes),
        "expand_tiles": (
            [lambda v=v: kernels.expansion.expand_tiles(v, plan, 64) for v in vs],
            tile_bytes + pattern.nnz * 2 + plan.bits.nbytes + plan.starts.nbytes,
        ),
        "group_rows": ([lambda: kernels.layout.group_rows(task_of_row, 5, 128)], task_of_row.nbytes),
        "torch: zeros and index_put": ([lambda v=v: pattern.unpack(v) for v in vs], mask.numel() * 2 + pattern.nnz * 6),
    }
    for name, (calls, nbytes) in parts.items():
        try:
            seconds, _ = bench.medians({name: calls})
            rows.append({"what": name, "seconds": seconds[name], "bytes_per_second": nbytes / seconds[name]})
        except Exception as error:
            rows.append({"what": name, "error": f"{type(error).__name__}: {error}"[:500]})
    return {"mask": mask_figures(pattern), "rows": rows}


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


def fastest_first(rows: list[Record]) -> list[Record]:
    """The configurations that ran by rising time, then those that did not."""
    return sorted(rows, key=lambda row: row.get("seconds", float("inf")))


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
        labels = {"height": height, "visited": int(plan.used.sum()) * height / (pattern.shape[0] * pattern.shape[1])}
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


def sweep_multiply(bench: Bench) -> Record:
    """Tiles of the product at every height: blocks and warps first, then depths and stages of the best of them."""
    pattern, sets = one_mask(bench)
    rows: list[Record] = []

    def timed(plan: Plan, block: int, depth: int, warps: int, stages: int) -> Record:
        tiling = kernels.gemm.Tiling(block, depth, warps, stages)
        labels = {"height": plan.height} | tiling._asdict()
        with replaced(kernels.gemm, "tiling", lambda *_, **__: tiling), torch.no_grad():
            return timed_once(bench, multiplications(bench, plan, pattern, sets), **labels)

    for height in reversed(HEIGHTS):
        plan = Plan.build(survey_linear(1, pattern.crow, pattern.col, pattern.shape[1]), height)
        first = [timed(plan, block, 64, warps, 4) for block, warps in itertools.product((128, 256), (4, 8))]
        best = fastest_first(first)[0]
        rest = [
            timed(plan, best["block"], depth, best["num_warps"], stages)
            for depth, stages in ((64, 3), (64, 5), (64, 6), (128, 3), (128, 2), (32, 6))
        ]
        rows += fastest_first(first + rest)
    return {"rows": rows}


def sweep_sample(bench: Bench) -> Record:
    """Depths, warps and stages of the sampled product at the height that is chosen."""
    pattern, sets = one_mask(bench)
    plan = plans.plan(pattern)
    rows = []
    for depth, warps, stages in itertools.product((32, 64, 128), (4, 8), (2, 3, 4, 5)):
        kernel = Constants(kernels.sddmm._sample, DEPTH=depth, num_warps=warps, num_stages=stages)
        with replaced(kernels.sddmm, "_sample", kernel), torch.no_grad():
            labels = {"height": plan.height, "depth": depth, "num_warps": warps, "num_stages": stages}
            rows.append(timed_once(bench, samplings(plan, pattern, sets), **labels))
    return {"rows": fastest_first(rows)}


def sweep_convolve(bench: Bench) -> Record:
    """Blocks, warps and stages of the convolution, and depths of its sampled product, on random 64 x 64 blocks."""
    pattern = rk.SparsePattern.from_mask(block_mask(bench, 0.1, 64))
    nbytes = bench.sizes.images * bench.sizes.image**2 * bench.sizes.channels * 2
    sets = [ConvSet(pattern, bench.sizes, bench.dtype) for _ in range(bench.sets(nbytes))]
    products, sampled = [], []
    with torch.no_grad():
        for block, warps, stages in itertools.product((64, 128, 256), (4, 8), (2, 3, 4)):
            tiling = kernels.conv._Tiling(block, warps, stages)
            with replaced(kernels.conv, "_tiling", lambda *_, tiling=tiling: tiling):
                calls = [bound(CONV["forward"]["triton"], s) for s in sets]
                products.append(timed_once(bench, calls, kernel="convolve", **tiling._asdict()))
        for depth, warps, stages in itertools.product((32, 64, 128), (4, 8), (2, 3, 4)):
            kernel = Constants(kernels.conv._sample_conv, DEPTH=depth, num_warps=warps, num_stages=stages)
            with replaced(kernels.conv, "_sample_conv", kernel):
                calls = [bound(CONV["dW"]["triton"], s) for s in sets]
                labels = {"depth": depth, "num_warps": warps, "num_stages": stages}
                sampled.append(timed_once(bench, calls, kernel="sample_conv", **labels))
    return {"rows": fastest_first(products) + fastest_first(sampled)}
