"""The pieces of a shard -> how large they are and how long they border on each other.

In whole numbers, so that sums are the same in whatever order parts are added: nothing
that is compared depends on how the scene was cut.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.geobox import GeoBox
from tileseg.polygons.outlines import Indices, ends_of
from tileseg.polygons.vectorize import Pieces
from tileseg.scenes.area import row_hectares, row_metres
from tileseg.window import Window

__all__ = ["Borders", "Gauge", "borders_of", "summed"]

_STEPS = 1 << 24  # of the largest pixel: 2^38 pixels are less than 2^63
_SLACK = 1e-9  # of an area: what is as large as wanted but for rounding is not small


@dataclass(frozen=True, slots=True, eq=False)
class Gauge:
    """How large and long pixels are on the ground, in steps of the largest."""

    areas: Indices
    """(height + 1,), of one pixel of each row above, summed."""
    across: Indices
    """(height + 1,), of a pixel's upper side in each row, and of the last lower one."""
    down: Indices
    """(height,), of a pixel's left side in each row."""
    least: float
    """Areas below it are small."""

    @classmethod
    def of(cls, geobox: GeoBox, hectares: float) -> "Gauge":
        """Return that of a scene, where areas below some hectares are small."""
        areas, sides = row_hectares(geobox), row_metres(geobox)
        assert areas is not None, "a scene without metres was refused"
        assert sides is not None, "a scene with hectares has metres"
        largest, longest = areas.max(), max(side.max() for side in sides)
        across, down = (_whole(side / longest) for side in sides)
        least = hectares * (1 - _SLACK) / largest * _STEPS
        return cls(ends_of(_whole(areas / largest)), across, down, float(least))

    def crop(self, window: Window) -> "Gauge":
        """Return that of a window's rows."""
        rows, ends = window.slices[0], slice(window.row, window.row_stop + 1)
        return Gauge(self.areas[ends], self.across[ends], self.down[rows], self.least)


@dataclass(frozen=True, slots=True, eq=False)
class Borders:
    """All of a shard's pieces that decides which are small, and what they border on."""

    window: Window
    """The shard's pixels in the scene."""
    classes: NDArray[Any]
    """(n,) values of the mask."""
    areas: Indices
    """(n,) in steps of the gauge."""
    last: Indices
    """(n,) numbers that grow with the last pixel of each, row by row."""
    pairs: Indices
    """(2, m) pieces with a border in common, of which one may be small."""
    lengths: Indices
    """(m,) how long that is, in steps of the gauge."""
    top: NDArray[np.int32]
    """(width,) the piece of each pixel of the first row, -1 where there is none."""
    bottom: NDArray[np.int32]
    """(width,) the same of the last row."""
    left: NDArray[np.int32]
    """(height,) the same of the first column."""
    right: NDArray[np.int32]
    """(height,) the same of the last column."""


def borders_of(pieces: Pieces, gauge: Gauge) -> Borders:
    """Return what is known of the pieces of one shard.

    Args:
        pieces: as traced, of all classes.
        gauge: of the shard's rows.
    """
    areas, box = pieces.areas, pieces.window
    outlines = areas.outlines.moved(-box.col, -box.row)
    sizes = outlines.area(gauge.areas).astype(np.int64)
    pairs, lengths = _touching(pieces.numbers, gauge)
    # One that is not small here is not in the scene: of two such nothing is asked.
    matters = (sizes[pairs] < gauge.least).any(axis=0)
    return Borders(
        box,
        areas.classes,
        sizes,
        areas.last,
        pairs[:, matters],
        lengths[matters],
        top=pieces.top,
        bottom=pieces.bottom,
        left=pieces.left,
        right=pieces.right,
    )


def summed(ends: NDArray[Any], lengths: Indices) -> tuple[Indices, Indices]:
    """Return each pair once, (2, m), the lesser first, and its lengths' sum, (m,).

    Args:
        ends: (2, k), numbers below 2^31, either way round.
        lengths: (k,), of each.
    """
    low, high = ends.min(axis=0).astype(np.int64), ends.max(axis=0)
    keys, at = np.unique((low << 32) | high, return_inverse=True)
    # Exact: a border of 2^29 pixels is no more than a float's 53 bits.
    sums = np.bincount(at, lengths, len(keys)).astype(np.int64)
    return np.stack([keys >> 32, keys & (2**32 - 1)]), sums


def _touching(numbers: NDArray[np.int32], gauge: Gauge) -> tuple[Indices, Indices]:
    """Return which pieces touch, and how long they do, as `summed` has it."""
    found = []
    for near, far, length in (
        (numbers[:, :-1], numbers[:, 1:], gauge.down),
        (numbers[:-1], numbers[1:], gauge.across[1:-1]),
    ):
        at = np.nonzero((near != far) & (near >= 0) & (far >= 0))
        found.append(np.stack([near[at], far[at], length[at[0]]]))
    one, two, lengths = np.concatenate(found, axis=1)
    return summed(np.stack([one, two]), lengths)


def _whole(shares: NDArray[np.float64]) -> Indices:
    return np.rint(shares * _STEPS).astype(np.int64)
