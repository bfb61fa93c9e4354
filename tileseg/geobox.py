"""Where a raster lies: its shape, transform and CRS. Opens no file."""

from dataclasses import dataclass
from math import sqrt

from affine import Affine

from tileseg.window import Window

__all__ = ["GeoBox"]


@dataclass(frozen=True, slots=True)
class GeoBox:
    """The grid of a raster on the ground."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    transform: Affine
    """(column, row) of a pixel corner to (x, y) in the CRS; any affine map."""
    crs: str | None
    """WKT2, kept verbatim; None where the raster has none."""

    @property
    def window(self) -> Window:
        """The whole raster as a window."""
        return Window(0, 0, self.height, self.width)

    @property
    def side(self) -> float:
        """Side of a square as large as a pixel, in the CRS's unit."""
        return sqrt(abs(self.transform.determinant))

    def crop(self, window: Window) -> "GeoBox":
        """Return the grid of `window`; its pixels keep their place on the ground."""
        transform = self.transform @ Affine.translation(window.col, window.row)
        return GeoBox(window.height, window.width, transform, self.crs)
