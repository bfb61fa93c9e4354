"""What the map of a report shows: rasters and outlines that are small for any scene.

A page is to have less than 4 MB, of which base64 takes a quarter of the rasters' part.
Coordinates are pixels of the area asked for: x = column, y = row.
"""

from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from tileseg.cards.card import NODATA
from tileseg.geobox import GeoBox
from tileseg.grid import Grid
from tileseg.masks.encode import Look, deflate
from tileseg.masks.overview import SHRINK, Pixels, Shrink, level_shapes, mode, nearest
from tileseg.outputs.glance import labels_of, stretched
from tileseg.plans.ledger import Receipt
from tileseg.plans.task import Task
from tileseg.polygons.outlines import Outlines
from tileseg.polygons.vectorize import Areas, polygonise
from tileseg.scenes.area import pixel_metres, row_hectares
from tileseg.scenes.gdal import gdal_env, open_dataset
from tileseg.scenes.sketch import Picture, Sampling
from tileseg.window import Window

__all__ = [
    "FinishedRasters",
    "Overlay",
    "fitted",
    "outlines",
    "overlays",
    "shards",
    "thumbnail",
]

_SIDE = 2048  # pixels of the longer side of a raster, at most
_PIXELS = 4 * _SIDE**2  # of all bands of a raster, at most
_BYTES = 2_200_000  # of all rasters together when packed, at most
_QUALITY = 80  # of the scene's picture: WebP's
_OUTLINED = 1024  # pixels of the longer side of the mask that outlines are of, at most
_POLYGONS = 1500  # the largest ones
_VERTICES = 100_000  # of all of them
_STAGES = ("wait", "forward", "hold")  # what the network's thread does, in turn


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A raster over the area; 255 where there is nothing."""

    pixels: Pixels
    """(height, width) or (bands, height, width)."""
    step: int
    """Pixels of the area that a side of one of these covers."""
    packed: bytes
    """The same row by row, in zlib's format."""

    def to_json(self) -> dict[str, Any]:
        """Return it as the page wants it."""
        *_, height, width = self.pixels.shape
        data = b64encode(self.packed).decode()
        return {"height": height, "width": width, "step": self.step, "data": data}


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRasters:
    """What a map needs of the finished rasters."""

    rasters: Mapping[str, tuple[Pixels, int]]
    """Each at its first overview that is small enough, if one is, and its step."""
    labels: Pixels
    """The mask where the scene's picture is sampled."""

    @classmethod
    def read(cls, task: Task, folder: Path) -> "FinishedRasters":
        """Read it of a folder."""
        area = task.grid.area
        whole, shape = area.relative_to(area), Sampling(task.grid).shape
        return cls(
            {
                product: _read(folder / f"{product}.tif", len(look.bands))
                for product, look in task.looks.items()
            },
            labels_of(folder / "mask.tif", whole, shape),
        )


def overlays(
    task: Task,
    finished: FinishedRasters,
    picture: Picture | None,
    receipts: Iterable[Receipt],
) -> dict[str, Any]:
    """Return everything that the map shows but for names, as JSON values.

    Args:
        task: of what scene, by which model.
        finished: its rasters.
        picture: the scene's bands that are shown, if they can be.
        receipts: of the shards that are done.
    """
    area, box, card = task.grid.area, task.geobox, task.card
    most = _BYTES // (1 + task.planes)
    rasters = {
        product: _fitted(finished.rasters[product], look, most)
        for product, look in task.looks.items()
    }
    seconds = {
        (it.shard.row, it.shard.col): sum(it.work.get(key, 0) for key in _STAGES)
        for it in receipts
    }
    return {
        "height": area.height,
        "width": area.width,
        "origin": [area.col, area.row],
        "metres": pixel_metres(box),
        "transform": list(box.transform)[:6],
        "picture": _picture(task, finished.labels, picture, most),
        "rasters": {name: layer.to_json() for name, layer in rasters.items()},
        "shards": shards(task.grid, seconds).to_json()
        | {"low": min(seconds.values()), "high": max(seconds.values())},
        "colors": {item.value: f"#{item.color}" for item in card.classes},
        "polygons": outlines(rasters["mask"], box, card.left_out)
        if task.job.polygons
        else None,
    }


def fitted(pixels: Pixels, shrink: Shrink, most: int, step: int = 1) -> Overlay:
    """Return a raster that is halved until it takes no more than `most` bytes."""
    while not _is_small(pixels.shape) or len(packed := _packed(pixels)) > most:
        pixels, step = shrink(pixels), 2 * step
    return Overlay(np.ascontiguousarray(pixels), step, packed)


def _is_small(shape: tuple[int, ...]) -> bool:
    return max(shape[-2:]) <= _SIDE and prod(shape) <= _PIXELS


def _packed(pixels: Pixels) -> bytes:
    return deflate(pixels.reshape(-1, pixels.shape[-1]))


def _read(path: Path, bands: int) -> tuple[Pixels, int]:
    with gdal_env(), open_dataset(path) as dataset:
        shapes = [(bands, *shape) for shape in level_shapes(*dataset.shape)]
        small = (number for number, shape in enumerate(shapes) if _is_small(shape))
        level = next(small, len(shapes) - 1)
        pixels: Pixels = dataset.read(out_shape=shapes[level])
    return pixels[0] if bands == 1 else pixels, 2**level


def _fitted(raster: tuple[Pixels, int], look: Look, most: int) -> Overlay:
    """Return a raster of which a band takes no more than `most` bytes when packed."""
    pixels, step = raster
    return fitted(pixels, SHRINK[look.overviews], len(look.bands) * most, step)


def shards(grid: Grid, seconds: Mapping[tuple[int, int], float]) -> Overlay:
    """Return how long each shard took, 254 the longest; 255 where none is done."""
    area, cells = grid.area, grid.shape
    longest = max(seconds.values()) or 1.0
    table = np.full((cells.height, cells.width), NODATA, np.uint8)
    for (row, col), value in seconds.items():
        table[row - cells.row, col - cells.col] = round(254 * value / longest)
    step = -(-max(area.height, area.width) // (_SIDE // 2))
    rows = (area.row + np.arange(0, area.height, step)) // grid.shard - cells.row
    cols = (area.col + np.arange(0, area.width, step)) // grid.shard - cells.col
    return fitted(table[rows[:, None], cols], nearest, _BYTES, step)


def _picture(
    task: Task, labels: Pixels, picture: Picture | None, most: int
) -> dict[str, Any] | None:
    """Return the scene as a WebP, transparent where the mask is nodata."""
    if picture is None:
        return None
    sampling = Sampling(task.grid)
    colors = np.full((*sampling.shape, 4), 255, np.uint8)
    colors[..., :3] = (255 * stretched(picture, labels == NODATA)).astype(np.uint8)
    colors[labels == NODATA] = 0
    step = sampling.step
    while len(data := _webp(colors)) > most:
        colors, step = colors[::2, ::2], 2 * step
    href = f"data:image/webp;base64,{b64encode(data).decode()}"
    height, width = colors.shape[:2]
    return {"height": height, "width": width, "step": step, "href": href}


def thumbnail(data: bytes, side: int) -> str | None:
    """Return a picture of ours at most `side` pixels wide and high, as a data address.

    None for what is no picture.
    """
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            picture.thumbnail((side, side))
            small = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/webp;base64,{b64encode(_webp(small)).decode()}"


def _webp(colors: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(colors).save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()


def outlines(mask: Overlay, box: GeoBox, left_out: Collection[int]) -> dict[str, Any]:
    """Return the largest areas of a mask that is halved until they are easily drawn.

    Args:
        mask: as it is shown.
        box: the area's.
        left_out: values that are not outlined.
    """
    labels, step = mask.pixels, mask.step
    while max(labels.shape) > _OUTLINED:
        labels, step = mode(labels), 2 * step
    areas = _areas(labels, left_out)
    while len((largest := _largest(areas)).outlines.vertices) > _VERTICES:
        labels, step = mode(labels), 2 * step
        areas = _areas(labels, left_out)
    found = largest.outlines
    # The last row and column may be those of less than `step` pixels.
    corners = np.minimum(
        found.vertices * step, np.array([box.width, box.height], np.int32)
    )
    found = Outlines(corners, found.rings, found.polygons)
    rows = _rows(box, step)
    hectares = None if rows is None else found.area(rows).tolist()
    rings = _rings(found)
    return {
        "total": len(areas),
        "step": step,
        "features": [
            {
                "class": value,
                "hectares": hectares and hectares[at],
                "rings": rings[found.polygons[at] : found.polygons[at + 1]],
            }
            for at, value in enumerate(largest.classes.tolist())
        ],
    }


def _areas(labels: Pixels, left_out: Collection[int]) -> Areas:
    window = Window(0, 0, *labels.shape)
    return polygonise(labels, None, window, left_out=left_out).areas


def _largest(areas: Areas) -> Areas:
    """Return some of the areas, the largest first."""
    order = np.argsort(-areas.outlines.pixels, kind="stable")
    return areas.take(order[:_POLYGONS])


def _rows(box: GeoBox, step: int) -> NDArray[np.float64] | None:
    """Return the hectares of one pixel of each row above, summed, (height + 1,).

    Of `step` rows as of the one in their middle, so that a tall scene takes no longer.
    """
    height, width = -(-box.height // step), box.width
    some = GeoBox(height, width, box.transform @ Affine.scale(1, step), box.crs)
    hectares = row_hectares(some)
    if hectares is None:
        return None
    each = np.repeat(hectares / step, step)[: box.height]
    return np.append(0, np.cumsum(each))


def _rings(outlines: Outlines) -> list[list[int]]:
    """Return x and y of each ring's first vertex, then how far it is to the next ones.

    By turns down and across, as the sides of a ring run; the last, back to the first,
    is not told.
    """
    vertices = outlines.vertices.tolist()
    # A side changes x or y, so their sum says how far it leads.
    steps = np.diff(outlines.vertices.sum(axis=1)).tolist()
    ends = zip(outlines.rings[:-1].tolist(), outlines.rings[1:].tolist(), strict=True)
    return [[*vertices[first], *steps[first : end - 1]] for first, end in ends]
