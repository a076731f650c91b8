"""GPU benchmarks of what the operators are made of: the machine's ceilings, single kernels, calls on the host."""

import statistics
import time

import torch
import torch.nn.functional as F

import rsn2_kernels as rk
from gpu_bench import Bench, Call, Record
from gpu_operators import LinearSet, mask_figures
from rsn2_kernels import plans
from rsn2_kernels.backends import triton as kernels


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


def calls_on_the_host(bench: Bench) -> Record:
    """What one call after the other takes where the device has little to do, launches and autograd included."""
    rows = []
    for batch, size in ((16, 64),) if bench.dry else ((512, 1000), (64, 512)):
        pattern = rk.SparsePattern.from_mask(torch.rand(size, size, device=bench.device) < 0.1)
        s = LinearSet(pattern, batch, bench.dtype)
        steps: dict[str, Call] = {"F.linear": lambda s=s: torch.autograd.grad(F.linear(s.x, s.w), [s.x, s.w], s.dy)}
        forwards: dict[str, Call] = {"F.linear": lambda s=s: F.linear(s.x, s.w)}
        for backend in ("triton", "dense", "cuda", None):
            name = backend or "chosen"
            steps[name] = lambda s=s, backend=backend: s.step(backend)
            forwards[name] = lambda s=s, backend=backend: rk.linear(s.x, s.v, s.pattern, backend=backend)
        with torch.no_grad():
            calls = {name: [call] for name, call in forwards.items()}
            rows.append(bench.compared("forward", calls, eager=True, batch=batch, size=size))
        calls = {name: [call] for name, call in steps.items()}
        rows.append(bench.compared("step", calls, eager=True, batch=batch, size=size))
    return {"rows": rows}
