"""What whole layers and networks do: inference, an epoch, allocation, checkpoints, against networks of plain torch."""

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsn2.allocate import allocate
from rsn2.bench.baselines import compile_for
from rsn2.bench.cases import Case
from rsn2.bench.work import Amount, UnavailableError, Work
from rsn2.checkpoint import load, save
from rsn2.convert import convert
from rsn2.ownership import parameters
from rsn2.tasks import finalize, use_task

# Batches of the epoch that is timed.
STEPS = 8
# A folder whose files are in memory, on Linux.
_MEMORY = "/dev/shm"


class MaskedLinear(nn.Module):
    """Weight times mask in every forward pass; each task has a mask, and all share the weight.

    Masks are bool, which take the least memory, or of the weight's type, which multiply fastest.
    """

    masks: Tensor

    def __init__(self, width: int, density: float, tasks: int = 1, masks: torch.dtype = torch.float32):
        super().__init__()
        dense = nn.Linear(width, width)
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("masks", (torch.rand(tasks, width, width) < density).to(masks))
        self.task = 0

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, width]`` -> ``[batch, width]``."""
        return F.linear(x, self.weight * self.masks[self.task], self.bias)


def plain(case: Case) -> nn.Sequential:
    """Square linear layers with ReLU between them."""
    width, hidden = case.shape
    parts = [part for _ in range(hidden) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def masked(case: Case, device: torch.device | str, masks: torch.dtype = torch.float32) -> nn.Module:
    """The same layers with masks."""
    width = case.shape[0]
    layers = [
        MaskedLinear(width, case.density, case.tasks, masks) if isinstance(part, nn.Linear) else part
        for part in plain(case)
    ]
    return nn.Sequential(*layers).to(device)


def multitask(case: Case, device: torch.device | str, tasks: int | None = None) -> nn.Module:
    """The same layers, converted; each of the tasks has random weights of them."""
    model = convert(plain(case).to(device))
    for number in range(case.tasks if tasks is None else tasks):
        allocate(model, f"task{number}", case.density, criterion="random", seed=number)
    return model


def batch(case: Case, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """x ``[batch, width]`` and classes ``[batch]``."""
    width = case.shape[0]
    x, target = torch.randn(case.batch, width), torch.randint(width, (case.batch,))
    return x.to(device), target.to(device)


def as_task(model: nn.Module, x: Tensor) -> Tensor:
    """The result of the first task."""
    with use_task(model, "task0"):
        y: Tensor = model(x)
    return y


def inference(case: Case, device: torch.device | str) -> Work:
    """One batch through one task of a network of several; a layer is a network of one."""
    x, _ = batch(case, device)
    found = Work("dense")
    dense, with_masks, ours = plain(case).to(device), masked(case, device), multitask(case, device)
    amounts = {kind: _amount(case, kind, 3 if case.training else 1) for kind in ("all", "owned")}
    for name, run, of, kind in (
        ("dense", dense, list(dense.parameters()), "all"),
        ("rsn2", lambda x: as_task(ours, x), parameters(ours, "task0"), "owned"),
        ("masked", with_masks, list(with_masks.parameters()), "all"),
    ):
        found.add(name, _forward(run, x, of, case.training), amounts[kind])
    if case.compiled:
        try:
            run = compile_for(dense, x)
            found.add("compiled", _forward(run, x, list(dense.parameters()), case.training), amounts["all"])
        except UnavailableError as error:
            found.unavailable["compiled"] = str(error)
    return found


def epoch(case: Case, device: torch.device | str) -> Work:
    """Some batches forward and backward, and a step of Adam after each."""
    batches = [batch(case, device) for _ in range(STEPS)]
    found = Work("dense")
    dense, with_masks, ours = plain(case).to(device), masked(case, device), multitask(case, device)
    for name, run, of, kind in (
        ("dense", dense, list(dense.parameters()), "all"),
        ("rsn2", lambda x: as_task(ours, x), parameters(ours, "task0"), "owned"),
        ("masked", with_masks, list(with_masks.parameters()), "all"),
    ):
        one = _amount(case, kind, _passes_of_step(case))
        # Adam reads value, gradient and two moments, and writes all but the gradient.
        adam = 7 * 4 * case.weights * (case.density if kind == "owned" else 1)
        found.add(name, _epoch(run, of, batches), Amount(STEPS * (one.bytes + adam), STEPS * one.macs))
    found.facts = {"steps": STEPS}
    return found


def allocation(case: Case, device: torch.device | str) -> Work:
    """The weights of the last task by the gradient of one batch: `rsn2.allocate` against torch.topk per layer."""
    data = batch(case, device)
    one = _amount(case, "all", _passes_of_step(case))
    # Reads the saliency once, writes a mask.
    amount = Amount(one.bytes + 5 * case.weights, one.macs)
    earlier, fresh = multitask(case, device, case.tasks - 1), [nn.Module()]

    def prepare() -> None:
        fresh[0] = copy.deepcopy(earlier)

    dense = plain(case).to(device)
    free = torch.ones(case.shape[0], case.shape[0], dtype=torch.bool, device=device)
    found = Work("torch.topk")
    found.add("torch.topk", lambda: _topk(dense, data, free, case.density), amount)
    found.add("rsn2", lambda: allocate(fresh[0], "last", case.density, F.cross_entropy, [data]), amount)
    found.before["rsn2"] = prepare
    return found


def checkpoint(case: Case, device: torch.device | str) -> Work:
    """A finished network of several tasks, written or read, against as many dense networks in a file of torch.save.

    The files are kept in memory where there is a folder for that: a disk takes its own time, more for larger files.
    """
    folder = tempfile.TemporaryDirectory(prefix="rsn2-bench-", dir=_MEMORY if os.path.isdir(_MEMORY) else None)
    ours, theirs = Path(folder.name, "net.safetensors"), Path(folder.name, "net.pt")
    model, networks = multitask(case, device), [plain(case).to(device) for _ in range(case.tasks)]
    finalize(model)
    empty = plain(case).to(device)

    def save_theirs() -> None:
        torch.save([network.state_dict() for network in networks], theirs)

    def load_theirs() -> None:
        for network, state in zip(networks, torch.load(theirs, map_location=device), strict=True):
            network.load_state_dict(state)

    save(model, ours)
    save_theirs()
    sizes = {"separate": theirs.stat().st_size, "rsn2": ours.stat().st_size}
    found = Work("separate", facts={"bytes_on_disk": sizes}, kept=[folder])
    calls: dict[str, Callable[[], object]] = {"separate": save_theirs, "rsn2": lambda: save(model, ours)}
    if case.op == "load":
        calls = {"separate": load_theirs, "rsn2": lambda: load(ours, model=empty)}
    for name, call in calls.items():
        found.add(name, call, Amount(2 * sizes[name], 0))
    return found


def _forward(
    run: Callable[[Tensor], Tensor], x: Tensor, of: list[nn.Parameter], training: bool
) -> Callable[[], object]:
    if training:
        own = x.clone().requires_grad_()
        dy = torch.ones_like(x)
        return lambda: torch.autograd.grad(run(own), [own, *of], dy)

    def without_gradients() -> Tensor:
        with torch.no_grad():
            return run(x)

    return without_gradients


def _epoch(
    run: Callable[[Tensor], Tensor], of: list[nn.Parameter], batches: list[tuple[Tensor, Tensor]]
) -> Callable[[], object]:
    optimizer = torch.optim.Adam(of)

    def train() -> None:
        for x, target in batches:
            optimizer.zero_grad()
            F.cross_entropy(run(x), target).backward()
            optimizer.step()

    return train


def _topk(network: nn.Module, data: tuple[Tensor, Tensor], free: Tensor, density: float) -> list[Tensor]:
    """The free weights of each layer with the largest gradient, as masks."""
    weights = [part.weight for part in network.modules() if isinstance(part, nn.Linear)]
    gradients = torch.autograd.grad(F.cross_entropy(network(data[0]), data[1]), weights)
    masks = []
    for gradient in gradients:
        scores = gradient.abs().masked_fill(~free, -1).flatten()
        chosen = scores.topk(round(density * len(scores)), sorted=False).indices
        masks.append(torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, chosen, True).view_as(gradient))
    return masks


def _passes_of_step(case: Case) -> float:
    """Forward, and both gradients; nothing takes that of the first layer's x."""
    return 3 - 1 / case.shape[1]


def _amount(case: Case, kind: str, passes: float) -> Amount:
    """Each weight, with an index of 2 bytes if "owned", and each layer's input and result once per pass."""
    width, hidden = case.shape
    weights, size = (case.weights * case.density, 6) if kind == "owned" else (case.weights, 4)
    return Amount(passes * (weights * size + 8 * case.batch * width * hidden), passes * weights * case.batch)
