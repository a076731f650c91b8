"""What all GPU benchmarks share: sizes, timing, and masks allocated on real data."""

import gc
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2

ROOT = Path(__file__).parents[1]
Call = Callable[[], object]
Record = dict[str, Any]
DENSE = ("dense", "bmm")
"""Candidates with dense weights: one product per weight, or one over all of them stacked."""


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
        if self.dry or eager:
            samples = self._by_host(candidates, rounds)
        else:
            samples = self._by_device(candidates, rounds, sum(estimates))
        spread = 0.0
        for times in samples.values():
            low, middle, high = statistics.quantiles(times, n=4)
            spread = max(spread, (high - low) / middle)
        return {name: statistics.median(times) for name, times in samples.items()}, spread

    def _by_device(
        self, candidates: dict[str, Sequence[Call]], rounds: int, round_seconds: float
    ) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        # Launches gather behind a pause, in cycles of 2 GHz at most, so that the device never waits for the host.
        pause = 2e9 * max(5e-3, 1.5 * 8 * round_seconds)
        for first in range(0, rounds, 8):
            torch.cuda._sleep(int(pause))
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


def over_dense(row: Record, candidate: str) -> float:
    """How many times as fast a candidate is as the faster of the dense products that were timed beside it."""
    seconds = row["seconds"]
    return float(min(seconds[name] for name in DENSE if name in seconds) / seconds[candidate])


def bar(what: str, asked: float, found: float) -> Record:
    """An acceptance bar."""
    return {"what": what, "bar": asked, "times_as_fast": found, "met": found >= asked}


def release() -> None:
    """Give memory back between masks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
