"""How a raster of uint8 becomes smaller, two by two pixels to one, and how often.

Of several bands each for itself.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA

__all__ = [
    "SHRINK",
    "Pixels",
    "Shrink",
    "halved",
    "level_shapes",
    "mean",
    "mode",
    "nearest",
]

_SMALL = 512  # pixels: what is no larger has no overview

Pixels = NDArray[np.uint8]
"""(height, width) or (bands, height, width)."""

Shrink = Callable[[Pixels], Pixels]
"""Makes one overview of the level before it."""


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (height, width) of a raster and of each overview, half the one before.

    The last is the first that is no larger than 512 x 512. What is one pixel wide has
    no overview: it could not be narrower, and would be no valid one.
    """
    shapes = [(height, width)]
    while width > 1 and max(shapes[-1]) > _SMALL:
        shapes.append(halved(*shapes[-1]))
    return shapes


def halved(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of what is half as large; an odd row counts."""
    return -(-height // 2), -(-width // 2)


def mode(pixels: Pixels) -> Pixels:
    """Return the commonest class of every 2 x 2 pixels, of equally common the lowest.

    Nodata is no class and has no vote: it is the answer where all four are nodata.
    """
    # Columns are parted as halves of 16-bit numbers: faster than taking every second.
    pairs = np.ascontiguousarray(_evened(pixels)).view("<u2")
    above, below = pairs[..., ::2, :], pairs[..., 1::2, :]
    # Sorted, a <= b <= c <= d.
    p, q = _sorted(above.astype(np.uint8), below.astype(np.uint8))
    r, s = _sorted((above >> 8).astype(np.uint8), (below >> 8).astype(np.uint8))
    a, x = np.minimum(p, r), np.maximum(p, r)
    y, d = np.minimum(q, s), np.maximum(q, s)
    b, c = np.minimum(x, y), np.maximum(x, y)
    # Nodata is the highest value, so a is a class unless all four are nodata. A pair
    # (b, c) or (c, d) of classes outvotes a where a stands alone.
    has_pair = (c == d) & (d != NODATA)
    best = np.where(has_pair, d, a)
    has_pair = (b == c) & (c != NODATA)
    best = np.where(has_pair, c, best)
    return np.where(a == b, a, best)


def _sorted(one: Pixels, other: Pixels) -> tuple[Pixels, Pixels]:
    return np.minimum(one, other), np.maximum(one, other)


def mean(pixels: Pixels) -> Pixels:
    """Return the mean of every 2 x 2 pixels, rounded, halves up; nodata has no weight.

    It is the answer where all four are nodata. In whole numbers: the same everywhere.
    """
    even = _evened(pixels)
    weights = (even != NODATA).astype(np.uint16)
    total, count = _summed(even * weights), _summed(weights)
    found = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(count, found, NODATA).astype(np.uint8)


def _summed(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the sum of every 2 x 2 of them."""
    rows = values[..., ::2, :] + values[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _evened(pixels: Pixels) -> Pixels:
    """Return pixels with even sides, filled up with nodata."""
    *_, height, width = pixels.shape
    if not (height % 2 or width % 2):
        return pixels
    pad = [(0, 0)] * (pixels.ndim - 2) + [(0, height % 2), (0, width % 2)]
    return np.pad(pixels, pad, constant_values=NODATA)


def nearest(pixels: Pixels) -> Pixels:
    """Return the upper left of every 2 x 2 pixels."""
    return pixels[..., ::2, ::2]


SHRINK: Mapping[str, Shrink] = {"MODE": mode, "AVERAGE": mean}
"""By the name that GDAL has for it: classes have no mean, what is measured has."""
