"""``python -m rsn2.experiments.data FOLDER``: which files a data folder has, and whether they are the expected ones."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rsn2.experiments.data import RECIPES
from rsn2.experiments.data.dataset import DataError
from rsn2.experiments.data.files import File, read


def survey(folder: Path) -> Iterator[tuple[str, File, str]]:
    """Source, file and state of every expected file: "ok", "missing", "unknown checksum", or why it is unreadable."""
    for recipe in RECIPES:
        for file in recipe.files:
            if not (folder / file.path).is_file():
                state = "missing"
            else:
                try:
                    state = "ok" if read(folder, file).known() else "unknown checksum"
                except DataError as error:
                    state = str(error)
            yield recipe.name, file, state


def main(arguments: list[str] | None = None) -> int:
    """Print a line per file; 0 if all are there and as expected, else 1."""
    parser = argparse.ArgumentParser(prog="python -m rsn2.experiments.data", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    good = True
    for name, file, state in survey(folder):
        print(f"{name:14} {file.path:42} {state}")
        good = good and state == "ok"
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
