"""How much of a weight the tensor cores would visit for the masks that RSN2 makes on real data: docs/plan.md.

    python benchmarks/occupancy.py --data-dir DIR --wide --orders --out results/occupancy.json

DIR holds `mnist` and `fashion_mnist`, each with the IDX files of its name. Five tasks claim their weights in turn, in a
network of six linear layers of 1000 and in the paper's convolutional network; --wide adds six layers of 4096. Nothing
is trained and no product is timed: occupancy is counted, and the times over those of the dense library are
predictions of `rsn2_kernels/gpu_cost.py`.
"""

import argparse
import json
import platform
import runpy
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from occupancy_masks import BATCH, ELEMENTS, NETWORKS, PREDICTED_IMAGES, PREDICTED_ROWS, TASKS, Case, Product, allocated
from row_orders import (
    ORDERED_HEIGHTS,
    ORDERED_LAYERS,
    ORDERED_TASKS,
    ORDERS,
    by_count,
    compared,
    in_tiles,
)
from rsn2_kernels import SparsePattern, plans
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.gpu_cost import Visits, dense_seconds, visiting_seconds
from rsn2_kernels.plan import HEIGHTS, Plan, Survey

ROOT = Path(__file__).parents[1]
DENSITIES = (0.05, 0.1, 0.2)
# Blocks claimed as wholes, in the network of linear layers and at the densities of GRANULAR_DENSITIES.
GRANULARITIES = ((16, 16), (64, 64))
GRANULAR_DENSITIES = (0.1, 0.2)
DTYPE = torch.bfloat16
# Masks with a larger share of weights, or blocks, that no sample gives a gradient are left out of the summaries.
TIED = 0.01
TILES = (64, 128)


def surveys(found: Product) -> tuple[Survey, Survey]:
    """Of the weight, for the forward product and dW, and of the transposed weight, for dX."""
    pattern = SparsePattern.from_mask(found.mask)
    # Only the number of positions matters to a plan.
    geometry = None if found.taps == 1 else ConvGeometry((1, found.taps), (1, 1), (0, 0), (1, 1), 1)
    return plans.survey(pattern, geometry, False), plans.survey(pattern, geometry, True)


def predictions(visits: Visits, transposed: Visits, found: Product) -> tuple[float, float, float, float]:
    """Predicted seconds over those of the dense library: forward, forward with a feature-major operand, dX and dW.

    dW visits what the forward product visits, and lays out both operands. For a convolution feature-major means
    channels-last.
    """
    seconds = partial(visiting_seconds, batch=found.batch, dtype=DTYPE)
    dense, dense_dx = (dense_seconds(each, found.batch, DTYPE) for each in (visits, transposed))
    dy = visits._replace(cols=visits.rows, taps=1)
    laying_out_dy = seconds(dy) - seconds(dy, feature_major=True)
    return (
        seconds(visits) / dense,
        seconds(visits, feature_major=True) / dense,
        seconds(transposed) / dense_dx,
        (seconds(visits) + laying_out_dy) / dense,
    )


def described(found: Product) -> dict[str, Any]:
    """The figures of one mask. Shares are of all positions of the weight; padding can take them above 1."""
    mask = found.mask
    rows, cols = mask.shape
    nnz = int(mask.sum())
    ordered = mask[by_count(mask)][:, by_count(mask.t())]
    forward, transposed = surveys(found)
    visits = Visits.of(forward, cols, found.taps)
    turned = Visits.of(transposed, rows * found.taps, found.taps)
    figures: dict[str, Any] = {
        "rows": rows,
        "cols": cols,
        "taps": found.taps,
        "owned": nnz / mask.numel(),
        "empty_rows": float((~mask.any(1)).float().mean()),
        "empty_cols": float((~mask.any(0)).float().mean()),
        "natural_tiles_64": in_tiles(mask, 64) / mask.numel(),
    }
    tiles = {side: in_tiles(ordered, side) for side in TILES}
    figures |= {f"tiles_{side}": tiles[side] / mask.numel() for side in TILES}
    for name, survey in (("windows", forward), ("transposed", transposed)):
        figures |= {f"{name}_{height}": survey.visited[height] / mask.numel() for height in HEIGHTS}
        figures |= {f"{name}_run": survey.run, f"{name}_height": survey.height}
        figures[f"{name}_visited"] = survey.visited[survey.height] / mask.numel()
        figures[f"{name}_bits"] = 8 * Plan.build(survey).nbytes / max(1, nnz)
    predicted = {"windows": predictions(visits, turned, found)}
    if found.taps == 1:
        for side in TILES:
            of_tiles = [each._replace(visited=tiles[side], height=side) for each in (visits, turned)]
            predicted[f"tiles_{side}"] = predictions(of_tiles[0], of_tiles[1], found)
    for name in ("windows", *(f"tiles_{side}" for side in TILES)):
        for what, value in zip(PRODUCTS, predicted.get(name, [None] * len(PRODUCTS)), strict=True):
            figures[f"{name}_predicted_{what}"] = value
    return figures


PRODUCTS = ("forward", "forward_feature_major", "dx", "dw")


# ---- tables


def summary_rows(content: dict[str, Any]) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """For each kind of layer, granularity and density: how its row begins, and its masks that were chosen by gradient.

    A mask of which more than TIED has no gradient says nothing about the masks that gradients choose.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in records(content["layers"]):
        kind = "" if each["network"] != "conv" else ", linear layers" if each["taps"] == 1 else ", 3 x 3 layers"
        groups.setdefault((each["network"] + kind, each["claimed"], str(each["density"])), []).append(each)
    for key, found in groups.items():
        chosen = [each for each in found if each["without_gradient"] <= TIED]
        yield [*key, f"{len(chosen)} of {len(found)}"], chosen


def median_and_range(found: Sequence[dict[str, Any]], column: str) -> str:
    """Median, least and largest of a column, or nothing where there are no values."""
    values = [each[column] for each in found if each[column] is not None]
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


KEY = ("layers of", "claimed in", "density", "masks")
OCCUPANCIES = {
    "64 x 64 tiles": "natural_tiles_64",
    "sorted 64 x 64": "tiles_64",
    "sorted 128 x 128": "tiles_128",
    **{f"windows of {height}": f"windows_{height}" for height in HEIGHTS},
    "transposed": "transposed_visited",
}
PREDICTIONS = {
    "forward": "windows_predicted_forward",
    "forward, feature-major": "windows_predicted_forward_feature_major",
    "dX": "windows_predicted_dx",
    "dW": "windows_predicted_dw",
    **{f"forward, sorted {side} x {side}": f"tiles_{side}_predicted_forward" for side in TILES},
}
STRUCTURE = {
    "rows empty": "empty_rows",
    "columns empty": "empty_cols",
    "plan: bits per weight": "windows_bits",
    "transposed plan: bits per weight": "transposed_bits",
}


def summary(content: dict[str, Any], columns: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """A table of medians and ranges over layers and tasks."""
    rows = [
        key + [median_and_range(found, column) for column in columns.values()] for key, found in summary_rows(content)
    ]
    return [*KEY, *columns], rows


def order_summary(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Each order against the order by count: median over layers, tasks and densities, and its extremes."""

    def mask_of(each: dict[str, Any]) -> tuple[object, ...]:
        return tuple(each[name] for name in ("network", "claimed", "density", "layer", "task"))

    tied = {mask_of(each) for each in records(content["layers"]) if each["without_gradient"] > TIED}
    found = [each for each in records(content["orders"]) if mask_of(each) not in tied]
    rows = []
    for name in ORDERS:
        row = [name]
        for height in ORDERED_HEIGHTS:
            column = f"windows_{height}"
            shares, counts = ([each[column] for each in found if each["order"] == which] for which in (name, "count"))
            ratios = [share / count for share, count in zip(shares, counts, strict=True)]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(row)
    return ["order of the rows", *(f"windows of {height}" for height in ORDERED_HEIGHTS)], rows


def records(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table of the results file, each with the names of its columns."""
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


# ---- the command


def build_seconds(found: Product) -> dict[str, Any]:
    """Median time of making both plans of a mask, on this CPU."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        for survey in surveys(found):
            Plan.build(survey)
        taken.append(time.perf_counter() - start)
    rows, cols = found.mask.shape
    return {
        "rows": rows,
        "cols": cols,
        "owned": rounded(float(found.mask.float().mean())),
        "both_plans_seconds": rounded(statistics.median(taken)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def rounded(value: object) -> object:
    """Four digits are more than the figures are good for."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records of one kind, their names said once."""
    return {"columns": list(found[0]), "rows": [[rounded(value) for value in each.values()] for each in found]}


def written(content: dict[str, Any]) -> str:
    """JSON with one line for each row of a table."""
    parts = []
    for name, value in content.items():
        if isinstance(value, dict) and "rows" in value and isinstance(value["rows"], list):
            lines = ",\n".join("  " + json.dumps(row) for row in value["rows"])
            text = f'{{\n "columns": {json.dumps(value["columns"])},\n "rows": [\n{lines}\n ]}}'
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def show(console: Console, title: str, table: tuple[list[str], list[list[str]]]) -> None:
    """A table on the screen."""
    header, rows = table
    shown = Table(title=title)
    for number, name in enumerate(header):
        shown.add_column(name, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def main() -> None:
    """Allocate, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--wide", action="store_true", help="six layers of 4096 too")
    parser.add_argument("--orders", action="store_true", help="compare orders of the rows too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load_part = runpy.run_path(str(ROOT / "examples/mnist.py"))["load_part"]
    data = {name: load_part(arguments.data_dir / name, "train") for name in ("mnist", "fashion_mnist")}
    networks = [name for name in NETWORKS if arguments.wide or name != "fc 4096"]
    cases = [Case(*each) for each in product(networks, [ELEMENTS], DENSITIES)]
    cases += [Case(*each) for each in product(["fc 1000"], GRANULARITIES, GRANULAR_DENSITIES)]

    layers: list[dict[str, Any]] = []
    orders: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    console = Console()
    console.width = max(console.width, 150)
    with Progress(console=console) as progress:
        bar = progress.add_task("allocating and counting", total=6 * TASKS * len(cases))
        for case in cases:
            claimed = " x ".join(map(str, case.granularity))
            progress.update(bar, description=f"{case.network}, density {case.density}, claimed in {claimed}")
            key = {"network": case.network, "claimed": claimed, "density": case.density}
            for layer, task, found, tied in allocated(case, data):
                head = key | {"layer": layer, "task": task}
                layers.append(head | {"without_gradient": tied} | described(found))
                of_orders = case[:2] == ("fc 1000", ELEMENTS) and layer in ORDERED_LAYERS and task in ORDERED_TASKS
                if arguments.orders and of_orders:
                    orders += [head | each for each in compared(found.mask)]
                if (case.network, case.density, layer, task) == ("fc 4096", 0.1, "2", 1):
                    content["build"] = build_seconds(found)
                progress.advance(bar)
    content |= {"layers": table_of(layers)} | ({"orders": table_of(orders)} if orders else {})
    show(console, "occupancy: median and range over layers and tasks", summary(content, OCCUPANCIES))
    show(console, "predicted seconds over dense, no GPU has run it", summary(content, PREDICTIONS))
    show(console, "structure and memory", summary(content, STRUCTURE))
    if orders:
        show(console, "visited over what the order by count visits", order_summary(content))
    if arguments.out:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        settings = {
            "data": "training images of MNIST and Fashion-MNIST",
            "batch": BATCH,
            "seeds": {"network": 0, "pixel orders": [1, 2, 3]},
            "criterion": "gradient",
            "predicted_for": {
                "dtype": str(DTYPE),
                "linear networks, rows": PREDICTED_ROWS,
                "conv, images": PREDICTED_IMAGES,
            },
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(written({"versions": versions, "settings": settings, **content}))
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
