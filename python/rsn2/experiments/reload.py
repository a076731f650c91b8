"""Load a checkpoint in a new process and predict there: proof that the file alone is enough.

The new process runs this module, with the checkpoint, the name of the rebuilding function, files for inputs
and outputs, device, threads and precision as arguments.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsn2.checkpoint import load, read_metadata
from rsn2.experiments.settings import Precision, computed_in
from rsn2.training import predict


class AuditError(RuntimeError):
    """A finished run does not keep what it promises.

    Attributes:
        report: of the run; None if it came to none.
    """

    def __init__(self, message: str, report: dict[str, Any] | None = None):
        super().__init__(message)
        self.report = report


def predict_elsewhere(
    checkpoint: Path,
    rebuild: str,
    samples: Mapping[str, Tensor],
    device: torch.device,
    precision: Precision = "float32",
) -> dict[str, Tensor]:
    """Outputs for each task's samples, computed by a new process from the checkpoint alone.

    Args:
        checkpoint: a file that `rsn2.save` wrote.
        rebuild: "module:function"; ``function(metadata)`` makes the plain network.
        samples: task -> inputs.
        device: where the new process computes.
        precision: of the forward passes.

    Returns:
        Task -> outputs, float32.

    Raises:
        AuditError: if the new process fails; with what it wrote to standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        # The format has no tensor under two names, and tasks may have the same samples.
        stored = {task: str(x.data_ptr()) for task, x in samples.items()}
        unique = {stored[task]: x.cpu().contiguous() for task, x in samples.items()}
        save_file(unique, inputs, metadata=stored)
        arguments = [checkpoint, rebuild, inputs, outputs, device, torch.get_num_threads(), precision]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *map(str, arguments)],
            # The new process finds the packages where this one did, installed or not.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise AuditError(f"loading {checkpoint} in a new process failed:\n{done.stderr}")
        return load_file(outputs)


def _main(checkpoint: str, rebuild: str, inputs: str, outputs: str, device: str, threads: str, precision: str) -> None:
    torch.set_num_threads(int(threads))
    module, _, function = rebuild.partition(":")
    plain = getattr(importlib.import_module(module), function)(read_metadata(checkpoint))
    model = load(checkpoint, plain).to(device)
    with safe_open(inputs, "pt") as file, computed_in(cast(Precision, precision), device):
        answers = {
            task: predict(model, task, file.get_tensor(name)).float().cpu() for task, name in file.metadata().items()
        }
    save_file(answers, outputs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
