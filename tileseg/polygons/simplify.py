"""Fewer corners for the pieces of a shard, and neither gaps nor overlaps between them.

GEOS simplifies what two pieces have in common once for both (Visvalingam and Whyatt).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tileseg.geobox import GeoBox
from tileseg.polygons.outlines import Outlines, in_rows
from tileseg.polygons.vectorize import Pieces, polygonise
from tileseg.polygons.wkb import closed
from tileseg.scenes.area import pixel_metres
from tileseg.window import Window

__all__ = ["Manner", "finished", "polygonise_simply", "tolerance_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How pieces are made of a mask."""

    nodata: Collection[int]
    """Values that are no class: borders to them stay as they are."""
    left_out: Collection[int] = ()
    """Others that get no polygon: borders to them are simplified."""
    tolerance: float | None = None
    """See `_simplified`; None for all corners."""


def polygonise_simply(
    labels: NDArray[Any],
    confidence: NDArray[np.uint8] | None,
    window: Window,
    manner: Manner,
) -> Pieces:
    """Return the pieces of one shard, as `polygonise` does, simplified if asked for.

    Args:
        labels: the shard's mask, (height, width).
        confidence: the same shape; None if there is none.
        window: the shard's pixels in the scene.
        manner: how.
    """
    nodata, left_out = manner.nodata, manner.left_out
    if manner.tolerance is None:
        values = {*nodata, *left_out}
        return polygonise(labels, confidence, window, left_out=values)
    return finished(polygonise(labels, confidence, window, left_out=nodata), manner)


def finished(pieces: Pieces, manner: Manner) -> Pieces:
    """Return traced pieces of all classes as they are wanted."""
    if manner.tolerance is not None:
        pieces = _simplified(pieces, manner.tolerance)
    return pieces.without(manner.left_out) if manner.left_out else pieces


def tolerance_of(metres: float | None, box: GeoBox) -> float | None:
    """Return a tolerance on the ground in pixels of a shard, as large in its middle.

    None for none.
    """
    if metres is None:
        return None
    side = pixel_metres(box)
    assert side, "a scene without metres was refused"
    return metres / side


def _simplified(pieces: Pieces, tolerance: float) -> Pieces:
    """Return pieces with some of their corners.

    Borders between two pieces lose corners; where three or more meet all stay, as they
    do on the shard's border and where there is no class. So what all pieces cover
    together is the same as before, and pieces of other shards still fit. Where a
    vertex of another lies on a border of a piece, that has one, too.

    Args:
        pieces: of one shard, as `polygonise` makes them of all of its classes.
        tolerance: side in pixels of a square as large as the triangles that corners
            may cut off.
    """
    outlines = pieces.areas.outlines
    if not len(outlines):
        return pieces
    noded = outlines.with_vertices(np.unique(in_rows(outlines.vertices)))
    fewer = shapely.coverage_simplify(
        _polygons(noded), tolerance, simplify_boundary=False
    )
    areas = replace(pieces.areas, outlines=_outlines(fewer))
    return replace(pieces, areas=areas)


def _polygons(outlines: Outlines) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return them as shapely has them, (n,)."""
    rings = closed(outlines)
    return shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        rings.vertices.astype(np.float64),
        (rings.rings, rings.polygons),
    )


def _outlines(polygons: Any) -> Outlines:  # noqa: ANN401  (shapely is untyped)
    """Return polygons of shapely, (n,), as we have them."""
    turned = shapely.orient_polygons(polygons, exterior_cw=True)  # where y goes up
    _, places, (rings, parts) = shapely.to_ragged_array(turned)
    # The last vertex of a ring is its first.
    is_last = np.zeros(len(places), np.bool_)
    is_last[rings[1:] - 1] = True
    vertices = places[~is_last].astype(np.int32)
    ends = rings - np.arange(len(rings))
    return Outlines(vertices, ends.astype(np.int64), parts.astype(np.int64)).begun()
