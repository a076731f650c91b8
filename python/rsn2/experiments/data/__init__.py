"""The data of the paper's six experiments: read, checked and split, from a folder or the Hugging Face hub.

    sets = load(["mnist", "utkface_age", "utkface_gender"], Source(folder=Path("data")))
    inputs, target = sets["mnist"].train

docs/data.md describes files, checksums, splits and encodings; ``python -m rsn2.experiments.data FOLDER`` says which
files a folder has.
"""

from collections.abc import Iterable

from rsn2.experiments.data import boston, cifar10, fashion_mnist, imdb, mnist, reuters, utkface
from rsn2.experiments.data.dataset import DataError, DataSet, MissingDataError
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Recipe, Source

RECIPES: tuple[Recipe[object], ...] = tuple(
    module.RECIPE for module in (mnist, fashion_mnist, boston, imdb, reuters, cifar10, utkface)
)
NAMES: tuple[str, ...] = tuple(target for recipe in RECIPES for target in recipe.targets)
"""What `load` knows: one name per task, such as "mnist" and "utkface_age"."""

__all__ = ["NAMES", "RECIPES", "Blob", "DataError", "DataSet", "File", "MissingDataError", "Recipe", "Source", "load"]


def load(names: Iterable[str], source: Source) -> dict[str, DataSet]:
    """Data sets by name, each source read once; those of one source share their input tensors.

    Args:
        names: of `NAMES`.
        source: where to look.

    Raises:
        ValueError: if a name is unknown.
        MissingDataError: if data is not there; says what to get.
        DataError: if a file is damaged, another than expected, or does not hold what it should; names it.
        MissingPackageError: if a package is missing that the files need.
    """
    wanted = list(names)
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ValueError(f"names: expected some of {list(NAMES)}. Got {unknown}.")
    made: dict[str, DataSet] = {}
    for recipe in RECIPES:
        if not set(recipe.targets).isdisjoint(wanted):
            made.update(recipe.load(source))
    return {name: made[name] for name in wanted}
