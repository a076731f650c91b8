"""One epoch of training on MNIST: one task's packed weights against dense and masked networks of the same layers.

    python benchmarks/cpu_epoch.py --data-dir <folder with mnist/> --out results/epoch-cpu.json

784 - 1000 x 6 - 10 with ReLU, Adam, batch 512, density 0.1 per layer, wall time on one thread. The three networks take
each batch in turn, so that whatever else the machine does slows all of them.

    packed   rsn2's layers: values and gradients of the owned weights alone
    dense    the same `nn.Linear` layers
    masked   how sparse multitask networks ran before: two fp32 copies of each weight, what other tasks own and what
             this one trains, each multiplied by its mask in every forward pass
"""

import argparse
import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rsn2
from rsn2 import machine

SIZES = (784, *[1000] * 6, 10)
DENSITY = 0.1
BATCH = 512


class Masked(nn.Module):
    """A linear layer that keeps other tasks' weights apart by masks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.trained, self.bias = nn.Parameter(torch.empty(outputs, inputs)), nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.trained)
        owned = torch.rand(outputs, inputs) < DENSITY
        self.register_buffer("mask", owned.float())
        self.register_buffer("kept", torch.zeros(outputs, inputs))
        self.register_buffer("kept_mask", (~owned).float())

    def forward(self, x: Tensor) -> Tensor:
        """Other tasks' weights and this one's, both in dense form."""
        return F.linear(x, self.trained * self.mask + self.kept * self.kept_mask, self.bias)


def network(layer: type[nn.Module]) -> nn.Sequential:
    """The layers, with ReLU between them."""
    stages = [each for sizes in pairwise(SIZES) for each in (layer(*sizes), nn.ReLU())]
    return nn.Sequential(*stages[:-1])


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """MNIST's training images, scaled and flat, and their labels."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return torch.from_numpy(images.reshape(-1, 784).astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))


def main() -> None:
    """Train all three, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    machine.keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = read(arguments.data_dir / "mnist")
    packed = rsn2.convert(network(nn.Linear))
    rsn2.allocate(
        packed, task="digits", density=DENSITY, loss=F.cross_entropy, batches=[(images[:BATCH], labels[:BATCH])]
    )
    networks = {"packed": packed, "dense": network(nn.Linear), "masked": network(Masked)}
    optimizers = {
        name: torch.optim.Adam(rsn2.parameters(each, "digits") if name == "packed" else each.parameters())
        for name, each in networks.items()
    }
    seconds = dict.fromkeys(networks, 0.0)
    losses = dict.fromkeys(networks, 0.0)
    batches = [rows for rows in torch.randperm(len(images)).split(BATCH) if len(rows) == BATCH]
    with rsn2.use_task(packed, "digits"):
        # The first step builds what later ones find.
        for number, rows in enumerate([batches[0], *batches]):
            x, y = images[rows], labels[rows]
            for name, each in networks.items():
                start = time.perf_counter()
                loss = F.cross_entropy(each(x), y)
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
                if number > 0:
                    seconds[name] += time.perf_counter() - start
                losses[name] = loss.item()
    print(f"{len(batches)} steps of {BATCH}; last losses {losses}")
    for name, total in seconds.items():
        print(f"{name:8} {total:8.2f} s, {total / seconds['packed']:.2f} times the packed one's")
    if arguments.out:
        result = {
            "machine": machine.facts(),
            "steps": len(batches),
            "batch": BATCH,
            "density": DENSITY,
            "seconds": seconds,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
