"""What the map of a report shows: rasters and outlines that are small for any scene.

A page is to have less than 4 MB, of which base64 takes a quarter of the rasters' part.
Coordinates are pixels of the area asked for: x = column, y = row.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from tileseg.area import pixel_metres
from tileseg.card import NODATA
from tileseg.encode import deflate, looks
from tileseg.gdal import gdal_env, open_dataset
from tileseg.glance import labels_of, stretched
from tileseg.grid import Grid
from tileseg.ledger import Receipt
from tileseg.overview import SHRINK, Pixels, Shrink, level_shapes, nearest
from tileseg.sketch import Picture, Sampling
from tileseg.task import Task
from tileseg.vectorize import Polygons

__all__ = ["Overlay", "fitted", "outlines", "overlays"]

_SIDE = 2048  # pixels of the longer side of a raster, at most
_BYTES = 2_200_000  # of all rasters together when packed, at most
_QUALITY = 80  # of the scene's picture: WebP's
_POLYGONS = 1500  # the largest ones
_VERTICES = 100_000  # of all of them
_RING = 4  # vertices at least, the first one twice; what has fewer is a line
_STAGES = ("wait", "forward", "hold")  # what the network's thread does, in turn


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A raster over the area; 255 where there is nothing."""

    pixels: Pixels
    """(height, width)."""
    step: int
    """Pixels of the area that a side of one of these covers."""
    packed: bytes
    """The same row by row, in zlib's format."""

    def to_json(self) -> dict[str, Any]:
        """Return it as the page wants it."""
        height, width = self.pixels.shape
        data = b64encode(self.packed).decode()
        return {"height": height, "width": width, "step": self.step, "data": data}


def overlays(
    task: Task,
    folder: Path,
    picture: Picture | None,
    polygons: Polygons | None,
    receipts: Iterable[Receipt],
) -> dict[str, Any]:
    """Return everything that the map shows but for names, as JSON values.

    Args:
        task: of what scene, by which model.
        folder: where the finished rasters are.
        picture: the scene's bands that are shown, if they can be.
        polygons: the mask's, if they were made.
        receipts: of the shards that are done.
    """
    area, box = task.grid.area, task.geobox
    products = looks(task.ensemble, task.job.layers)
    most = _BYTES // (1 + len(products))
    rasters = {
        product: _read(folder / f"{product}.tif", SHRINK[look.overviews], most)
        for product, look in products.items()
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
        "picture": _picture(task, folder / "mask.tif", picture, most),
        "rasters": {name: layer.to_json() for name, layer in rasters.items()},
        "shards": shards(task.grid, seconds).to_json()
        | {"low": min(seconds.values()), "high": max(seconds.values())},
        "colors": {item.value: f"#{item.color}" for item in task.card.classes},
        "polygons": None
        if polygons is None
        else outlines(polygons, (area.col, area.row), rasters["mask"].step),
    }


def fitted(pixels: Pixels, shrink: Shrink, most: int, step: int = 1) -> Overlay:
    """Return a raster that is halved until it takes no more than `most` bytes."""
    while max(pixels.shape) > _SIDE or len(packed := deflate(pixels)) > most:
        pixels, step = shrink(pixels), 2 * step
    return Overlay(np.ascontiguousarray(pixels), step, packed)


def _read(path: Path, shrink: Shrink, most: int) -> Overlay:
    """Return a finished raster: its first overview that is small enough, or half it."""
    with gdal_env(), open_dataset(path) as dataset:
        shapes = level_shapes(*dataset.shape)
        sizes = [max(shape) for shape in shapes]
        level = next(
            (i for i, size in enumerate(sizes) if size <= _SIDE), len(sizes) - 1
        )
        pixels: Pixels = dataset.read(1, out_shape=shapes[level])
    return fitted(pixels, shrink, most, 2**level)


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
    task: Task, mask: Path, picture: Picture | None, most: int
) -> dict[str, Any] | None:
    """Return the scene as a WebP, transparent where the mask is nodata."""
    if picture is None:
        return None
    sampling = Sampling(task.grid)
    labels = labels_of(mask, task.grid.area.relative_to(task.grid.area), sampling.shape)
    colors = np.full((*sampling.shape, 4), 255, np.uint8)
    colors[..., :3] = (255 * stretched(picture, labels == NODATA)).astype(np.uint8)
    colors[labels == NODATA] = 0
    step = sampling.step
    while len(data := _webp(colors)) > most:
        colors, step = colors[::2, ::2], 2 * step
    href = f"data:image/webp;base64,{b64encode(data).decode()}"
    height, width = colors.shape[:2]
    return {"height": height, "width": width, "step": step, "href": href}


def _webp(colors: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(colors).save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()


def outlines(
    polygons: Polygons, origin: tuple[int, int], tolerance: float
) -> dict[str, Any]:
    """Return the largest polygons, simplified until they are small enough for a page.

    Args:
        polygons: of the scene.
        origin: x and y of the area's first pixel in the scene.
        tolerance: in pixels, to begin with; doubled while there are too many vertices.
    """
    sizes = shapely.area(polygons.outlines)
    chosen = np.argsort(-sizes, kind="stable")[:_POLYGONS]
    rings, owners = shapely.get_rings(polygons.outlines[chosen], return_index=True)
    areas = shapely.area(shapely.polygons(rings))
    while True:
        is_seen = areas > tolerance**2  # a smaller hole would be a speck, or nothing
        simple = shapely.simplify(
            rings[is_seen], tolerance, preserve_topology=False
        )  # 20 times as fast
        if shapely.get_num_coordinates(simple).sum() <= _VERTICES:
            break
        tolerance *= 2
    is_ring = shapely.get_num_coordinates(simple) >= _RING
    simple, owners = simple[is_ring], owners[is_seen][is_ring]
    features = [_feature(polygons, at) for at in chosen]
    for steps, owner in zip(_steps(simple, origin), owners, strict=True):
        features[owner]["rings"].append(steps)
    return {
        "total": len(polygons.outlines),
        "tolerance": tolerance,
        "features": [feature for feature in features if feature["rings"]],
    }


def _feature(polygons: Polygons, at: int) -> dict[str, Any]:
    hectares, confidence = polygons.hectares, polygons.confidence
    return {
        "class": int(polygons.classes[at]),
        "hectares": None if hectares is None else float(hectares[at]),
        "confidence": None if confidence is None else float(confidence[at]),
        "rings": [],
    }


def _steps(rings: NDArray[Any], origin: tuple[int, int]) -> list[list[int]]:
    """Return x and y of each ring's first vertex, then how far it is to the next ones.

    Its last vertex is its first, and not told.
    """
    corners = shapely.get_coordinates(rings).astype(int) - origin
    ends = np.cumsum(shapely.get_num_coordinates(rings))
    steps = np.diff(corners, axis=0, prepend=0)
    first = ends[:-1]
    steps[first] = corners[first]
    return [part[:-1].ravel().tolist() for part in np.split(steps, first)][: len(ends)]
