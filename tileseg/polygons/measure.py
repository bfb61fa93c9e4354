"""How large and how long outlines are on the ground."""

import numpy as np
from numpy.typing import NDArray

from tileseg.geobox import GeoBox
from tileseg.polygons.outlines import Outlines
from tileseg.scenes.area import pixel_lean, row_hectares, row_metres

__all__ = ["Measure"]


class Measure:
    """How large and long pixels are on the ground, row by row."""

    def __init__(self, geobox: GeoBox) -> None:
        area, sides = row_hectares(geobox), row_metres(geobox)
        # Only what differs from the first row's is summed: in a plane nothing, and
        # there an area has exactly pixels x that of one.
        self._area = None if area is None else (area[0], _summed(area - area[0]))
        self._sides = sides and (sides[0], _summed(sides[1]), pixel_lean(geobox))

    def hectares(self, outlines: Outlines) -> NDArray[np.float64] | None:
        """Return the area of each, (n,); None where nothing says it."""
        if self._area is None:
            return None
        first, more = self._area
        hectares: NDArray[np.float64] = outlines.pixels * first + outlines.area(more)
        return hectares

    def metres(self, outlines: Outlines) -> NDArray[np.float64] | None:
        """Return how long the rings of each are, (n,); None likewise."""
        return None if self._sides is None else outlines.perimeter(*self._sides)


def _summed(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of what is above each row, and of all."""
    return np.append(0, np.cumsum(rows))
