"""``rsn2 bench``: measure, show, compare."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rsn2 import extras
from rsn2.bench import cases, plots, report
from rsn2.bench.compare import compare
from rsn2.bench.measure import Settings
from rsn2.bench.results import FILE, BenchError, Results, run
from rsn2.command import Device, errors

_QUICK = {"seconds": 0.06, "rounds": 9, "limit": 0.5, "patience": 0.3, "further": 10}


def _default(name: str) -> str:
    """For the help: what a setting is by itself."""
    return f"Default: {getattr(Settings, name):g}, quick {_QUICK[name]:g}."


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few of everything, in minutes.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; made if missing. Default: runs/bench[-quick].")
    ] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Cases whose name holds this, such as 'conv2d'.")] = "",
    seconds: Annotated[float | None, typer.Option(min=0, help=f"For each call. {_default('seconds')}")] = None,
    limit: Annotated[
        float | None,
        typer.Option(min=0, help=f"Skip cases whose dense call takes more seconds. {_default('limit')}"),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Empty the caches before each call.")] = False,
    old: Annotated[
        Path | None,
        typer.Option("--compare", metavar="OLD", help="A bench.json: what became slower or larger since?"),
    ] = None,
    new: Annotated[
        Path | None, typer.Option("--with", metavar="NEW", help="Compare OLD with this bench.json; measure nothing.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs in the folder, finished or not.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the verdict and errors.")] = False,
) -> None:
    """Measure operators, layers and networks against dense and sparse alternatives, each beside its bound.

    All calls of a case are timed in turn, in one process, and one of them
    twice: where it differs from itself, the machine is too noisy to judge,
    and the report says so. Losing cases are shown like the others.

    \b
    Example:  rsn2 bench --quick --out runs/before
              rsn2 bench --quick --out runs/after --compare runs/before/bench.json

    \b
    Written to the folder:
      bench.json        machine, versions, commit, settings, every sample
      tables.md         the tables
      *.png             speed over the baseline, roofline, winners, memory,
                        growth

    \b
    Exit codes:
      0    done
      1    a result of this package is wrong; or --compare: something became
           slower or larger
      2    a mistake in arguments, files or folder
      3    --compare: too noisy to judge, or nothing to compare
      130  interrupted: the same command goes on from there, without --fresh
    """
    console = Console(quiet=quiet, width=None if sys.stdout.isatty() else 190)
    with errors(resumes=new is None, fresh=fresh):
        if new is not None and old is None:
            raise BenchError("--with: expected --compare beside it.")
        before = Results.read(old) if old is not None else None
        if new is not None:
            found = Results.read(new)
        else:
            folder = out if out is not None else Path("runs", "bench-quick" if quick else "bench")
            chosen = {"seconds": seconds, "limit": limit}
            settings = Settings(
                device=device,
                threads=threads,
                cold=cold,
                grid="quick" if quick else "full",
                only=only,
                **(_QUICK if quick else {}) | {name: value for name, value in chosen.items() if value is not None},  # type: ignore[arg-type]
            )
            found = _measured(settings, folder, fresh, console)
    if found.wrong:
        print("wrong results:", *found.wrong, sep="\n", file=sys.stderr)
        raise typer.Exit(1)
    if before is not None:
        comparison = compare(before, found)
        for table in comparison.tables():
            console.print(table.rich())
        print(*comparison.summary(), sep="\n")
        raise typer.Exit(comparison.exit_code)


def _measured(settings: Settings, folder: Path, fresh: bool, console: Console) -> Results:
    """Run, write, show."""
    grid = cases.quick() if settings.grid == "quick" else cases.full()
    grid = [case for case in grid if settings.only in case.key]
    if not grid:
        raise BenchError(f"--only: no case's name holds {settings.only!r}; such names are {cases.quick()[0].key!r}.")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("peaks of the machine", total=len(grid))
        results = run(
            grid,
            settings,
            folder,
            fresh=fresh,
            tell=lambda key, number, count: progress.update(bar, completed=number, description=key),
        )
    report.write(results, folder / "tables.md")
    report.show(results, console)
    try:
        pictures = plots.write(results, folder)
    except extras.MissingPackageError as error:
        pictures = []
        console.print(f"no pictures: {error}", highlight=False)
    names = ", ".join(path.name for path in (folder / FILE, folder / "tables.md", *pictures))
    console.print(f"written to {folder}: {names}", highlight=False)
    if console.quiet:
        print(f"{results.verdict}")
    return results
