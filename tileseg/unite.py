"""Outlines that meet at seams -> those of what they are together.

A pixel edge that two of them have in common is run along both ways. Without these what
is left of their rings is linked anew, where one piece ends and another begins.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tileseg.outlines import Indices, Outlines, cycles, ends_of, in_rows, spread

__all__ = ["unite"]

_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.int32)
"""East, south, west, north: to turn right is to add one."""


def unite(
    outlines: Outlines, group: Indices, seams: tuple[Collection[int], Collection[int]]
) -> Outlines:
    """Return one polygon for each group, in their order.

    Args:
        outlines: polygons, each cut off at seams and with a side on one.
        group: (n,), the groups, 0 to some number; those of one are connected.
        seams: columns and rows of pixels that seams are before.
    """
    counts = np.diff(outlines.polygons)
    shells = outlines.of_rings(outlines.polygons[:-1], np.ones_like(counts))
    rings, owner = _linked(*_loose(shells, group, seams))
    # Holes stay: what is enclosed within seams does not reach them.
    holes = outlines.of_rings(
        spread(outlines.polygons[:-1] + 1, counts - 1), np.ones(sum(counts - 1), int)
    )
    is_hole = np.concatenate([rings.pixels < 0, np.ones(len(holes), np.bool_)])
    rings = Outlines.joined([rings, holes])
    owner = np.concatenate([owner, np.repeat(group, counts - 1)])
    begins = in_rows(rings.vertices[rings.rings[:-1]])
    order = np.lexsort((begins, is_hole, owner))
    return rings.of_rings(order, np.bincount(owner))


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
    ways: Indices
    """(2, n), which way its first side leads, and its last."""


def _loose(
    shells: Outlines, group: Indices, seams: tuple[Collection[int], Collection[int]]
) -> tuple[_Chains, _Chains]:
    """Return what rings are of away from seams, and what is left of them there.

    The latter are chains of one pixel edge each.
    """
    points, on_seam = shells.vertices, _on_seams(shells, seams)
    # Rings begin anew, so that each ends with a side on a seam.
    last = np.maximum.reduceat(
        np.where(on_seam, np.arange(len(points)), -1), shells.rings[:-1]
    )
    shells, turned = shells.begun_at(last + 1)
    points, on_seam = shells.vertices, on_seam[turned]
    owner = np.repeat(group, np.diff(shells.rings))
    side = points[shells.after] - points
    way = np.where(side[:, 0], 1 - np.sign(side[:, 0]), 2 - np.sign(side[:, 1]))
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
    step = _STEPS[way[edge]]
    starts = points[edge] + nth[:, None] * step
    left = _met_once(starts, step, owner[edge])
    edge, starts, step = edge[left], starts[left], step[left]
    number = np.arange(len(edge))
    ways = np.stack([way[edge]] * 2)
    ends = starts + step
    return away, _Chains(starts, number, np.ones_like(number), owner[edge], ends, ways)


def _on_seams(
    shells: Outlines, seams: tuple[Collection[int], Collection[int]]
) -> NDArray[np.bool_]:
    """Return which sides lie on a seam, by the vertices where they begin."""
    on_seam = np.empty(len(shells.vertices), np.bool_)
    # Sides that run down or up, and those that run across, take turns.
    for nth, lines in enumerate(seams):
        places = shells.vertices[nth::2, nth]
        on_seam[nth::2] = np.isin(places, np.fromiter(lines, np.int64))
    return on_seam


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


def _linked(away: _Chains, along: _Chains) -> tuple[Outlines, Indices]:
    """Return the rings that chains make, each alone, and the group of each."""
    points = np.concatenate([away.points, along.points])
    begins = np.concatenate([away.begins, along.begins + len(away.points)])
    counts = np.concatenate([away.counts, along.counts])
    group = np.concatenate([away.group, along.group])
    first, last = np.concatenate([away.ways, along.ways], axis=1)
    x, y = np.concatenate([away.end, along.end]).T
    ends = np.lexsort((last, x, y, group))
    x, y = points[begins].T
    # Where a group touches itself two end and two begin: each goes on to the right.
    starts = np.lexsort(((first - 1) % len(_STEPS), x, y, group))
    follow = np.empty_like(starts)
    follow[ends] = starts
    order, stops = cycles(follow)
    lengths = np.add.reduceat(counts[order], stops[:-1])
    vertices = points[spread(begins[order], counts[order])]
    rings = Outlines(vertices, ends_of(lengths), np.arange(len(stops)))
    return _canonical(rings), group[order[stops[:-1]]]


def _canonical(rings: Outlines) -> Outlines:
    """Return rings without vertices in the midst of a side, begun where they should."""
    points, after = rings.vertices, rings.after
    before = np.empty_like(after)
    before[after] = np.arange(len(after))
    is_corner = (points[before] != points[after]).all(axis=1)
    counts = np.add.reduceat(is_corner.astype(np.int64), rings.rings[:-1])
    rings = Outlines(points[is_corner], ends_of(counts), rings.polygons)
    places = in_rows(rings.vertices)
    is_upright = rings.vertices[:, 0] == rings.vertices[rings.after, 0]
    places[~is_upright] = np.iinfo(np.int64).max
    least = np.minimum.reduceat(places, rings.rings[:-1])
    return rings.begun_at(np.flatnonzero(places == np.repeat(least, counts)))[0]
