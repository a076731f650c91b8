"""Experiment 2: digits and fashion in one fully connected network."""

from collections.abc import Mapping
from functools import partial

from torch import nn

from rsn2.experiments.data import DataSet
from rsn2.experiments.experiment import Experiment, Stage, Task
from rsn2.experiments.paper.networks import FullyConnected, drawn
from rsn2.experiments.paper.options import Options
from rsn2.experiments.paper.problems import problem
from rsn2.experiments.settings import Allocation

TITLE = "MNIST and Fashion-MNIST, fully connected"
DATA = ("mnist", "fashion_mnist")
DENSITY = 0.1
PAPER = {"mnist": (0.97, 0.97), "fashion_mnist": (0.86, 0.88)}
ALLOCATION = Allocation(samples=5120)
RATE = "The paper gives no learning rate: 0.001."
NOTES = ()


def build(seed: int, outputs: Mapping[str, int]) -> nn.Module:
    """The plain network, for images of 28 x 28."""
    return drawn(lambda: FullyConnected([28 * 28], outputs), seed)


def experiment(sets: Mapping[str, DataSet], options: Options) -> Experiment:
    """What is run on `DATA`."""
    problems = {name: problem(sets[name], options.samples) for name in DATA}
    outputs = {name: len(each.classes) for name, each in problems.items()}
    training = options.training()
    return Experiment(
        build=partial(build, options.seed, outputs),
        rebuild="rsn2.experiments.paper:rebuild",
        stages=[
            Stage((Task(name, each, options.share(DENSITY), control=name),), training)
            for name, each in problems.items()
        ],
        allocation=options.allocation(ALLOCATION),
        controls={
            name: options.control(
                "connected", name, each, training, partial(build, options.seed, {name: outputs[name]})
            )
            for name, each in problems.items()
        },
        metadata={"experiment": 2, "seed": options.seed, "outputs": outputs},
    )
