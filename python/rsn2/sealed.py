"""A safetensors file that can tell whether it is sound: what checkpoints and resume files are written as.

The file's metadata holds one JSON record, and beside it the record's SHA-256. The record lists every tensor with dtype,
shape and SHA-256. Files are replaced as a whole, checked before anything is built from them, and never pickled.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint or resume file is damaged, foreign, or made from something else."""


@dataclass(frozen=True)
class TensorRecord:
    """A tensor: its dtype, shape and SHA-256 of its bytes."""

    dtype: str
    shape: list[int]
    sha256: str

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor."""
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return cls(str(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest())

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise unless ``tensor`` is the recorded one.

        Raises:
            CheckpointError: names the tensor and the field.
        """
        found = asdict(TensorRecord.of(tensor))
        for field, recorded in asdict(self).items():
            if recorded != found[field]:
                raise CheckpointError(f"tensor {name!r}, field {field!r}: recorded {recorded}, found {found[field]}.")


def write_sealed(path: Path, key: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``record`` (JSON, without the name "tensors") and ``tensors``, atomically, under the metadata key ``key``.

    Raises:
        FileNotFoundError: if there is no folder of the path.
        TypeError: if ``record`` is not JSON.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {str(path.parent)!r}.")
    # A copy of its own for each tensor, since a file cannot hold two names for one storage.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    listed = {name: asdict(TensorRecord.of(tensor)) for name, tensor in own.items()}
    text = json.dumps({**record, "tensors": listed})
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(own, partial, {key: text, _digest_key(key): _sha256(text)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_sealed(path: Path, key: str, writer: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors of a file that `write_sealed` wrote, all checked.

    Args:
        writer: the function that writes such files, for the message.

    Raises:
        CheckpointError: if the file is damaged or foreign.
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            record = _record(file.metadata() or {}, path, key, writer)
            listed = _listed(record.pop("tensors", None))
            if strange := sorted(set(file.keys()) ^ set(listed)):
                raise CheckpointError(f"{path}: tensors {strange} are not in both the file and its record.")
            tensors = {name: file.get_tensor(name) for name in listed}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a sound safetensors file: {error}") from error
    for name, tensor in tensors.items():
        listed[name].check(name, tensor)
    return record, tensors


def checked_fields(where: str, content: Any, names: Iterable[str]) -> dict[str, Any]:
    """``content`` if it is a table of exactly the fields ``names``.

    Raises:
        CheckpointError: if it is not; names ``where``.
    """
    expected = set(names)
    if not isinstance(content, dict) or set(content) != expected:
        got = sorted(content) if isinstance(content, dict) else content
        raise CheckpointError(f"{where}: expected the fields {sorted(expected)}. Got {got}.")
    return content


def _record(header: Mapping[str, str], path: Path, key: str, writer: str) -> dict[str, Any]:
    if key not in header or _digest_key(key) not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one that {writer} wrote.")
    if _sha256(header[key]) != header[_digest_key(key)]:
        raise CheckpointError(f"{path}: damaged: its record does not match its checksum.")
    try:
        record = json.loads(header[key])
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its record is not a table.")
    return record


def _listed(content: Any) -> dict[str, TensorRecord]:
    if not isinstance(content, dict):
        raise CheckpointError(f"record, field 'tensors': expected a table. Got {content!r}.")
    fields = TensorRecord.__dataclass_fields__
    return {name: TensorRecord(**checked_fields(f"tensor {name!r}", each, fields)) for name, each in content.items()}


def _digest_key(key: str) -> str:
    return f"{key}.sha256"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
