"""Sums from which statistics of a raster's bytes follow: exact, in any order; pure."""

from collections.abc import Iterable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from tileseg.cards.card import NODATA
from tileseg.masks.overview import Pixels

__all__ = ["Moments", "moments_of"]


class Moments(NamedTuple):
    """Of the values of one band that are not nodata."""

    number: int = 0
    """How many."""
    total: int = 0
    """Their sum."""
    squares: int = 0
    """The sum of their squares."""
    least: int = NODATA
    """The least; nodata where there is none, as is the greatest."""
    most: int = NODATA
    """The greatest."""

    @classmethod
    def sum(cls, parts: Iterable["Moments"]) -> "Moments":
        """Return those of several parts of a band."""
        known = [part for part in parts if part.number]
        if not known:
            return cls()
        counts, totals, squares, least, most = zip(*known, strict=True)
        return cls(sum(counts), sum(totals), sum(squares), min(least), max(most))

    def statistics(self, size: int) -> dict[str, Any]:
        """Return them as STAC names them, of stored values.

        Args:
            size: pixels of the band, nodata too.
        """
        share = {"count": self.number, "valid_percent": 100 * self.number / size}
        if not self.number:
            return share
        spread = self.number * self.squares - self.total**2  # whole: nothing is lost
        return {
            "minimum": self.least,
            "maximum": self.most,
            "mean": self.total / self.number,
            "stddev": sqrt(spread) / self.number,
            **share,
        }


def moments_of(pixels: Pixels) -> tuple[Moments, ...]:
    """Return those of each band."""
    return tuple(map(_of_band, pixels.reshape(-1, *pixels.shape[-2:])))


def _of_band(pixels: Pixels) -> Moments:
    counts = np.bincount(pixels.ravel(), minlength=NODATA + 1)[:NODATA]
    (found,) = counts.nonzero()
    if not found.size:
        return Moments()
    counts = counts[found]
    total, squares = int(counts @ found), int(counts @ found**2)
    return Moments(int(counts.sum()), total, squares, int(found[0]), int(found[-1]))
