"""CSV files with a header: their fields, as text and as numbers, and where in the file each stands."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from rsn2.experiments.config import ConfigError

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CsvFile:
    """A file as read, without the blanks around its fields and the empty lines at its end.

    Attributes:
        path: where it is.
        header: names of the columns.
        rows: their fields.
        lines: on which line of the file each row begins; a quoted field may hold line breaks.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    @classmethod
    def read(cls, path: Path, content: bytes | None = None) -> Self:
        """Read a file.

        Args:
            path: where it is, or where ``content`` was read.
            content: of the file; None: read it.

        Raises:
            ConfigError: if it has no header, a name twice, or a row of another length; names the line.
            FileNotFoundError: if there is no such file.
        """
        lines, rows, last = [], [], 0
        try:
            reader = csv.reader(
                io.StringIO((path.read_bytes() if content is None else content).decode("utf-8-sig"), "")
            )
            for row in reader:
                rows.append([field.strip() for field in row])
                lines.append(last + 1)
                last = reader.line_num
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path}: not a CSV file: {error}") from error
        while rows and not rows[-1]:
            rows.pop()
        if not rows or not rows[0]:
            raise ConfigError(f"{path}: expected a header with the names of the columns.")
        header, *rows = rows
        if len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            raise ConfigError(f"{path}: columns {twice} appear more than once.")
        made = cls(path, header, rows, lines[1 : len(rows) + 1])
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise ConfigError(f"{made.place(number)}: expected {len(header)} fields. Got {len(row)}.")
        return made

    def place(self, row: int, column: str | None = None) -> str:
        """A row, counted from 0, or a field of it, for people to find: file, line and column."""
        return f"{self.path}: line {self.lines[row]}" + (f", column {column!r}" if column is not None else "")

    def labels(self, column: str) -> list[str]:
        """The fields of a column, each the name of a class.

        Raises:
            ConfigError: if one is empty; names column and line.
        """
        index = self.header.index(column)
        fields = [row[index] for row in self.rows]
        if "" in fields:
            raise ConfigError(f"{self.place(fields.index(''), column)}: expected a class. The field is empty.")
        return fields

    def numbers(self, columns: Iterable[str]) -> Numbers:
        """The named columns as ``[rows, columns]``.

        Raises:
            ConfigError: if a field is not a finite number; names column and line.
        """
        chosen = [(name, self.header.index(name)) for name in columns]
        result = np.empty((len(self.rows), len(chosen)))
        for number, row in enumerate(self.rows):
            for place, (name, index) in enumerate(chosen):
                result[number, place] = _number(row[index])
                if not np.isfinite(result[number, place]):
                    raise ConfigError(f"{self.place(number, name)}: expected a number. Got {row[index]!r}.")
        return result


def _number(field: str) -> float:
    """NaN where it is none; Python's underscores between digits are no part of a number in a table."""
    try:
        return float(field) if "_" not in field else np.nan
    except ValueError:
        return np.nan
