"""Files of a data folder: read once, their checksums compared before anything is parsed."""

import gzip
import hashlib
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsn2.experiments.data.dataset import DataError


@dataclass(frozen=True)
class File:
    """A file as it is expected.

    Attributes:
        path: below the data folder, with "/".
        size: bytes.
        sha256: of the file.
        packing: how its content is compressed; None if it is not.
        content: SHA-256 of the content once unpacked. The same content is packed differently by different
            mirrors (a gzip header holds a time and a name), so either checksum is enough. None for unpacked files.
    """

    path: str
    size: int
    sha256: str
    packing: Literal["gzip", "xz"] | None = None
    content: str | None = None


@dataclass(frozen=True)
class Blob:
    """A file as it was read.

    Attributes:
        file: as it was expected.
        path: on this machine.
        raw: its bytes.
        sha256: of ``raw``.
    """

    file: File
    path: Path
    raw: bytes
    sha256: str

    def content(self) -> bytes:
        """The bytes, unpacked.

        Raises:
            DataError: if they cannot be unpacked; names the file.
        """
        try:
            if self.file.packing == "gzip":
                return gzip.decompress(self.raw)
            if self.file.packing == "xz":
                return lzma.decompress(self.raw)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{self.path}: cut short or damaged, no {self.file.packing} file: {error}") from error
        return self.raw

    def known(self) -> bool:
        """Whether the file, or else its unpacked content, has the expected checksum."""
        if self.sha256 == self.file.sha256:
            return True
        if self.file.content is None:
            return False
        try:
            return hashlib.sha256(self.content()).hexdigest() == self.file.content
        except DataError:
            return False


def read(folder: Path, file: File) -> Blob:
    """A file of a data folder, its checksum not yet compared.

    Raises:
        DataError: if it cannot be read; names the file.
    """
    path = folder / file.path
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return Blob(file, path, raw, hashlib.sha256(raw).hexdigest())


def read_checked(folder: Path, file: File, *, accept_unknown: bool) -> Blob:
    """A file of a data folder that is the expected one.

    Args:
        folder: the data folder.
        file: which one.
        accept_unknown: take a file with another checksum too.

    Raises:
        DataError: if it cannot be read or is another file; names it, and both checksums.
    """
    blob = read(folder, file)
    if not accept_unknown and not blob.known():
        shorter = " It is shorter than expected: interrupted while it was copied?" * (len(blob.raw) < file.size)
        raise DataError(
            f"{blob.path}: expected {file.size:,} bytes with SHA-256 {file.sha256}. Got {len(blob.raw):,} bytes with "
            f"{blob.sha256}.{shorter} --accept-unknown, in Python accept_unknown=True, takes other files."
        )
    return blob
