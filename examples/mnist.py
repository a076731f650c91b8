"""MNIST on a tenth of a 6 x 1000 network, trained with packed values.

    python examples/mnist.py --data-dir mnist --epochs 4

reads the four files of MNIST (train-images-idx3-ubyte.gz and so on) from --data-dir.
"""

import argparse
import gzip
import struct
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import rsn2
import rsn2_kernels as rk

TASK = "mnist"
BATCH = 512
HIDDEN = [1000] * 6


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes as a uint8 tensor of the shape it states."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: expected an IDX file of unsigned bytes.")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    return torch.frombuffer(bytearray(data[4 + 4 * data[3] :]), dtype=torch.uint8).view(shape)


def load_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images as float32 ``[n, 784]`` in 0..1 and classes as int64 ``[n]``; ``part`` is "train" or "t10k"."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return images.flatten(1).float() / 255, labels.long()


def build(pixels: int) -> nn.Module:
    """Six hidden layers with ReLU, all of them shared, and a head for 10 classes that is the task's own."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([pixels, *HIDDEN]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    head = nn.Linear(HIDDEN[-1], 10)
    return rsn2.convert(nn.Sequential(*layers, head), per_task=[str(len(layers))])


def accuracy(outputs: Tensor, target: Tensor) -> float:
    """Share of samples whose largest output is that of their class."""
    return (outputs.argmax(dim=1) == target).double().mean().item()


def main() -> None:
    """Allocate, train epoch by epoch, and print the test accuracy after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument(
        "--rescale",
        choices=["fan_in", "none"],
        default="fan_in",
        help="none is the paper's form; it learns slower",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    train, test = load_part(arguments.data_dir, "train"), load_part(arguments.data_dir, "t10k")
    model = build(train[0].shape[1])
    loss = nn.functional.cross_entropy
    starts = range(0, min(8 * BATCH, len(train[0])), BATCH)
    subset = [(train[0][at : at + BATCH], train[1][at : at + BATCH]) for at in starts]
    rescale: Literal["fan_in"] | None = "fan_in" if arguments.rescale == "fan_in" else None
    rsn2.allocate(model, TASK, arguments.density, loss, subset, rescale=rescale)
    print(rsn2.report(model))
    for name, layer in model.named_modules():
        if isinstance(layer, rsn2.nn.MultitaskLayer):
            pattern = layer.pattern(layer.slot(TASK))
            chosen = rk.explain("linear", pattern, BATCH, torch.float32, "cpu")
            print(f"layer {name} runs on {chosen.backend}: {chosen.reason}")

    optimizer = torch.optim.Adam(rsn2.parameters(model, TASK), lr=1e-3)
    for epoch in range(1, arguments.epochs + 1):
        # One epoch per call keeps the optimizer's state; the epoch as seed gives each its own order.
        history = rsn2.fit(model, TASK, train, loss=loss, epochs=1, optimizer=optimizer, batch_size=BATCH, seed=epoch)
        score = rsn2.evaluate(model, TASK, test, metrics={"accuracy": accuracy})["accuracy"]
        print(
            f"epoch {epoch}: train loss {history.train_loss[0]:.4f}, test accuracy {score:.4f}, "
            f"{history.seconds[0]:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
