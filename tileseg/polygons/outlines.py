"""Polygons whose corners are corners of pixels, many of them in three arrays.

Pure geometry in whole pixels, x to the right and y down: no class, no ground.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Indices", "Outlines", "cycles", "ends_of", "in_rows", "spread"]

Indices = NDArray[np.int64]
"""Places in an array."""

_COLUMNS = 2**32 - 1
"""What `in_rows` leaves to them."""


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Polygons, each the ring round it, then those round its holes.

    Who walks along a ring has the inside on the left, seen on the picture. A ring
    begins with a side that leads down, with the one whose beginning comes first row by
    row, and holes are in the order of their beginnings. So the same polygon is always
    the same numbers. As traced, sides that run down or up and sides that run across
    take turns; simplified, they lead anywhere.
    """

    vertices: NDArray[np.int32]
    """(m, 2), x and y of the corners; a ring's last side leads to its first vertex."""
    rings: Indices
    """(r + 1,), where each ring begins in `vertices`, and where the last ends."""
    polygons: Indices
    """(n + 1,), where each polygon begins in `rings`, and where the last ends."""

    def __len__(self) -> int:
        return len(self.polygons) - 1

    @classmethod
    def joined(cls, parts: Sequence["Outlines"]) -> "Outlines":
        """Return the polygons of all parts, one part after the other."""
        none = cls(np.empty((0, 2), np.int32), *np.zeros((2, 1), np.int64))
        parts = [none, *parts]
        return cls(
            np.concatenate([part.vertices for part in parts]),
            ends_of(np.concatenate([np.diff(part.rings) for part in parts])),
            ends_of(np.concatenate([np.diff(part.polygons) for part in parts])),
        )

    def moved(self, right: int, down: int) -> "Outlines":
        """Return the same polygons at another place."""
        vertices = self.vertices + np.array([right, down], np.int32)
        return Outlines(vertices, self.rings, self.polygons)

    def take(self, index: NDArray[Any] | slice) -> "Outlines":
        """Return some of the polygons, as `index` takes them from an array."""
        counts = np.diff(self.polygons)[index]
        return self.of_rings(spread(self.polygons[:-1][index], counts), counts)

    def of_rings(self, index: Indices, counts: Indices) -> "Outlines":
        """Return polygons of `counts` rings each, which are ours of these numbers."""
        sides = np.diff(self.rings)[index]
        vertices = self.vertices[spread(self.rings[:-1][index], sides)]
        return Outlines(vertices, ends_of(sides), ends_of(counts))

    def begun_at(self, vertices: Indices) -> tuple["Outlines", Indices]:
        """Return the same rings, each begun at another of its vertices.

        Those are (r,); a ring's end is its first. Beside them: which vertex is where.
        """
        counts = np.diff(self.rings)
        begins, length = np.repeat(self.rings[:-1], counts), np.repeat(counts, counts)
        shift = np.repeat(vertices - self.rings[:-1], counts)
        turned = begins + (np.arange(len(begins)) - begins + shift) % length
        return Outlines(self.vertices[turned], self.rings, self.polygons), turned

    @property
    def begins(self) -> Indices:
        """(n,), where each polygon begins in `vertices`."""
        return self.rings[self.polygons[:-1]]

    @property
    def after(self) -> Indices:
        """(m,), the vertex that the side from each one leads to."""
        after = np.arange(1, len(self.vertices) + 1)
        after[self.rings[1:] - 1] = self.rings[:-1]
        return after

    @property
    def last_pixels(self) -> Indices:
        """(n,), numbers that grow with the last pixel of each, row by row.

        As traced: what is simplified may lack that corner.
        """
        corners = in_rows(self.vertices)
        return np.maximum.reduceat(corners, self.begins) if len(self) else corners

    @property
    def pixels(self) -> NDArray[np.float64]:
        """(n,), how many pixels each covers: as traced whole ones, else halves too."""
        return self.area(np.arange(self.vertices[:, 1].max(initial=0) + 1))

    def area(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return how large each is, (n,).

        A side that leads across and down has its columns' mean in all of its rows: what
        it takes from one polygon it gives to the other.

        Args:
            rows: (height + 1,), the size of one pixel of each row above, summed.
        """
        if not len(self):
            return np.empty(0)
        x, y = self.vertices.T.astype(np.int64)
        there, begins = self.after, self.begins
        # Counted from a column nearby, so that little is lost where sizes are floats.
        beside = x - np.repeat(x[begins], np.diff(begins, append=len(x)))
        sides = (beside + beside[there]) * (rows[y] - rows[y[there]])
        twice: NDArray[Any] = np.add.reduceat(sides, begins)
        return twice / 2

    def perimeter(
        self,
        across: NDArray[np.float64],
        down: NDArray[np.float64],
        lean: float = 0.0,
    ) -> NDArray[np.float64]:
        """Return how long the rings of each are together, (n,).

        Args:
            across: (height + 1,), the length of a pixel's upper side in each row.
            down: (height + 1,), that of the left sides of each row above, summed.
            lean: cosine of the angle between these two sides, 0 of rectangles.
        """
        if not len(self):
            return np.empty(0)
        x, y = self.vertices.T
        there = self.after
        wide = (x[there] - x) * (across[y] + across[y[there]]) / 2
        high = down[y[there]] - down[y]
        lengths = np.sqrt(wide**2 + high**2 + 2 * lean * wide * high)
        return np.add.reduceat(lengths, self.begins)

    def with_vertices(self, places: Indices) -> "Outlines":
        """Return them with vertices more, where sides run through certain corners.

        Of sides that run down, up or across; of others none is looked for.

        Args:
            places: those corners, as `in_rows` numbers them, sorted.
        """
        here, there = self.vertices, self.vertices[self.after]
        turned = np.sort(in_rows(_corners_of(places)[:, ::-1]))
        found, counts = list[NDArray[np.int32]](), np.zeros(len(here), np.int64)
        sides = list[Indices]()
        for axis, numbers in ((0, turned), (1, places)):
            # Those of the same column, or row, are a run of the sorted numbers.
            way = slice(None, None, 1 if axis else -1)
            side = np.flatnonzero(here[:, axis] == there[:, axis])
            ends = np.stack([in_rows(at[side][:, way]) for at in (here, there)])
            low = np.searchsorted(numbers, ends.min(axis=0), "right")
            count = np.searchsorted(numbers, ends.max(axis=0), "left") - low
            inside = _corners_of(numbers[spread(low, count)])[:, way]
            found.append(inside)
            sides.append(np.repeat(side, count))
            counts[side] += count
        side, more = np.concatenate(sides), np.concatenate(found)
        away = abs(more - here[side]).sum(axis=1)
        vertices = np.concatenate([here, more])
        order = np.lexsort(
            (
                np.concatenate([np.zeros(len(here), away.dtype), away]),
                np.concatenate([np.arange(len(here)), side]),
            )
        )
        sides_of = ends_of(counts + 1)
        return Outlines(vertices[order], sides_of[self.rings], self.polygons)

    def begun(self) -> "Outlines":
        """Return the same polygons, their rings begun and ordered as they should."""
        if not len(self):
            return self
        places, after = in_rows(self.vertices), self.after
        leads_down = self.vertices[after, 1] > self.vertices[:, 1]
        places[~leads_down] = np.iinfo(np.int64).max
        least = np.minimum.reduceat(places, self.rings[:-1])
        first = np.flatnonzero(places == np.repeat(least, np.diff(self.rings)))
        rings = self.begun_at(first)[0]
        owner = np.repeat(np.arange(len(self)), np.diff(self.polygons))
        is_hole = np.ones(len(owner), np.bool_)
        is_hole[self.polygons[:-1]] = False
        order = np.lexsort((least, is_hole, owner))
        return rings.of_rings(order, np.diff(self.polygons))


def ends_of(counts: Indices) -> Indices:
    """Return where each of several runs begins, and where the last ends."""
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def spread(begins: Indices, counts: Indices) -> Indices:
    """Return the numbers of runs, one run after the other.

    >>> spread(np.array([7, 2]), np.array([3, 2]))
    array([7, 8, 9, 2, 3])
    """
    ends = ends_of(counts)
    return np.arange(ends[-1]) + np.repeat(begins - ends[:-1], counts)


def in_rows(vertices: NDArray[np.int32]) -> Indices:
    """Return numbers, (m,), that grow with the place of vertices, row by row."""
    return (vertices[:, 1].astype(np.int64) << 32) + vertices[:, 0]


def _corners_of(numbers: Indices) -> NDArray[np.int32]:
    """Return the corners, (m, 2), that `in_rows` numbers so."""
    return np.stack([numbers & _COLUMNS, numbers >> 32], axis=1).astype(np.int32)


def cycles(follow: Indices) -> tuple[Indices, Indices]:
    """Return the cycles of a permutation, one after the other, and where each ends.

    Each begins with its least, and they come in the order of these.
    """
    left, order, ends = follow.tolist(), list[int](), [0]
    for first in range(len(left)):
        at = first
        while (then := left[at]) >= 0:
            order.append(at)
            left[at] = -1
            at = then
        if len(order) > ends[-1]:
            ends.append(len(order))
    return np.array(order, np.int64), np.array(ends, np.int64)
