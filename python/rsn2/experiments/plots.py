"""Draw who owns which weight."""

from pathlib import Path
from typing import Any

from torch import nn

from rsn2.experiments import extras
from rsn2.tasks import multitask_layers, tasks

_FREE = "#f2f2f2"
_PANELS_PER_ROW = 3


def ownership(model: nn.Module, path: Path) -> None:
    """Write a PNG with one panel per shared layer, every weight position in the colour of its owner.

    Rows of a panel are outputs, columns are inputs. Tasks that share a slot share a colour.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    figures: Any = extras.load("matplotlib.figure")
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
    columns = min(_PANELS_PER_ROW, len(layers))
    rows = -(-len(layers) // columns)
    # A Figure of its own, not pyplot's: no window, no global state.
    figure = figures.Figure(figsize=(5 * columns, 5.3 * rows + 0.6), dpi=120, layout="constrained")
    for place, (name, layer) in enumerate(layers.items(), start=1):
        number_of = {slot: owners.index(_holders(layer.slots, slot)) + 1 for slot in layer.densities}
        codes = layer.owners.codes().cpu()
        picture = codes.new_zeros(codes.shape)
        for slot, number in number_of.items():
            picture[codes == slot + 1] = number
        axes = figure.add_subplot(rows, columns, place)
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


def _holders(slots: dict[str, int], slot: int) -> tuple[str, ...]:
    return tuple(task for task, held in slots.items() if held == slot)
