"""What a person looks at: the scene beside its mask, with a legend."""

import logging
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from tileseg.card import NODATA, Card
from tileseg.errors import TilesegError
from tileseg.gdal import gdal_env, open_dataset
from tileseg.glance import glance
from tileseg.scene import Band, Scene
from tileseg.sketch import Picture, Sampling, shown
from tileseg.task import Task
from tileseg.vectorize import polygonise
from tileseg.window import Window
from tileseg.wkb import closed

__all__ = ["quicklook"]

logger = logging.getLogger(__name__)

_STRETCH = (1, 99)  # percentiles of the valid pixels
_LEGEND = 20  # classes that the legend names, the commonest
_DETAIL = 256  # pixels of the side of what is shown with polygons


def quicklook(
    task: Task,
    mask: Path,
    pixels: Mapping[int, int],
    picture: Picture | None = None,
) -> bytes:
    """Return a PNG: the scene, its mask and the legend; a detail with its polygons.

    Args:
        task: of what scene, by which model.
        mask: the finished mask, of the grid's area.
        pixels: how many of each value are in it.
        picture: the scene's bands that are shown, if they were put by.
    """
    scene, bands, card = task.scene, task.bands, task.card
    whole, shape = task.grid.area, Sampling(task.grid).shape
    shown_bands = shown(scene, bands)
    labels = _labels(mask, whole.relative_to(whole), shape)
    panel = 6.0 * min(1.6, max(0.6, shape[0] / shape[1]))
    panels = 2
    if task.job.polygons:
        panels, panel = 3, max(panel, 6.0)  # the detail is square
    figure = Figure(figsize=(6 * panels, panel + 1.0), layout="constrained")
    left, right, *more = figure.subplots(1, panels)
    if picture is None:
        picture = _glance(scene, shown_bands, whole, shape)
    _show(left, _rgb(picture, labels == NODATA), whole)
    left.set_title(Path(scene.href).name)
    _show(right, _colored(labels, card), whole)
    right.set_title(task.ensemble.title)
    if task.job.polygons:
        at = _liveliest(labels, whole)
        frame = Rectangle((at.col, at.row), at.width, at.height, fill=False)
        frame.set(edgecolor="white", linewidth=1.5)
        left.add_patch(frame)
        part = _labels(mask, at.relative_to(whole), (at.height, at.width))
        detail = _glance(scene, shown_bands, at, part.shape)
        _show(more[0], _rgb(detail, part == NODATA), at)
        more[0].add_collection(_outlines(mask, at, whole, card), autolim=False)
        more[0].set_title(f"polygons: the {at.width} x {at.height} pixels framed")
    figure.legend(handles=_legend(pixels, card), loc="outside lower center", ncols=5)
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A scene's name may be of letters that the font has not.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        metadata, fast = {"Software": None}, {"compress_level": 1}
        # `savefig` would draw everything twice.
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(buffer, metadata=metadata, pil_kwargs=fast)  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()


def _show(axes: Any, picture: NDArray[Any], window: Window) -> None:  # noqa: ANN401  (matplotlib's)
    """Draw a picture so that coordinates are pixel corners of the scene."""
    extent = (window.col, window.col_stop, window.row_stop, window.row)
    axes.imshow(picture, extent=extent)
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])
    axes.set(xticks=[], yticks=[])  # measured for the layout even where they are off
    axes.set_axis_off()


def _labels(mask: Path, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask decimated to `shape`, from its overviews."""
    with gdal_env(), open_dataset(mask) as dataset:
        labels: NDArray[np.uint8] = dataset.read(
            1, window=window.slices, out_shape=shape
        )
    return labels


def _glance(
    scene: Scene, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture | None:
    """Return bands of a window decimated to `shape`; None where that cannot be read."""
    try:
        return glance(scene, bands, window, shape)
    except TilesegError as err:
        # A damaged block, or a dead server: the mask is there all the same.
        logger.warning("no picture of the scene: %s", err)
        return None


def _rgb(picture: Picture | None, is_nodata: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a picture stretched to 0..1, as `is_nodata` by 3, white where that is."""
    if picture is None:
        return np.ones((*is_nodata.shape, 3))
    pixels = np.where(np.isfinite(picture), picture, 0)
    valid = pixels[:, ~is_nodata]
    if valid.size:
        low, high = np.percentile(valid, _STRETCH, axis=1)[:, :, None, None]
        pixels = ((pixels - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    pixels[:, is_nodata] = 1
    return np.moveaxis(pixels, 0, -1)


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


def _outlines(mask: Path, at: Window, whole: Window, card: Card) -> LineCollection:
    """Return the rings of the polygons that a window meets, in their colours."""
    # A pixel more on each side: where the window cuts an area off is out of sight.
    seen = at.pad(1).intersect(whole)
    labels = _labels(mask, seen.relative_to(whole), (seen.height, seen.width))
    areas = polygonise(labels, None, seen, left_out=card.left_out).areas
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
