"""Polygons whose sides run along the edges of pixels, many of them in three arrays.

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


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Polygons, each the ring round it, then those round its holes.

    Who walks along a ring has the inside on the left, seen on the picture. Sides that
    run down or up and sides that run across take turns; a ring begins with one of the
    former, with the one whose beginning comes first row by row, and holes are in the
    order of their beginnings. So the same polygon is always the same numbers.
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
        """(n,), numbers that grow with the last pixel of each, row by row."""
        corners = in_rows(self.vertices)
        return np.maximum.reduceat(corners, self.begins) if len(self) else corners

    @property
    def pixels(self) -> Indices:
        """(n,), how many pixels each covers."""
        return self.area(np.arange(self.vertices[:, 1].max(initial=0) + 1))

    def area(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return how large each is, (n,).

        Args:
            rows: (height + 1,), the size of one pixel of each row above, summed.
        """
        if not len(self):
            return np.empty(0, rows.dtype)
        x, y = self.vertices[:, 0], self.vertices[:, 1]
        sides = self.begins // 2  # each of two vertices with the same x
        counts = np.diff(sides, append=len(x) // 2)
        # Counted from a column nearby, so that little is lost where sizes are floats.
        beside = (x[::2] - np.repeat(x[::2][sides], counts)).astype(np.int64)
        return np.add.reduceat(beside * (rows[y[::2]] - rows[y[1::2]]), sides)

    def perimeter(
        self, across: NDArray[np.float64], down: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return how long the rings of each are together, (n,).

        Args:
            across: (height + 1,), the length of a pixel's upper side in each row.
            down: (height + 1,), that of the left sides of each row above, summed.
        """
        if not len(self):
            return np.empty(0)
        x, y = self.vertices[:, 0], self.vertices[:, 1]
        there = self.after
        lengths = abs(x - x[there]) * across[y] + abs(down[y] - down[y[there]])
        return np.add.reduceat(lengths, self.begins)


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
