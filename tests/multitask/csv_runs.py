"""A small run on two CSV files, for the tests of experiments and their configuration."""

import csv
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[2] / "examples"

CONFIG = """
[network]
hidden = [24, 20]

[training]
optimizer = "sgd"
momentum = 0.9
weight_decay = 0.01
lr = 0.05
epochs = 4
batch_size = 32
patience = 3

[[tasks]]
name = "shapes"
data = "shapes.csv"
target = "shape"
kind = "classification"
density = 0.3

[[tasks]]
name = "sizes"
data = "sizes.csv"
target = "size"
kind = "regression"
density = 0.5
epochs = 2
"""


def write_data(folder: Path) -> Path:
    """Two small CSV files and the configuration of a run on them."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 3))
    shapes = [[*row, "round" if row[0] > 0 else "flat"] for row in x.tolist()]
    sizes = [[row[2], 100 + 20 * row[1], "7"] for row in x.tolist()]
    for name, header, rows in (
        ("shapes", ["a", "b", "c", "shape"], shapes),
        ("sizes", ["width", "size", "k"], sizes),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    (folder / "config.toml").write_text(CONFIG)
    return folder / "config.toml"
