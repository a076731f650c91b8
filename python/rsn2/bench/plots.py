"""The pictures of a run: speed against density, roofline, who wins where, memory of many tasks, and how costs grow."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rsn2 import extras, figures
from rsn2.bench.analysis import Growth, Row, growths, rows, winners, without
from rsn2.bench.baselines import OURS
from rsn2.bench.cases import PRODUCTS, Case
from rsn2.bench.results import Results

# Of Okabe and Ito, told apart without colour vision too; the same call has the same colour in every picture.
_COLOURS = {
    "dense": "#d55e00",
    "separate": "#d55e00",
    "torch.topk": "#d55e00",
    "rsn2": "#0072b2",
    "rsn2 cpu": "#0072b2",
    "rsn2 cuda": "#0072b2",
    "rsn2 triton": "#56b4e9",
    "rsn2 dense": "#a6cee3",
    "masked": "#e69f00",
    "torch CSR": "#009e73",
    "torch BSR": "#66c2a5",
    "torch 2:4": "#1b7837",
    "compiled": "#cc79a7",
    "beyondml masked": "#999999",
    "beyondml sparse": "#555555",
    "stk": "#f0e442",
}
_OTHER = "#000000"
_WORDS = {"seconds": "time", "total": "bytes while one task trains", "disk": "bytes on disk"}


def write(results: Results, folder: Path) -> list[Path]:
    """Write a PNG for everything that the run has figures for.

    Returns:
        The files.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    found = [row for row in rows(results.records, results.peak) if row.case.op in PRODUCTS and not row.case.compiled]
    usual = [row for row in found if (row.case.dtype, row.case.mask) == ("float32", "random")]
    others = [row for row in found if row not in usual]
    doubt = _doubt(results)
    memory = [record for record in results.records if "memory" in record and record["case"]["axis"] != "weights"]
    curves = [each for each in growths(results.records) if each.what in ("seconds", "total", "disk")]
    pictures: list[tuple[str, Sequence[Any], Callable[[Any], Any]]] = [
        ("speed.png", [row for row in usual if row.ours], lambda of: speed(of, doubt)),
        ("speed-types-and-masks.png", [row for row in others if row.ours], lambda of: speed(of, doubt)),
        ("roofline.png", [row for row in usual if row.case.op != "grouped_linear"], lambda of: roofline(of, results)),
        ("winners.png", usual, lambda of: winning(of, doubt)),
        ("winners-types-and-masks.png", others, lambda of: winning(of, doubt)),
        ("memory.png", memory, tasks),
        ("growth.png", curves, lambda of: growth(of, doubt)),
    ]
    written = []
    for name, of, draw in pictures:
        if of:
            draw(of).savefig(folder / name)
            written.append(folder / name)
    return written


def speed(found: Sequence[Row], doubt: str = "") -> Any:
    """Times as fast as the baseline against density, a line per batch; a panel per product, forward and training.

    Args:
        found: rows of this package, at least one.
        doubt: what the title says of noise.
    """
    families = _families(found)
    batches = sorted({row.case.batch for row in found})
    colours = figures.shades(batches)
    figure, panels = figures.panels(len(families), 3.9, 3.2)
    lines: dict[str, Any] = {}
    for axes, (family, of) in zip(panels, families.items(), strict=True):
        for number, batch in enumerate(batches):
            points = sorted((row for row in of if row.case.batch == batch), key=lambda row: row.case.density)
            if points:
                speeds = [row.speed for row in points]
                low = [each.value - each.low for each in speeds]
                high = [each.high - each.value for each in speeds]
                lines[f"batch {batch}"] = axes.errorbar(
                    [row.case.density for row in points],
                    [each.value for each in speeds],
                    yerr=[low, high],
                    color=colours[batch],
                    marker=figures.marker(number),
                    markersize=5,
                    capsize=2,
                    linewidth=1.5,
                )
        axes.axhline(1, color="grey", linewidth=1, linestyle="--")
        axes.set(title=_title(family), xlabel="density", xscale="log", yscale="log")
        figures.plain_ticks(axes.xaxis, sorted({row.case.density for row in of}))
        figures.ticks_between(axes)
    figures.labels_left(panels, "times as fast as dense")
    names = sorted(lines, key=lambda name: int(name.split()[1]))
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=min(6, len(lines)))
    figure.suptitle(f"rsn2 over dense, with intervals of 95 %{doubt}", fontsize=11)
    return figure


def roofline(found: Sequence[Row], results: Results) -> Any:
    """Multiply-adds per second against multiply-adds per byte, below what the machine was measured to reach."""
    peak = results.peak
    figure = figures.figure(9, 6)
    axes = figure.add_subplot()
    shown = [row for row in found if row.name in ("dense", OURS, "masked", "torch CSR")]
    for name in ("masked", "torch CSR", "dense", OURS):
        for training, marker in ((False, "o"), (True, "^")):
            of = [row for row in shown if row.name == name and row.case.training == training]
            axes.scatter(
                [row.macs / row.bytes for row in of],
                [2e-9 * row.macs / row.seconds for row in of],
                color=_COLOURS[name],
                marker=marker,
                s=26,
                alpha=0.8,
                linewidths=0,
                label=f"{name}, {'training' if training else 'forward'}" if of else None,
            )
    left, right = min(row.macs / row.bytes for row in shown), max(row.macs / row.bytes for row in shown)
    ridge = peak["float32"] / peak["bytes"]
    xs = [left / 2, ridge, max(2 * right, 2 * ridge)]
    axes.plot(xs, [2e-9 * min(x * peak["bytes"], peak["float32"]) for x in xs], color="black", linewidth=1.5)
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte that must be moved", ylabel="GFLOP/s")
    axes.set_title(
        f"float32: {2e-9 * peak['float32']:.3g} GFLOP/s of a large product, {1e-9 * peak['bytes']:.3g} GB/s of a copy\n"
        "above the slope: operands came from a cache" + _doubt(results)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def winning(found: Sequence[Row], doubt: str = "") -> Any:
    """The fastest call at every density and batch, and how many times as fast as the baseline it is."""
    of_backends = [row for row in found if not row.ours]
    best = list(winners(of_backends).values())
    certain = _certain(of_backends, best)
    families = _families(best)
    figure, panels = figures.panels(len(families), 3.9, 2.9)
    patches: Any = extras.load("matplotlib.patches")
    for axes, (family, of) in zip(panels, families.items(), strict=True):
        densities, batches = (sorted({getattr(row.case, axis) for row in of}) for axis in ("density", "batch"))
        for row in of:
            x, y = densities.index(row.case.density), batches.index(row.case.batch)
            colour = _COLOURS.get(row.name, _OTHER)
            axes.add_patch(patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
            text = f"{row.speed.value:.3g}" if row.speed.value < 100 else f"{row.speed.value:.0f}"
            text += "" if row in certain else " ?"
            axes.text(x, y, text, ha="center", va="center", color=figures.ink(colour), fontsize=10)
        axes.set(title=_title(family), xlabel="density")
        axes.set(xlim=(-0.5, len(densities) - 0.5), ylim=(-0.5, len(batches) - 0.5))
        axes.set_xticks(range(len(densities)), [f"{each:g}" for each in densities])
        axes.set_yticks(range(len(batches)), [str(each) for each in batches])
    figures.labels_left(panels, "batch")
    names = sorted({row.name for row in best})
    handles = [patches.Patch(color=_COLOURS.get(name, _OTHER), label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(names)))
    words = "the fastest call, and how many times as fast as dense it is; ?: the interval reaches 1"
    figure.suptitle(words + doubt, fontsize=11)
    return figure


def tasks(records: Sequence[dict[str, Any]]) -> Any:
    """Bytes against the number of tasks: all of a training step, and on disk."""
    families: dict[Case, list[dict[str, Any]]] = {}
    for record in records:
        families.setdefault(without(Case.from_dict(record["case"]), "tasks"), []).append(record)
    kinds = {"total": "while one task trains", "disk": "file of the finished network"}
    figure, panels = figures.panels(len(families) * len(kinds), 4.4, 3.6, per_row=len(kinds))
    lines: dict[str, Any] = {}
    for row, (family, of) in enumerate(families.items()):
        points = sorted(of, key=lambda record: record["case"]["tasks"])
        numbers = [record["case"]["tasks"] for record in points]
        for axes, (kind, words) in zip(panels[row * len(kinds) :], kinds.items(), strict=False):
            for number, name in enumerate(points[0]["memory"]):
                (lines[name],) = axes.plot(
                    numbers,
                    [1e-6 * record["memory"][name][kind] for record in points],
                    color=_COLOURS.get(name, _OTHER),
                    marker=figures.marker(number),
                )
            title = f"{words}\n{family.size}, {family.density:g} per task"
            axes.set(title=title, xlabel="tasks", ylabel="MB", xscale="log", yscale="log")
            figures.plain_ticks(axes.xaxis, numbers)
            figures.ticks_between(axes)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    return figure


def growth(found: Sequence[Growth], doubt: str = "") -> Any:
    """Curves over tasks and weights with their fitted power laws."""
    families: dict[tuple[str, str, str], list[Growth]] = {}
    for each in found:
        families.setdefault((each.axis, each.op, each.what), []).append(each)
    figure, panels = figures.panels(len(families), 4.6, 3.4, per_row=3)
    for axes, ((axis, op, what), of) in zip(panels, families.items(), strict=True):
        scale, unit = (1e3, "ms") if what == "seconds" else (1e-6, "MB")
        for number, each in enumerate(of):
            colour = _COLOURS.get(each.name, _OTHER)
            label = f"{each.name}: {round(each.exponent, 2) + 0.0:.2f}"
            marker = figures.marker(number)
            axes.plot(each.xs, [scale * y for y in each.ys], marker, color=colour, markersize=5, label=label)
            axes.plot(each.xs, [scale * each.factor * x**each.exponent for x in each.xs], color=colour, linewidth=1)
        axes.set(xlabel=axis, ylabel=unit, xscale="log", yscale="log")
        if axis == "tasks":
            figures.plain_ticks(axes.xaxis, of[0].xs)
        figures.ticks_between(axes)
        title = f"{op}: {_WORDS.get(what, what)}"
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=3,
            fontsize=8.5,
            title=title,
            title_fontsize=12,
            frameon=False,
            columnspacing=1,
            handletextpad=0.1,
        )
    figure.suptitle(f"behind each name the exponent of its fitted power law{doubt}", fontsize=11)
    return figure


def _certain(found: Iterable[Row], best: Sequence[Row]) -> list[Row]:
    """The winners whose interval, or those of all that they beat if they are the baseline, does not reach 1."""
    others: dict[Case, list[Row]] = {}
    for row in found:
        others.setdefault(row.case, []).append(row)
    return [
        row for row in best if row.speed.low > 1 or all(each is row or each.speed.high < 1 for each in others[row.case])
    ]


def _doubt(results: Results) -> str:
    return "" if results.verdict.quiet else "\nTOO NOISY TO JUDGE: see tables.md"


def _families(found: Iterable[Row]) -> dict[Case, list[Row]]:
    """Rows of one panel each: the same but for density and batch."""
    families: dict[Case, list[Row]] = {}
    for row in found:
        families.setdefault(without(row.case, "density", "batch"), []).append(row)
    return families


def _title(family: Case) -> str:
    words = [f"{family.op.replace('_', ' ')} {family.size}"]
    words += [family.dtype] * (family.dtype != "float32") + [f"mask: {family.mask}"] * (family.mask != "random")
    words += [f"{family.tasks} tasks"] * (family.tasks > 1)
    return ", ".join(words) + ("\ntraining" if family.training else "\nforward")
