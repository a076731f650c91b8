"""Npz archives that hold images as mosaics: WebP pictures of many equal tiles.

For a prefix p: ``p_n`` images of ``p_side`` x ``p_side`` pixels, ``p_per`` to a mosaic (the last may have fewer), in
rows of ``p_cols`` tiles, each mosaic the bytes of a WebP file in ``p_webp_0``, ``p_webp_1`` and so on.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rsn2 import extras
from rsn2.experiments.data.dataset import DataError
from rsn2.experiments.data.files import Blob
from rsn2.experiments.data.recipe import expect

Arrays = Mapping[str, npt.NDArray[Any]]


def arrays(blob: Blob) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an npz file; nothing is unpickled.

    Raises:
        DataError: if it is none, is damaged, or holds pickled objects; names the file.
    """
    try:
        with np.load(io.BytesIO(blob.raw), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{blob.path}: cut short or damaged, no npz file of plain arrays: {error}") from error


def array(blob: Blob, found: Arrays, name: str, shape: tuple[int, ...], kinds: str) -> npt.NDArray[Any]:
    """One array, checked.

    Args:
        blob: the file, for errors.
        found: its arrays.
        name: of the array.
        shape: it must have.
        kinds: numpy's letters for its type, such as "ui" for whole numbers.

    Raises:
        DataError: if it is missing or another; names file and array.
    """
    where = f"{blob.path}, array {name!r}"
    expect(name in found, where, "it to be there", f"only {sorted(found)[:8]}")
    result = found[name]
    got = f"{result.dtype} {result.shape}"
    expect(result.shape == shape and result.dtype.kind in kinds, where, f"kind {kinds!r}, shape {shape}", got)
    return result


def images(blob: Blob, found: Arrays, prefix: str, side: int) -> npt.NDArray[np.uint8]:
    """The images of a prefix, ``[n, side, side, 3]``, RGB.

    Raises:
        DataError: if arrays are missing, pictures are damaged or of another size; names file and array.
        MissingPackageError: if Pillow is missing, or cannot read WebP.
    """
    pillow = extras.load("PIL.Image")
    if not extras.load("PIL.features").check("webp"):
        raise extras.MissingPackageError("Pillow was built without WebP: pip install --force-reinstall pillow")
    n, cols, per = (int(array(blob, found, f"{prefix}_{key}", (), "ui")) for key in ("n", "cols", "per"))
    given = int(array(blob, found, f"{prefix}_side", (), "ui"))
    where = f"{blob.path}, {prefix}"
    expect(given == side and min(n, cols, per) > 0, where, f"images of side {side}", f"{n} of side {given}")
    parts = []
    for number, start in enumerate(range(0, n, per)):
        name = f"{prefix}_webp_{number}"
        expect(name in found and found[name].dtype == np.uint8, f"{blob.path}, array {name!r}", "uint8 bytes", "none")
        tiles = min(per, n - start)
        shape = (-(-tiles // cols) * side, cols * side, 3)
        try:
            with pillow.open(io.BytesIO(found[name].tobytes()), formats=["WEBP"]) as picture:
                expect(picture.size == (shape[1], shape[0]), f"{blob.path}, array {name!r}", f"{shape}", picture.size)
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{blob.path}, array {name!r}: no whole WebP picture: {error}") from error
        grid = pixels.reshape(shape[0] // side, side, cols, side, 3).swapaxes(1, 2)
        parts.append(grid.reshape(-1, side, side, 3)[:tiles])
    return np.concatenate(parts)
