"""A run's report as a table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print the tasks of a report, its bits per weight, its time, and where the files are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for column in ("sparse", "dense control", "density", "right after", "at the end", "values changed"):
        table.add_column(column, justify="right")
    for task in result["tasks"]:
        table.add_row(
            task["name"],
            task["metric"],
            _number(task["value"]),
            _number(task["control"]),
            f"{task['density']:g}",
            _number(task["value_after_training"]),
            _number(task["value"]),
            f"{task['values_changed']}",
        )
    console.print(table)
    equal = "equal to" if result["reload_bitwise_equal"] else "DIFFERENT from"
    for line in (
        f"bits per shared weight: {result['bits_per_weight']:.1f}, all tasks in one network; "
        f"{result['bits_per_weight_dense']:.1f} as {len(result['tasks'])} dense networks",
        f"saved, loaded in a new process: predictions bitwise {equal} those before",
        f"{result['seconds']:.1f} s on {result['threads']} thread(s)",
        f"written to {folder}: report.json, net.safetensors, ownership.png, curves.png, losses.png",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def show_rows(result: Mapping[str, Any], written: Sequence[Path], console: Console) -> None:
    """Print the rows of one of the paper's experiments, beside the paper's figures, and where the files are."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for column in ("paper", "ours", "paper's control", "our control", "epochs", "seconds each"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["name"] if row["metric"] == "accuracy" else f"{row['name']} ({row['metric']})",
            f"{row['paper_rsn2']:g}",
            _number(row["rsn2"]),
            f"{row['paper_control']:g}",
            _number(row["control"]),
            f"{row['epochs']}",
            "{:.1f}, {:.1f}".format(
                *(row[f"{kind}seconds"] / max(1, row[f"{kind}epochs"]) for kind in ("", "control_"))
            ),
        )
    console.print(f"experiment {result['experiment']}, seed {result['seed']}: {result['title']}", highlight=False)
    console.print(table)
    size, dense = result["bytes"]["network"]["weights"], result["bytes"]["controls"]["weights"]
    same = "bitwise equal to" if result["predictions_unchanged"] else "DIFFERENT from"
    changed = sum(row["values_changed"] for row in result["rows"] if row["name"] in result["training"])
    for line in (
        f"each task's predictions at the end: {same} those right after its training; {changed} values changed",
        f"on disk: {size / 1e6:.1f} MB, {size / max(1, dense):.0%} of its dense controls' {dense / 1e6:.1f} MB",
        f"{result['seconds']:.1f} s on {result['machine']['threads']} thread(s)",
        *(f"written to {path}" for path in written),
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    """Four digits after the point of a share, one of what is larger."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
