"""The pictures of a run: speed against density, roofline, who wins where, memory of many tasks, and how costs grow."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rsn2 import extras, figures
from rsn2.bench.analysis import Growth, Row, growths, rows, without
from rsn2.bench.baselines import DENSE, OURS, SEPARATE
from rsn2.bench.cases import PRODUCTS, Case
from rsn2.bench.results import Results

# Of Okabe and Ito, told apart without colour vision too; the same call has the same colour and mark in every picture.
_COLOURS = {
    "rsn2": "#0072b2",
    "dense": "#d55e00",
    "separate": "#d55e00",
    "torch.topk": "#d55e00",
    "masked": "#e69f00",
    "compiled": "#cc79a7",
    "torch CSR": "#009e73",
    "torch BSR": "#66c2a5",
    "torch 2:4": "#1b7837",
    "torch.mv": "#882255",
    "beyondml masked": "#999999",
    "beyondml sparse": "#555555",
    "stk": "#f0e442",
}
_OTHER = "#000000"
_BASELINE = "the baseline (dense; of grouped linear: separate)"
_SINGLE = "speed-one-density.png"
_WORDS = {"seconds": "time", "total": "bytes while one task trains", "disk": "bytes on disk"}
# Of the roofline.
_SHAPES = {"linear": "o", "conv2d": "s"}
# Points of a mark there across: of the smallest batch, and how much more of each larger one.
_SMALLEST, _STEP = 3.5, 1.3


def write(results: Results, folder: Path) -> list[Path]:
    """Write a PNG for everything that the run has figures for; pictures of an earlier run are removed.

    Returns:
        The files.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    found = [row for row in rows(results.records, results.peak) if row.ours or not row.name.startswith(f"{OURS} ")]
    cases = [Case.from_dict(record["case"]) for record in results.records]
    families = _families(case for case in cases if case.op in PRODUCTS or case.compiled).values()
    curves = [case for of in families if len({case.density for case in of}) > 1 for case in of]
    single = [case for of in families if len({case.density for case in of}) == 1 for case in of]
    usual, others = ([case for case in curves if _is_usual(case) == wanted] for wanted in (True, False))
    plain = [row for row in found if row.case.op in _SHAPES and _is_usual(row.case)]
    memory = [record for record in results.records if "memory" in record and record["case"]["axis"] != "weights"]
    grown = [each for each in growths(results.records) if each.what in _WORDS]
    doubt = "" if results.verdict.quiet else "\nTOO NOISY TO JUDGE: see tables.md"
    note = f"\nnot here: compiled, and cases at one density; see {_SINGLE}" * bool(single) + doubt

    def ours(of: Iterable[Case]) -> list[Row]:
        chosen = {*of}
        return [row for row in found if row.ours and row.case in chosen]

    pictures: list[tuple[str, Sequence[Any], Callable[[Any], Any]]] = [
        ("speed.png", ours(usual), lambda of: speed(of, note)),
        ("speed-types-and-masks.png", ours(others), lambda of: speed(of, note)),
        (_SINGLE, single, lambda of: dots(of, found, doubt)),
        ("roofline.png", plain, lambda of: roofline(of, results, doubt)),
        ("winners.png", usual, lambda of: winning(of, found, note)),
        ("winners-types-and-masks.png", others, lambda of: winning(of, found, note)),
        ("memory.png", memory, tasks),
        ("growth.png", grown, lambda of: growth(of, [case for case in cases if case.axis], doubt)),
    ]
    for name, *_ in pictures:
        (folder / name).unlink(missing_ok=True)
    written = []
    for name, of, draw in pictures:
        if of:
            draw(of).savefig(folder / name)
            written.append(folder / name)
    return written


def speed(found: Sequence[Row], note: str = "") -> Any:
    """Times as fast as the baseline against density, a line per batch; a panel per product, forward and training.

    Args:
        found: rows of this package, at least one.
        note: more for the caption.
    """
    rows_of = {row.case: row for row in found}
    families = _families(rows_of)
    batches = sorted({case.batch for case in rows_of})
    colours = figures.shades(batches)
    figure, panels = figures.panels(len(families), 3.9, 3.2)
    lines: dict[int, Any] = {}
    alike: dict[tuple[Any, ...], list[Any]] = {}
    for axes, (family, of) in zip(panels, families.items(), strict=True):
        for number, batch in enumerate(batches):
            points = [rows_of[case] for case in sorted(of, key=lambda case: case.density) if case.batch == batch]
            if points:
                lines[batch] = axes.errorbar(
                    [row.case.density for row in points],
                    [row.speed.value for row in points],
                    yerr=_reach(points),
                    color=colours[batch],
                    marker=figures.marker(number),
                    markersize=5,
                    capsize=2,
                    linewidth=1.5,
                )
        axes.axhline(1, color="grey", linewidth=1, linestyle="--")
        axes.set(title=_title(family), xlabel="density", xscale="log", yscale="log")
        figures.plain_ticks(axes.xaxis, sorted({case.density for case in of}))
        alike.setdefault((family.op, family.shape, family.dtype), []).append(axes)
    for some in alike.values():
        figures.same_limits(some)
    for axes in panels:
        figures.ticks_between(axes)
    figures.labels_left(panels, "times as fast as the baseline")
    names = [f"batch {batch}" for batch in sorted(lines)]
    figure.legend([lines[batch] for batch in sorted(lines)], names, loc="outside lower center", ncols=8)
    figures.caption(figure, f"rsn2 over {_BASELINE}, with intervals{note}")
    return figure


def dots(cases: Sequence[Case], found: Iterable[Row], doubt: str = "") -> Any:
    """Times as fast as the baseline of every call, a line per case.

    Args:
        cases: at least one; those without a row were skipped.
        found: rows of these cases, and maybe of others.
        doubt: what the caption says of noise.
    """
    of_cases = [row for row in found if row.case in cases]
    calls: dict[str, list[Row]] = {}
    for row in of_cases:
        if row.name not in (DENSE, SEPARATE):
            calls.setdefault(row.name, []).append(row)
    figure = figures.figure(12, 0.26 * len(cases) + 1.8)
    axes = figure.add_subplot()
    axes.axvline(1, color="grey", linewidth=1, linestyle="--")
    for name in sorted(calls, key=_place):
        values, places = [row.speed.value for row in calls[name]], [cases.index(row.case) for row in calls[name]]
        axes.errorbar(
            values, places, xerr=_reach(calls[name]), capsize=2, label=name, **_look(name) | {"linestyle": ""}
        )
    timed = {row.case for row in of_cases}
    for place, case in enumerate(cases):
        if case not in timed:
            axes.text(1, place, " skipped", va="center", fontsize=9)
    axes.set_yticks(range(len(cases)), [case.key for case in cases], fontsize=9)
    axes.set(ylim=(len(cases) - 0.5, -0.5), xscale="log", xlabel="times as fast as the baseline")
    figures.ticks_between(axes, "x")
    if calls:
        figure.legend(loc="outside lower center", ncols=8)
    figures.caption(figure, f"every call over {_BASELINE}, with intervals; cases are named as in tables.md{doubt}")
    return figure


def roofline(found: Sequence[Row], results: Results, doubt: str = "") -> Any:
    """Multiply-adds per second against multiply-adds per byte, below what the machine was measured to reach."""
    peak = results.peak
    lines: Any = extras.load("matplotlib.lines")
    names = [name for name in ("masked", "torch CSR", DENSE, OURS) if any(row.name == name for row in found)]
    shown = sorted(
        (row for row in found if row.name in names), key=lambda row: (-row.case.batch, names.index(row.name))
    )
    batches = sorted({row.case.batch for row in shown})
    sizes = {batch: _SMALLEST + _STEP * number for number, batch in enumerate(batches)}
    passes = sorted({row.case.training for row in shown})
    figure, panels = figures.panels(len(passes), 7, 5.6)
    intensities = [row.macs / row.bytes for row in shown]
    ridge = peak["float32"] / peak["bytes"]
    xs = [min(intensities) / 2, ridge, 2 * max(*intensities, ridge)]
    for axes, training in zip(panels, passes, strict=True):
        for row in shown:
            if row.case.training == training:
                axes.plot(
                    row.macs / row.bytes,
                    2e-9 * row.macs / row.seconds,
                    _SHAPES[row.case.op],
                    color=_COLOURS[row.name],
                    markersize=sizes[row.case.batch],
                    fillstyle="none",
                    markeredgewidth=0.9,
                )
        axes.plot(xs, [2e-9 * min(x * peak["bytes"], peak["float32"]) for x in xs], color="black", linewidth=1.5)
        axes.set(xscale="log", yscale="log", title="training" if training else "forward")
        axes.set(xlabel="multiply-adds per byte that must be moved")
        axes.grid(alpha=0.3)
    figures.same_limits(panels)
    figures.labels_left(panels, "GFLOP/s")
    keys = [
        *(("o", _COLOURS[name], 6.0, name) for name in names),
        *(("o", "black", sizes[batch], f"batch {batch}") for batch in batches),
        *((shape, "black", 6.0, op) for op, shape in _SHAPES.items() if any(row.case.op == op for row in shown)),
    ]
    handles = [
        lines.Line2D([], [], linestyle="", marker=mark, color=colour, markersize=size, fillstyle="none", label=label)
        for mark, colour, size, label in keys
    ]
    figure.legend(handles=handles, loc="outside right center", labelspacing=0.9)
    figures.caption(
        figure,
        f"float32: {2e-9 * peak['float32']:.3g} GFLOP/s of a large product, {1e-9 * peak['bytes']:.3g} GB/s of a copy; "
        f"above the slope: operands came from a cache{doubt}",
    )
    return figure


def winning(cases: Sequence[Case], found: Iterable[Row], note: str = "") -> Any:
    """The fastest call at every density and batch, and how many times as fast as the baseline it is.

    Args:
        cases: at least one; those without a row were skipped and are hatched.
        found: rows of these cases, and maybe of others.
        note: more for the caption.
    """
    calls: dict[Case, list[Row]] = {case: [] for case in cases}
    for row in found:
        if row.case in calls:
            calls[row.case].append(row)
    families = _families(cases)
    figure, panels = figures.panels(len(families), 3.9, 2.9)
    patches: Any = extras.load("matplotlib.patches")
    hatched = {"facecolor": "white", "edgecolor": "grey", "hatch": "////"}
    names: set[str] = set()
    for axes, (family, of) in zip(panels, families.items(), strict=True):
        densities, batches = (sorted({getattr(case, axis) for case in of}) for axis in ("density", "batch"))
        for case in of:
            x, y = densities.index(case.density), batches.index(case.batch)
            best = max(calls[case], key=lambda row: row.speed.value, default=None)
            colour = _COLOURS.get(best.name, _OTHER) if best else "white"
            style = {"facecolor": colour, "edgecolor": "white"} if best else hatched
            axes.add_patch(patches.Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
            if best:
                names.add(best.name)
                text = _number(best.speed.value) + ("" if _is_certain(best, calls[case]) else " ?")
                axes.text(x, y, text, ha="center", va="center", color=figures.ink(colour), fontsize=10)
        axes.set(title=_title(family), xlabel="density")
        axes.set(xlim=(-0.5, len(densities) - 0.5), ylim=(-0.5, len(batches) - 0.5))
        axes.set_xticks(range(len(densities)), [f"{each:g}" for each in densities])
        axes.set_yticks(range(len(batches)), [str(each) for each in batches])
    figures.labels_left(panels, "batch")
    handles = [patches.Patch(color=_COLOURS.get(name, _OTHER), label=name) for name in sorted(names, key=_place)]
    if not all(calls.values()):
        handles.append(patches.Patch(**hatched, label="skipped: see tables.md"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    words = f"the fastest call, and its speed over {_BASELINE}; ?: the interval reaches 1"
    figures.caption(figure, words + note)
    return figure


def tasks(records: Sequence[dict[str, Any]]) -> Any:
    """Bytes against the number of tasks: all of a training step, and on disk."""
    families: dict[Case, list[dict[str, Any]]] = {}
    for record in records:
        families.setdefault(without(Case.from_dict(record["case"]), "tasks"), []).append(record)
    kinds = {"total": "while one task trains", "disk": "file of the finished network"}
    figure, panels = figures.panels(len(families) * len(kinds), 4.8, 3.6, per_row=len(kinds))
    lines: dict[str, Any] = {}
    for row, (family, of) in enumerate(families.items()):
        points = sorted(of, key=lambda record: record["case"]["tasks"])
        numbers = [record["case"]["tasks"] for record in points]
        for axes, (kind, words) in zip(panels[row * len(kinds) :], kinds.items(), strict=False):
            for name in points[0]["memory"]:
                sizes = [1e-6 * record["memory"][name][kind] for record in points]
                (lines[name],) = axes.plot(numbers, sizes, **_look(name))
            batch = f", batch {family.batch}" * (kind == "total")
            title = f"{words}\n{family.size}{batch}, density {family.density:g} per task"
            axes.set(title=title, xlabel="tasks", ylabel="MB", xscale="log", yscale="log")
            figures.plain_ticks(axes.xaxis, numbers)
            figures.ticks_between(axes)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    return figure


def growth(found: Sequence[Growth], cases: Sequence[Case], doubt: str = "") -> Any:
    """Curves over tasks and weights with their fitted power laws.

    Args:
        found: the curves, at least one.
        cases: those of all points; what stays fixed along a curve is read from one of them.
        doubt: what the caption says of noise.
    """
    families: dict[tuple[str, str, str], list[Growth]] = {}
    for each in found:
        families.setdefault((each.axis, each.op, each.what), []).append(each)
    figure, panels = figures.panels(len(families), 4.8, 3.6, per_row=3)
    for axes, ((axis, op, what), of) in zip(panels, families.items(), strict=True):
        scale, unit = (1e3, "ms") if what == "seconds" else (1e-6, "MB")
        for each in of:
            look = _look(each.name)
            label = f"{each.name}: {_exponent(each.exponent)}, {_exponent(each.last)}"
            axes.plot(each.xs, [scale * y for y in each.ys], **look | {"linestyle": ""}, label=label)
            law = [scale * each.factor * x**each.exponent for x in each.xs]
            axes.plot(each.xs, law, **look | {"marker": ""}, linewidth=1)
        axes.set(xlabel=axis, ylabel=unit, xscale="log", yscale="log")
        if axis == "tasks":
            figures.plain_ticks(axes.xaxis, of[0].xs)
        figures.ticks_between(axes)
        case = next(case for case in cases if (case.axis, case.op) == (axis, op.split(",")[0]))
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=3,
            fontsize=8,
            title=f"{op} over {axis}: {_WORDS[what]}\n{_fixed(case)}",
            title_fontsize=11,
            alignment="left",
            frameon=False,
            columnspacing=1,
            handletextpad=0.1,
        )
    words = "after each name the exponent of its fitted power law (the line), and that between the last two points"
    figures.caption(figure, words + doubt)
    return figure


def _look(name: str) -> dict[str, Any]:
    """Colour, mark and line of a call. Marks are hollow and `masked` is dashed, so that both of two that meet show."""
    return {
        "color": _COLOURS.get(name, _OTHER),
        "marker": figures.marker(_place(name)),
        "fillstyle": "none",
        "linestyle": "--" if name == "masked" else "-",
        "zorder": 3 if name == "masked" else 2,
    }


def _place(name: str) -> int:
    return [*_COLOURS, name].index(name)


def _reach(found: Sequence[Row]) -> list[list[float]]:
    """How far the intervals reach, down and up."""
    speeds = [row.speed for row in found]
    return [[each.value - each.low for each in speeds], [each.high - each.value for each in speeds]]


def _is_certain(best: Row, calls: Iterable[Row]) -> bool:
    """Whether its interval, or those of all that it beats if it is the baseline, does not reach 1."""
    return best.speed.low > 1 or all(row is best or row.speed.high < 1 for row in calls)


def _is_usual(case: Case) -> bool:
    return (case.dtype, case.mask) == ("float32", "random")


def _families(cases: Iterable[Case]) -> dict[Case, list[Case]]:
    """Cases of one panel each: the same but for density and batch."""
    families: dict[Case, list[Case]] = {}
    for case in cases:
        families.setdefault(without(case, "density", "batch"), []).append(case)
    return families


def _number(value: float) -> str:
    """Two decimals; one from 10 on, and none from 100 on."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _exponent(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _fixed(case: Case) -> str:
    """What stays the same along a curve."""
    if case.axis == "tasks":
        words = [case.size, f"density {case.density:g} per task"]
    else:
        words = [case.size.split(" of ")[0], f"density {case.density:g}"]
    return ", ".join([*words, *([] if case.op in ("save", "load") else [f"batch {case.batch}"])])


def _title(family: Case) -> str:
    words = [f"{family.op.replace('_', ' ')} {family.size}"]
    words += [family.dtype] * (family.dtype != "float32") + [f"mask: {family.mask}"] * (family.mask != "random")
    words += [f"{family.tasks} tasks"] * (family.tasks > 1)
    return ", ".join(words) + ("\ntraining" if family.training else "\nforward")
