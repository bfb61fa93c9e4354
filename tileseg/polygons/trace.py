"""Labels -> the outlines of their 4-connected pieces, by sorting and no search.

At a corner of pixels an outline turns if edges between labels meet there, one upright
and one level. Along a line of edges, those of one side of it, beginnings and ends take
turns: sorted, each beginning has its end at its own place. So following outlines is
following a permutation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.outlines import Indices, Outlines, cycles

__all__ = ["Spans", "components", "trace"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Labels with a margin, as spans of equal ones; a span is part of one piece."""

    labels: NDArray[Any]
    """(height + 2, width + 2); `void` in the margin and wherever there is no piece."""
    upright: Flags
    """The same shape: whether a label differs from the one on its left."""
    level: Flags
    """(height + 1, width + 2): whether a label differs from the one below it."""
    number: NDArray[np.int32]
    """The same shape as the labels: which span a pixel is of."""
    piece: NDArray[np.int32]
    """(spans,), which piece a span is of, -1 for none; by their first pixels."""
    first: Indices
    """(n,), the first pixel of each piece, by its place in the flat array."""

    @classmethod
    def of(cls, labels: NDArray[Any], void: int) -> "Spans":
        """Find them: spans of one label that touch from row to row are one piece."""
        upright = np.zeros(labels.shape, np.bool_)
        np.not_equal(labels[:, 1:], labels[:, :-1], out=upright[:, 1:])
        level = labels[1:] != labels[:-1]
        number = np.cumsum(upright, dtype=np.int32).reshape(labels.shape)
        touch = upright[1:] | upright[:-1]  # where two meet first: once for each pair
        touch &= ~level
        touch &= labels[1:] != void
        pairs = np.stack([number[:-1][touch], number[1:][touch]])
        roots = components(int(number[-1, -1]) + 1, pairs)
        begins = _begins(upright)
        is_root = (roots == np.arange(len(roots))) & (labels.ravel()[begins] != void)
        numbers = np.where(is_root, np.cumsum(is_root) - 1, -1).astype(np.int32)
        piece = numbers[roots]
        return cls(labels, upright, level, number, piece, begins[is_root])

    @property
    def begins(self) -> Indices:
        """(spans,), where each begins in the flat array."""
        return _begins(self.upright)

    def of_pixels(self, at: Indices) -> NDArray[np.int32]:
        """Return the pieces of pixels, given by their places in the flat array."""
        return self.piece[self.number.ravel()[at]]


def _begins(upright: Flags) -> Indices:
    """Return where spans begin in the flat array; the first one in the margin."""
    return np.append(0, np.flatnonzero(upright))


def components(count: int, pairs: NDArray[Any]) -> Indices:
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


@dataclass(frozen=True, slots=True, eq=False)
class _Turns:
    """Where outlines turn from one direction to the other, row by row."""

    corner: Indices
    """(n,), at which corner."""
    pixel: Indices
    """(n,), a pixel of the piece, by its place in the flat array."""
    came: Flags
    """(n,), in which of two directions it came."""
    goes: Flags
    """(n,), in which of two it goes on."""


def trace(spans: Spans) -> Outlines:
    """Return the outlines of all pieces, in their order.

    Rings are simple, whatever touches at corners: there the one round a piece that
    touches itself turns away from it, so that what is enclosed is a hole.
    """
    y, x, turns, ends = _corners(spans)
    # Sides that run down or up, from turn to end: sorted by column, the rest is sorted.
    short = np.min_scalar_type(spans.labels.shape[1])  # 16 bits are sorted fastest
    column = [x[item.corner].astype(short) for item in (turns, ends)]
    end = np.empty(len(turns.corner), np.int64)
    for way in (True, False):
        begin, stop = (
            np.flatnonzero(turns.goes == way),
            np.flatnonzero(ends.came == way),
        )
        begin = begin[np.argsort(column[0][begin], kind="stable")]
        end[begin] = stop[np.argsort(column[1][stop], kind="stable")]
    # Sides that run across, from end to turn.
    turn = np.empty(len(ends.corner), np.int64)
    for way in (True, False):
        turn[ends.goes == way] = np.flatnonzero(turns.came == way)
    order, stops = cycles(turn[end])
    corners = np.stack([turns.corner[order], ends.corner[end[order]]], axis=1).ravel()
    vertices = np.stack([x[corners], y[corners]], axis=1)
    owner = spans.of_pixels(turns.pixel[order[stops[:-1]]])
    # What surrounds a piece comes before its holes, in the order of their beginnings.
    rings = Outlines(vertices, 2 * stops, np.arange(len(stops)))
    by_piece = np.argsort(owner, kind="stable")
    return rings.of_rings(by_piece, np.bincount(owner))


def _corners(
    spans: Spans,
) -> tuple[NDArray[np.int32], NDArray[np.int32], _Turns, _Turns]:
    """Return y and x of corners, where outlines turn into columns, and out of them.

    Directions are: into columns, came east or not (west), goes down or not (up); out
    of them, came down or not, goes east or not.
    """
    upright, level = spans.upright[:, 1:], spans.level
    is_corner = upright[:-1] | upright[1:]
    is_corner &= level[:, :-1] | level[:, 1:]
    y, x = (at.astype(np.int32) for at in np.nonzero(is_corner))
    labels, wide = spans.labels.ravel(), spans.labels.shape[1]
    # The pixels round a corner: above it on the left, and so on.
    a = y.astype(np.int64) * wide + x
    b, c, d = a + 1, a + wide, a + wide + 1
    up, down = spans.upright.ravel()[b], spans.upright.ravel()[d]
    left, right = level.ravel()[a], level.ravel()[b]
    is_piece = [labels[at] != spans.labels[0, 0] for at in (a, b, c, d)]
    # Of four edges, those of two pieces that touch here, or of one that does so itself.
    cross = np.flatnonzero(up & down & left & right)
    selves = np.zeros((2, len(a)), np.bool_)
    for itself, one, other in zip(selves, (a, b), (d, c), strict=True):
        same = spans.of_pixels(one[cross]) == spans.of_pixels(other[cross])
        itself[cross] = same
    turns = _turns(
        (right & (down | (up & ~left)) & is_piece[3], d, down ^ selves[0]),
        (left & (up | (down & ~right)) & is_piece[0], a, ~up ^ selves[0]),
    )
    ends = _turns(
        (down & (left | (right & ~up)) & is_piece[2], c, ~left ^ selves[1]),
        (up & (right | (left & ~down)) & is_piece[1], b, right ^ selves[1]),
    )
    return y, x, turns, ends


def _turns(*ways: tuple[Flags, Indices, Flags]) -> _Turns:
    """Return the turns of outlines that came the one way, and those of the other.

    Each way is: at which corners they turn, a pixel of the piece, how they go on.
    """
    is_turn, pixel, goes = (
        np.stack(item, axis=1).ravel() for item in zip(*ways, strict=True)
    )
    at = np.flatnonzero(is_turn)
    return _Turns(at >> 1, pixel[at], (at & 1).astype(np.bool_), goes[at])
