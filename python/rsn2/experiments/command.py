"""``rsn2 experiment`` and ``rsn2 study``: the paper's experiments, and what it leaves open."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from rsn2.allocate import Criterion, Scope
from rsn2.command import (
    AcceptUnknown,
    DataDir,
    Device,
    Epochs,
    Quick,
    Quiet,
    Runs,
    Samples,
    Threads,
    compute_with,
    errors,
)
from rsn2.experiments import paper, summary
from rsn2.experiments.data import Source
from rsn2.experiments.paper import studies
from rsn2.experiments.reload import AuditError
from rsn2.experiments.settings import OptimizerName, Precision


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
        typer.Option("--fresh", help="Remove earlier runs and results first; controls stay in OUT/controls."),
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
      OUT/data/                           data as read: decoded images, word numbers, splits

    \b
    Exit codes:
      0    done
      1    a run is complete, and its audit found a change
      2    a mistake in arguments, data or folder
      130  interrupted
    """
    with errors(resumes=True, fresh=fresh):
        compute_with(threads)
        console = None if quiet else Console()
        source = Source(data_dir, accept_unknown=accept_unknown, cache=out / "data")
        broken: list[AuditError] = []
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
            try:
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
            except AuditError as error:  # of one seed: the others run, too
                broken.append(error)
                continue
            if console is not None:
                summary.show_rows(result, (file, folder), console)
        if broken:
            raise AuditError("; ".join(map(str, broken)))


def study(
    question: Annotated[Literal["sparsity", "tasks", "allocation"], typer.Argument(help="What is studied.")],
    data_dir: DataDir = None,
    number: Annotated[
        int | None, typer.Option("--experiment", min=1, max=6, help="Whose tasks: of sparsity. Default: 2.")
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option(min=0.001, max=1, help="Of each task, but of allocation; repeat it.")
    ] = None,
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
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove earlier runs first; controls stay in OUT/controls.")
    ] = False,
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
      OUT/        a folder for each run, with what an interrupted one needs; controls/ and data/ as of experiment

    \b
    Exit codes: as of rsn2 experiment
    """
    if number is not None and question != "sparsity":
        raise typer.BadParameter(f"{question} has tasks of its own.", param_hint="--experiment")
    if density and question == "allocation":
        raise typer.BadParameter(f"all tasks of allocation have {studies.COPY_DENSITY:g}.", param_hint="--density")
    with errors(resumes=True, fresh=fresh):
        compute_with(threads)
        console = None if quiet else Console()
        source = Source(data_dir, accept_unknown=accept_unknown, cache=out / "data")
        options = [paper.Options(seed=each, epochs=epochs, samples=samples) for each in range(seeds)]
        runs, options = (out / "quick", [each.as_quick() for each in options]) if quick else (out, options)
        place = results if results is not None else (runs if quick else Path("results"))
        where = (options, source, runs, place)
        if question == "sparsity":
            densities = tuple(density) if density else studies.DENSITIES
            file = studies.sparsity(
                number or 2, *where, densities=densities, fresh=fresh, device=device, console=console
            )
        elif question == "allocation":
            file = studies.allocation(*where, fresh=fresh, device=device, console=console)
        else:
            file = studies.tasks(density or [0.05], *where, fresh=fresh, device=device, console=console)
        if console is not None:
            console.print(f"written to {file} and {file.with_suffix('.png')}", highlight=False, soft_wrap=True)
