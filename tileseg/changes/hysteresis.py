"""Which changes count: connected ones of a kind, by their surest pixel and their size.

Decided over the whole raster, whatever windows it is cut into: those pieces that touch
a seam are united across it, and only of these something is held. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.polygons.outlines import Indices
from tileseg.polygons.trace import Spans, components
from tileseg.window import Window

__all__ = ["COUNTS", "TOO_SMALL", "UNDECIDED", "Patch", "Rule", "Verdicts", "settle"]

COUNTS, UNDECIDED, TOO_SMALL = range(3)
"""What becomes of a pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a change must be to count."""

    high: int
    """The least certainty of its surest pixel."""
    low: int
    """The least certainty of every pixel of it."""
    least: int
    """Its least size."""

    def outcome(
        self, peak: NDArray[np.uint8], size: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return what becomes of pieces, by their surest pixels and their sizes."""
        found = np.where(size < self.least, TOO_SMALL, COUNTS)
        return np.where(peak < self.high, UNDECIDED, found).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The 4-connected pieces of equal code of one window."""

    window: Window
    """Where it is."""
    codes: NDArray[Any]
    """(height, width), of each pixel."""
    piece: NDArray[np.int32]
    """The same shape: which piece it is of, -1 for none."""
    peak: NDArray[np.uint8]
    """(n,), the certainty of the surest pixel of each piece."""
    size: NDArray[np.int64]
    """(n,), the sizes of its pixels, summed."""

    @classmethod
    def of(
        cls,
        codes: NDArray[Any],
        sure: NDArray[np.uint8],
        sizes: NDArray[np.int64],
        *,
        window: Window,
        void: int,
    ) -> "Patch":
        """Find them.

        Args:
            codes: (height, width), `void` where there is no piece.
            sure: the same shape, how certain pixels are.
            sizes: (height,), the size of a pixel of each row.
            window: where that is.
            void: see `codes`.
        """
        spans = Spans.of(np.pad(codes, 1, constant_values=void), void)
        begins, wide = spans.begins, spans.labels.shape[1]
        is_piece = spans.piece >= 0
        piece, count = spans.piece[is_piece], len(spans.first)
        peak = np.zeros(count, np.uint8)
        highest = np.maximum.reduceat(np.pad(sure, 1).ravel(), begins)
        np.maximum.at(peak, piece, highest[is_piece])
        size = np.zeros(count, np.int64)
        length = np.diff(begins, append=spans.labels.size)
        # A span with a piece is in one row, for the margin on both sides is void.
        row = begins[is_piece] // wide - 1
        np.add.at(size, piece, length[is_piece] * sizes[row])
        return cls(window, codes, spans.piece[spans.number[1:-1, 1:-1]], peak, size)

    @property
    def border(self) -> NDArray[np.int32]:
        """Which pieces touch the window's sides, sorted."""
        sides = [self.piece[at] for at in (0, -1, np.s_[:, 0], np.s_[:, -1])]
        found = np.unique(np.concatenate(sides))
        return found[found >= 0]


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """Pixels beside each other along a seam."""

    number: Indices
    """(n,), of the pieces on seams, -1 for none."""
    codes: NDArray[Any]
    """(n,)."""

    def meet(self, other: "_Line") -> Indices:
        """Return pairs, (2, m), of pieces of one code that meet across the seam."""
        pairs = np.stack([self.number, other.number])
        pairs = pairs[:, (self.codes == other.codes) & (pairs >= 0).all(axis=0)]
        is_new = np.ones(pairs.shape[1], np.bool_)  # along a seam most repeat
        is_new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
        return pairs[:, is_new]


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What becomes of every piece of a raster."""

    rule: Rule
    """By which that is said."""
    at_seams: NDArray[np.uint8]
    """Of the pieces that touch a window's sides, window by window."""
    first: dict[Window, int]
    """Which is the first of each window."""

    def of(self, patch: Patch) -> NDArray[np.uint8]:
        """Return what becomes of the pixels of a patch: of no piece, undecided."""
        outcome = self.rule.outcome(patch.peak, patch.size)
        border, first = patch.border, self.first[patch.window]
        outcome[border] = self.at_seams[first : first + len(border)]
        return np.append(outcome, np.uint8(UNDECIDED))[patch.piece]


def settle(rows: Iterable[Iterable[Patch]], rule: Rule) -> Verdicts:
    """Return what becomes of all pieces, united wherever those of one code meet.

    Args:
        rows: of windows, downwards, each from left to right; those of a row are as high
            as each other, and as wide together as the raster.
        rule: what counts.
    """
    whole = _Whole()
    for row in rows:
        whole.take(row)
    return whole.settle(rule)


class _Whole:
    """What was seen of the pieces that touch seams."""

    def __init__(self) -> None:
        self._peaks: list[NDArray[np.uint8]] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._pairs: list[Indices] = [np.empty((2, 0), np.int64)]
        self._first: dict[Window, int] = {}
        self._count = 0
        self._above: list[_Line] = []

    def take(self, row: Iterable[Patch]) -> None:
        """Take the next row of windows."""
        below: list[_Line] = []
        left: _Line | None = None
        for nth, patch in enumerate(row):
            top, bottom, near, far = self._lines(patch)
            if left:
                self._pairs.append(left.meet(near))
            if self._above:
                self._pairs.append(self._above[nth].meet(top))
            below.append(bottom)
            left = far
        self._above = below

    def _lines(self, patch: Patch) -> tuple[_Line, _Line, _Line, _Line]:
        """Count a patch; return its sides: top, bottom, left and right."""
        border = patch.border
        number = np.full(len(patch.peak) + 1, -1)
        number[border] = self._count + np.arange(len(border))
        self._first[patch.window] = self._count
        self._count += len(border)
        self._peaks.append(patch.peak[border])
        self._sizes.append(patch.size[border])
        top, bottom, left, right = (
            _Line(number[patch.piece[at]], patch.codes[at].copy())
            for at in (0, -1, np.s_[:, 0], np.s_[:, -1])
        )
        return top, bottom, left, right

    def settle(self, rule: Rule) -> Verdicts:
        """Unite what met."""
        roots = components(self._count, np.concatenate(self._pairs, axis=1))
        peak = np.zeros(self._count, np.uint8)
        size = np.zeros(self._count, np.int64)
        if self._count:
            np.maximum.at(peak, roots, np.concatenate(self._peaks))
            np.add.at(size, roots, np.concatenate(self._sizes))
        return Verdicts(rule, rule.outcome(peak, size)[roots], self._first)
