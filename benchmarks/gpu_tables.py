"""The figures of docs/gpu.md, from the runs on a GPU under `results`."""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from rsn2 import markdown

RESULTS = Path(__file__).parents[1] / "results"
Record = dict[str, Any]

BASELINES = ("dense", "bmm", "convolution_backward", "linear(x, w * mask)")
"""Candidates that are none of ours."""


@cache
def checked() -> Record:
    """What `make gpu-check` wrote."""
    found: Record = json.loads((RESULTS / "gpu-check.json").read_text())
    return found


def rows_of(cases: list[Record]) -> dict[str, list[Record]]:
    """The rows of each benchmark that gave any."""
    return {case["case"]: case["rows"] for case in cases if case.get("rows")}


def cases() -> dict[str, list[Record]]:
    """The benchmarks of `make gpu-check`."""
    return rows_of(checked()["benchmarks"]["cases"])


def steps() -> str:
    """What was run, and how it ended."""
    rows = []
    for step in checked()["steps"]:
        counts = ", ".join(f"{number} {word}" for word, number in step.get("counts", {}).items())
        found = counts or "; ".join(step.get("summaries", ()))
        rows.append([step["name"], step["status"], f"{step['seconds']:.0f}", found])
    return markdown.table(["step", "status", "seconds", ""], rows)


def spread(values: Iterable[float]) -> str:
    """The median, and the least and largest."""
    found = sorted(values)
    if len(found) == 1:
        return f"{found[0]:.2f}"
    return f"{statistics.median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"


def training() -> str:
    """Linear layers of 4096 against cuBLAS: median and range over the masks of each kind."""
    products = ("forward and backward", "forward", "dX", "dW")
    rows = []
    for name, found in cases().items():
        if not found[0].get("layer") and name != "unstructured":
            continue
        whole = [row for row in found if row["what"] == products[0]]
        about = "random" if name == "unstructured" else name
        density = f", density {whole[0]['density']:.2g}"
        cells = [about if "density" in about else about + density, str(len(whole))]
        cells.append(spread(row["visited"] for row in whole))
        cells.append(spread(row["times_as_fast"]["triton"] for row in whole))
        for product in products:
            of = [row["times_as_fast"]["triton, feature-major"] for row in found if row["what"] == product]
            cells.append(spread(of) if of else "")
        rows.append(cells)
    columns = ["masks", "number", "visited", "step, batch-major", "step", "forward", "dX", "dW"]
    return markdown.table(columns, rows)


def others() -> str:
    """Convolution, rows of several tasks, a whole step of training."""
    rows = [
        cells
        for name in ("convolution", "grouped", "serving thirty tasks", "unstructured")
        for row in cases()[name]
        for cells in against_the_fastest(name, row)
    ]
    columns = ["case", "what", "kernels", "baseline", "baseline, us", "ours, us", "times as fast"]
    return markdown.table(columns, rows)


def against_the_fastest(case: str, row: Record) -> Iterator[list[str]]:
    """One line of a table per candidate of ours, against the fastest baseline of the row."""
    seconds = row["seconds"]
    about = row.get("mask") or row.get("masks") or f"density {row['density']:.2g}"
    baseline = min((name for name in BASELINES if name in seconds), key=seconds.__getitem__)
    ours = {name: taken for name, taken in seconds.items() if name not in BASELINES}
    # The other layout of x is in the table of large batches.
    ours.pop("triton, feature-major", None)
    # Where the choice is listed by itself, it was timed twice.
    if "chosen" in ours and row["chosen"] in ours:
        del ours["chosen"]
    for name, taken in ours.items():
        kernels = f"{row['chosen']}, chosen" if name == "chosen" else name
        times = f"{seconds[baseline] / taken:.2f}"
        yield [case, f"{row['what']}, {about}", kernels, baseline, *microseconds(seconds[baseline], taken), times]


def bars() -> str:
    """What each case was to reach, and whether it did."""
    every = [(case["case"], bar) for case in checked()["benchmarks"]["cases"] for bar in case.get("bars", ())]
    met = sum(bar["met"] for _, bar in every)
    rows = [
        [case, bar["what"], f"{bar['times_as_fast']:.2f}", f"{bar['bar']:g}", "yes" if bar["met"] else "no"]
        for case, bar in every
    ]
    columns = ["case", "what", "times as fast", "bar", "met"]
    return f"Met: {met} of {len(every)}.\n\n{markdown.table(columns, rows)}"


def microseconds(*seconds: float) -> Iterator[str]:
    """In microseconds, at least two digits."""
    return (f"{1e6 * each:.{1 if each < 1e-4 else 0}f}" for each in seconds)


def variants(found: list[Record], label: Callable[[Record], str]) -> str:
    """One row per variant, one column per mask, in microseconds."""
    masks = {row["mask"]: f"{row['mask']}: {row['visited']:.2f} visited" for row in found}
    table: dict[str, dict[str, str]] = {}
    for row in found:
        table.setdefault(row.get("what") or label(row), {})[row["mask"]] = f"{1e6 * row['seconds']:.0f}"
    return markdown.table(
        ["us", *masks.values()], [[name, *(of.get(mask, "") for mask in masks)] for name, of in table.items()]
    )


def products() -> str:
    """The forward product, by tiles."""
    columns = "{block} columns, depth {depth}, {num_warps} warps, {num_stages} stages"
    return variants(cases()["tiles of the product"], lambda row: columns.format(**row))


def sampled() -> str:
    """dW, by stages and parts of the batch."""

    def label(row: Record) -> str:
        if "parts" in row:
            return f"{row['parts']} part{'s' if row['parts'] > 1 else ''} of the batch"
        registers = f", {row['maxnreg']} registers" if "maxnreg" in row else ""
        depth, warps = row.get("DEPTH", 64), row.get("num_warps", 8)
        return f"depth {depth}, {warps} warps, {row['num_stages']} stages{registers}"

    return variants(cases()["tiles of the sampled product"], label)


def small_batches() -> str:
    """Times as fast as cuBLAS on the dense weight, by batch."""
    found = cases()["small batches, where which backend wins"]
    batches = sorted({row["batch"] for row in found})
    rows = []

    def weight(row: Record) -> tuple[str, str]:
        # The mask is drawn anew for each batch: its density differs in the last digits.
        return f"{row['rows']} x {row['cols']}", f"{row['density']:.2g}"

    for labels, group in groupby(found, weight):
        of = {row["batch"]: row for row in group}
        times = [f"{of[batch]['times_as_fast']['cuda']:.2f}" if batch in of else "" for batch in batches]
        rows.append([*labels, *microseconds(of[1]["seconds"]["cuda"]), *times])
    return markdown.table(["weight", "density", "batch 1, us", *(f"batch {batch}" for batch in batches)], rows)


def calls() -> str:
    """What a call takes on the host, in microseconds, where the device has little to do."""
    found = cases()["calls on the host"]
    backends = list(found[0]["seconds"])
    rows = [
        [f"{row['batch']} x {row['size']} x {row['size']}, {row['what']}", *microseconds(*row["seconds"].values())]
        for row in found
    ]
    return markdown.table(["us", *backends], rows)
