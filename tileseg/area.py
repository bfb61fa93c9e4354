"""How many hectares a pixel covers, row by row. Knows coordinate systems, no files."""

from math import degrees

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Geod
from pyproj.exceptions import CRSError

from tileseg.geobox import GeoBox

__all__ = ["row_hectares"]

_HECTARE = 10_000.0  # square metres


def row_hectares(geobox: GeoBox) -> NDArray[np.float64] | None:
    """Return the area of one pixel of each row, (height,), in hectares.

    Projected coordinates: the plane area in the CRS's unit. Geographic ones: the
    geodesic area on the CRS's ellipsoid of the pixel in the middle of the row. None
    where the CRS is missing or says nothing about metres.
    """
    if geobox.crs is None:
        return None
    try:
        crs = CRS.from_wkt(geobox.crs)
    except CRSError:
        return None
    if crs.is_projected:
        unit = crs.axis_info[0].unit_conversion_factor
        area = abs(geobox.transform.determinant) * unit**2 / _HECTARE
        return np.full(geobox.height, area)
    geod = crs.get_geod()
    if not crs.is_geographic or geod is None:
        return None
    unit = degrees(crs.axis_info[0].unit_conversion_factor)  # grads are no degrees
    rows = range(geobox.height)
    return np.array([_pixel(geobox, geod, row, unit) for row in rows])


def _pixel(geobox: GeoBox, geod: Geod, row: int, unit: float) -> float:
    column = geobox.width // 2
    corners = ((0, 0), (0, 1), (1, 1), (1, 0))
    places = [geobox.transform @ (column + x, row + y) for x, y in corners]
    longitudes, latitudes = unit * np.array(places).T
    area, _ = geod.polygon_area_perimeter(longitudes, latitudes)
    return abs(float(area)) / _HECTARE
