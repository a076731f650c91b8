"""The command line: ``rsn2 train``, ``experiment``, ``study``, ``report``, ``predict``, ``bench``, ``calibrate``."""

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TextIO

import torch
import typer
from rich.console import Console
from rich.table import Table

from rsn2 import extras, machine
from rsn2.allocate import AllocationError, Criterion, Scope
from rsn2.bench.calibrate import calibrate as measure_costs
from rsn2.bench.command import bench
from rsn2.checkpoint import describe
from rsn2.experiments import paper, runner, summary, tabular
from rsn2.experiments.config import ConfigError, read_config
from rsn2.experiments.data import DataError, Source
from rsn2.experiments.folder import RunError, write_json
from rsn2.experiments.paper import studies
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import OptimizerName, Precision
from rsn2.nn.layer import TaskError
from rsn2.sealed import CheckpointError
from rsn2.training import TrainingError
from rsn2_kernels import BackendError, cpu_cost

_USER_ERRORS = (
    AllocationError,
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    OSError,
    RunError,
    TaskError,
    TrainingError,
    extras.MissingPackageError,
)

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
# What several commands ask for.
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the data, as docs/data.md says. Default: ask the Hugging Face hub."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few samples and epochs: does all work?")]
Device = Annotated[str, typer.Option(help="Where it computes, such as cpu or cuda.")]
Epochs = Annotated[int, typer.Option(min=1, help="At most, of each training.")]
Samples = Annotated[int | None, typer.Option(min=1, help="At most, of each training part. Default: all.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs, a folder for each; made if missing.")]
AcceptUnknown = Annotated[
    bool, typer.Option("--accept-unknown", help="Take data files with other checksums than the published ones.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


@contextmanager
def _errors() -> Iterator[None]:
    """One line on standard error and an exit code, where the library raises."""
    try:
        yield
    except AuditError as error:
        code, text = 1, f"audit failed: {error}"
    except _USER_ERRORS as error:
        code, text = 2, f"error: {_words(error)}"
    except KeyboardInterrupt:
        code, text = 130, "interrupted: the same command goes on from here"
    else:
        return
    print(" ".join(text.split()), file=sys.stderr)
    raise typer.Exit(code)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _compute_with(threads: int) -> None:
    torch.set_num_threads(threads)
    machine.keep_memory()


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


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; examples/demo.toml is one.")],
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
    with _errors():
        _compute_with(threads)
        folder = out if out is not None else Path("runs", config.stem)
        experiment = tabular.experiment(read_config(config))
        console = None if quiet else Console()
        result = runner.run(experiment, folder, controls=controls, fresh=fresh, console=console)
        if console is not None:
            summary.show(result, folder, console)


@app.command()
def experiment(
    number: Annotated[int, typer.Argument(metavar="N", min=1, max=6, help="Which of the paper's experiments.")],
    data_dir: DataDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs, from --seed on.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first run.")] = 0,
    quick: Quick = False,
    device: Device = "cpu",
    density: Annotated[float | None, typer.Option(min=0, max=1, help="Of each task. Default: the paper's.")] = None,
    granularity: Annotated[
        tuple[int, int] | None, typer.Option(metavar="ROWS COLUMNS", help="Claim blocks. Default: single weights.")
    ] = None,
    criterion: Annotated[Criterion | None, typer.Option(help="What makes a weight matter. Default: gradient.")] = None,
    scope: Annotated[Scope | None, typer.Option(help="Where weights compete. Default: the experiment's.")] = None,
    rescale: Annotated[
        Literal["none", "fan_in"] | None, typer.Option(help="Of a sparse row's values. Default: the experiment's.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Signs for each task. Default: the experiment's.")
    ] = None,
    optimizer: Annotated[
        OptimizerName | None, typer.Option(help="Of all trainings. Default: the experiment's.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate. Default: the experiment's.")] = None,
    epochs: Epochs = paper.options.EPOCHS,
    samples: Samples = None,
    precision: Annotated[Precision, typer.Option(help="Of forward passes; parameters are float32.")] = "float32",
    out: Runs = Path("runs"),
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of the results files. Default: results; with --quick the folder of the run."),
    ] = None,
    accept_unknown: AcceptUnknown = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write losses and scores for TensorBoard to the folders too.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Remove earlier runs first; controls stay in OUT/controls."),
    ] = False,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Run one of the paper's experiments: its network, its tasks and its dense controls, beside its figures.

    \b
    1  Fashion-MNIST five times, convolutional, and the ensemble
    2  MNIST and Fashion-MNIST, fully connected
    3  Fashion-MNIST's easy and hard classes, convolutional
    4  MNIST, Fashion-MNIST, Boston housing, IMDB, fully connected
    5  UTKFace's age, gender, ethnicity, and CIFAR-10, convolutional
    6  Reuters-21578, transformer

    \b
    Example:  rsn2 experiment 2 --data-dir data --seeds 3

    \b
    Written:
      RESULTS/experiment-N-seed-S.json    figures beside the paper's, and how they came
      OUT/experiment-N-seed-S/            network, pictures, report, and what an interrupted run needs
      OUT/controls/                       controls, trained once for all experiments

    \b
    Exit codes:
      0    done
      1    a run is complete, and its audit found a change
      2    a mistake in arguments, data or folder
      130  interrupted
    """
    with _errors():
        _compute_with(threads)
        console = None if quiet else Console()
        source = Source(data_dir, accept_unknown=accept_unknown, cache=out / "data")
        for each in range(seed, seed + seeds):
            options = paper.Options(
                seed=each,
                density=density,
                criterion=criterion,
                scope=scope,
                rescale=rescale,
                flip=flip,
                granularity=granularity,
                optimizer=optimizer,
                lr=lr,
                epochs=epochs,
                samples=samples,
                precision=precision,
            )
            name = f"experiment-{number}-seed-{each}"
            folder = out / (f"quick-{name}" if quick else name)
            place = results if results is not None else (folder if quick else Path("results"))
            file = place / f"{name}.json"
            result = paper.run(
                number,
                options.as_quick() if quick else options,
                source,
                folder,
                result=file,
                fresh=fresh,
                device=device,
                tensorboard=tensorboard,
                console=console,
            )
            if console is not None:
                summary.show_rows(result, (file, folder), console)


@app.command()
def study(
    question: Annotated[Literal["sparsity", "tasks", "allocation"], typer.Argument(help="What is studied.")],
    data_dir: DataDir = None,
    number: Annotated[int, typer.Option("--experiment", min=1, max=6, help="Whose tasks: of sparsity.")] = 2,
    density: Annotated[list[float] | None, typer.Option(min=0.001, max=1, help="Of each task; repeat it.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each kind.")] = 1,
    quick: Quick = False,
    device: Device = "cpu",
    epochs: Epochs = paper.options.EPOCHS,
    samples: Samples = None,
    out: Runs = Path("runs"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: results; with --quick runs.")
    ] = None,
    accept_unknown: AcceptUnknown = False,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Ask what the paper leaves open: how sparse a task may be, how many one network holds, what late ones learn.

    sparsity varies density and blocks in one of the paper's experiments. tasks trains experiment 2's network on MNIST
    with its pixels in another order for each task, until no weight is left. allocation fills the same network with
    five tasks that are all Fashion-MNIST, for each way to choose weights.

    \b
    Example:  rsn2 study tasks --data-dir data --density 0.05

    \b
    Written:
      RESULTS/study-sparsity-experiment-N.json, study-tasks.json or study-allocation.json, and a .png beside it
      OUT/        a folder for each run, with what an interrupted one needs

    \b
    Exit codes: as of rsn2 experiment
    """
    with _errors():
        _compute_with(threads)
        console = None if quiet else Console()
        source = Source(data_dir, accept_unknown=accept_unknown, cache=out / "data")
        options = [paper.Options(seed=each, epochs=epochs, samples=samples) for each in range(seeds)]
        runs, options = (out / "quick", [each.as_quick() for each in options]) if quick else (out, options)
        place = results if results is not None else (runs if quick else Path("results"))
        if question == "sparsity":
            densities = tuple(density) if density else studies.DENSITIES
            file = studies.sparsity(
                number, options, source, runs, place, densities=densities, device=device, console=console
            )
        elif question == "allocation":
            file = studies.allocation(options, source, runs, place, device=device, console=console)
        else:
            file = studies.tasks(density or [0.05], options, source, runs, place, device=device, console=console)
        if console is not None:
            console.print(f"written to {file} and {file.with_suffix('.png')}", highlight=False, soft_wrap=True)


@app.command()
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
    with _errors():
        print(describe(checkpoint))


@app.command()
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
    with _errors():
        answers = tabular.predict_csv(checkpoint, task, input)
        if output is None:
            _write_answers(sys.stdout, answers)
        else:
            with output.open("w", newline="", encoding="utf-8") as file:
                _write_answers(file, answers)


def _write_answers(file: TextIO, answers: list[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([["prediction"], *([answer] for answer in answers)])


@app.command()
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
    depends on the processor. The package comes with the costs of one; this
    measures those of another, in minutes. Leave the machine alone meanwhile.
    `rsn2_kernels.explain` says which costs it went by. Another choice has
    other last bits: do not calibrate between the halves of a run that is to
    be resumed bit by bit.

    \b
    Written:
      ~/.cache/rsn2-kernels/cpu-costs.json (in XDG_CACHE_HOME, where that is set)

    \b
    Exit codes:
      0    done
      2    there are no C++ operators, a package is missing, or a mistake in a file
      130  interrupted; nothing is written
    """
    with _errors():
        file = out or cpu_cost.place()
        if file is None:
            raise RunError("RSN2_CPU_COSTS is empty, so that no file would be read: give --out.")
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


app.command()(bench)

if __name__ == "__main__":
    app()
