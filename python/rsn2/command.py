"""What all commands share: how an error ends them, threads, and options that several of them have."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from rsn2 import extras, machine
from rsn2.allocate import AllocationError
from rsn2.bench.results import BenchError
from rsn2.experiments.config import ConfigError
from rsn2.experiments.data import DataError
from rsn2.experiments.folder import RunError
from rsn2.experiments.reload import AuditError
from rsn2.nn.layer import TaskError
from rsn2.sealed import CheckpointError
from rsn2.training import TrainingError
from rsn2_kernels import BackendError

_USER_ERRORS = (
    AllocationError,
    BackendError,
    BenchError,
    CheckpointError,
    ConfigError,
    DataError,
    OSError,
    RunError,
    TaskError,
    TrainingError,
    extras.MissingPackageError,
)


def _usable(device: str) -> str:
    """The device, once a number came back from it."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(str(error).splitlines()[0]) from error
    return device


DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the data, as docs/data.md says. Default: ask the Hugging Face hub."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few samples and epochs: does all work?")]
Device = Annotated[str, typer.Option(help="Where it computes, such as cpu or cuda.", callback=_usable)]
Epochs = Annotated[int, typer.Option(min=1, help="At most, of each training.")]
Samples = Annotated[int | None, typer.Option(min=1, help="At most, of each training part. Default: all.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs, a folder for each; made if missing.")]
AcceptUnknown = Annotated[
    bool, typer.Option("--accept-unknown", help="Take data files with other checksums than the published ones.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@contextmanager
def errors(*, resumes: bool = False, fresh: bool = False) -> Iterator[None]:
    """One line on standard error and an exit code, where the library raises.

    Args:
        resumes: whether the command, given again, goes on where it was interrupted.
        fresh: whether it was given with --fresh, which would begin anew.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read has enough: typer ends quietly
    except AuditError as error:
        code, text = 1, f"audit failed: {error}"
    except _USER_ERRORS as error:
        code, text = 2, f"error: {_words(error)}"
    except KeyboardInterrupt:
        on = f": the same command{' without --fresh' * fresh} goes on from here" if resumes else ""
        code, text = 130, f"interrupted{on}"
    else:
        return
    print(" ".join(text.split()), file=sys.stderr)
    raise typer.Exit(code)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


def compute_with(threads: int) -> None:
    """Threads of torch's, and memory that it keeps."""
    torch.set_num_threads(threads)
    machine.keep_memory()
