"""Prepared data kept in a folder, one safetensors file per source and version of its files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_ABOUT = "about"


def key(name: str, version: int, hashes: Mapping[str, str]) -> str:
    """A name for what is made from these files by this version of the code: 16 hexadecimal digits."""
    text = json.dumps([name, version, sorted(hashes.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(folder: Path | None, name: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors kept under a key, and what was said about them; None if there are none or the file is damaged."""
    if folder is None or not _path(folder, name, key).is_file():
        return None
    try:
        with safe_open(_path(folder, name, key), framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()[_ABOUT])
            return {each: file.get_tensor(each) for each in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None


def keep(folder: Path | None, name: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors, and what is to be said about them (JSON), under a key; nothing if there is no folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, name, key)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    whole = {each: tensor.contiguous() for each, tensor in tensors.items()}
    save_file(whole, partial, metadata={_ABOUT: json.dumps(about)})
    os.replace(partial, path)


def _path(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key}.safetensors"
