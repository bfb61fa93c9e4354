"""Whether the borders of cores show in a mask: the seam measure. Knows labels only."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.window import Window

__all__ = ["Seams", "add_up", "look_at"]

_QUARTERS = (1, 2, 3)  # where lines inside a core are, in quarters of its side


class Seams(NamedTuple):
    """How often neighbours differ, across the borders of cores and inside them.

    A pair is two pixels that touch at an edge and both have a class.
    """

    border_pairs: int
    """Pairs across a border between two cores."""
    border_changes: int
    """Those of them whose classes differ."""
    inside_pairs: int
    """Pairs across lines inside cores, parallel to the borders."""
    inside_changes: int
    """Those of them whose classes differ."""

    @property
    def border(self) -> float | None:
        """Share of changes across borders; None without a pair."""
        return self.border_changes / self.border_pairs if self.border_pairs else None

    @property
    def inside(self) -> float | None:
        """Share of changes inside; None without a pair."""
        return self.inside_changes / self.inside_pairs if self.inside_pairs else None

    @property
    def ratio(self) -> float | None:
        """Share of changes across borders over that inside: 1 where no border shows.

        None where nothing can be compared.
        """
        if self.border is None or not self.inside:
            return None
        return self.border / self.inside


def add_up(parts: Iterable[Seams]) -> Seams:
    """Return the seams of all parts together."""
    return Seams(*map(sum, zip((0, 0, 0, 0), *parts, strict=True)))


def look_at(labels: NDArray[np.uint8], window: Window, stride: int) -> Seams:
    """Return the seams within a part of a mask.

    Args:
        labels: (height, width), 255 where there is no class.
        window: where in the scene that is; a core begins at the scene's (0, 0).
        stride: side of a core, in pixels.
    """
    inside = sorted({stride * quarter // 4 for quarter in _QUARTERS} - {0})
    ways = (labels, window.row), (labels.T, window.col)
    borders = [_changes(*way, stride, 0) for way in ways]
    others = [_changes(*way, stride, line) for way in ways for line in inside]
    return add_up(
        [
            *(Seams(*found, 0, 0) for found in borders),
            *(Seams(0, 0, *found) for found in others),
        ]
    )


def _changes(
    labels: NDArray[np.uint8], first: int, stride: int, line: int
) -> tuple[int, int]:
    """Return pairs and changes across horizontal lines.

    Args:
        labels: part of a mask.
        first: its first row in the scene.
        stride: from line to line.
        line: the scene's row below one of them.
    """
    start = (line - first - 1) % stride + 1  # the edge of the part is no line
    below = labels[start::stride]
    above = labels[start - 1 :: stride][: len(below)]
    is_pair = (above != NODATA) & (below != NODATA)
    return int(is_pair.sum()), int((is_pair & (above != below)).sum())
