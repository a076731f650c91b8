"""Sparse products against cuBLAS and cuDNN on one GPU, all of it in one run: part of `make gpu-check`.

    python benchmarks/gpu.py --seconds 300 --out results/gpu.json

Candidates run in turn, timed by CUDA events in a stream that is never empty (or by the host's clock where it says
eager), on inputs that rotate through more than twice the second-level cache; figures are medians. A case that fails,
hangs or does not fit the time leaves its error and none of the others. `--dry-run` executes every line with tiny sizes
on a CPU, kernels interpreted: for `TRITON_INTERPRET=1`.
"""

import argparse
import gc
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2
import rsn2_kernels as rk
from rsn2_kernels import dispatch, plans
from rsn2_kernels.backends import triton as kernels
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.plan import HEIGHTS, Plan, survey_linear

ROOT = Path(__file__).parents[1]
PATIENCE = 90
"""Seconds without a new row, after which a process is ended and the next case begins in a new one."""

Call = Callable[[], object]
Record = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is measured: widths, batches and sizes of images."""

    width: int = 4096
    batch: int = 4096
    channels: int = 256
    image: int = 28
    images: int = 64
    grouped_width: int = 1000
    rows_per_task: int = 512
    matrix: int = 8192
    copied: int = 1 << 30
    samples: int = 512


TINY = Sizes(64, 16, 64, 4, 1, 64, 4, 64, 1 << 16, 64)


@dataclass
class Bench:
    """Where, on what and how long to measure."""

    dry: bool
    data_dir: Path | None
    report: Callable[[Record], None]
    seconds: float = 0.1
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16; interpreted, kernels compute right in float16."""
        return torch.float16 if self.dry else torch.bfloat16

    @property
    def sizes(self) -> Sizes:
        return TINY if self.dry else Sizes()

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of the second-level cache."""
        return 1 << 16 if self.dry else int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 1 << 26))

    def sets(self, nbytes: int) -> int:
        """How many input sets of ``nbytes`` are more than twice the second-level cache."""
        return min(256, max(2, 2 * self.cache_bytes // max(1, nbytes) + 1))

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def check(self, what: str, error: float, allowed: float) -> None:
        """Remember a result that is not right: its case fails, and is measured all the same."""
        if not error <= allowed:
            self.wrong.append(f"{what}: relative error {error:.3g}, {allowed:.3g} allowed")

    def medians(self, candidates: dict[str, Sequence[Call]], eager: bool = False) -> tuple[dict[str, float], float]:
        """Median seconds of one call of each candidate, and the widest quartile range over its median.

        Args:
            candidates: name -> one call per input set.
            eager: by the host's clock, launches included, instead of by events of the device.
        """
        repeats = 1 if self.dry else 3
        estimates = []
        for calls in candidates.values():
            for call in calls[:repeats]:
                call()
            self.synchronize()
            start = time.perf_counter()
            for number in range(repeats):
                calls[number % len(calls)]()
            self.synchronize()
            estimates.append((time.perf_counter() - start) / repeats)
        rounds = 2 if self.dry else max(16, min(100, int(self.seconds / max(estimates))))
        timed = self._by_host if self.dry or eager else self._by_device
        samples = timed(candidates, rounds)
        spread = 0.0
        for times in samples.values():
            low, middle, high = statistics.quantiles(times, n=4)
            spread = max(spread, (high - low) / middle)
        return {name: statistics.median(times) for name, times in samples.items()}, spread

    def _by_device(self, candidates: dict[str, Sequence[Call]], rounds: int) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        for first in range(0, rounds, 8):
            # The launches of some rounds gather behind a pause: the device never waits for the host.
            torch.cuda._sleep(100_000_000)
            events = []
            for number in range(first, min(first + 8, rounds)):
                for name, calls in candidates.items():
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    calls[number % len(calls)]()
                    end.record()
                    events.append((name, start, end))
            torch.cuda.synchronize()
            for name, start, end in events:
                samples[name].append(start.elapsed_time(end) / 1e3)
        return samples

    def _by_host(self, candidates: dict[str, Sequence[Call]], rounds: int) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        together = 1 if self.dry else 10
        at = 0
        for _ in range(rounds):
            for name, calls in candidates.items():
                self.synchronize()
                start = time.perf_counter()
                for number in range(at, at + together):
                    calls[number % len(calls)]()
                self.synchronize()
                samples[name].append((time.perf_counter() - start) / together)
            at += together
        return samples

    def compared(self, what: str, candidates: dict[str, Sequence[Call]], eager: bool = False, **more: Any) -> Record:
        """One row of results: seconds of each candidate, and how many times as fast as the first each is."""
        seconds, spread = self.medians(candidates, eager)
        baseline, *others = seconds
        row = {
            "what": what,
            **more,
            "seconds": seconds,
            "times_as_fast": {name: seconds[baseline] / seconds[name] for name in others},
            "quartiles_over_median": spread,
        }
        self.report(row)
        return row

    # ---- masks

    @cached_property
    def data(self) -> tuple[str, Tensor, Tensor]:
        """Name, images ``[n, pixels]`` and classes of the data the tasks are allocated with."""
        if self.data_dir is not None:
            load_part = runpy.run_path(str(ROOT / "examples/mnist.py"))["load_part"]
            return "training images of MNIST", *load_part(self.data_dir, "train")
        from sklearn.datasets import load_digits  # noqa: PLC0415

        digits = load_digits()
        images = torch.from_numpy(digits.data).float() / 16
        return "the digits of scikit-learn", images, torch.from_numpy(digits.target).long()

    def batch_of(self, task: int) -> tuple[Tensor, Tensor]:
        """What a task, counted from 1, is allocated with: task 1 the images, the others their pixels permuted."""
        _, images, classes = self.data
        start = (task - 1) * self.sizes.samples % (len(images) - self.sizes.samples)
        part = slice(start, start + self.sizes.samples)
        pixels = images.shape[1]
        order = torch.randperm(pixels, generator=torch.Generator().manual_seed(task))
        return (images[part] if task == 1 else images[part][:, order]), classes[part]

    def allocated(
        self, network: Callable[[], nn.Sequential], tasks: int, density: float, granularity: tuple[int, int] | None
    ) -> list[tuple[int, int, Tensor]]:
        """(layer, task, mask) of every hidden layer behind the first, layers and tasks counted from 1.

        On the GPU, or on the CPU if that fails, which is noted.
        """
        for device in dict.fromkeys([self.device, torch.device("cpu")]):
            try:
                torch.manual_seed(0)
                plain = network()
                model = rsn2.convert(plain, per_task=[str(len(plain) - 1)]).to(device)
                for task in range(1, tasks + 1):
                    batch = [tuple(each.to(device) for each in self.batch_of(task))]
                    rsn2.allocate(model, f"task{task}", density, F.cross_entropy, batch, granularity=granularity)
                layers = [layer for layer in model.modules() if isinstance(layer, rsn2.nn.MultitaskLayer)]
                return [
                    (number, task, layer.owners.mask(layer.slot(f"task{task}")).to(self.device))
                    for number, layer in enumerate(layers[1:], start=2)
                    for task in range(1, tasks + 1)
                ]
            except Exception as error:
                if device.type == "cpu":
                    raise
                self.notes.append(f"allocate on {device}: {type(error).__name__}: {error}"[:500])
        raise AssertionError

    def linear_masks(
        self, width: int, tasks: int, density: float, granularity: tuple[int, int] | None = None
    ) -> list[tuple[int, int, Tensor]]:
        """Masks of a network of six hidden layers of ``width``."""
        pixels = self.data[1].shape[1]

        def network() -> nn.Sequential:
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise([pixels, *[width] * 6]):
                layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(width, 10))

        return self.allocated(network, tasks, density, granularity)

    def conv_masks(self, density: float, granularity: tuple[int, int]) -> list[tuple[int, int, Tensor]]:
        """Masks of a network of three convolutions, 3 x 3."""
        side = round(self.data[1].shape[1] ** 0.5)
        channels = self.sizes.channels

        def network() -> nn.Sequential:
            layers: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
            for inputs, outputs in pairwise([1, channels, channels, channels]):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

        return self.allocated(network, 1, density, granularity)


def median_of(rows: Sequence[Record], candidate: str) -> float:
    """The median over masks of how many times as fast a candidate is."""
    return statistics.median(row["times_as_fast"][candidate] for row in rows)


def bar(what: str, asked: float, found: float) -> Record:
    """An acceptance bar."""
    return {"what": what, "bar": asked, "times_as_fast": found, "met": found >= asked}


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
        "triton": lambda s: OPS.linear_dx(s.dy, s.v, s.index, "triton"),
        "triton, feature-major": lambda s: OPS.linear_dx(s.dy_feature, s.v, s.index, "triton"),
    },
    "dW": {
        "dense": lambda s: s.dy.t() @ s.x,
        "triton": lambda s: OPS.linear_dvalues(s.dy, s.x, s.index, "triton"),
        "triton, feature-major": lambda s: OPS.linear_dvalues(s.dy_feature, s.x_feature, s.index, "triton"),
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
        "dense": lambda s: nn.grad.conv2d_input(s.x.shape, s.w, s.dy, padding=1),
        "triton": lambda s: OPS.conv2d_dx(s.dy, s.v, s.index, list(s.x.shape[2:]), *GEOMETRY, "triton"),
    },
    "dW": {
        "dense": lambda s: nn.grad.conv2d_weight(s.x, s.w.shape, s.dy, padding=1),
        "triton": lambda s: OPS.conv2d_dvalues(s.dy, s.x, s.index, *GEOMETRY, "triton"),
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
    """Rows of several tasks, shuffled for the grouped launch and sorted for one dense product per task."""

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

    def dense(self) -> list[Tensor]:
        return [F.linear(x, w) for x, w in zip(self.sorted_x, self.ws, strict=True)]

    def grouped(self, backend: str | None) -> Tensor:
        return rk.grouped_linear(self.x, self.vs, self.patterns, self.task_of_row, backend=backend)

    def dense_step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.dense(), [*self.sorted_x, *self.ws], self.sorted_dy)

    def step(self, backend: str | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.grouped(backend), [self.x, *self.vs], self.dy)


GROUPED: dict[str, dict[str, Callable[[GroupedSet], object]]] = {
    "forward": {"dense": lambda s: s.dense(), "triton": lambda s: s.grouped("triton")},
    "forward and backward": {"dense": lambda s: s.dense_step(), "triton": lambda s: s.step("triton")},
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
    worst = relative_error(sets[0].grouped("triton").detach()[sets[0].place], expected)
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
    """One launch over 5 tasks, against one dense launch per task; and many tasks with few rows each."""
    width = bench.sizes.grouped_width
    masks = [mask for layer, _, mask in bench.linear_masks(width, 5, 0.1) if layer == 3]
    patterns = [rk.SparsePattern.from_mask(mask) for mask in masks]
    rows = grouped_rows(bench, patterns, [bench.sizes.rows_per_task] * 5, tasks=5, masks="layer 3")
    bars = [bar(f"{row['what']}, 5 tasks", 3, row["times_as_fast"]["triton"]) for row in rows]
    release()
    tasks = 4 if bench.dry else 30
    few = [rk.SparsePattern.from_mask(torch.rand(width, width, device=bench.device) < 0.03) for _ in range(tasks)]
    counts = [1 + task % 8 for task in range(tasks)]
    rows += grouped_rows(bench, few, counts, tasks=tasks, rows_per_task="1 to 8", masks="random, density 0.03")
    return {"bars": bars, "rows": rows}


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


CASES: dict[str, Callable[[Bench], Record]] = {
    "ceilings": ceilings,
    "real masks, density 0.1": real_masks,
    "64 x 64 blocks, density 0.1": lambda bench: on_masks(bench, 0.1, 5, (64, 64), SOME[:3]),
    "64 x 64 blocks, density 0.2": lambda bench: on_masks(bench, 0.2, 3, (64, 64), SOME[:3]),
    "16 x 16 blocks, density 0.1": lambda bench: on_masks(bench, 0.1, 3, (16, 16), SOME[:3]),
    "16 x 16 blocks, density 0.2": lambda bench: on_masks(bench, 0.2, 2, (16, 16), SOME[:3]),
    "convolution": convolution,
    "grouped": grouped,
    "unstructured": unstructured,
    "pieces": pieces,
    "heights": heights,
    "real masks, density 0.05": lambda bench: on_masks(bench, 0.05, None, None, SOME),
    "real masks, density 0.2": lambda bench: on_masks(bench, 0.2, None, None, SOME),
    "tiles of the product": sweep_multiply,
    "tiles of the sampled product": sweep_sample,
    "tiles of the convolution": sweep_convolve,
    "real masks, float32": lambda bench: on_masks(bench, 0.1, None, None, SOME[:1], torch.float32),
}
"""In the order in which they are measured: what the acceptance bars ask for first."""


def release() -> None:
    """Give memory back between masks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- the command: a process that measures, and one that watches it


def measure(names: Sequence[str], dry: bool, data_dir: Path | None, lines: Path) -> int:
    """Run cases one after the other; every start, row and result is a line of a file."""

    def say(line: Record) -> None:
        with lines.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    bench = Bench(dry, data_dir, lambda row: say({"row": row}))
    for name in names:
        say({"started": name})
        start = time.perf_counter()
        bench.notes.clear()
        bench.wrong.clear()
        try:
            torch.manual_seed(0)
            found = CASES[name](bench)
            bench.synchronize()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000], "traceback": traceback.format_exc()[-4000:]}
        if bench.wrong:
            found["error"] = "; ".join(["wrong results", *bench.wrong, found.get("error", "")])
            for each in found.get("bars", ()):
                each["met"] = False
        notes = {"notes": list(bench.notes)} if bench.notes else {}
        say({"case": name, "seconds_taken": time.perf_counter() - start, **notes, **found})
        try:
            bench.synchronize()
            release()
        except Exception:
            # The device is of no more use to this process.
            return 3
    return 0


def supervise(arguments: argparse.Namespace, lines: Path) -> list[Record]:
    """Run the cases in a process of their own, and again in a new one what a dead or stuck process left over."""
    deadline = time.monotonic() + arguments.seconds
    left = [name for name in CASES if not arguments.only or any(part in name for part in arguments.only)]
    found: list[Record] = []
    while left and time.monotonic() < deadline:
        lines.write_text("")
        command = [sys.executable, __file__, "--measure", str(lines), *(f"--case={name}" for name in left)]
        command += ["--dry-run"] if arguments.dry_run else []
        command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        log = lines.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            ended = watched(process, lines, deadline)
        told = [json.loads(line) for line in lines.read_text().splitlines()]
        finished = [line for line in told if "case" in line]
        found += finished
        done = {line["case"] for line in finished}
        begun = [line["started"] for line in told if "started" in line and line["started"] not in done]
        # A process that died before its first case would do so again and again: it costs that case too.
        begun = begun or ([] if finished else left[:1])
        for name in begun:
            after = told[max((n for n, line in enumerate(told) if line.get("started") == name), default=0) :]
            rows = [line["row"] for line in after if "row" in line]
            output = log.read_text(errors="replace")[-3000:]
            found.append({"case": name, "error": ended, "output": output, "rows": rows})
        left = [name for name in left if name not in done and name not in begun]
    return found + [{"case": name, "skipped": f"the {arguments.seconds:.0f} s were used up"} for name in left]


def watched(process: "subprocess.Popen[bytes]", lines: Path, deadline: float) -> str:
    """Wait for the end of a process; end it at the deadline or when it is stuck. How it ended."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        if lines.stat().st_size != size:
            size, since = lines.stat().st_size, now
        if now - since > PATIENCE or now > deadline:
            process.kill()
            process.wait()
            return "it was ended: the time was used up" if now > deadline else f"stuck for {PATIENCE} s"
    return f"the process ended with status {process.returncode}"


def machine(dry: bool) -> Record:
    """The GPU and the versions."""
    found: Record = {"torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
    if not dry:
        import triton  # noqa: PLC0415

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "second_level_cache_bytes": getattr(properties, "L2_cache_size", None),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
        }
    return found


def main() -> int:
    """Measure all that fits, write a file, exit with 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=300, help="what does not fit is left out, and said so")
    parser.add_argument("--data-dir", type=Path, help="the four files of MNIST; without it scikit-learn's digits")
    parser.add_argument("--only", action="append", help="cases whose name holds this; several times for several")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", action="append", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.case, arguments.dry_run, arguments.data_dir, arguments.measure)
    if not arguments.dry_run and not torch.cuda.is_available():
        print("gpu: torch finds no GPU here.")
        return 1
    # Starting the device takes seconds: before the clock of the cases runs.
    described = machine(arguments.dry_run)
    with TemporaryDirectory() as folder:
        cases = supervise(arguments, Path(folder) / "lines")
    content = {
        "machine": described,
        "settings": {"sizes": asdict(TINY if arguments.dry_run else Sizes()), "seconds": arguments.seconds},
        "cases": cases,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    for case in cases:
        state = case.get("error") or case.get("skipped") or f"{case.get('seconds_taken', 0):.1f} s"
        print(f"{case['case']}: {state}")
        for each in case.get("bars", ()):
            met = "met" if each["met"] else "not met"
            print(f"  {each['what']}: {each['times_as_fast']:.2f} of {each['bar']}, {met}")
    return 1 if any("error" in case for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
