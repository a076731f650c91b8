"""Figures of the paper's appendix: F1 per class, and sizes on disk.

Class names are those of its tables 7 to 9, in their order. Its tables 11 and 12 number the experiments otherwise
than its text; each row names its heading there. Rows are matched by what they are of: network, tasks, and accuracy
where two would do. Not legible in our copy, and left out: table 10 (the controls of the vision tasks) and subnetworks 1
to 4 of table 11.
"""

from dataclasses import dataclass
from typing import NamedTuple

DIGITS = tuple("0123456789")
FASHION = (
    *("t-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AGES = ("0-10", "11-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71-80", "81-90", "91+")
GENDERS = ("male", "female")
ETHNICITIES = ("white", "black", "asian", "indian", "other")
SENTIMENTS = ("negative", "positive")


@dataclass(frozen=True)
class F1Row:
    """A row of the appendix.

    Attributes:
        table: its number.
        row: heading and name of the row, as printed.
        scores: class -> F1 in [0, 1].
    """

    table: int
    row: str
    scores: dict[str, float]


class Sizes(NamedTuple):
    """Bytes on disk, of the text's sections 3.5 and 3.6: one network, and its dense controls together."""

    network: float
    controls: float


def _row(table: int, row: str, classes: tuple[str, ...], *scores: float) -> F1Row:
    return F1Row(table, row, dict(zip(classes, scores, strict=True)))


_EASY = ("trouser", "sandal", "sneaker", "bag", "ankle boot")
_HARD = ("t-shirt/top", "pullover", "dress", "coat", "shirt")

# (experiment of the text, task) -> row.
F1_RSN2: dict[tuple[int, str], F1Row] = {
    (1, "subnetwork_5"): _row(
        *(11, "Exp 1, subnetwork 5", FASHION), 0.87, 0.99, 0.88, 0.91, 0.88, 0.98, 0.78, 0.96, 0.98, 0.97
    ),
    (1, "ensemble"): _row(
        *(11, "Exp 1, ensemble", FASHION), 0.87, 0.98, 0.87, 0.91, 0.86, 0.98, 0.76, 0.97, 0.98, 0.97
    ),
    (2, "mnist"): _row(*(11, "Exp 3, MNIST digit", DIGITS), 0.99, 0.99, 0.98, 0.97, 0.97, 0.97, 0.98, 0.98, 0.97, 0.96),
    (2, "fashion_mnist"): _row(
        *(11, "Exp 3, MNIST fashion", FASHION), 0.82, 0.97, 0.77, 0.87, 0.79, 0.96, 0.62, 0.94, 0.97, 0.95
    ),
    (3, "easy"): _row(11, "Exp 2, easy subnetwork", _EASY, 1.00, 0.97, 0.96, 0.99, 0.96),
    (3, "hard"): _row(11, "Exp 2, hard subnetwork", _HARD, 0.85, 0.87, 0.92, 0.85, 0.73),
    (4, "mnist"): _row(*(11, "Exp 7, MNIST digit", DIGITS), 0.98, 0.99, 0.98, 0.96, 0.97, 0.96, 0.97, 0.96, 0.96, 0.96),
    (4, "fashion_mnist"): _row(
        *(11, "Exp 7, MNIST fashion", FASHION), 0.82, 0.97, 0.78, 0.87, 0.78, 0.95, 0.64, 0.93, 0.95, 0.95
    ),
    (4, "imdb"): _row(12, "Experiment 7, IMDB", SENTIMENTS, 0.83, 0.81),
    (5, "utkface_age"): _row(
        *(11, "Exp 8, UTKF age", AGES), 0.89, 0.45, 0.68, 0.37, 0.14, 0.44, 0.34, 0.29, 0.45, 0.08
    ),
    (5, "utkface_gender"): _row(11, "Exp 8, UTKF gender", GENDERS, 0.90, 0.88),
    (5, "utkface_ethnicity"): _row(11, "Exp 8, UTKF ethnicity", ETHNICITIES, 0.84, 0.83, 0.79, 0.68, 0.27),
    (5, "cifar10"): _row(*(11, "Exp 8, CIFAR-10", CIFAR10), 0.58, 0.63, 0.27, 0.35, 0.44, 0.47, 0.53, 0.54, 0.61, 0.52),
}
F1_CONTROL: dict[tuple[int, str], F1Row] = {(4, "imdb"): _row(12, "Control, IMDB", SENTIMENTS, 0.80, 0.80)}

SIZES = {5: Sizes(130e6, 203e6), 6: Sizes(133e6, 397e6)}
