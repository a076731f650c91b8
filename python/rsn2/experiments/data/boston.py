"""Boston housing: 506 districts, 13 features, the median price of a home (Harrison, Rubinfeld 1978).

The test part is that of Keras, the framework of the paper's authors: the set has no other published one.

Feature "b" is built from the share of Black residents, for which scikit-learn removed this data set: name that
when using it. The features are standardised on the training part; the price is scaled so that the training part
spans 0..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsn2.experiments.config import ConfigError
from rsn2.experiments.csv_file import CsvFile, Numbers
from rsn2.experiments.data import hub
from rsn2.experiments.data.dataset import DataError
from rsn2.experiments.data.files import Blob, File
from rsn2.experiments.data.recipe import Prepared, Recipe, expect
from rsn2.experiments.data.splits import Ints, hold_out
from rsn2.experiments.tables import Scaling, Table

FEATURES = ("crim", "zn", "indus", "chas", "nox", "rm", "age", "dis", "rad", "tax", "ptratio", "b", "lstat")
TARGET = "medv"
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2
_KERAS_SEED = 113
_ROWS = 506
_HIGHEST_PRICE = 50.0  # thousands of dollars; the source cuts prices off there
_HUB = "maxcembalest/boston_housing"
_REVISION = "d7090136b2cc788cc887e2860259d8312cb6d7e3"


@dataclass(frozen=True)
class _Houses:
    """``values``: float64 ``[n, 14]``, the features and the price; ``where``: their file or place."""

    where: str
    values: Numbers


def _from_files(blobs: Sequence[Blob]) -> _Houses:
    (blob,) = blobs
    try:
        file = CsvFile.read(blob.path, blob.raw)
        expect(file.header == [*FEATURES, TARGET], str(blob.path), f"columns {[*FEATURES, TARGET]}", file.header)
        return _Houses(str(blob.path), file.numbers(file.header))
    except ConfigError as error:
        raise DataError(str(error)) from error


def _from_hub() -> _Houses:
    found = hub.table(_HUB, (), data_files="boston_housing.csv", revision=_REVISION, split="train")
    columns = {name.lower(): name for name in found.column_names}
    missing = [name for name in (*FEATURES, TARGET) if name not in columns]
    expect(not missing, f"{_HUB} on the Hugging Face hub", f"columns {missing}", found.column_names)
    values = [hub.values(found, columns[name]) for name in (*FEATURES, TARGET)]
    return _Houses(_HUB, np.stack(values, axis=1))


def as_in_keras(count: int) -> tuple[Ints, Ints]:
    """Rows for training and for the test as ``keras.datasets.boston_housing.load_data()`` parts them, ascending."""
    order = np.arange(count)
    np.random.RandomState(_KERAS_SEED).shuffle(order)
    cut = int(count * (1 - TEST_SHARE))
    return np.sort(order[:cut]), np.sort(order[cut:])


def _prepare(raw: _Houses, strict: bool) -> Prepared:
    values = raw.values
    expect(len(values) == _ROWS or (not strict and len(values) > 0), raw.where, f"{_ROWS} rows", len(values))
    expect(bool(np.isfinite(values).all()), raw.where, "finite numbers", "others")
    price = values[:, -1]
    span = f"{price.min()}..{price.max()}"
    expect(price.min() > 0 and price.max() <= _HIGHEST_PRICE, raw.where, f"prices in (0, {_HIGHEST_PRICE:g}]", span)
    table = Table(FEATURES, values[:, :-1], price, None)
    rest, test = as_in_keras(len(values))
    train, val = hold_out(rest, VALIDATION_SHARE)
    low, high = float(price[train].min()), float(price[train].max())
    expect(high > low, raw.where, "prices that differ", span)
    scaling = replace(Scaling.of("regression", table, train), target_mean=low, target_scale=high - low)
    tensors = {}
    for part, rows in (("train", train), ("val", val), ("test", test)):
        tensors[f"{part}.inputs"] = scaling.inputs(table.x[rows])
        tensors[f"{part}.boston"] = scaling.targets(price[rows])
    facts = {
        "split": f"test: {TEST_SHARE:g} of the rows, as in Keras; validation: {VALIDATION_SHARE:g} of the others",
        "scaling": scaling.to_json(),
        "caution": "feature b is built from the share of Black residents",
    }
    return Prepared(tensors, {"boston": []}, facts)


RECIPE = Recipe(
    name="boston",
    targets=("boston",),
    kind="regression",
    files=(
        File(
            "boston/BostonHousing.csv",
            35_735,
            "ab16ba38fbbbbcc69fe930aab1293104f1442c8279c130d9eba03dd864bef675",
        ),
    ),
    where="https://github.com/selva86/datasets",
    hub=_HUB,
    from_files=_from_files,
    from_hub=_from_hub,
    prepare=_prepare,
    version=2,
)
