"""Training in several processes, as `torch.nn.parallel.DistributedDataParallel` does it, is training in one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import rsn2
from networks import LOSS, allocated, samples

PROCESSES = 2


def trained(rank: int, processes: int) -> list[Tensor]:
    """Both tasks' values and biases after some steps of one task, on this process's part of its samples."""
    model = allocated("shapes", "sizes").eval()  # batch statistics would be those of a part
    wrapped = model if processes == 1 else nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(rsn2.parameters(model, "sizes"), lr=0.01, weight_decay=0.1)
    x, target = (each[rank::processes] for each in samples("sizes"))
    for _ in range(3):
        optimizer.zero_grad()
        with rsn2.use_task(wrapped, "sizes"):
            LOSS["sizes"](wrapped(x), target).backward()
        optimizer.step()
    return [each.detach() for task in ("shapes", "sizes") for each in rsn2.parameters(model, task)]


def train_a_part(rank: int, folder: Path) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    torch.save(trained(rank, PROCESSES), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here")
def test_gradients_are_averaged_and_other_tasks_stay(tmp_path: Path) -> None:
    mp.spawn(train_a_part, args=(tmp_path,), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first, trained(0, 1))
    untouched = [each.detach() for each in rsn2.parameters(allocated("shapes", "sizes"), "shapes")]
    assert all(torch.equal(a, b) for a, b in zip(first, untouched, strict=False))
