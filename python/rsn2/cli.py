"""The command line: ``rsn2 train``, ``experiment``, ``study``, ``report``, ``predict``, ``bench``, ``calibrate``."""

import csv
import os
import sys
from pathlib import Path
from typing import Annotated, TextIO

import torch
import typer
from rich.console import Console
from rich.table import Table

from rsn2 import extras
from rsn2.bench.calibrate import calibrate as measure_costs
from rsn2.bench.command import bench
from rsn2.checkpoint import describe
from rsn2.command import Quiet, compute_with, errors
from rsn2.experiments import runner, summary, tabular
from rsn2.experiments.command import experiment, study
from rsn2.experiments.config import read_config
from rsn2.experiments.folder import RunError, write_json
from rsn2_kernels import cpu_cost

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Many tasks in one network, each on its own weights: train, look at, and use such networks.",
)

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file of `rsn2 train` or rsn2.save.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rsn2-kernels {extras.version('rsn2-kernels')}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Many tasks in one network, each on its own weights: train, look at, and use such networks."""


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A TOML file, as docs/train.md says; examples/demo.toml is one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; made if missing. Default: runs/<name of CONFIG>."),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Train a dense control of every task too, for comparison.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove an earlier run from the folder first.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads. One is best for small networks.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Train several tasks in turn in one network, and prove that none was forgotten.

    Each task gets weights of its own, trains them, and is scored on its test
    set, then and at the end. All values are compared bit by bit with those
    right after their training; the saved network is loaded in a new process
    and must give the same predictions, bit by bit.

    \b
    Example:  rsn2 train examples/demo.toml --out runs/demo

    \b
    Written to the folder:
      report.json        results, audit, bits per weight, time, versions
      net.safetensors    the network, for report, predict and rsn2.load
      ownership.png      who owns which weight
      curves.png         loss over the epochs, controls beside
      losses.png         test losses over the stages of training
      run.json, resume/  for going on after an interruption: same command

    \b
    Exit codes:
      0    done
      1    the run is complete, and its audit found a change
      2    a mistake in arguments, configuration, data or folder
      130  interrupted
    """
    with errors(resumes=True, fresh=fresh):
        compute_with(threads)
        folder = out if out is not None else Path("runs", config.stem)
        described = tabular.experiment(read_config(config))
        console = None if quiet else Console()
        result = runner.run(described, folder, controls=controls, fresh=fresh, console=console)
        if console is not None:
            summary.show(result, folder, console)


def report(checkpoint: Checkpoint) -> None:
    """Show what a saved network holds: per layer and task the weights owned, and the bits per weight.

    The file alone is enough, whatever the architecture. Nothing is written.

    \b
    Example:  rsn2 report runs/demo/net.safetensors

    \b
    Exit codes:
      0    done
      2    the file is missing, damaged, or no checkpoint
    """
    with errors():
        print(describe(checkpoint))


def predict(
    checkpoint: Checkpoint,
    task: Annotated[str, typer.Option(help="Which of the network's tasks answers.")],
    input: Annotated[Path, typer.Option(help="CSV file with a header: the task's features, in any order.")],
    output: Annotated[Path | None, typer.Option(help="CSV file for the answers. Default: print them.")] = None,
) -> None:
    """Answer for every row of a CSV file with one task of a network that `rsn2 train` made.

    The answers are names of classes, or values in the units of the training
    data, one per row, under the header `prediction`. They are printed, or
    written to --output. Scaling is part of the checkpoint: give the features
    in their own units.

    \b
    Example:  rsn2 predict runs/demo/net.safetensors --task wine --input w.csv

    \b
    Exit codes:
      0    done
      2    a mistake in a file, its columns or fields, or no such task
    """
    with errors():
        answers = tabular.predict_csv(checkpoint, task, input)
        if output is None:
            _write_answers(sys.stdout, answers)
        else:
            with output.open("w", newline="", encoding="utf-8") as file:
                _write_answers(file, answers)


def _write_answers(file: TextIO, answers: list[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([["prediction"], *([answer] for answer in answers)])


def calibrate(
    out: Annotated[
        Path | None,
        typer.Option(help="File to write instead. RSN2_CPU_COSTS=FILE has it read, and an empty one none."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For each call, about.")] = 0.04,
    quiet: Quiet = False,
) -> None:
    """Measure what the CPU's backends cost on this machine, for every later choice between them.

    Which of the C++ operators and torch's dense ones is faster for a call
    depends on the processor. The package comes with the costs of AMD's
    families 25 and 26; this measures those of yours, in minutes. Leave the
    machine alone meanwhile. `rsn2_kernels.explain` says which costs it went
    by. Another choice has other last bits: do not calibrate between the
    halves of a run that is to be resumed bit by bit.

    \b
    Written:
      ~/.cache/rsn2-kernels/cpu-costs.json (in XDG_CACHE_HOME, where that is set)

    \b
    Exit codes:
      0    done
      2    there are no C++ operators, a package is missing, or a mistake in a file
      130  interrupted; nothing is written
    """
    with errors():
        file = out or cpu_cost.place()
        if file is None:
            raise RunError(
                "RSN2_CPU_COSTS is empty, or there is no home directory, so that no file would be read: give --out."
            )
        # Not after minutes of measuring.
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            raise RunError(f"{file} cannot be written.")
        console = Console(quiet=quiet)
        found = measure_costs(seconds, lambda name: runner.tell(console, f"{name} ..."))
        write_json(file, found)
        columns = ("operator and type", "products", "chosen within 5 % of the best", "worst")
        table = Table(*columns, title="How these costs choose")
        for name, row in found["costs"].items():
            shares = (row["share_within_5_percent_of_best"], row["worst_best_over_chosen"])
            table.add_row(name, str(row["cases"]), *(f"{100 * share:.0f} %" for share in shares))
        console.print(table)
        runner.tell(console, f"written to {file}")


for command in (train, experiment, study, report, predict, bench, calibrate):
    app.command()(command)

if __name__ == "__main__":
    app()
