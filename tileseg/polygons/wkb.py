"""Outlines in pixels -> polygons on the ground, as well-known binary, many at once."""

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from tileseg.polygons.outlines import Indices, Outlines, ends_of, spread

__all__ = ["bounds_of", "closed", "encode", "on_ground"]

_POLYGON = 3
_POINT_WORDS = 4  # of 32 bits: two doubles


def closed(outlines: Outlines, *, is_reversed: bool = False) -> Outlines:
    """Return rings that end with the vertex that they begin with, or run backwards."""
    counts = np.diff(outlines.rings)
    nth = spread(np.zeros_like(counts), counts + 1)
    length = np.repeat(counts, counts + 1)
    if is_reversed:
        nth = length - nth
    places = np.repeat(outlines.rings[:-1], counts + 1) + nth % length
    rings = ends_of(counts + 1)
    return Outlines(outlines.vertices[places], rings, outlines.polygons)


def on_ground(
    outlines: Outlines, transform: Affine
) -> tuple[Outlines, NDArray[np.float64]]:
    """Return closed rings, and where their vertices lie, (m, 2).

    Exteriors run counter-clockwise on the ground, whichever way is up in the raster.
    """
    outlines = closed(outlines, is_reversed=transform.determinant > 0)
    a, b, c, d, e, f = transform[:6]
    x, y = outlines.vertices.T.astype(np.float64)
    return outlines, np.stack([x * a + y * b + c, x * d + y * e + f], axis=1)


def bounds_of(outlines: Outlines, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return xmin, ymin, xmax and ymax of each polygon, (n, 4)."""
    if not len(outlines):
        return np.empty((0, 4))
    low = np.minimum.reduceat(places, outlines.begins)
    return np.hstack([low, np.maximum.reduceat(places, outlines.begins)])


def encode(
    outlines: Outlines, places: NDArray[np.float64]
) -> tuple[Indices, NDArray[np.uint8]]:
    """Return where the bytes of each polygon begin, (n + 1,), and all bytes.

    Args:
        outlines: closed rings.
        places: (m, 2), where their vertices lie.
    """
    rings = np.diff(outlines.polygons)
    # A polygon: a byte for the order of bytes, then its kind, the number of its rings,
    # and each of these with the number of its points.
    number = np.repeat(np.arange(len(rings)), rings)
    points = _POINT_WORDS * outlines.rings
    ring = points[:-1] + np.arange(len(number)) + 2 * (number + 1)
    polygon = points[outlines.polygons] + outlines.polygons
    polygon += 2 * np.arange(len(polygon))
    words = np.empty(polygon[-1], "<u4")
    is_point = np.ones(len(words), np.bool_)
    heads = (polygon[:-1], _POLYGON), (polygon[:-1] + 1, rings)
    for at, value in (*heads, (ring, np.diff(outlines.rings))):
        words[at] = value
        is_point[at] = False
    words[is_point] = places.astype("<f8").view("<u4").ravel()
    offsets = 4 * polygon + np.arange(len(polygon))
    data = np.ones(offsets[-1], np.uint8)  # 1: little-endian
    is_word = np.ones(len(data), np.bool_)
    is_word[offsets[:-1]] = False
    data[is_word] = words.view(np.uint8)
    return offsets, data
