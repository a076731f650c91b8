"""Figures, panels and axes that can be read."""

import textwrap
from collections.abc import Sequence
from typing import Any

from rsn2 import extras

PANELS_PER_ROW = 4
_DPI = 120
# Of a caption, so that none is wider than its figure.
_LETTERS_PER_INCH = 11
_MARKERS = "osD^vP*X"


def panels(count: int, width: float, height: float, per_row: int = PANELS_PER_ROW) -> tuple[Any, list[Any]]:
    """A figure with as many panels of this size in inches."""
    rows = -(-count // per_row)
    columns = -(-count // rows)
    made = figure(width * columns, height * rows + 0.8)
    return made, [made.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def figure(width: float, height: float) -> Any:
    """A figure of inches; its own and not pyplot's: no window, no global state."""
    module: Any = extras.load("matplotlib.figure")
    made = module.Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    made.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return made


def caption(figure: Any, words: str) -> None:
    """Words above all panels, in lines that are no wider than the figure."""
    width = int(_LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in words.splitlines()), fontsize=11)


def labels_left(panels: Sequence[Any], label: str) -> None:
    """Name the y axis of the first panel of each row."""
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label)


def plain_ticks(axis: Any, places: Sequence[float]) -> None:
    """A tick at each measured place."""
    tickers: Any = extras.load("matplotlib.ticker")
    axis.set_major_locator(tickers.FixedLocator(list(places)))
    axis.set_major_formatter(tickers.FixedFormatter([f"{each:g}" for each in places]))
    axis.set_minor_locator(tickers.NullLocator())


def same_limits(panels: Sequence[Any]) -> None:
    """The same y axis for all of these panels."""
    lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(lows), max(highs))


def ticks_between(axes: Any, of: str = "y") -> None:
    """Numbers that can be read on a logarithmic axis, however short it is."""
    tickers: Any = extras.load("matplotlib.ticker")
    axis = axes.yaxis if of == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    if high < 3 * low:
        locator = tickers.MaxNLocator(6)
    else:
        dense, fewer = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7)
        subs = dense if high < 8 * low else fewer if high < 40 * low else (1, 2, 5) if high < 1e3 * low else (1,)
        locator = tickers.LogLocator(subs=subs, numticks=20)
    axis.set_major_locator(locator)
    axis.set_major_formatter(tickers.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(tickers.NullFormatter())
    axes.grid(alpha=0.3)


def marker(number: int) -> str:
    """The mark of the line of this number."""
    return _MARKERS[number % len(_MARKERS)]


def shades(batches: Sequence[int]) -> dict[int, Any]:
    """A colour for each batch, the darker the smaller."""
    palette: Any = extras.load("matplotlib").colormaps["viridis"]
    return {batch: palette(0.9 * number / max(1, len(batches) - 1)) for number, batch in enumerate(batches)}


def ink(colour: str) -> str:
    """Black or white, whichever is read on a colour."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "white"
