"""Thirty tasks in one weight, and a batch whose rows belong to any of them: one call.

    python examples/grouped.py --tasks 30 --rows 256 --features 1000

Each task owns its own random share of the weight. `rk.grouped_linear` multiplies every row of the batch by its own
task's weights; the example checks it against one `rk.linear` per task, and times both.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import rsn2_kernels as rk


def disjoint_masks(features: int, tasks: int) -> list[Tensor]:
    """A bool mask ``[features, features]`` per task: every position goes to one of them."""
    owner = torch.randint(tasks, (features, features))
    owners = rk.OwnerMap.empty((features, features))
    for task in range(tasks):
        owners.claim(task, owner == task)
    return [owners.mask(task) for task in range(tasks)]


def median_seconds(call: Callable[[], object], times: int = 9) -> float:
    """The median time of a call, after one to warm up."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return sorted(found)[times // 2]


def main() -> None:
    """Multiply a mixed batch both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--features", type=int, default=1000)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    patterns = [rk.SparsePattern.from_mask(mask) for mask in disjoint_masks(arguments.features, arguments.tasks)]
    values = [torch.randn(pattern.nnz) for pattern in patterns]
    x = torch.randn(arguments.rows, arguments.features)
    task_of_row = torch.randint(arguments.tasks, (arguments.rows,))

    def together() -> Tensor:
        return rk.grouped_linear(x, values, patterns, task_of_row)

    def one_by_one() -> Tensor:
        y = torch.empty(arguments.rows, arguments.features)
        for task, (own, pattern) in enumerate(zip(values, patterns, strict=True)):
            rows = task_of_row == task
            y[rows] = rk.linear(x[rows], own, pattern)
        return y

    torch.testing.assert_close(together(), one_by_one())
    each, both = median_seconds(one_by_one), median_seconds(together)
    print(f"{arguments.tasks} tasks, {arguments.rows} rows: {1e3 * both:.2f} ms; task by task {1e3 * each:.2f} ms")


if __name__ == "__main__":
    main()
