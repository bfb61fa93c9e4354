"""Outlines that meet at seams -> those of what they are together.

A pixel edge that two of them have in common is run along both ways. Without these what
is left of their rings is linked anew, where one piece ends and another begins.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.outlines import (
    Indices,
    Outlines,
    cycles,
    ends_of,
    in_rows,
    spread,
)

__all__ = ["unite"]

_Seams = tuple[Collection[int], Collection[int]]
"""Columns and rows of pixels that seams are before."""

_QUARTERS = 4
"""East, south, west, north are 0, 1, 2, 3: to turn right is to add."""


def unite(outlines: Outlines, group: Indices, seams: _Seams) -> Outlines:
    """Return one polygon for each group, in their order.

    Vertices on seams in the midst of a side that runs down, up or across are left out.

    Args:
        outlines: polygons, each cut off at seams and with a side on one.
        group: (n,), the groups, 0 to some number; those of one are connected.
        seams: columns and rows of pixels that seams are before.
    """
    counts = np.diff(outlines.polygons)
    shells = outlines.of_rings(outlines.polygons[:-1], np.ones_like(counts))
    rings, owner = _linked(*_loose(shells, group, seams), seams)
    # Holes stay: what is enclosed within seams does not reach them.
    holes = outlines.of_rings(
        spread(outlines.polygons[:-1] + 1, counts - 1), np.ones((counts - 1).sum(), int)
    )
    is_hole = np.concatenate([rings.pixels < 0, np.ones(len(holes), np.bool_)])
    rings = Outlines.joined([rings, holes])
    owner = np.concatenate([owner, np.repeat(group, counts - 1)])
    order = np.lexsort((is_hole, owner))
    return rings.of_rings(order, np.bincount(owner)).begun()


@dataclass(frozen=True, slots=True, eq=False)
class _Chains:
    """Sides that follow each other, from a seam to a seam."""

    points: NDArray[np.int32]
    """(m, 2), where sides begin, of all chains."""
    begins: Indices
    """(n,), where each chain begins in `points`."""
    counts: Indices
    """(n,), of how many sides it is."""
    group: Indices
    """(n,), what it is a part of."""
    end: NDArray[np.int32]
    """(n, 2), where its last side ends."""
    ways: NDArray[np.float64]
    """(2, n), which way its first side leads, and its last, see `_way`."""


def _loose(shells: Outlines, group: Indices, seams: _Seams) -> tuple[_Chains, _Chains]:
    """Return what rings are of away from seams, and what is left of them there.

    The latter are chains of one pixel edge each.
    """
    points = shells.vertices
    on_seam = _on_seams(points, points[shells.after], seams)
    # Rings begin anew, so that each ends with a side on a seam.
    last = np.maximum.reduceat(
        np.where(on_seam, np.arange(len(points)), -1), shells.rings[:-1]
    )
    shells, turned = shells.begun_at(last + 1)
    points, on_seam = shells.vertices, on_seam[turned]
    owner = np.repeat(group, np.diff(shells.rings))
    side = points[shells.after] - points
    way = _way(side)
    # Pieces of one group may touch at a corner anywhere: there chains end, too.
    touches = _met_twice(points, owner)
    begins = np.flatnonzero(~on_seam & (touches | np.append(True, on_seam[:-1])))
    stops = np.flatnonzero(~on_seam & np.append((touches | on_seam)[1:], True))
    away = _Chains(
        points,
        begins,
        stops + 1 - begins,
        owner[begins],
        points[stops + 1] if len(stops) else points[:0],
        np.stack([way[begins], way[stops]]),
    )
    lengths = abs(side[on_seam]).sum(axis=1)
    edge = np.repeat(np.flatnonzero(on_seam), lengths)
    nth = spread(np.zeros_like(lengths), lengths).astype(np.int32)
    step = np.sign(side[edge])
    starts = points[edge] + nth[:, None] * step
    left = _met_once(starts, step, owner[edge])
    edge, starts, step = edge[left], starts[left], step[left]
    number = np.arange(len(edge))
    ways = np.stack([way[edge]] * 2)
    ends = starts + step
    return away, _Chains(starts, number, np.ones_like(number), owner[edge], ends, ways)


def _on_seams(
    ends: NDArray[np.int32], others: NDArray[np.int32], seams: _Seams
) -> NDArray[np.bool_]:
    """Return which lines between two places, (m, 2) each, run along a seam."""
    on_seam = np.zeros(len(ends), np.bool_)
    for axis, lines in enumerate(seams):
        along = np.flatnonzero(ends[:, axis] == others[:, axis])
        places = ends[along, axis]
        on_seam[along] |= np.isin(places, np.fromiter(lines, np.int64))
    return on_seam


def _way(sides: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return which way sides, (m, 2), lead: quarters of a turn from east to south."""
    x, y = sides.T.astype(np.float64)
    way: NDArray[np.float64] = np.arctan2(y, x) * (2 / np.pi) % _QUARTERS
    return way


def _met_once(
    starts: NDArray[np.int32], step: NDArray[np.int32], group: Indices
) -> NDArray[np.bool_]:
    """Return which pixel edges no other of the same group is the reverse of."""
    place = np.minimum(starts, starts + step)
    is_upright = step[:, 0] == 0
    met = np.empty(len(starts), np.bool_)
    for some in (is_upright, ~is_upright):
        met[some] = _met_twice(place[some], group[some])
    return ~met


def _met_twice(places: NDArray[np.int32], group: Indices) -> NDArray[np.bool_]:
    """Return which of some places a group comes to more than once."""
    number = in_rows(places)
    order = np.lexsort((group, number))
    number, group = number[order], group[order]
    again = (number[1:] == number[:-1]) & (group[1:] == group[:-1])
    met = np.empty(len(places), np.bool_)
    met[order] = np.append(again, False) | np.append(False, again)
    return met


def _linked(away: _Chains, along: _Chains, seams: _Seams) -> tuple[Outlines, Indices]:
    """Return the rings that chains make, each alone, and the group of each."""
    points = np.concatenate([away.points, along.points])
    begins = np.concatenate([away.begins, along.begins + len(away.points)])
    counts = np.concatenate([away.counts, along.counts])
    group = np.concatenate([away.group, along.group])
    first, last = np.concatenate([away.ways, along.ways], axis=1)
    x, y = points[begins].T
    starts = np.lexsort((first, x, y, group))
    place = np.stack([x, y, group])[:, starts]
    is_new = np.append(True, (place[:, 1:] != place[:, :-1]).any(axis=0))
    leftmost = first[starts][is_new][np.cumsum(is_new) - 1]
    x, y = np.concatenate([away.end, along.end]).T
    ends = np.lexsort((x, y, group))
    # Where a group touches itself two end and two begin: each goes on to the right, to
    # the next one on the left of where it came from.
    back = (last[ends] + 2 - leftmost) % _QUARTERS
    ends = ends[np.lexsort((back, np.cumsum(is_new)))]
    follow = np.empty_like(starts)
    follow[ends] = starts
    order, stops = cycles(follow)
    lengths = np.add.reduceat(counts[order], stops[:-1])
    vertices = points[spread(begins[order], counts[order])]
    rings = Outlines(vertices, ends_of(lengths), np.arange(len(stops)))
    return _smooth(rings, seams), group[order[stops[:-1]]]


def _smooth(rings: Outlines, seams: _Seams) -> Outlines:
    """Return rings without vertices on seams in the midst of a straight side."""
    points, after = rings.vertices, rings.after
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    is_straight = ((points == points[before]) & (points == points[after])).any(axis=1)
    middle = np.flatnonzero(is_straight)
    is_there = np.ones(len(points), np.bool_)
    lines = (np.fromiter(line, np.int64) for line in seams)
    for axis, line in enumerate(lines):
        is_there[middle[np.isin(points[middle, axis], line)]] = False
    counts = np.add.reduceat(is_there.astype(np.int64), rings.rings[:-1])
    return Outlines(points[is_there], ends_of(counts), rings.polygons)
