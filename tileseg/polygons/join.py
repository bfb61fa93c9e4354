"""Pieces of shards -> the polygons of a scene: joined across seams, row by row.

What is held is one row of shards, and of the rows above what still goes on; an area
that is closed is handed on. Areas come in the order of their last pixels: so none
waits for another, and their order is the same however the scene was cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.outlines import Indices, ends_of, in_rows
from tileseg.polygons.trace import components
from tileseg.polygons.unite import unite
from tileseg.polygons.vectorize import Areas, Pieces, Sureness

__all__ = ["join"]


def join(
    rows: Iterable[Sequence[Pieces]], *, is_noded: bool = False
) -> Iterator[Areas]:
    """Unite the pieces of equal class that share a pixel edge across a seam.

    Yields what polygonising the whole mask at once gives, nodata where a shard is
    missing: areas by their last pixels, row-major, some at a time. Of pieces that are
    simplified, what these are together; their corners on seams stay where they are.

    Args:
        rows: the pieces of each row of shards that has any, downwards; those of a row
            are as high as each other, and come from left to right.
        is_noded: whether areas have a vertex wherever one of another is on their
            border, as pieces that are simplified have; then rows are cut alike.
    """
    sweep = _Sweep(is_noded=is_noded)
    for row in rows:
        yield from sweep.take(row)
    yield from sweep.finish()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Pieces of areas that are not closed yet."""

    areas: Areas
    group: Indices
    """(n,), which of these areas each belongs to."""

    def take(self, index: NDArray[Any]) -> "_Part":
        return _Part(self.areas.take(index), self.group[index])


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """A row of pixels, where areas go on to the next."""

    row_stop: int
    """The next."""
    group: Indices
    """(columns,), which area each pixel is of, -1 for none."""
    classes: NDArray[Any]
    """The same shape; of any value where there is none."""


class _Sweep:
    """All that is known when some rows of shards have been seen, and no more."""

    def __init__(self, *, is_noded: bool) -> None:
        self._nodes = np.empty(0, np.int64) if is_noded else None  # on seams
        self._parts: list[_Part] = []
        self._open = 0  # areas
        self._line = _Line(0, np.empty(0, np.int64), np.empty(0, np.int64))
        self._seams: tuple[set[int], set[int]] = set(), set()  # columns, rows

    def take(self, row: Sequence[Pieces]) -> Iterator[Areas]:
        """Yield the areas that are closed with the next row of shards, in order."""
        for item in row:
            self._seams[0].update((item.window.col, item.window.col_stop))
            self._seams[1].update((item.window.row, item.window.row_stop))
        areas = Areas.joined([item.areas for item in row])
        if self._nodes is not None:
            found = _on_borders(row)
            self._nodes = np.union1d(self._nodes, found)
        first = ends_of(np.array([len(item.areas) for item in row])) + self._open
        top, bottom = (_line(row, first, side) for side in ("top", "bottom"))
        pairs = [*_beside(row, first), self._below(row[0].window.row, top)]
        roots = components(int(first[-1]), np.concatenate(pairs, axis=1))
        # What the last line meets goes on.
        group = np.full(len(roots), -1)
        below = np.unique(roots[bottom.group[bottom.group >= 0]])
        group[below] = np.arange(len(below))
        parts = [*self._parts, _Part(areas, np.arange(first[0], first[-1]))]
        closed, self._parts = list[_Part](), list[_Part]()
        for part in parts:
            root = roots[part.group]
            goes_on = group[root] >= 0
            if goes_on.all():  # not copied: few areas may have most of the pieces
                self._parts.append(_Part(part.areas, group[root]))
                continue
            closed.append(_Part(part.areas, root).take(~goes_on))
            if goes_on.any():
                self._parts.append(_Part(part.areas, group[root]).take(goes_on))
        self._open = len(below)
        there = bottom.group >= 0
        bottom.group[there] = group[roots[bottom.group[there]]]
        self._line = bottom
        yield from self._united(closed)

    def finish(self) -> Iterator[Areas]:
        """Yield the areas that reach the end."""
        yield from self._united(self._parts)

    def _below(self, row: int, top: _Line) -> Indices:
        """Return pairs, (2, m), of areas that go on and pieces in which they do."""
        line, wide = self._line, min(len(self._line.group), len(top.group))
        if line.row_stop != row:
            wide = 0
        pairs = np.stack([line.group[:wide], top.group[:wide]])
        same = line.classes[:wide] == top.classes[:wide]
        return pairs[:, same & (pairs >= 0).all(axis=0)]

    def _united(self, parts: Sequence[_Part]) -> Iterator[Areas]:
        """Yield the areas that parts make, in their order, if there are any."""
        if not parts:
            return
        areas = Areas.joined([part.areas for part in parts])
        group = np.concatenate([part.group for part in parts])
        is_whole = np.bincount(group)[group] == 1
        made = [areas.take(is_whole)]
        if not is_whole.all():
            made.append(_unite(areas.take(~is_whole), group[~is_whole], self._seams))
        areas = Areas.joined(made)
        if self._nodes is not None:
            noded = areas.outlines.with_vertices(self._nodes)
            areas = replace(areas, outlines=noded)
        yield areas.take(np.argsort(areas.last))


def _on_borders(row: Sequence[Pieces]) -> Indices:
    """Return the vertices on the borders of shards, numbered by `in_rows`."""
    found = list[NDArray[np.int32]]()
    for item in row:
        box, vertices = item.window, item.areas.outlines.vertices
        borders = (box.col, box.col_stop), (box.row, box.row_stop)
        on = [np.isin(vertices[:, axis], lines) for axis, lines in enumerate(borders)]
        found.append(vertices[on[0] | on[1]])
    return in_rows(np.concatenate(found))


def _line(row: Sequence[Pieces], first: Indices, side: str) -> _Line:
    """Return the first or the last row of pixels of a row of shards."""
    stop = row[-1].window.col_stop
    line = _Line(row[0].window.row_stop, np.full(stop, -1), np.zeros(stop, np.int64))
    for item, begin in zip(row, first, strict=False):
        piece, columns = getattr(item, side), item.window.slices[1]
        there = piece >= 0
        line.group[columns][there] = piece[there] + begin
        line.classes[columns][there] = item.areas.classes[piece[there]]
    return line


def _beside(row: Sequence[Pieces], first: Indices) -> Iterator[Indices]:
    """Yield pairs of pieces, (2, m), that meet at each seam within a row of shards."""
    for (near, begin), (far, start) in pairwise(zip(row, first, strict=False)):
        if near.window.col_stop == far.window.col:
            pair = np.stack([near.right, far.left]).astype(np.int64)
            one, two = pair[:, (pair >= 0).all(axis=0)]
            same = near.areas.classes[one] == far.areas.classes[two]
            yield np.stack([one[same] + begin, two[same] + start])


def _unite(areas: Areas, group: Indices, seams: tuple[set[int], set[int]]) -> Areas:
    """Return one area for each group of pieces, of which none is whole."""
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    sure, last = areas.sureness, areas.last[first]
    np.maximum.at(last, group, areas.last)
    pixels = np.bincount(group, areas.pixels).astype(np.int64)
    if sure:
        least = sure.least[first]
        np.minimum.at(least, group, sure.least)
        total = np.bincount(group, sure.total).astype(np.int64)
        sure = Sureness(total, least)
    outlines = unite(areas.outlines, group, seams)
    return Areas(outlines, areas.classes[first], pixels, last, sure)
