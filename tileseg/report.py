"""What a person looks at: the scene beside its mask, with a legend."""

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from tileseg.card import NODATA, Card
from tileseg.scene import GDAL_ERRORS, Band, Scene, gdal_env, open_dataset

__all__ = ["quicklook"]

logger = logging.getLogger(__name__)

_SIDE = 1200  # pixels of the longer side of each picture
_STRETCH = (1, 99)  # percentiles of the valid pixels
_LEGEND = 20  # classes that the legend names, the commonest
_DISPLAY = ("red", "green", "blue")


def quicklook(scene: Scene, bands: tuple[Band, ...], mask: Path, card: Card) -> bytes:
    """Return a PNG: the scene on the left, its mask and the legend on the right.

    Args:
        scene: the scene.
        bands: those that the network saw, in its order.
        mask: its finished mask.
        card: the model's, for class names and colours.
    """
    height, width = scene.geobox.height, scene.geobox.width
    scale = min(1.0, _SIDE / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    labels = _read(str(mask), (1,), shape)[0]
    picture = _rgb(scene, bands, labels == NODATA, shape)
    panel = 6.0 * min(1.6, max(0.6, shape[0] / shape[1]))
    figure = Figure(figsize=(12, panel + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    left.set_title(Path(scene.href).name)
    right.imshow(_colored(labels, card))
    right.set_title(f"{card.name} {card.version}")
    for axes in (left, right):
        axes.set_axis_off()
    figure.legend(handles=_legend(labels, card), loc="outside lower center", ncols=5)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _read(path: str, indexes: tuple[int, ...], shape: tuple[int, int]) -> NDArray[Any]:
    """Return bands decimated to `shape`, from overviews where there are any."""
    with gdal_env(), open_dataset(path) as dataset:
        pixels: NDArray[Any] = dataset.read(
            list(indexes), out_shape=(len(indexes), *shape)
        )
    return pixels


def _rgb(
    scene: Scene,
    bands: tuple[Band, ...],
    is_nodata: NDArray[np.bool_],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the scene stretched to 0..1, (height, width, 3), white where nodata."""
    by_name = {(band.name or "").casefold(): band for band in scene.bands}
    if all(name in by_name for name in _DISPLAY):
        shown = tuple(by_name[name] for name in _DISPLAY)
    else:
        shown = bands[:3] if len(bands) >= len(_DISPLAY) else bands[:1] * 3
    try:
        pixels = _read(scene.path, tuple(band.index for band in shown), shape)
    except GDAL_ERRORS as err:  # a damaged block: the mask is there all the same
        logger.warning("%s: no picture of the scene: %s", scene.href, err)
        return np.ones((*shape, 3))
    pixels = pixels.astype(np.float64)
    pixels[~np.isfinite(pixels)] = 0
    valid = pixels[:, ~is_nodata]
    if valid.size:
        low, high = np.percentile(valid, _STRETCH, axis=1)[:, :, None, None]
        pixels = ((pixels - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    pixels[:, is_nodata] = 1
    return np.moveaxis(pixels, 0, -1)


def _colored(labels: NDArray[np.uint8], card: Card) -> NDArray[np.uint8]:
    """Return the mask in its colours, (height, width, 4), nodata transparent."""
    table = np.zeros((256, 4), np.uint8)
    for item in card.classes:
        table[item.value] = (*item.rgb, 255)
    return table[labels]


def _legend(labels: NDArray[np.uint8], card: Card) -> list[Patch]:
    counts = np.bincount(labels.ravel(), minlength=256)
    valid = max(1, int(counts[:NODATA].sum()))
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
