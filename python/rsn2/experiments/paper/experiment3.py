"""Experiment 3: the five classes of Fashion-MNIST that a control knows best, and the five that it knows worst."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from rsn2.experiments.data import DataSet
from rsn2.experiments.experiment import Experiment, Stage, Task
from rsn2.experiments.paper import experiment1
from rsn2.experiments.paper.options import Options
from rsn2.experiments.paper.problems import of_classes, problem
from rsn2.experiments.settings import Allocation

TITLE = "Fashion-MNIST's easy and hard classes, convolutional"
DATA = experiment1.DATA
DENSITY = 0.2
PAPER = {"easy": (0.98, 0.92), "hard": (0.84, 0.92)}
ALLOCATION = Allocation(samples=5120)
RATE = experiment1.RATE
NOTES = ("The control is that of experiment 1, on all ten classes; its F1 says which classes are easy.",)

build = experiment1.build


def experiment(sets: Mapping[str, DataSet], options: Options) -> Experiment:
    """What is run on `DATA`."""
    fashion = problem(sets["fashion_mnist"], options.samples)
    training = options.training(
        patience=experiment1.PATIENCE, lr=experiment1.LEARNING_RATE, lr_patience=experiment1.LR_PATIENCE
    )
    half = len(fashion.classes) // 2
    outputs = {"easy": half, "hard": len(fashion.classes) - half}

    def stages(f1: Mapping[str, Sequence[float]]) -> list[Stage]:
        best_first = sorted(range(len(fashion.classes)), key=lambda number: -f1["fashion_mnist"][number])
        chosen = {"easy": sorted(best_first[:half]), "hard": sorted(best_first[half:])}
        return [
            Stage((Task(name, of_classes(fashion, each), options.share(DENSITY), "fashion_mnist"),), training)
            for name, each in chosen.items()
        ]

    return replace(
        experiment1.experiment(sets, options),
        build=partial(build, options.seed, outputs),
        stages=stages,
        allocation=options.allocation(ALLOCATION),
        ensembles={},
        metadata={"experiment": 3, "seed": options.seed, "outputs": outputs},
    )
