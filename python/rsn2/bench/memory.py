"""What a network of several tasks takes: its weights, optimizer and activations while one task trains, and its file."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import profile

from rsn2.bench import networks
from rsn2.bench.cases import Case
from rsn2.checkpoint import save
from rsn2.data import nbytes_of
from rsn2.ownership import parameters
from rsn2.report import report
from rsn2.tasks import finalize

Bytes = dict[str, int]

KINDS = ("weights", "index", "pool", "optimizer", "activations", "step peak", "total", "disk")
"""Bytes of a network, in the order in which they are shown.

weights: values, biases, masks or owner maps of all tasks
index: what the kernels look up
pool: weights that no task owns yet, kept for later ones
optimizer: the state of Adam over one task
activations: what one forward pass keeps for the backward one
step peak: the most that a training step had at once, beside what was there before
total: all that is there before the step, and its peak
disk: the file of the finished network
"""


def measured(case: Case, device: torch.device | str) -> dict[str, Bytes]:
    """Name of a kind of network -> kind of bytes -> bytes, each network training one task at a time with Adam.

    "rsn2" is one network of all tasks; "masked" one dense weight and a mask per task; "separate" a dense network per
    task, of which one is built and counted as often as there are tasks.
    """
    torch.manual_seed(0)
    x, target = networks.batch(case, device)
    found = {}

    ours = networks.multitask(case, device)
    step, optimizer = _step(lambda: networks.as_task(ours, x), parameters(ours, "task0"), target)
    found["rsn2"] = _of_step(step, optimizer, device)
    held = report(ours)
    own = nbytes_of(ours.parameters()) + sum(layer.planes_bytes for layer in held.layers)
    found["rsn2"] |= {"weights": own, "index": held.index_bytes, "pool": held.pool_bytes}
    finalize(ours)
    found["rsn2"]["disk"] = _size(lambda path: save(ours, path))

    masked = networks.masked(case, device, torch.bool)
    for name, model in (("masked", masked), ("separate", networks.plain(case).to(device))):
        step, optimizer = _step(lambda model=model: model(x), list(model.parameters()), target)  # type: ignore[misc]
        found[name] = _of_step(step, optimizer, device)
        times = case.tasks if name == "separate" else 1
        found[name]["weights"] = times * nbytes_of([*model.parameters(), *model.buffers()])
        found[name]["disk"] = times * _size(lambda path, model=model: torch.save(model.state_dict(), path))  # type: ignore[misc]

    for each in found.values():
        before = ("weights", "index", "pool", "optimizer")
        each["total"] = sum(each.get(kind, 0) for kind in before) + each["step peak"]
    return {name: {kind: each.get(kind, 0) for kind in KINDS} for name, each in found.items()}


def _step(
    run: Callable[[], Tensor], of: list[nn.Parameter], target: Tensor
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(of)

    def step() -> None:
        F.cross_entropy(run(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def _of_step(step: Callable[[], None], optimizer: torch.optim.Optimizer, device: torch.device | str) -> Bytes:
    step()  # makes the optimizer's state, and what later calls find
    of = {each.untyped_storage().data_ptr() for group in optimizer.param_groups for each in group["params"]}
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in of:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return {
        "optimizer": nbytes_of(state),
        "activations": sum(kept.values()),
        "step peak": _peak(step, device),
    }


def _peak(step: Callable[[], None], device: torch.device | str) -> int:
    """The most bytes of tensors that a step had at once beside those before it; a CPU kernel's scratch is not seen."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(profile_memory=True) as recorded:
        step()
    most = now = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler tells standard error, behind Python's back, that it starts and stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _size(write: Callable[[Path], object]) -> int:
    with tempfile.TemporaryDirectory(prefix="rsn2-bench-") as folder:
        path = Path(folder, "net")
        write(path)
        return path.stat().st_size
