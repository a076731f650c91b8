"""Files of `rsn2.save`, changed by somebody who knows the format."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change record and tensors as somebody would who knows the format: all checksums are right again afterwards."""
    tensors = load_file(path)
    with open(path, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    record = json.loads(header["__metadata__"]["rsn2"])
    change(record, tensors)
    record["tensors"] = {
        name: {
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        for name, tensor in tensors.items()
    }
    text = json.dumps(record)
    save_file(tensors, path, {"rsn2": text, "rsn2.sha256": hashlib.sha256(text.encode()).hexdigest()})
