"""What a person looks at: the scene beside its mask, with a legend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from tileseg.cards.card import NODATA, Card
from tileseg.outputs.figures import plain_text, png
from tileseg.outputs.glance import labels_of, stretched, try_glance
from tileseg.plans.task import Task
from tileseg.polygons.borders import Gauge
from tileseg.polygons.eliminate import eliminate_within
from tileseg.polygons.simplify import Manner, polygonise_simply, tolerance_of
from tileseg.polygons.wkb import closed
from tileseg.scenes.sketch import Picture, Sampling, shown
from tileseg.window import Window

__all__ = ["quicklook"]

_SIDE = 600  # pixels of the longer side of a panel, at most
_LEGEND = 20  # classes that the legend names, the commonest
_DETAIL = 256  # pixels of the side of what is shown with polygons
_AROUND = 128  # pixels round it that small polygons may be merged into


@plain_text()
def quicklook(
    task: Task,
    mask: Path,
    pixels: Mapping[int, int],
    picture: Picture | None,
) -> bytes:
    """Return a PNG: the scene, its mask and the legend; a detail with its polygons.

    Args:
        task: of what scene, by which model.
        mask: the finished mask, of the grid's area.
        pixels: how many of each value are in it.
        picture: the scene's bands that are shown, if they can be.
    """
    scene, card, whole = task.scene, task.card, task.grid.area
    height, width = Sampling(task.grid).shape
    step = -(-max(height, width) // _SIDE)
    shape = -(-height // step), -(-width // step)
    labels = labels_of(mask, whole.relative_to(whole), shape)
    panel = 6.0 * min(1.6, max(0.6, shape[0] / shape[1]))
    panels = 2
    if task.job.polygons:
        panels, panel = 3, max(panel, 6.0)  # the detail is square
    figure = Figure(figsize=(6 * panels, panel + 1.0), layout="constrained")
    left, right, *more = figure.subplots(1, panels)
    thinned = None if picture is None else picture[:, ::step, ::step]
    _show(left, stretched(thinned, labels == NODATA), whole)
    left.set_title(Path(scene.href).name)
    _show(right, _colored(labels, card), whole)
    right.set_title(task.ensemble.title)
    if task.job.polygons:
        at = _liveliest(labels, whole)
        frame = Rectangle((at.col, at.row), at.width, at.height, fill=False)
        frame.set(edgecolor="white", linewidth=1.5)
        left.add_patch(frame)
        part = labels_of(mask, at.relative_to(whole), (at.height, at.width))
        detail = try_glance(scene, shown(scene, task.bands), at, part.shape)
        _show(more[0], stretched(detail, part == NODATA), at)
        more[0].add_collection(_outlines(mask, at, task), autolim=False)
        more[0].set_title(f"polygons: the {at.width} x {at.height} pixels framed")
    figure.legend(handles=_legend(pixels, card), loc="outside lower center", ncols=5)
    return png(figure, compress_level=1)


def _show(axes: Any, picture: NDArray[Any], window: Window) -> None:  # noqa: ANN401  (matplotlib's)
    """Draw a picture so that coordinates are pixel corners of the scene."""
    extent = (window.col, window.col_stop, window.row_stop, window.row)
    axes.imshow(picture, extent=extent)
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])
    axes.set(xticks=[], yticks=[])  # measured for the layout even where they are off
    axes.set_axis_off()


def _liveliest(labels: NDArray[np.uint8], whole: Window) -> Window:
    """Return the detail in which the classes are most evenly mixed."""
    scale = labels.shape[0] / whole.height, labels.shape[1] / whole.width
    side = min(_DETAIL, whole.height), min(_DETAIL, whole.width)
    corners = [
        (row, col)
        for row in range(0, whole.height - side[0] + 1, side[0])
        for col in range(0, whole.width - side[1] + 1, side[1])
    ]

    def mixture(corner: tuple[int, int]) -> float:
        first, last = (
            [int((corner[axis] + add[axis]) * scale[axis]) for axis in (0, 1)]
            for add in ((0, 0), side)
        )
        part = labels[first[0] : last[0], first[1] : last[1]]
        counts = np.bincount(part.ravel(), minlength=NODATA + 1)
        share = counts[:NODATA] / max(1, counts.sum())
        return -float((share * np.log(np.maximum(share, 1e-9))).sum())

    row, col = max(corners, key=mixture)
    return Window(whole.row + row, whole.col + col, *side)


def _outlines(mask: Path, at: Window, task: Task) -> LineCollection:
    """Return the rings of the polygons that a window meets, in their colours."""
    # More on each side: where the window cuts an area off is out of sight.
    card, whole, least = task.card, task.grid.area, task.job.min_area
    seen = at.pad(1 if least is None else _AROUND).intersect(whole)
    labels = labels_of(mask, seen.relative_to(whole), (seen.height, seen.width))
    box = task.scene.geobox.crop(seen)
    tolerance = tolerance_of(task.job.simplify, box)
    manner = Manner(nodata=(NODATA,), left_out=card.left_out, tolerance=tolerance)
    if least is None:
        areas = polygonise_simply(labels, None, seen, manner).areas
    else:
        pieces = polygonise_simply(labels, None, seen, Manner(nodata=(NODATA,)))
        areas = eliminate_within(pieces, Gauge.of(box, least), manner).areas
    rings = closed(areas.outlines)
    lines = np.split(rings.vertices, rings.rings[1:-1])
    colors = {item.value: f"#{item.color}" for item in card.classes}
    shades = areas.classes.repeat(np.diff(rings.polygons)).tolist()
    return LineCollection(
        lines if shades else [],
        colors=[colors[value] for value in shades],
        linewidths=1.2,
    )


def _colored(labels: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """Return the mask in its colours, (height, width, 4), nodata transparent."""
    table = np.zeros((256, 4), np.uint8)
    for item in card.classes:
        table[item.value] = (*item.rgb, 255)
    return table[labels]


def _legend(pixels: Mapping[int, int], card: Card) -> list[Patch]:
    """Return a patch for each of the commonest classes, with its share of the map."""
    counts = {item.value: pixels.get(item.value, 0) for item in card.classes}
    valid = max(1, sum(counts.values()))
    common = sorted(card.classes, key=lambda item: -counts[item.value])[:_LEGEND]
    return [
        Patch(
            facecolor=f"#{item.color}",
            edgecolor="black",
            linewidth=0.5,
            label=f"{item.name} {100 * counts[item.value] / valid:.1f} %",
        )
        for item in sorted(common, key=lambda item: item.value)
    ]
