"""GPU benchmarks of the operators against cuBLAS and cuDNN: the cases that the acceptance bars are about."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import rsn2_kernels as rk
from gpu_bench import Bench, Call, Record, Sizes, bar, median_of, over_dense, release
from rsn2_kernels import dispatch, plans
from rsn2_kernels.geometry import ConvGeometry

# ---- linear products


class LinearSet:
    """One set of operands of a linear product, batch-major and feature-major."""

    def __init__(self, pattern: rk.SparsePattern, batch: int, dtype: torch.dtype):
        rows, cols = pattern.shape
        device = pattern.device
        self.pattern = pattern
        self.index = dispatch.index("triton", pattern, True)
        self.x = torch.randn(batch, cols, device=device).to(dtype).requires_grad_()
        self.dy = torch.randn(batch, rows, device=device).to(dtype)
        self.x_feature = self.x.detach().t().contiguous().t().requires_grad_()
        self.dy_feature = self.dy.t().contiguous().t()
        self.v = (torch.randn(pattern.nnz, device=device) / 16).to(dtype).requires_grad_()
        self.w = pattern.unpack(self.v.detach()).requires_grad_()

    def step(self, backend: str | None, feature_major: bool = False) -> tuple[Tensor, ...]:
        x, dy = (self.x_feature, self.dy_feature) if feature_major else (self.x, self.dy)
        return torch.autograd.grad(rk.linear(x, self.v, self.pattern, backend=backend), [x, self.v], dy)


OPS = torch.ops.rsn2
LINEAR: dict[str, dict[str, Callable[[LinearSet], object]]] = {
    "forward and backward": {
        "dense": lambda s: torch.autograd.grad(F.linear(s.x, s.w), [s.x, s.w], s.dy),
        "triton": lambda s: s.step("triton"),
        "triton, feature-major": lambda s: s.step("triton", True),
        "chosen": lambda s: s.step(None),
    },
    "forward": {
        "dense": lambda s: F.linear(s.x, s.w),
        "triton": lambda s: rk.linear(s.x, s.v, s.pattern, backend="triton"),
        "triton, feature-major": lambda s: rk.linear(s.x_feature, s.v, s.pattern, backend="triton"),
    },
    "dX": {
        "dense": lambda s: s.dy @ s.w,
        "triton": lambda s: OPS.linear_dx(s.dy, s.v, s.index, s.pattern.shape, "triton"),
        "triton, feature-major": lambda s: OPS.linear_dx(s.dy_feature, s.v, s.index, s.pattern.shape, "triton"),
    },
    "dW": {
        "dense": lambda s: s.dy.t() @ s.x,
        "triton": lambda s: OPS.linear_dvalues(s.dy, s.x, s.index, s.pattern.shape, "triton"),
        "triton, feature-major": lambda s: OPS.linear_dvalues(
            s.dy_feature, s.x_feature, s.index, s.pattern.shape, "triton"
        ),
    },
}
ALLOWED_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def linear_error(s: LinearSet) -> float:
    """The largest relative error of the three products, against the dense library in float64."""
    x, w, dy = (each.detach().double() for each in (s.x, s.w, s.dy))
    worst = relative_error(rk.linear(s.x, s.v, s.pattern, backend="triton").detach(), x @ w.t())
    expected = (dy @ w, s.pattern.pack(dy.t() @ x))
    for feature_major in (False, True):
        found = s.step("triton", feature_major)
        worst = max(worst, *(relative_error(a, b) for a, b in zip(found, expected, strict=True)))
    return worst


def linear_rows(
    bench: Bench, mask: Tensor, dtype: torch.dtype, products: Sequence[str] = tuple(LINEAR), **labels: Any
) -> list[Record]:
    """One mask: one row per product."""
    pattern = rk.SparsePattern.from_mask(mask)
    batch = bench.sizes.batch
    count = bench.sets(batch * pattern.shape[1] * dtype.itemsize)
    sets = [LinearSet(pattern, batch, dtype) for _ in range(count)]
    labels |= mask_figures(pattern) | {"dtype": str(dtype), "relative_error": linear_error(sets[0])}
    said = rk.explain("linear", pattern, batch, dtype, bench.device)
    labels |= {"chosen": said.backend, "predicted_seconds": said.seconds}
    bench.check(f"linear, {labels}", labels["relative_error"], ALLOWED_ERROR[dtype])
    rows = []
    for product in products:
        with torch.set_grad_enabled(product == "forward and backward"):
            calls = {name: [bound(call, s) for s in sets] for name, call in LINEAR[product].items()}
            rows.append(bench.compared(product, calls, batch=batch, **labels))
    return rows


def bound(call: Callable[[Any], object], operands: Any) -> Call:
    """A call on its operands."""
    return lambda: call(operands)


def mask_figures(pattern: rk.SparsePattern) -> Record:
    """Density, and the share of positions visited by the plan of the weight and of its transpose."""
    figures: Record = {"rows": pattern.shape[0], "cols": pattern.shape[1], "density": pattern.density}
    for name, transposed in (("visited", False), ("visited_transposed", True)):
        plan = plans.plan(pattern, transposed=transposed)
        figures[name] = int(plan.used.sum()) * plan.height / (pattern.shape[0] * pattern.shape[1])
        figures[f"{name}_height"] = plan.height
    return figures


def on_masks(
    bench: Bench,
    density: float,
    asked: float | None,
    granularity: tuple[int, int] | None = None,
    only: Sequence[tuple[int, int]] | None = None,
    dtype: torch.dtype | None = None,
) -> Record:
    """Masks of a network of wide linear layers; ``only`` these layers and tasks."""
    masks = bench.linear_masks(bench.sizes.width, 2, density, granularity)
    rows = []
    for layer, task, mask in masks[: 2 if bench.dry else None]:
        if bench.dry or only is None or (layer, task) in only:
            rows += linear_rows(bench, mask, dtype or bench.dtype, layer=layer, task=task)
            release()
    both = [row for row in rows if row["what"] == "forward and backward"]
    bars = []
    if asked is not None:
        for name in ("triton", "triton, feature-major"):
            bars.append(bar(f"forward and backward, {name}, median of {len(both)} masks", asked, median_of(both, name)))
    return {"bars": bars, "granularity": granularity, "masks": bench.data[0], "rows": rows}


def real_masks(bench: Bench) -> Record:
    """Masks of RSN2 at density 0.1: the bar is for the median mask."""
    return on_masks(bench, 0.1, 1.7)


SOME = ((2, 1), (4, 1), (6, 1), (3, 2), (5, 2))


def unstructured(bench: Bench) -> Record:
    """A random mask, where the dense path should be chosen, and a whole training step."""
    width, batch = bench.sizes.width, bench.sizes.batch
    mask = torch.rand(width, width, device=bench.device) < 0.1
    rows = linear_rows(bench, mask, bench.dtype, ("forward and backward",))
    bars = [bar("forward and backward, chosen, against dense", 0.95, rows[0]["times_as_fast"]["chosen"])]
    pattern = rk.SparsePattern.from_mask(mask)
    dense = (torch.randn(width, width, device=bench.device) / 16).to(bench.dtype)
    sets = []
    for _ in range(bench.sets(batch * width * 2)):
        x = torch.randn(batch, width, device=bench.device).to(bench.dtype).requires_grad_()
        sets.append((x, torch.randn(batch, width, device=bench.device).to(bench.dtype)))

    def training(parameter: nn.Parameter, call: Callable[[Tensor], Tensor]) -> list[Call]:
        optimizer = torch.optim.AdamW([parameter], lr=1e-4)

        def step(x: Tensor, dy: Tensor) -> None:
            call(x).backward(dy)
            optimizer.step()
            optimizer.zero_grad()
            x.grad = None

        return [lambda x=x, dy=dy: step(x, dy) for x, dy in sets]

    w, v = nn.Parameter(dense.clone()), nn.Parameter(pattern.pack(dense))
    steps = {
        "linear(x, w * mask)": training(w, lambda x: F.linear(x, w * mask)),
        "packed": training(v, lambda x: rk.linear(x, v, pattern)),
    }
    rows.append(bench.compared("training step with AdamW", steps, batch=batch, density=pattern.density))
    bars.append(bar("training step with AdamW, against linear(x, w * mask)", 1.2, rows[-1]["times_as_fast"]["packed"]))
    return {"bars": bars, "rows": rows}


# ---- convolution


class ConvSet:
    """One set of operands of a 3 x 3 convolution with padding 1, channels-last."""

    def __init__(self, pattern: rk.SparsePattern, sizes: Sizes, dtype: torch.dtype):
        device, side = pattern.device, sizes.image
        channels = pattern.shape[1] // 9

        def images(channels: int) -> Tensor:
            drawn = torch.randn(sizes.images, channels, side, side, device=device).to(dtype)
            return drawn.contiguous(memory_format=torch.channels_last)

        self.pattern = pattern
        self.index = dispatch.index("triton", pattern, True, GEOMETRY)
        self.features = pattern.shape[0], channels
        self.x, self.dy = images(channels).requires_grad_(), images(pattern.shape[0])
        self.v = (torch.randn(pattern.nnz, device=device) / 16).to(dtype).requires_grad_()
        w = pattern.unpack(self.v.detach()).view(-1, channels, 3, 3)
        self.w = w.contiguous(memory_format=torch.channels_last).requires_grad_()

    def forward(self, backend: str | None) -> Tensor:
        return rk.conv2d(self.x, self.v, self.pattern, padding=1, kernel_size=3, backend=backend)

    def step(self, backend: str | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(backend), [self.x, self.v], self.dy)

    def dense_step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.conv2d(self.x, self.w, padding=1), [self.x, self.w], self.dy)

    def dense_gradient(self, place: int) -> Tensor:
        """That of x (0) or of the weight (1), by the call that autograd makes.

        Not by `nn.grad.conv2d_input`: its stand-in for x is not channels-last, and cuDNN goes by the layout of x.
        """
        pair, wanted = [1, 1], [place == 0, place == 1, False]
        found = torch.ops.aten.convolution_backward(
            self.dy, self.x, self.w, None, pair, pair, pair, False, [0, 0], 1, wanted
        )
        gradient: Tensor = found[place]
        return gradient


GEOMETRY = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
CONV: dict[str, dict[str, Callable[[ConvSet], object]]] = {
    "forward": {
        "dense": lambda s: F.conv2d(s.x, s.w, padding=1),
        "triton": lambda s: s.forward("triton"),
        "chosen": lambda s: s.forward(None),
    },
    "forward and backward": {
        "dense": lambda s: s.dense_step(),
        "triton": lambda s: s.step("triton"),
        "chosen": lambda s: s.step(None),
    },
    "dX": {
        "convolution_backward": lambda s: s.dense_gradient(0),
        "triton": lambda s: OPS.conv2d_dx(s.dy, s.v, s.index, list(s.x.shape[2:]), s.features, *GEOMETRY, "triton"),
    },
    "dW": {
        "convolution_backward": lambda s: s.dense_gradient(1),
        "triton": lambda s: OPS.conv2d_dvalues(s.dy, s.x, s.index, s.features, *GEOMETRY, "triton"),
    },
}


def block_mask(bench: Bench, density: float, side: int) -> Tensor:
    """Random blocks of ``side`` filters by ``side`` channels of one tap, in the form ``[filters, channels * 9]``."""
    channels = bench.sizes.channels
    blocks = -(-channels // side)
    chosen = torch.randperm(blocks * blocks * 9, generator=torch.Generator().manual_seed(0))
    coarse = torch.zeros(blocks * blocks * 9, dtype=torch.bool)
    coarse[chosen[: max(1, round(density * len(coarse)))]] = True
    coarse = coarse.view(blocks, blocks, 9)
    mask = coarse.repeat_interleave(side, 0).repeat_interleave(side, 1)[:channels, :channels]
    return mask.reshape(channels, channels * 9).to(bench.device)


def convolution(bench: Bench) -> Record:
    """3 x 3, 64 x 64 granularity, density 0.1, against cuDNN with its own search for the best algorithm."""
    torch.backends.cudnn.benchmark = True
    masks = [("random blocks", block_mask(bench, 0.1, 64))]
    try:
        masks += [(f"layer {layer}", mask) for layer, _, mask in bench.conv_masks(0.1, (64, 64))]
    except Exception as error:
        bench.notes.append(f"masks of a convolutional network: {type(error).__name__}: {error}"[:500])
    rows = []
    for name, mask in masks:
        pattern = rk.SparsePattern.from_mask(mask)
        pixels = bench.sizes.images * bench.sizes.image**2
        sets = [
            ConvSet(pattern, bench.sizes, bench.dtype) for _ in range(bench.sets(pixels * bench.sizes.channels * 2))
        ]
        plan = plans.plan(pattern, GEOMETRY)
        s = sets[0]
        dx, dv = s.step("triton")
        dense_dx, dense_dw = s.dense_step()
        worst = max(
            relative_error(s.forward("triton").detach(), F.conv2d(s.x, s.w, padding=1).detach()),
            relative_error(dx, dense_dx),
            relative_error(dv, pattern.pack(dense_dw.flatten(1))),
        )
        bench.check(f"convolution, {name}", worst, 2 * ALLOWED_ERROR[bench.dtype])
        said = rk.explain("conv2d", pattern, pixels, bench.dtype, bench.device, kernel_size=3)
        labels = {
            "mask": name,
            "density": pattern.density,
            "visited": int(plan.used.sum()) * plan.height / mask.numel(),
            "height": plan.height,
            "run": plan.width,
            "relative_error": worst,
            "chosen": said.backend,
            "predicted_seconds": said.seconds,
        }
        for product, candidates in CONV.items():
            with torch.set_grad_enabled(product == "forward and backward"):
                calls = {which: [bound(call, each) for each in sets] for which, call in candidates.items()}
                rows.append(bench.compared(product, calls, **labels))
        release()
    bars = [
        bar(f"{row['what']}, {row['mask']}", 4, row["times_as_fast"]["triton"])
        for row in rows
        if row["what"].startswith("forward")
    ]
    return {"bars": bars, "rows": rows}


# ---- rows of several tasks


class GroupedSet:
    """Rows of several tasks, shuffled for the grouped launch and sorted for dense products.

    These are one product per task, or one over all weights stacked, for which each task has as many rows as the
    largest, the others zeros.
    """

    def __init__(self, patterns: Sequence[rk.SparsePattern], counts: Sequence[int], dtype: torch.dtype):
        device = patterns[0].device
        rows, cols = patterns[0].shape
        tasks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        order = torch.randperm(len(tasks))
        self.patterns = list(patterns)
        self.task_of_row = tasks[order].to(device)
        self.x = torch.randn(len(tasks), cols, device=device).to(dtype).requires_grad_()
        self.dy = torch.randn(len(tasks), rows, device=device).to(dtype)
        self.vs = [(torch.randn(p.nnz, device=device) / 16).to(dtype).requires_grad_() for p in patterns]
        self.ws = [p.unpack(v.detach()).requires_grad_() for p, v in zip(patterns, self.vs, strict=True)]
        # Where the rows of the tasks, in the order of the tasks, stand.
        self.place = order.argsort().to(device)
        sorted_x = self.x.detach()[self.place].split(list(counts))
        self.sorted_x = [each.clone().requires_grad_() for each in sorted_x]
        self.sorted_dy = [each.clone() for each in self.dy[self.place].split(list(counts))]
        self.stacked = torch.stack([w.detach() for w in self.ws]).requires_grad_()
        self.padded_x = pad_sequence(list(sorted_x), batch_first=True).requires_grad_()
        self.padded_dy = pad_sequence(self.sorted_dy, batch_first=True)

    def dense(self) -> list[Tensor]:
        return [F.linear(x, w) for x, w in zip(self.sorted_x, self.ws, strict=True)]

    def batched(self) -> Tensor:
        return torch.bmm(self.padded_x, self.stacked.mT)

    def grouped(self, backend: str | None) -> Tensor:
        return rk.grouped_linear(self.x, self.vs, self.patterns, self.task_of_row, backend=backend)

    def dense_step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.dense(), [*self.sorted_x, *self.ws], self.sorted_dy)

    def batched_step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.batched(), [self.padded_x, self.stacked], self.padded_dy)

    def step(self, backend: str | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.grouped(backend), [self.x, *self.vs], self.dy)


GROUPED: dict[str, dict[str, Callable[[GroupedSet], object]]] = {
    "forward": {
        "dense": lambda s: s.dense(),
        "bmm": lambda s: s.batched(),
        "triton": lambda s: s.grouped("triton"),
    },
    "forward and backward": {
        "dense": lambda s: s.dense_step(),
        "bmm": lambda s: s.batched_step(),
        "triton": lambda s: s.step("triton"),
    },
}


def graphed(bench: Bench, call: Call) -> Call:
    """The call as a CUDA graph."""
    if bench.dry:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(kept: object = kept) -> None:
        graph.replay()

    return replay


def grouped_rows(
    bench: Bench, patterns: Sequence[rk.SparsePattern], counts: Sequence[int], **labels: Any
) -> list[Record]:
    """Eager, and as CUDA graphs."""
    dtype = bench.dtype
    width = patterns[0].shape[1]
    nbytes = dtype.itemsize * (sum(counts) * width + len(patterns) * width**2)
    sets = [GroupedSet(patterns, counts, dtype) for _ in range(bench.sets(nbytes))]
    expected = torch.cat([each.detach() for each in sets[0].dense()])
    batched = [found[:count] for found, count in zip(sets[0].batched().detach(), counts, strict=True)]
    worst = relative_error(sets[0].grouped("triton").detach()[sets[0].place], expected)
    worst = max(worst, relative_error(torch.cat(batched), expected))
    bench.check(f"grouped, {labels}", worst, 2 * ALLOWED_ERROR[dtype])
    rows = []
    for product, candidates in GROUPED.items():
        with torch.set_grad_enabled(product == "forward and backward"):
            calls = {name: [bound(call, each) for each in sets] for name, call in candidates.items()}
            for mode in ("eager", "in a full stream"):
                what = f"{product}, {mode}"
                rows.append(bench.compared(what, calls, eager=mode == "eager", relative_error=worst, **labels))
            graphs = {name: [graphed(bench, call) for call in every] for name, every in calls.items()}
            rows.append(bench.compared(f"{product}, CUDA graphs", graphs, relative_error=worst, **labels))
            del graphs
    return rows


def grouped(bench: Bench) -> Record:
    """One launch over 5 tasks, against one dense launch per task or over all; and many tasks with few rows each."""
    width = bench.sizes.grouped_width
    masks = [mask for layer, _, mask in bench.linear_masks(width, 5, 0.1) if layer == 3]
    patterns = [rk.SparsePattern.from_mask(mask) for mask in masks]
    rows = grouped_rows(bench, patterns, [bench.sizes.rows_per_task] * 5, tasks=5, masks="layer 3")
    bars = [bar(f"{row['what']}, 5 tasks", 3, over_dense(row, "triton")) for row in rows]
    release()
    tasks = 4 if bench.dry else 30
    few = [rk.SparsePattern.from_mask(torch.rand(width, width, device=bench.device) < 0.03) for _ in range(tasks)]
    counts = [1 + task % 8 for task in range(tasks)]
    rows += grouped_rows(bench, few, counts, tasks=tasks, rows_per_task="1 to 8", masks="random, density 0.03")
    return {"bars": bars, "rows": rows}
