"""Prepared data kept in a folder, one safetensors file per source and version of its files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rsn2.sealed import CheckpointError, read_sealed, write_sealed

_KIND = "rsn2.data"


def key(name: str, version: int, hashes: Mapping[str, str]) -> str:
    """A name for what is made from these files by this version of the code: 16 hexadecimal digits."""
    text = json.dumps([name, version, sorted(hashes.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(folder: Path | None, name: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors kept under a key, and what was said about them; None if there are none or the file is damaged."""
    if folder is None or not _path(folder, name, key).is_file():
        return None
    try:
        about, tensors = read_sealed(_path(folder, name, key), _KIND, "rsn2")
    except (OSError, CheckpointError):
        return None
    return tensors, about


def keep(folder: Path | None, name: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors, and what is to be said about them (JSON), under a key; nothing if there is no folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(_path(folder, name, key), _KIND, about, tensors)


def _path(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key}.safetensors"
