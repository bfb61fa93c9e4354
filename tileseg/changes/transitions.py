"""From which class to which, counted in pixels and hectares; and a small map of it.

Pure: of windows in any order, always the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.changes.hysteresis import COUNTS, TOO_SMALL, UNDECIDED
from tileseg.geobox import GeoBox
from tileseg.outputs.codes import Codes
from tileseg.scenes.area import row_hectares
from tileseg.window import Window

__all__ = ["FIRST", "Ground", "Tally", "changed"]

_PARTS = 1 << 24  # of the largest pixel
_MAP_SIDE = 1000  # cells
_NOTHING, _SAME, _LEFT_OUT, FIRST = range(4)  # of the map, each gives way to the next
"""`FIRST`: on the map, code 0; the codes follow."""


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """How large pixels are, in whole numbers: sums are the same in any order."""

    parts: NDArray[np.int64]
    """(height,), of a pixel of each row."""
    hectares: float | None
    """Of one part; None where nobody knows."""

    @classmethod
    def of(cls, box: GeoBox) -> "Ground":
        """Measure a grid's rows."""
        rows = row_hectares(box)
        if rows is None:
            return cls(np.full(box.height, _PARTS, np.int64), None)
        largest = float(rows.max())
        parts = np.rint(rows / largest * _PARTS).astype(np.int64)
        return cls(parts, largest / _PARTS)


def changed(found: NDArray[Any], codes: Codes) -> NDArray[np.bool_]:
    """Return where both classes are known, and differ."""
    differ: NDArray[np.bool_] = found % (len(codes.classes) + 1) != 0
    is_known: NDArray[np.bool_] = found != codes.nodata
    return differ & is_known


class Tally:
    """What was counted so far, and a map of it."""

    def __init__(self, box: GeoBox, codes: Codes, ground: Ground) -> None:
        self._codes, self._ground = codes, ground
        # Outcomes by codes; the last one is nodata.
        shape = 3, codes.count + 1
        self._pixels, self._parts = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.cell = -(-max(box.height, box.width) // _MAP_SIDE)
        """Side of a cell of the maps in pixels."""
        cells = box.window.coarsen(self.cell)
        self.map = np.zeros((cells.height, cells.width), np.uint16)
        """(rows, columns), of each cell the highest of nodata, unchanged, left out, and
        `FIRST` + the code of a change."""
        self.looks = np.full((2, cells.height, cells.width), NODATA, np.uint8)
        """(2, rows, columns), the old and the new class of each cell's first pixel."""

    def see(self, labels: tuple[NDArray[np.uint8], ...], window: Window) -> None:
        """Remember how both masks look in a window."""
        rows, cols = (
            slice(-at.start % self.cell, None, self.cell) for at in window.slices
        )
        seen = [layer[rows, cols] for layer in labels]
        height, width = seen[0].shape
        row, col = (-(-at.start // self.cell) for at in window.slices)
        self.looks[:, row : row + height, col : col + width] = seen

    def add(
        self, found: NDArray[Any], outcome: NDArray[np.uint8], window: Window
    ) -> None:
        """Count a window."""
        codes = self._codes
        each = np.minimum(found, codes.count).astype(np.int64)
        each += outcome.astype(np.int64) * (codes.count + 1)
        parts = self._ground.parts[window.slices[0]]
        for size in np.unique(parts).tolist():  # in a plane all rows have one
            some = each[parts == size].ravel()
            counts = np.bincount(some, minlength=self._pixels.size)
            self._pixels += counts.reshape(self._pixels.shape)
            self._parts += size * counts.reshape(self._pixels.shape)
        self._draw(found, outcome, window)

    def _draw(
        self, found: NDArray[Any], outcome: NDArray[np.uint8], window: Window
    ) -> None:
        high = np.where(changed(found, self._codes), found + np.uint16(FIRST), _SAME)
        high[outcome != COUNTS] = _LEFT_OUT
        high[found == self._codes.nodata] = _NOTHING
        at = window.coarsen(self.cell)
        for axis, cells in enumerate(at.slices):
            begins = np.arange(cells.start, cells.stop) * self.cell
            edges = np.maximum(begins - window.slices[axis].start, 0)
            high = np.maximum.reduceat(high, edges, axis=axis)
        seen = self.map[at.slices]
        np.maximum(seen, high, out=seen)

    @property
    def found(self) -> dict[int, int]:
        """The codes that the raster holds, and how many pixels have each."""
        codes, pixels = self._codes, self._pixels[:, :-1]
        counts = dict(enumerate(pixels[COUNTS].tolist()))
        counts[codes.undecided] = int(pixels[UNDECIDED].sum())
        counts[codes.too_small] = int(pixels[TOO_SMALL].sum())
        return {code: number for code, number in counts.items() if number}

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain values; areas are null where nobody knows them."""
        hectares = self._ground.hectares
        sizes = None if hectares is None else self._parts * hectares
        return {
            "pixels": self._table(self._pixels),
            "hectares": None if sizes is None else self._table(sizes),
            "undecided_share": self._undecided_share(),
        }

    def _table(self, counts: NDArray[Any]) -> dict[str, Any]:
        """Return from-to matrices, and the sums of what they say."""
        n = len(self._codes.classes)
        counted, undecided, small = counts[:, :-1].reshape(3, n, n)
        unchanged = counted.trace()
        sums = {
            "unchanged": unchanged,
            "changed": counted.sum() - unchanged,
            "undecided": undecided.sum(),
            "too_small": small.sum(),
            "nodata": counts[COUNTS, -1],
        }
        matrices = {
            "matrix": counted.tolist(),
            "undecided_matrix": undecided.tolist(),
            "too_small_matrix": small.tolist(),
        }
        return {**matrices, **{name: value.item() for name, value in sums.items()}}

    def _undecided_share(self) -> float | None:
        """Return the share of the area that differs; None where nothing does."""
        n = len(self._codes.classes)
        parts = self._parts[:, :-1].reshape(3, n, n)
        differing = int(parts.sum() - parts[COUNTS].trace())
        return int(parts[UNDECIDED].sum()) / differing if differing else None
