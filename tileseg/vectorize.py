"""Masks -> polygons: pieces of shards, made by the workers, joined across the seams.

All of it in integer scene pixels (x = column, y = row), so that it is exact; where
they lie on the ground comes last and is not known here.
"""

from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely import GeometryType

from tileseg.area import row_hectares
from tileseg.card import CONFIDENCE_STEPS
from tileseg.geobox import GeoBox
from tileseg.grid import Shard
from tileseg.window import Window

__all__ = ["Pieces", "Polygons", "join", "polygonise"]

_NEIGHBOURS = ((0, 1, "right", "left"), (1, 0, "bottom", "top"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """The polygons of one shard, in row-major order of their first pixels."""

    classes: NDArray[np.uint8]
    """(n,) mask values."""
    pixels: NDArray[np.int64]
    """(n,) how many each covers."""
    hectares: NDArray[np.float64] | None
    """(n,) their area; None where the CRS knows no metres."""
    confidence: NDArray[np.int64] | None
    """(n,) sums of the confidence layer over their pixels; None if there is none."""
    vertices: NDArray[np.int32]
    """(m, 2) x and y of the closed rings, one ring after the other."""
    rings: NDArray[np.int64]
    """(r + 1,) where each ring begins in `vertices`, and where the last ends."""
    polygons: NDArray[np.int64]
    """(n + 1,) where each piece begins in `rings`, its exterior first."""
    top: NDArray[np.int32]
    """(width,) the piece of each pixel of the first row, -1 where there is none."""
    bottom: NDArray[np.int32]
    """(width,) the same of the last row."""
    left: NDArray[np.int32]
    """(height,) the same of the first column."""
    right: NDArray[np.int32]
    """(height,) the same of the last column."""

    @property
    def outlines(self) -> NDArray[Any]:
        """The geometries, (n,)."""
        return _outlines(self.vertices, self.rings, self.polygons)

    def to_bytes(self) -> bytes:
        """Return a file of them: NumPy's .npz; the same pieces give the same bytes."""
        names = [item.name for item in fields(self)]
        known = {k: x for k in names if (x := getattr(self, k)) is not None}
        buffer = BytesIO()
        np.savez_compressed(buffer, **known)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Pieces":
        """Rebuild what `to_bytes` gave."""
        with np.load(BytesIO(data), allow_pickle=False) as file:
            known: dict[str, Any] = dict.fromkeys(item.name for item in fields(cls))
            return cls(**known | dict(file))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Polygons:
    """The polygons of a scene, in row-major order of their first pixels."""

    outlines: NDArray[Any]
    """(n,) shapely polygons in scene pixels, each in GEOS's normal form."""
    classes: NDArray[np.uint8]
    """(n,) mask values."""
    hectares: NDArray[np.float64] | None
    """(n,) their area; None where the CRS knows no metres."""
    confidence: NDArray[np.float64] | None
    """(n,) means of the probability, 0 to 1; None if it was not made."""


def polygonise(
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
    geobox: GeoBox,
    window: Window,
    *,
    left_out: Collection[int],
) -> Pieces:
    """Return the 4-connected pieces of equal class of one shard.

    Every pixel whose class is not left out lies in exactly one of them.

    Args:
        labels: the shard's mask, (height, width).
        confidence: the same shape; None if there is none.
        geobox: where the shard lies, for the areas.
        window: the shard's pixels in the scene.
        left_out: mask values that get no polygon.
    """
    wanted = np.isin(labels, list(left_out), invert=True)
    ids = _number(labels, wanted)
    inside = ids[wanted]
    first = np.unique(inside, return_index=True)[1]
    pixels = np.bincount(inside)
    area = row_hectares(geobox)
    hectares = None
    if area is not None:
        # Only what differs from the first row's is summed: in a plane nothing, and
        # there a piece has exactly pixels x area.
        more = np.broadcast_to((area - area[0])[:, None], labels.shape)[wanted]
        hectares = pixels * area[0] + np.bincount(inside, more)
    sums = None
    if confidence is not None:
        sums = np.bincount(inside, confidence[wanted]).astype(np.int64)
    vertices, rings, polygons = _trace(ids)
    return Pieces(
        classes=labels[wanted][first],
        pixels=pixels,
        hectares=hectares,
        confidence=sums,
        vertices=(vertices + np.array([window.col, window.row])).astype(np.int32),
        rings=rings,
        polygons=polygons,
        top=ids[0],
        bottom=ids[-1],
        left=ids[:, 0],
        right=ids[:, -1],
    )


def join(shards: Mapping[Shard, Pieces], geobox: GeoBox) -> Polygons:
    """Unite the pieces of equal class that share a pixel edge across a seam.

    What comes out is what polygonising the whole mask at once gives, nodata where a
    shard is missing.

    Args:
        shards: the pieces of every shard there is, at least one.
        geobox: the scene's.
    """
    parts = [shards[shard] for shard in sorted(shards)]
    begin = np.cumsum([0, *(len(item.classes) for item in parts)])
    first = dict(zip(sorted(shards), begin[:-1].tolist(), strict=True))
    roots = _components(int(begin[-1]), _seams(shards, first))
    heads, group = np.unique(roots, return_inverse=True)
    outlines = _corners(
        _united(np.concatenate([item.outlines for item in parts]), heads, group)
    )
    order = np.argsort(_first_pixels(outlines))
    pixels = _summed([item.pixels for item in parts], group)
    hectares = confidence = None
    area = row_hectares(geobox.crop(Window(0, 0, 1, geobox.width)))
    if area is not None:
        # As in `polygonise`: in a plane the cut does not show, to the last bit.
        known = [item for item in parts if item.hectares is not None]
        more = [item.hectares - item.pixels * area[0] for item in known]
        hectares = (pixels * area[0] + _summed(more, group))[order]
    sums = [item.confidence for item in parts if item.confidence is not None]
    if sums:
        confidence = (_summed(sums, group) / (pixels * CONFIDENCE_STEPS))[order]
    return Polygons(
        outlines=outlines[order],
        classes=np.concatenate([item.classes for item in parts])[heads][order],
        hectares=hectares,
        confidence=confidence,
    )


def _number(labels: NDArray[np.uint8], wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the piece of every pixel, -1 where it is not wanted.

    Pieces are counted in row-major order of their first pixels.
    """
    starts = np.ones(labels.shape, np.bool_)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    spans = (np.cumsum(starts) - 1).reshape(labels.shape)  # of equal pixels in a row
    touch = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])  # once per pair
    pairs = np.stack([spans[:-1][touch], spans[1:][touch]])
    roots = _components(int(spans[-1, -1]) + 1, pairs)
    kept = wanted[starts]
    ids = np.searchsorted(np.unique(roots[kept]), roots).astype(np.int32)
    ids[~kept] = -1
    return np.asarray(ids[spans])


def _components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each of `count` things, the least it is tied to by `pairs`, (2, m).

    Union-find over all pairs at once: every root with a lesser neighbour is hung under
    it, then every thing straight under its root, until no pair has two.
    """
    roots = np.arange(count)
    while (ends := roots[pairs]).size and (apart := ends[0] != ends[1]).any():
        pairs, ends = pairs[:, apart], ends[:, apart]
        np.minimum.at(roots, ends.max(axis=0), ends.min(axis=0))
        while not np.array_equal(up := roots[roots], roots):
            roots = up
    return roots


def _trace(
    ids: NDArray[np.int32],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return vertices, rings and polygons (see `Pieces`) of numbered pixels."""
    numbers: list[int] = []
    flat = array("d")
    rings, polygons = [0], [0]
    # Connected by edges only: pieces that corners connect would be invalid polygons.
    for geometry, number in shapes(ids, mask=ids >= 0, connectivity=4):
        numbers.append(int(number))
        for ring in geometry["coordinates"]:
            flat.extend(chain.from_iterable(ring))
            rings.append(len(flat) // 2)
        polygons.append(len(rings) - 1)
    assert len(numbers) == ids.max() + 1, "a piece is one polygon"
    vertices = np.array(flat).reshape(-1, 2)
    outlines = _outlines(vertices, np.array(rings), np.array(polygons))
    return _ragged(outlines[np.argsort(numbers)])


def _seams(
    shards: Mapping[Shard, Pieces], first: Mapping[Shard, int]
) -> NDArray[np.int64]:
    """Return pairs of pieces, (2, m), of equal class and with an edge in common."""
    empty = np.empty((2, 0), np.int64)
    return np.concatenate([empty, *_meetings(shards, first)], axis=1)


def _meetings(
    shards: Mapping[Shard, Pieces], first: Mapping[Shard, int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of each seam between two shards."""
    for shard, item in shards.items():
        for down, across, near, far in _NEIGHBOURS:
            beside = Shard(shard.row + down, shard.col + across)
            if (other := shards.get(beside)) is None:
                continue
            ends = np.stack([getattr(item, near), getattr(other, far)]).astype(np.int64)
            one, two = ends[:, (ends >= 0).all(axis=0)]
            same = item.classes[one] == other.classes[two]
            yield np.stack([one[same] + first[shard], two[same] + first[beside]])


def _united(
    pieces: NDArray[Any], heads: NDArray[np.int64], group: NDArray[np.int64]
) -> NDArray[Any]:
    """Return one polygon for each group; those of one piece pass through untouched.

    Holes do too: what reaches the border of a shard is not enclosed in it.
    """
    outlines = pieces[heads]
    members = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(heads)))
    begins = np.concatenate([[0], ends])[:-1]
    for n in np.flatnonzero(ends - begins > 1):
        several = pieces[members[begins[n] : ends[n]]]
        shells = shapely.polygons(shapely.get_exterior_ring(several))
        shell, *between = shapely.get_rings(shapely.union_all(shells))
        rings, owners = shapely.get_rings(several, return_index=True)
        is_hole = np.diff(owners, prepend=-1) == 0
        holes = np.array([*between, *rings[is_hole]], object)
        outlines[n] = shapely.polygons(shell, holes)
    return outlines


def _corners(outlines: NDArray[Any]) -> NDArray[Any]:
    """Return the polygons in normal form, without vertices in the midst of a side."""
    vertices, rings, polygons = _ragged(outlines)
    opened = np.delete(vertices, rings[1:] - 1, axis=0)  # a ring ends where it begins
    rings = rings - np.arange(len(rings))
    before, after = np.arange(len(opened)) - 1, np.arange(len(opened)) + 1
    before[rings[:-1]] = rings[1:] - 1
    after[rings[1:] - 1] = rings[:-1]
    # Sides are parallel to the axes: only at a corner both coordinates change.
    kept = (opened[before] != opened[after]).all(axis=1)
    rings = np.concatenate([[0], np.cumsum(kept)])[rings]
    corners = opened[kept]
    closed = np.insert(corners, rings[1:], corners[rings[:-1]], axis=0)
    outlines = _outlines(closed, rings + np.arange(len(rings)), polygons)
    return np.asarray(shapely.normalize(outlines))


def _first_pixels(outlines: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each polygon a number that grows with its first pixel, row-major.

    The upper left corner of that pixel is a vertex: nothing lies above or before it.
    """
    vertices, rings, polygons = _ragged(outlines)
    x, y = vertices.astype(np.int64).T
    return np.minimum.reduceat((y << 32) + x, rings[polygons[:-1]])


def _outlines(
    vertices: NDArray[Any], rings: NDArray[np.int64], polygons: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the polygons that the three say; see `Pieces`."""
    offsets = (rings, polygons)
    made = shapely.from_ragged_array(
        GeometryType.POLYGON, vertices.astype(np.float64), offsets
    )
    return np.asarray(made, object)


def _ragged(
    outlines: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return what `_outlines` takes."""
    if not len(outlines):
        return np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64)
    kind, vertices, (rings, polygons) = shapely.to_ragged_array(outlines)
    assert kind == GeometryType.POLYGON, "what shares edges is one polygon"
    return vertices, rings, polygons


def _summed(parts: list[NDArray[Any]], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of each group."""
    return np.bincount(group, np.concatenate(parts)).astype(np.float64)
