"""What was measured, as one picture: a panel of bars for each part."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.machine import in_words
from benchmark.table import Row

__all__ = ["draw"]

# Part to the figure that is drawn, and what its axis says.
_PANELS = {
    "alone": ("tiles_s", "network alone, tiles/s"),
    "whole": ("ratio", "whole job, share of the network alone"),
    "peers": ("mpx_s", "whole jobs side by side, scene Mpx/s"),
    "stages": ("mpx_s", "each stage alone, scene Mpx/s"),
    "memory": ("above_mb", "peak memory above the loaded network, MB"),
    "simulate": ("ratio", "simulated devices, share of their speed"),
    "scale": ("ratio", "many workers, share of one's speed"),
}
_WIDE = 100  # times the smallest bar: then the axis is logarithmic
_BAR_INCHES = 0.24


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write a PNG of a result's rows; return whether there was anything to draw."""
    rows = [Row(**row) for row in result["rows"]]
    panels = [
        (title, bars)
        for part, (figure, title) in _PANELS.items()
        if (bars := _bars(rows, part, figure))
    ]
    if not panels:
        return False
    heights = [_BAR_INCHES * len(bars) + 0.9 for _, bars in panels]
    picture = Figure(figsize=(11, sum(heights) + 0.4), layout="constrained")
    axes = picture.subplots(
        len(panels), 1, height_ratios=heights, squeeze=False
    ).ravel()
    for axis, (title, bars) in zip(axes, panels, strict=True):
        _panel(axis, title, bars)
    picture.suptitle(in_words(result["machine"]), fontsize=7)
    picture.savefig(path, dpi=110)
    return True


def _bars(rows: Iterable[Row], part: str, figure: str) -> dict[str, float]:
    found = {row.name: row.figures.get(figure) for row in rows if row.part == part}
    return {name: x for name, x in found.items() if isinstance(x, int | float)}


def _panel(axis: Axes, title: str, bars: dict[str, float]) -> None:
    names, values = list(bars), list(bars.values())
    drawn = axis.barh(names, values, color="#4a7a6a")
    axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize=7)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.invert_yaxis()
    if min(values) > 0 and max(values) > _WIDE * min(values):
        axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
