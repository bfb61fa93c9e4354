"""Ground that lies in two scenes: where blocks of one are in the pixels of another."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from tileseg.geobox import GeoBox

__all__ = ["boxes_in"]

_STEPS = np.linspace(0, 1, 5)  # of a block's sides, which another CRS may bend
_FAR = 2.0**40  # pixels
_LATTICE = np.stack(np.meshgrid(_STEPS, _STEPS), axis=-1).reshape(-1, 2)


def boxes_in(
    here: GeoBox, there: GeoBox, blocks: NDArray[np.int64], side: int
) -> NDArray[np.int64]:
    """Return the boxes that blocks of a scene take in another, (m, 4).

    First row and column and those after the last, in the other's pixels, of the blocks
    that meet it: none where a scene does not say where it lies.

    Args:
        here: the other scene.
        there: the scene of the blocks.
        blocks: (n, 2), row and column of each, counted in blocks.
        side: of a block in pixels.
    """
    move, none = _way(there.crs, here.crs), np.empty((0, 4), np.int64)
    if move is None or not len(blocks):
        return none
    first, size = np.zeros((1, 2), np.int64), max(there.height, there.width)
    whole = _seen(move, here, there, first, size)
    # Of a scene that reaches far around the Earth nothing is known from its corners.
    if np.isfinite(whole).all() and not len(_met(here, whole)):
        return none
    return _met(here, _seen(move, here, there, blocks, side))


def _seen(
    move: Transformer, here: GeoBox, there: GeoBox, blocks: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """Return rows and columns of points of each block, (n, points, 2), NaN of some."""
    places = (blocks[:, np.newaxis] + _LATTICE) * side
    rows, cols = np.minimum(places, (there.height, there.width)).transpose(2, 0, 1)
    x, y = (
        np.where(np.isfinite(values), values, np.nan)
        for values in move.transform(*(there.transform @ (cols, rows)))
    )
    cols, rows = ~here.transform @ (x, y)
    return np.stack((rows, cols), axis=-1)


def _met(here: GeoBox, places: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the boxes, (m, 4), of those blocks that meet a scene."""
    places = places[np.isfinite(places).all(axis=(1, 2))].clip(-_FAR, _FAR)
    first, stop = np.floor(places.min(axis=1)), np.ceil(places.max(axis=1))
    meets = (first < (here.height, here.width)).all(axis=1) & (stop > 0).all(axis=1)
    return np.concatenate((first[meets], stop[meets]), axis=1).astype(np.int64)


@cache
def _way(there: str | None, here: str | None) -> Transformer | None:
    """Return what leads from one CRS to another; None where nothing does."""
    if there is None or here is None:
        return None
    try:
        return Transformer.from_crs(
            CRS.from_wkt(there), CRS.from_wkt(here), always_xy=True
        )
    except ProjError:
        return None
