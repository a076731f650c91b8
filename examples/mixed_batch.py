"""Thirty tasks in one network, and a batch whose samples belong to any of them: one forward pass.

    python examples/mixed_batch.py --tasks 30 --samples 256 --features 1000

Every task owns its own random share of the weights of six linear layers. The example answers a batch in one pass, in
`rsn2.use_tasks`, checks it against a pass per task, and times both.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rsn2

LAYERS = 6


def network(tasks: list[str], features: int) -> nn.Module:
    """A network in which these tasks own all weights, in equal parts."""
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(features, features), nn.ReLU())]
    model = rsn2.convert(nn.Sequential(*layers[:-1]))
    for seed, task in enumerate(tasks):
        rsn2.allocate(model, task, density=1 / len(tasks), criterion="random", seed=seed)
    rsn2.finalize(model)
    return model.eval()


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
    """Answer a mixed batch both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--features", type=int, default=1000)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    tasks = [f"task{number}" for number in range(arguments.tasks)]
    model = network(tasks, arguments.features)
    x = torch.randn(arguments.samples, arguments.features)
    task_of_sample = [tasks[number] for number in torch.randint(arguments.tasks, (arguments.samples,))]

    def together() -> Tensor:
        with rsn2.use_tasks(model, task_of_sample):
            output: Tensor = model(x)
        return output

    def one_by_one() -> Tensor:
        output = torch.empty_like(x)
        for task in tasks:
            mine = [sample for sample, its_task in enumerate(task_of_sample) if its_task == task]
            if mine:
                with rsn2.use_task(model, task):
                    output[mine] = model(x[mine])
        return output

    with torch.no_grad():
        torch.testing.assert_close(together(), one_by_one())
        each, both = median_seconds(one_by_one), median_seconds(together)
    print(
        f"{arguments.tasks} tasks, {arguments.samples} samples: {1e3 * both:.1f} ms; task by task {1e3 * each:.1f} ms"
    )


if __name__ == "__main__":
    main()
