"""Cases that take no time, records of benchmarks as if they had been measured, and a candidate with a fault."""

import random
from dataclasses import replace
from typing import Any

import torch

from rsn2.bench.cases import Case
from rsn2.bench.measure import Settings
from rsn2.bench.products import Candidate
from rsn2.bench.results import Results

FAST = Settings(seconds=0.0, rounds=3, passes=3, further=0, limit=10.0)
PEAKS = {"bytes": 1e10, "float32": 1e11, "bfloat16": 1e11}
TINY = [
    *(
        Case("linear", (32, 48), batch, density, training=training)
        for batch in (1, 8)
        for density in (0.1, 0.5)
        for training in (False, True)
    ),
    Case("linear", (32, 32), 4, 0.25, mask="blocks"),
    Case("conv2d", (8, 4, 6), 2, 0.2),
    Case("grouped_linear", (16, 24), 10, 0.2, tasks=3),
    Case("layer", (24, 1), 4, 0.2, training=True),
    *(Case(op, (24, 2), 4, 0.2, tasks=2) for op in ("inference", "epoch", "allocate", "save", "load")),
    *(Case("memory", (24, 2), 4, 0.2, tasks=tasks) for tasks in (1, 3)),
    *(Case(op, (24, 1), 4, 0.2, tasks=tasks, axis="tasks") for op in ("inference", "memory") for tasks in (1, 4)),
]


def fake(
    case: Case, seconds: dict[str, float], rounds: int = 20, jitter: float = 0.01, seed: int = 0
) -> dict[str, Any]:
    """A record with these times, each sample off by some jitter."""
    draw = random.Random(seed)
    seconds = {**seconds, "dense again": seconds["dense"]}
    return {
        "key": case.key,
        "case": case.as_dict(),
        "baseline": "dense",
        "seconds": {
            name: [each * draw.uniform(1 - jitter, 1 + jitter) for _ in range(rounds)] for name, each in seconds.items()
        },
        "bytes": dict.fromkeys(seconds, 1e6),
        "macs": dict.fromkeys(seconds, 1e6),
        "dtype": dict.fromkeys(seconds, "float32"),
        "chosen": "cpu",
    }


def results(*records: dict[str, Any]) -> Results:
    """A run with these records."""
    return Results({"machine": {"cpu": "x"}, "commit": "c", "settings": {"device": "cpu"}}, [PEAKS], list(records))


def with_wrong_gradient(candidate: Candidate) -> Candidate:
    """The same result, and 1.5 times its gradients."""

    def forward() -> torch.Tensor:
        y = candidate.forward()
        return y + 0.5 * (y - y.detach())

    return replace(candidate, forward=forward)
