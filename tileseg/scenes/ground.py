"""Where a raster lies on the Earth: its outline in longitude and latitude, its CRS.

Longitudes are first counted on beyond 180 degrees, as along the outline, and cut there
at the end; so nothing depends on where a CRS has its own seam.
"""

from dataclasses import dataclass
from functools import partial
from math import floor
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from tileseg.base.longitudes import TURN, between
from tileseg.geobox import GeoBox
from tileseg.scenes.area import lonlat_digits

__all__ = ["Footprint", "authority_code", "footprint"]

_PIECES = 16  # of a side: straight on one map, not on another
_INWARDS = 1e-6  # of a side: an edge through a pole has it on one side
_FLAT = 1e-5  # of the height: what a vertex may be off
_POLE = 90.0  # degrees


@dataclass(frozen=True, slots=True)
class Footprint:
    """A raster's outline in WGS 84, as GeoJSON (RFC 7946) has it."""

    geometry: dict[str, Any]
    """Polygon or MultiPolygon, counter-clockwise, cut at the antimeridian."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north; west > east across the antimeridian."""


def footprint(geobox: GeoBox) -> Footprint | None:
    """Return the outline of a raster, its nodata included.

    None where nothing leads to longitude and latitude: no CRS, no place in it, or an
    edge that is not on the Earth.
    """
    digits = None if geobox.transform.is_identity else lonlat_digits(geobox)
    if digits is None:
        return None
    lonlat = _edge(geobox)
    if not np.isfinite(lonlat).all():
        return None
    outline = _outline(lonlat)
    west, south, east, north = shapely.bounds(outline)
    # What is nearly collinear says nothing: a scene in degrees has four corners.
    plain = shapely.simplify(_cut(outline, digits), _FLAT * (north - south))
    west, east = between(float(west), float(east))
    bbox = [round(float(side), digits) for side in (west, south, east, north)]
    geometry = shapely.geometry.mapping(shapely.orient_polygons(plain))
    return Footprint(geometry, (bbox[0], bbox[1], bbox[2], bbox[3]))


def authority_code(wkt: str | None) -> str | None:
    """Return what an authority calls a CRS, `EPSG:32631`; None if none does."""
    try:
        found = CRS.from_wkt(wkt).to_authority(min_confidence=100) if wkt else None
    except ProjError:
        return None
    return ":".join(found) if found else None


def _edge(geobox: GeoBox) -> NDArray[np.float64]:
    """Return longitude and latitude of places along the edge, (n, 2), closed."""
    assert geobox.crs, "what has no CRS leads to no longitude"
    crs = CRS.from_wkt(geobox.crs)
    inwards = 0.0 if crs.is_geographic else _INWARDS
    unit = shapely.segmentize(shapely.box(0, 0, 1, 1), 1 / _PIECES)
    columns, rows = (0.5 + (shapely.get_coordinates(unit) - 0.5) * (1 - inwards)).T
    a, b, c, d, e, f = geobox.transform[:6]
    columns, rows = columns * geobox.width, rows * geobox.height
    places = columns * a + rows * b + c, columns * d + rows * e + f
    to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    longitude, latitude = map(np.asarray, to_lonlat.transform(*places))
    # Global grids may reach half a pixel beyond a pole.
    return np.stack([longitude, latitude.clip(-_POLE, _POLE)], axis=1)


def _outline(lonlat: NDArray[np.float64]) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return the polygon within an edge; its longitudes may lie beyond 180 degrees."""
    longitude, latitude = np.unwrap(lonlat[:, 0], period=TURN), lonlat[:, 1]
    if round((longitude[-1] - longitude[0]) / TURN):  # it runs round a pole
        pole = np.copysign(_POLE, latitude.mean())
        longitude = np.append(longitude, [longitude[-1], longitude[0], longitude[0]])
        latitude = np.append(latitude, [pole, pole, latitude[0]])
    return shapely.make_valid(shapely.polygons(np.stack([longitude, latitude], axis=1)))


def _cut(outline: Any, digits: int) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return an outline within -180 and 180 degrees, rounded to digits of one."""

    def turned(at: NDArray[np.float64], by: int) -> NDArray[np.float64]:
        return np.round(at - (by * TURN, 0), digits)

    west, _, east, _ = shapely.bounds(outline)
    parts = []
    for turn in range(floor(west / TURN + 0.5), floor(east / TURN + 0.5) + 1):
        begin = turn * TURN - TURN / 2
        world = shapely.box(begin, -_POLE, begin + TURN, _POLE)
        part = shapely.intersection(outline, world)
        parts.append(shapely.transform(part, partial(turned, by=turn)))
    found = shapely.get_parts(shapely.union_all(parts))
    surfaces = found[shapely.area(found) > 0]
    return surfaces[0] if len(surfaces) == 1 else shapely.multipolygons(surfaces)
