"""Polygons below an area -> parts of the neighbours that they border on longest.

Of a whole scene at once, since what a piece at a seam is part of is known last. What
is held is a few numbers for each piece and each border of a small one, no geometry.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.borders import Borders, Gauge, borders_of, summed
from tileseg.polygons.outlines import Indices, ends_of
from tileseg.polygons.simplify import Manner, finished
from tileseg.polygons.trace import components
from tileseg.polygons.vectorize import Pieces, Sureness, polygonise
from tileseg.window import Window

__all__ = ["Eliminated", "eliminate", "eliminate_within", "settled"]

_NONE = -1  # no class has it


@dataclass(frozen=True, slots=True, eq=False)
class Eliminated:
    """What class each piece of each shard has, now that small ones are merged."""

    classes: NDArray[Any]
    """(n,), of all pieces, shard after shard."""
    places: dict[Window, slice]
    """Where in `classes` those of each shard are."""
    small: int
    """How many polygons of the mask were small."""
    alone: int
    """How many are still: they have no neighbour."""

    def told(self, hectares: float) -> str:
        """Return what a file of polygons says of it."""
        return (
            f"Polygons smaller than {hectares:g} ha are merged into the neighbour with "
            f"the longest common border: {self.small} of the mask are smaller, of what "
            f"is made of them {self.alone}, without a neighbour"
        )

    def of(self, window: Window) -> NDArray[Any]:
        """Return the classes of one shard's pieces."""
        return self.classes[self.places[window]]


def eliminate(rows: Iterable[Sequence[Borders]], gauge: Gauge) -> Eliminated:
    """Merge every polygon that is small and has a neighbour into one of these.

    Step by step: the smallest one becomes part of the one that it borders on longest,
    and what is of that one's class and touches it now is one polygon with it; until
    none is left that is small and has a neighbour. Of equally small ones the one whose
    last pixel comes first, row by row; of equally long borders that with the largest
    neighbour, then that whose last pixel comes first. So the mask decides, no seam.

    Args:
        rows: the pieces of each row of shards that has any, downwards; those of a row
            are as high as each other, and come from left to right.
        gauge: of the whole scene.
    """
    table = _gather(rows, gauge)
    roots = components(len(table.classes), table.seams)
    _, first, region = np.unique(roots, return_index=True, return_inverse=True)
    areas, last = np.zeros(len(first), np.int64), table.last[first]
    np.add.at(areas, region, table.areas)
    np.maximum.at(last, region, table.last)
    graph = _Graph.of(region[table.pairs], table.lengths, areas < gauge.least)
    merging = _Merging(graph, table.classes[first], areas, last)
    alone = merging.run(gauge.least)
    classes = merging.classes.astype(table.classes.dtype)
    return Eliminated(classes[region], table.places, len(graph.small), alone)


def eliminate_within(pieces: Pieces, gauge: Gauge, manner: Manner) -> Pieces:
    """Do so in one window alone: what its borders cut off is never small.

    Args:
        pieces: of the window, as traced, of all classes.
        gauge: of its rows.
        manner: how the polygons are made.
    """
    borders = borders_of(pieces, gauge)
    rims = np.concatenate([pieces.top, pieces.bottom, pieces.left, pieces.right])
    areas = borders.areas.copy()
    areas[rims[rims >= 0]] = np.ceil(gauge.least)
    found = eliminate([[replace(borders, areas=areas)]], gauge)
    return settled(pieces, found.classes, manner)


def settled(pieces: Pieces, classes: NDArray[Any], manner: Manner) -> Pieces:
    """Return the pieces of one shard anew, where those of a class that touch are one.

    Args:
        pieces: as traced, of all classes.
        classes: (n,), that each has now.
        manner: how pieces are made: simplified, or without some classes.
    """
    old = pieces.areas
    if not np.array_equal(classes, old.classes):
        labels = np.append(classes.astype(np.int32), _NONE)[pieces.numbers]
        made = polygonise(labels, None, pieces.window, left_out=(_NONE,))
        areas = replace(made.areas, classes=made.areas.classes.astype(classes.dtype))
        if old.sureness and len(old):
            # A ring begins at the upper left of its first pixel.
            box = pieces.window
            x, y = (old.outlines.vertices[old.outlines.begins] - (box.col, box.row)).T
            sure = _sums(old.sureness, made.numbers[y, x], len(areas))
            areas = replace(areas, sureness=sure)
        pieces = replace(made, areas=areas)
    return finished(pieces, manner)


def _sums(sure: Sureness, group: NDArray[np.int32], count: int) -> Sureness:
    """Return what the confidence layer says of each of `count` groups."""
    least = np.full(count, np.iinfo(np.uint8).max, np.uint8)
    np.minimum.at(least, group, sure.least)
    return Sureness(np.bincount(group, sure.total, count).astype(np.int64), least)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """All pieces of a scene, shard after shard, and where they touch."""

    classes: NDArray[Any]
    """(n,)."""
    areas: Indices
    """(n,)."""
    last: Indices
    """(n,)."""
    seams: Indices
    """(2, k), pieces of one class that touch across a seam."""
    pairs: Indices
    """(2, m), pieces of two classes that touch; some more than once."""
    lengths: Indices
    """(m,), of their common borders."""
    places: dict[Window, slice]
    """Where those of each shard are."""


_Lengths = tuple[Indices, Indices]
"""Pairs of pieces, (2, m), and how long they touch, (m,)."""


def _gather(rows: Iterable[Sequence[Borders]], gauge: Gauge) -> _Table:
    """Go through all shards once."""
    nothing = np.empty(0, np.int64)
    pieces = [(np.empty(0, np.uint8), nothing, nothing)]
    touching = [(np.empty((2, 0), np.int64), nothing)]
    places = dict[Window, slice]()
    above, row_stop, total = nothing, _NONE, 0
    for row in rows:
        first = ends_of(np.array([len(item.classes) for item in row])) + total
        for item, (begin, end) in zip(row, pairwise(first.tolist()), strict=True):
            places[item.window] = slice(begin, end)
            pieces.append((item.classes, item.areas, item.last))
            touching.append((item.pairs + begin, item.lengths))
        box = row[0].window
        touching += _beside(row, first, gauge.down[box.slices[0]])
        if row_stop == box.row:
            wide = min(len(above), row[-1].window.col_stop)
            ends = np.stack([above[:wide], _line(row, first, "top")[:wide]])
            touching.append(_meeting(ends, np.full(wide, gauge.across[box.row])))
        above, row_stop = _line(row, first, "bottom"), box.row_stop
        total = int(first[-1])
    classes, areas, last = map(np.concatenate, zip(*pieces, strict=True))
    ends, lengths = (np.concatenate(it, axis=-1) for it in zip(*touching, strict=True))
    is_one = np.equal(*classes[ends])
    two, long = ends[:, ~is_one], lengths[~is_one]
    return _Table(classes, areas, last, ends[:, is_one], two, long, places)


def _beside(
    row: Sequence[Borders], first: Indices, down: Indices
) -> Iterator[_Lengths]:
    """Yield what meets at each seam within a row of shards."""
    for (near, begin), (far, start) in pairwise(zip(row, first, strict=False)):
        if near.window.col_stop == far.window.col:
            ends = _numbered(near.right, begin), _numbered(far.left, start)
            yield _meeting(np.stack(ends), down)


def _line(row: Sequence[Borders], first: Indices, side: str) -> Indices:
    """Return the pieces of the first or the last row of pixels of a row of shards."""
    line = np.full(row[-1].window.col_stop, _NONE)
    for item, begin in zip(row, first, strict=False):
        line[item.window.slices[1]] = _numbered(getattr(item, side), begin)
    return line


def _numbered(pieces: NDArray[np.int32], begin: int) -> Indices:
    """Return a shard's pieces as they are numbered in the scene."""
    return np.where(pieces >= 0, pieces + np.int64(begin), _NONE)


def _meeting(ends: Indices, lengths: Indices) -> _Lengths:
    """Return which pieces on both sides of a seam meet there, and how long they do."""
    both = (ends >= 0).all(axis=0)
    return summed(ends[:, both], lengths[both])


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """The neighbours of small regions."""

    small: Indices
    """(s,), these regions."""
    ends: Indices
    """(n + 1,), where each region's neighbours begin below, if it is small."""
    others: Indices
    """(k,), their neighbours, one region's after the other's."""
    lengths: Indices
    """(k,), how long they border on each other."""

    @classmethod
    def of(
        cls, pairs: Indices, lengths: Indices, is_small: NDArray[np.bool_]
    ) -> "_Graph":
        """Sort them by region; `pairs` may come more than once."""
        pairs, lengths = summed(pairs, lengths)
        ways = [(pairs, is_small[pairs[0]]), (pairs[::-1], is_small[pairs[1]])]
        source, target = np.concatenate([way[:, it] for way, it in ways], axis=1)
        lengths = np.concatenate([lengths[it] for _, it in ways])
        order = np.argsort(source, kind="stable")
        ends = ends_of(np.bincount(source, minlength=len(is_small)))
        return cls(np.flatnonzero(is_small), ends, target[order], lengths[order])


class _Merging:
    """Regions while they become parts of each other, see `eliminate`.

    Numbers are in arrays that Python reads one by one: there may be millions.
    """

    def __init__(
        self, graph: _Graph, classes: NDArray[Any], areas: Indices, last: Indices
    ) -> None:
        self._graph, self._ends = graph, _plain(graph.ends)
        self._classes = _plain(classes)
        self._areas, self._last = _plain(areas), _plain(last)
        every = np.arange(len(areas))
        self._above = _plain(every)  # another that each is part of, or itself
        self._next = _plain(every)  # a ring of all that are one
        self._grown = list[_Ranked]()  # and are small still

    def run(self, least: float) -> int:
        """Merge what is smaller than `least`; return how many stay so, alone."""
        alone = 0
        for area, _, region in self._smallest_first():
            if self._above[region] != region or self._areas[region] != area:
                continue  # it is part of another, or larger, by now
            borders = self._borders(region)
            if not borders:
                alone += 1
                continue
            into = max(borders, key=lambda it: self._rank(it, borders[it]))
            self._join(into, [region, *borders])
            if self._areas[into] < least:
                ranked = self._areas[into], self._last[into], into
                heappush(self._grown, ranked)
        return alone

    @property
    def classes(self) -> Indices:
        """(n,), the class of what each region is part of."""
        above = np.array(self._above)
        while not np.array_equal(up := above[above], above):
            above = up
        classes: Indices = np.array(self._classes)[above]
        return classes

    def _smallest_first(self) -> Iterator["_Ranked"]:
        """Yield small regions, those that grow meanwhile where they belong."""
        small = self._graph.small
        areas, last = (np.array(it)[small] for it in (self._areas, self._last))
        for at in np.lexsort((last, areas)):
            ranked = int(areas[at]), int(last[at]), int(small[at])
            while self._grown and self._grown[0] < ranked:
                yield heappop(self._grown)
            yield ranked
        while self._grown:
            yield heappop(self._grown)

    def _borders(self, region: int) -> dict[int, int]:
        """Return the neighbours of a small region, and how long it borders on each."""
        borders, member = dict[int, int](), region
        while True:
            part = slice(self._ends[member], self._ends[member + 1])
            others = self._graph.others[part].tolist()
            lengths = self._graph.lengths[part].tolist()
            for other, length in zip(others, lengths, strict=True):
                if (top := self._top(other)) != region:
                    borders[top] = borders.get(top, 0) + length
            member = self._next[member]
            if member == region:
                return borders

    def _rank(self, region: int, border: int) -> tuple[int, int, int]:
        return border, self._areas[region], -self._last[region]

    def _join(self, into: int, regions: Sequence[int]) -> None:
        """Make the first of some part of another, with all others of its class."""
        first, *others = regions
        known, ring = self._classes[into], self._next
        same = [it for it in others if self._classes[it] == known and it != into]
        for region in (first, *same):
            self._above[region] = into
            self._areas[into] += self._areas[region]
            self._last[into] = max(self._last[into], self._last[region])
            ring[into], ring[region] = ring[region], ring[into]

    def _top(self, region: int) -> int:
        """Return what a region is part of."""
        above = self._above
        while above[region] != region:
            above[region] = region = above[above[region]]
        return region


_Ranked = tuple[int, int, int]
"""Area, last pixel, region: the smallest first."""


def _plain(values: NDArray[Any]) -> "array[int]":
    return array("q", values.astype(np.int64).tobytes())
