"""What is measured, as data: the whole grid, and one that is through in minutes."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

PRODUCTS = ("linear", "conv2d", "grouped_linear")
"""Operators: `rk.linear` and so on, against what multiplies by a dense or sparse weight."""

NETWORKS = ("layer", "inference", "epoch", "allocate", "save", "load")
"""What whole layers and networks do."""

MASKS = ("random", "rsn2", "blocks", "2:4")

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
BATCHES = (1, 8, 64, 512, 2048, 8192)
SIZES = (256, 1024, 4096, 16384)
TASKS = (1, 2, 5, 10, 20, 50, 100, 200)
WEIGHTS = (10**5, 10**6, 10**7, 10**8, 10**9)
# With 200 tasks each has at most this.
_SHARE = 1 / 200


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        op: one of PRODUCTS, of NETWORKS, or "memory".
        shape: of a linear weight ``(rows, cols)``; of a convolution ``(filters, channels, side of the image)``, with
            kernels of 3 x 3 and padding 1; of a network ``(width, hidden layers)``.
        batch: rows of x, or images.
        density: share of the weights that a task owns.
        dtype: of all operands, torch's name.
        mask: where the owned weights stand: "random", "rsn2" (as `rsn2.allocate` chooses them on real data), "blocks"
            of 16 x 16, or "2:4".
        training: forward and both gradients, instead of forward.
        tasks: in the network, or of a grouped product.
        compiled: also under torch.compile, which takes seconds to compile.
        axis: "tasks" or "weights" if the case is a point of a curve over these.
    """

    op: str
    shape: tuple[int, ...]
    batch: int = 1
    density: float = 0.1
    dtype: str = "float32"
    mask: str = "random"
    training: bool = False
    tasks: int = 1
    compiled: bool = False
    axis: str = ""

    @property
    def key(self) -> str:
        """The name of the case, the same in every run."""
        words = [
            f"{self.op} {self.size}" if self.op != "layer" else f"layer {self.shape[0]}",
            f"batch {self.batch}",
            f"density {self.density:g}",
        ]
        defaults = {each.name: each.default for each in fields(self)}
        words += [self.dtype] * (self.dtype != defaults["dtype"]) + [self.mask] * (self.mask != defaults["mask"])
        words += [f"{self.tasks} tasks"] * (self.tasks > 1) + ["training"] * self.training
        words += ["compiled"] * self.compiled + [f"over {self.axis}"] * bool(self.axis)
        return ", ".join(words)

    @property
    def size(self) -> str:
        """The shape in words."""
        if self.op == "conv2d":
            filters, channels, side = self.shape
            return f"{channels} -> {filters}, {side} x {side}"
        if self.op in PRODUCTS:
            return " x ".join(map(str, self.shape))
        width, hidden = self.shape
        return f"{hidden} layer{'s' if hidden > 1 else ''} of {width}"

    @property
    def weights(self) -> int:
        """Positions of all its shared weights."""
        if self.op == "conv2d":
            return self.shape[0] * self.shape[1] * 9
        if self.op in PRODUCTS:
            return self.shape[0] * self.shape[1] * (self.tasks if self.op == "grouped_linear" else 1)
        return self.shape[0] ** 2 * self.shape[1]

    @property
    def positions(self) -> int:
        """How often each weight is multiplied in a forward product."""
        if self.op == "grouped_linear":
            return -(-self.batch // self.tasks)
        return self.batch * self.shape[2] ** 2 if self.op == "conv2d" else self.batch

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Case":
        """From JSON."""
        return cls(**found | {"shape": tuple(found["shape"])})


def quick() -> list[Case]:
    """A few of everything."""
    densities = (0.05, 0.2, 0.5)
    return [
        *_linear((256, 1024), densities, (1, 64, 512)),
        *_linear((4096,), (0.2,), (1,)),
        Case("linear", (1024, 1024), 64, 0.1, training=True, compiled=True),
        *_linear((1024,), (0.05, 0.2), (64,), dtypes=("bfloat16",)),
        *_linear((1024,), (0.1,), (64,), masks=("rsn2", "blocks")),
        Case("linear", (1024, 1024), 64, 0.5, mask="2:4"),
        *_each_pass("conv2d", ((64, 64, 14),), (0.05, 0.2), (16,)),
        *_each_pass("grouped_linear", ((512, 512),), (0.05, 0.2), (64,), tasks=8),
        *_networks(((256, 3),), densities=(0.1,), batches=(64,), tasks=(5,)),
        Case("inference", (256, 3), 64, 0.1, tasks=5, compiled=True),
        *(Case("memory", (256, 3), 64, 0.1, tasks=tasks) for tasks in (1, 2, 5, 10)),
        *over_tasks((1, 4, 16, 64), (256, 2)),
        *over_weights((10**5, 10**6, 4 * 10**6)),
    ]


def full() -> list[Case]:
    """The whole grid; what does not fit in memory or in time is skipped when its turn comes."""
    return [
        *_linear(SIZES, DENSITIES, BATCHES),
        *_linear((1024, 4096), (0.05, 0.1, 0.2, 0.5), (1, 64, 512), dtypes=("float64", "bfloat16", "float16")),
        *_linear((1024, 4096), (0.02, 0.05, 0.1, 0.2), (1, 64, 512), masks=("rsn2", "blocks")),
        *_linear((1024, 4096), (0.5,), (1, 64, 512), masks=("2:4",)),
        *(
            Case("linear", (size, size), batch, 0.1, dtype, training=training, compiled=True)
            for size, batch, dtype, training in itertools.product(
                (1024, 4096), (1, 512), ("float32", "bfloat16"), (False, True)
            )
        ),
        *_each_pass("conv2d", ((16, 8, 28), (64, 64, 28), (64, 64, 14), (256, 256, 7)), DENSITIES, (1, 16, 64)),
        *_each_pass("conv2d", ((64, 64, 14),), (0.05, 0.2), (16,), dtype="bfloat16"),
        *_each_pass("conv2d", ((64, 64, 14),), (0.05, 0.2), (16,), mask="rsn2"),
        *_each_pass("grouped_linear", ((512, 512), (2048, 2048)), DENSITIES, (64, 512), tasks=8),
        *_each_pass("grouped_linear", ((512, 512),), (0.02,), (64, 512), tasks=50),
        *_networks(((256, 3), (1000, 6)), densities=(0.05, 0.2), batches=(1, 512), tasks=(5,)),
        *(Case("inference", (1000, 6), batch, 0.1, tasks=5, compiled=True) for batch in (1, 512)),
        *(Case("memory", (1000, 6), 512, 0.1, tasks=tasks) for tasks in (1, 2, 5, 10)),
        *over_tasks(TASKS, (512, 3)),
        *over_weights(WEIGHTS),
    ]


def over_tasks(tasks: Iterable[int], shape: tuple[int, int]) -> list[Case]:
    """Curves over the number of tasks in a network, each with the same share of the weights."""
    return [
        Case(op, shape, 64, _SHARE, tasks=number, axis="tasks")
        for op in ("inference", "allocate", "save", "load", "memory")
        for number in tasks
    ]


def over_weights(weights: Iterable[int]) -> list[Case]:
    """Curves over the number of weights of one square layer."""
    return [
        Case(op, (round(number**0.5), 1), 64, 0.1, training=op == "layer", axis="weights")
        for op in ("layer", "inference", "allocate", "save", "memory")
        for number in weights
    ]


def _linear(
    sizes: Sequence[int],
    densities: Sequence[float],
    batches: Sequence[int],
    dtypes: Sequence[str] = ("float32",),
    masks: Sequence[str] = ("random",),
) -> list[Case]:
    return [
        case
        for size, dtype, mask in itertools.product(sizes, dtypes, masks)
        for case in _each_pass("linear", ((size, size),), densities, batches, dtype=dtype, mask=mask)
    ]


def _each_pass(
    op: str, shapes: Sequence[tuple[int, ...]], densities: Sequence[float], batches: Sequence[int], **rest: Any
) -> list[Case]:
    return [
        Case(op, shape, batch, density, training=training, **rest)
        for shape, batch, density, training in itertools.product(shapes, batches, densities, (False, True))
    ]


def _networks(
    shapes: Sequence[tuple[int, int]], densities: Sequence[float], batches: Sequence[int], tasks: Sequence[int]
) -> list[Case]:
    grid = list(itertools.product(shapes, batches, densities, tasks))
    return [
        Case(op, (shape[0], 1) if op == "layer" else shape, batch, density, tasks=number, training=training)
        for op in NETWORKS
        for shape, batch, density, number in grid
        for training in ((False, True) if op == "layer" else (False,))
        if op in ("layer", "inference", "epoch") or batch == batches[-1]
    ]
