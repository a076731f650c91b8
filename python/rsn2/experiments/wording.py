"""Figures as text, the same on every page of the docs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MSE_DECIMALS = 3


def spread(metric: str, values: Sequence[float]) -> str:
    """Mean, sample standard deviation, and number of seeds."""
    if not values:
        return "-"
    factor, decimals, unit = (100, 1, " %") if metric == "accuracy" else (1, 4, "")
    deviation = f" ± {factor * statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{factor * statistics.fmean(values):.{decimals}f}{deviation}{unit} ({len(values)})"


def as_in_paper(metric: str, value: float | None) -> str:
    """A figure as the paper prints it."""
    if value is None:
        return "-"
    return f"{100 * value:.0f} %" if metric == "accuracy" else f"{value:.{MSE_DECIMALS}f}"


def digits(value: float | None) -> str:
    """Three digits, or all that stand before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share_of(part: float, whole: float) -> str:
    """Bytes, and their share of others."""
    return f"{digits(part / 1e6)} MB, {100 * part / whole:.1f} % of the {digits(whole / 1e6)} MB"


def counted(number: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(settings: Mapping[str, Any]) -> str:
    """Settings as words: ``scope layer, rescale none``."""
    return ", ".join(f"{key.replace('_', ' ')} {_word(value)}" for key, value in settings.items())


def setting(value: float | Sequence[int]) -> str:
    """A density, or the rows and columns of a block."""
    return f"{value:g}" if isinstance(value, float | int) else " x ".join(map(str, value))


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return setting(value) if isinstance(value, list) else str(value)
