"""Pictures of a run: who owns which weight, how each task learnt, and what later training did to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rsn2 import extras, figures
from rsn2.experiments.wording import setting
from rsn2.tasks import multitask_layers, tasks

_FREE = "#f2f2f2"
_PANELS_PER_ROW = 3
# Of Okabe and Ito, told apart without colour vision too.
_NETWORKS = {"rsn2": "#0072b2", "control": "#d55e00"}
_PARTS = {"train": "--", "val": "-"}


def ownership(model: nn.Module, path: Path) -> None:
    """Write a PNG with one panel per shared layer, every weight position in the colour of its owner.

    Rows of a panel are outputs, columns are inputs. Tasks that share a slot share a colour.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    colormaps: Any = extras.load("matplotlib.colors")
    patches: Any = extras.load("matplotlib.patches")
    maps: Any = extras.load("matplotlib").colormaps
    layers = multitask_layers(model)
    # An owner is the tasks that hold a slot together, so that a colour means the same in every layer.
    held = {_holders(layer.slots, slot) for layer in layers.values() for slot in layer.densities}
    names = tasks(model)
    owners = sorted(held, key=lambda holders: [names.index(task) for task in holders])
    palette = maps["tab10"] if len(owners) <= maps["tab10"].N else maps["turbo"].resampled(len(owners))
    colours = [_FREE, *(palette(number) for number in range(len(owners)))]
    figure, panels = figures.panels(len(layers), 5, 5.3, _PANELS_PER_ROW)
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        number_of = {slot: owners.index(_holders(layer.slots, slot)) + 1 for slot in layer.densities}
        codes = layer.owners.codes().cpu()
        picture = codes.new_zeros(codes.shape)
        for slot, number in number_of.items():
            picture[codes == slot + 1] = number
        axes.imshow(
            picture.numpy(),
            cmap=colormaps.ListedColormap(colours),
            vmin=-0.5,
            vmax=len(colours) - 0.5,
            interpolation="nearest",
            aspect="auto",
        )
        free = int((codes == 0).sum()) / codes.numel()
        axes.set_title(f"{name}: {codes.shape[0]} x {codes.shape[1]}, {free:.0%} free")
        axes.set_xlabel("input")
        axes.set_ylabel("output")
    handles = [
        patches.Patch(facecolor=colour, edgecolor="grey", label=label)
        for colour, label in zip(colours, ["free", *map(", ".join, owners)], strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=12)
    figure.savefig(path)


def learning_curves(curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], path: Path) -> None:
    """Write a PNG with one panel per task: its loss over the epochs, in the network of all tasks and in its control.

    Args:
        curves: "rsn2" and, if there are controls, "control" -> task -> "train" and "val" -> loss of every epoch.
        path: of the picture.

    Raises:
        ValueError: if there is no task.
        MissingPackageError: if matplotlib is not installed.
    """
    tasks_shown = list(dict.fromkeys(task for network in _NETWORKS for task in curves.get(network, {})))
    if not tasks_shown:
        raise ValueError("curves: expected at least one task. Got none.")
    figure, panels = figures.panels(len(tasks_shown), 4.2, 3.2, _PANELS_PER_ROW)
    tickers: Any = extras.load("matplotlib.ticker")
    lines: dict[str, Any] = {}
    for axes, task in zip(panels, tasks_shown, strict=True):
        for network, colour in _NETWORKS.items():
            for part, style in _PARTS.items():
                losses = curves.get(network, {}).get(task, {}).get(part, [])
                if losses:
                    # A single epoch is a dot: a line needs two.
                    marker = "." if len(losses) == 1 else ""
                    epochs = range(1, len(losses) + 1)
                    # The control is thinner, so that the line below it is seen.
                    width = 2.2 if network == "rsn2" else 1.1
                    (line,) = axes.plot(epochs, losses, style, color=colour, marker=marker, linewidth=width)
                    lines[f"{network}, {part}"] = line
        axes.xaxis.set_major_locator(tickers.MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(title=task, xlabel="epoch", ylabel="loss")
        axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 if len(panels) == 1 else 4)
    figure.savefig(path)


def task_losses(stages: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of the test loss of every task after each stage of training, as the paper's figure 2.

    A flat line is a task that nothing was forgotten of; the legend gives the largest change after its first stage.

    Args:
        stages: in the order of training; each has "trained", the names of the tasks trained in it, and "losses",
            task -> test loss after it, of the tasks trained so far.
        path: of the picture.

    Raises:
        ValueError: if there is no loss.
        MissingPackageError: if matplotlib is not installed.
    """
    losses = [loss for stage in stages for loss in stage["losses"].values()]
    if not losses:
        raise ValueError("stages: expected at least one with a loss. Got none.")
    palette: Any = extras.load("matplotlib").colormaps["tab10"]
    tasks_shown = list(dict.fromkeys(task for stage in stages for task in stage["losses"]))
    figure = figures.figure(max(6.5, 1.9 * len(stages) + 3), max(4.2, 0.45 * len(tasks_shown) + 2.2))
    axes = figure.add_subplot()
    for number, task in enumerate(tasks_shown):
        points = [(place, stage["losses"][task]) for place, stage in enumerate(stages) if task in stage["losses"]]
        places, own = zip(*points, strict=True)
        change = max(abs(loss - own[0]) for loss in own)
        kept = "" if len(own) == 1 else f"\nchange {change:.2g}"
        style = figures.marker(number)
        axes.plot(places, own, f"{style}-", color=palette(number % palette.N), label=f"{task}{kept}")
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        # Losses of different kinds differ by orders of magnitude.
        axes.set_yscale("log")
        figures.ticks_between(axes)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xticks(range(len(stages)), ["\n".join(stage["trained"]) for stage in stages])
    axes.set_xlim(-0.3, len(stages) - 0.7)
    axes.set(xlabel="after the training of", ylabel="test loss")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", labelspacing=0.9)
    figure.savefig(path)


def sparsity(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of the score of every task against its density, and against the blocks that are claimed.

    Means over the seeds, with bars from the least to the most; dashed, the control.

    Args:
        points: each with "varied" ("density" or "blocks"), "density", "blocks", "task", "value" and "control".
        path: of the picture.

    Raises:
        ValueError: if there is no point.
        MissingPackageError: if matplotlib is not installed.
    """
    if not points:
        raise ValueError("points: expected at least one. Got none.")
    palette: Any = extras.load("matplotlib").colormaps["tab10"]
    figure, panels = figures.panels(2, 5, 3.6)
    lines: dict[str, Any] = {}
    labels = {"density": "density of each task", "blocks": "blocks that are claimed"}
    for axes, (varied, label) in zip(panels, labels.items(), strict=True):
        chosen = [point for point in points if point["varied"] == varied]
        settings = sorted({setting(point[varied]) for point in chosen}, key=_order)
        for number, task in enumerate(dict.fromkeys(point["task"] for point in chosen)):
            own = [point for point in chosen if point["task"] == task]
            values = [[point["value"] for point in own if setting(point[varied]) == each] for each in settings]
            means = [sum(each) / len(each) for each in values]
            bars = [
                [mean - min(each) for mean, each in zip(means, values, strict=True)],
                [max(each) - mean for mean, each in zip(means, values, strict=True)],
            ]
            style = {
                "color": palette(number % palette.N),
                "capsize": 3,
                "marker": figures.marker(number),
            }
            lines[task] = axes.errorbar(range(len(settings)), means, yerr=bars, **style)
            controls = [point["control"] for point in own if point["control"] is not None]
            if controls:
                mean = sum(controls) / len(controls)
                lines[f"{task}: control"] = axes.axhline(mean, color=style["color"], linestyle="--", linewidth=1)
        axes.set_xticks(range(len(settings)), settings)
        axes.set(xlabel=label, ylabel="score of the test set")
        axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def in_order(runs: Sequence[tuple[str, Sequence[float]]], path: Path) -> None:
    """Write a PNG of the accuracy of each task in the order of training, a line for each network.

    Args:
        runs: each with a label, the same for networks that differ in their seed alone, and the accuracies.
        path: of the picture.

    Raises:
        ValueError: if there is no run.
        MissingPackageError: if matplotlib is not installed.
    """
    if not runs:
        raise ValueError("runs: expected at least one. Got none.")
    palette: Any = extras.load("matplotlib").colormaps["tab10"]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(label for label, _ in runs))}
    figure = figures.figure(8, 4.4)
    axes = figure.add_subplot()
    lines: dict[str, Any] = {}
    for label, accuracies in runs:
        number = numbers[label]
        style = {"color": palette(number % palette.N), "marker": figures.marker(number), "markersize": 4}
        (lines[label],) = axes.plot(range(1, len(accuracies) + 1), accuracies, **style)
    axes.set(xlabel="task, in the order of training", ylabel="test accuracy")
    axes.xaxis.set_major_locator(extras.load("matplotlib.ticker").MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside right center")
    figure.savefig(path)


def _order(text: str) -> float:
    return float(text.split(" x ", maxsplit=1)[0])


def _holders(slots: dict[str, int], slot: int) -> tuple[str, ...]:
    return tuple(task for task, held in slots.items() if held == slot)
