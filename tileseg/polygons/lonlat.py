"""Polygons on the ground -> in longitude and latitude, cut at the antimeridian.

Vertices are projected one by one and rounded first; all else is done with numbers that
are the same for both sides of a border. So neighbours still fit, cut or not.
"""

from collections.abc import Iterator
from functools import partial
from math import degrees, floor
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from tileseg.base.longitudes import TURN
from tileseg.geobox import GeoBox
from tileseg.polygons.outlines import Indices, Outlines
from tileseg.scenes.area import lonlat_digits

__all__ = ["LonLat"]

_HALF, _POLE = TURN / 2, 90.0  # degrees
_FAR = 90.0  # degrees: whether a longer side leads west or east is looked at
_PIECES = 64  # of such a side

Places = NDArray[np.float64]
"""(m, 2), longitude and latitude, or the ground's x and y."""


class LonLat:
    """The way from a scene's coordinates to WGS 84, as GeoJSON (RFC 7946) wants it."""

    def __init__(self, geobox: GeoBox) -> None:
        """Find it; a scene without one (see `lonlat_digits`) was refused."""
        digits = lonlat_digits(geobox)
        assert geobox.crs and digits, "a scene without longitudes was refused"  # noqa: PT018
        crs = CRS.from_wkt(geobox.crs)
        self.digits = digits
        """Of a degree, that coordinates are rounded to."""
        self._to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        unit = crs.axis_info[0].unit_conversion_factor
        self._unit = degrees(unit) if crs.is_geographic else None

    def placed(
        self, outlines: Outlines, places: Places
    ) -> tuple[Places, dict[int, Any]]:
        """Return where vertices lie, (m, 2), and by number polygons to take instead.

        Those are what crosses the antimeridian or goes round a pole, and what rounding
        made invalid. All are valid, exteriors counter-clockwise, longitudes from -180
        to 180.

        Args:
            outlines: closed rings.
            places: where their vertices lie on the ground.

        Raises:
            ValueError: one is not on the Earth.
        """
        lonlat, begins = self._rounded(places), outlines.rings[:-1]
        turns = self._turns(places, lonlat, begins)
        far = lonlat + TURN * np.stack([turns, np.zeros_like(turns)], axis=1)
        west = np.minimum.reduceat(far[:, 0], begins)
        east = np.maximum.reduceat(far[:, 0], begins)
        world = np.floor(west / TURN + 0.5)
        is_cut = east > TURN * world + _HALF
        is_cut |= turns[begins] != turns[outlines.rings[1:] - 1]
        back = np.repeat(TURN * world, np.diff(outlines.rings))
        lonlat[:, 0] = np.round(far[:, 0] - back, self.digits)
        polygons = np.repeat(np.arange(len(outlines)), np.diff(outlines.polygons))
        anew = {
            number: self._cut(_rings(outlines, far, number))
            for number in np.unique(polygons[is_cut]).tolist()
        }
        return lonlat, anew | _repaired(outlines, lonlat, anew)

    def _rounded(self, places: Places) -> Places:
        """Return longitudes, -180 to 180, and latitudes.

        Raises:
            ValueError: there are none.
        """
        lonlat = np.stack(self._to_lonlat.transform(*places.T), axis=1)
        is_there = np.isfinite(lonlat).all(axis=1)
        if not is_there.all():
            x, y = places[~is_there][0]
            msg = f"the corner at {x:.10g}, {y:.10g} has no longitude and latitude"
            raise ValueError(msg)
        lonlat[:, 0] -= TURN * np.round(lonlat[:, 0] / TURN)
        # Global grids may reach half a pixel beyond a pole.
        lonlat[:, 1] = lonlat[:, 1].clip(-_POLE, _POLE)
        rounded: Places = np.round(lonlat, self.digits)
        return rounded

    def _turns(
        self, places: Places, lonlat: Places, begins: Indices
    ) -> NDArray[np.float64]:
        """Return whole turns to add to longitudes, (m,), so that no side jumps."""
        if self._unit is not None:  # coordinates count on by themselves
            whole: NDArray[np.float64] = np.round(
                (places[:, 0] * self._unit - lonlat[:, 0]) / TURN
            )
            return whole
        step = np.diff(lonlat[:, 0], prepend=0)
        step[begins] = 0
        turns = -np.round(step / TURN)
        for at in np.flatnonzero(abs(step) > _FAR).tolist():
            led = self._led(*places[at - 1 : at + 1])
            turns[at] = np.round((led - step[at]) / TURN)
        turns = np.cumsum(turns)
        return turns - np.repeat(turns[begins], np.diff(begins, append=len(turns)))

    def _led(self, start: Places, end: Places) -> float:
        """Return how many degrees eastwards a straight line on the ground leads."""
        share = np.linspace(0, 1, _PIECES + 1)[:, None]
        line = start + share * (end - start)
        x = np.asarray(self._to_lonlat.transform(*line.T)[0])
        x = np.unwrap(x[np.isfinite(x)], period=TURN)
        return float(x[-1] - x[0])

    def _cut(self, rings: Iterator[Places]) -> Any:  # noqa: ANN401  (shapely is untyped)
        """Return a polygon of rings whose longitudes count on beyond 180 degrees."""
        shell, *holes = (self._within(ring) for ring in rings)
        return _surface(shapely.difference(shell, shapely.union_all(holes)))

    def _within(self, ring: Places) -> Any:  # noqa: ANN401  (shapely is untyped)
        """Return all that a ring goes round, from -180 to 180 degrees."""
        if ring[0, 0] != ring[-1, 0]:  # round a pole
            pole = np.copysign(_POLE, ring[:, 1].mean())
            ends = [(ring[-1, 0], pole), (ring[0, 0], pole), ring[0]]
            ring = np.concatenate([ring, ends])
        outline = _valid(shapely.polygons(self._crossed(ring)))
        west, _, east, _ = shapely.bounds(outline)
        parts = []
        for turn in range(floor(west / TURN + 0.5), floor(east / TURN + 0.5) + 1):
            begin = TURN * turn - _HALF
            world = shapely.box(begin, -_POLE, begin + TURN, _POLE)
            part = _surface(shapely.intersection(outline, world))
            parts.append(shapely.transform(part, partial(self._turned, turn=turn)))
        return shapely.union_all(parts)

    def _turned(self, places: Places, turn: int) -> Places:
        """Return them some turns further west."""
        west: Places = np.round(places - (TURN * turn, 0), self.digits)
        return west

    def _crossed(self, ring: Places) -> Places:
        """Return a ring with a vertex wherever a side crosses an antimeridian."""
        # The same numbers for both polygons that a side belongs to: it is cut once.
        worlds = (ring[:, 0] + _HALF) / TURN
        made = [ring[:1]]
        for at in range(1, len(ring)):
            low, high = sorted(worlds[at - 1 : at + 1])
            lines = np.arange(floor(low) + 1, np.ceil(high)) * TURN - _HALF
            side = ring[at - 1 : at + 1]
            for line in lines if worlds[at] > worlds[at - 1] else lines[::-1]:
                x, y = np.round(side - (line, 0), self.digits)[side[:, 0].argsort()].T
                latitude = (y[0] * x[1] - y[1] * x[0]) / (x[1] - x[0])
                made.append(np.array([[line, np.round(latitude, self.digits)]]))
            made.append(ring[at : at + 1])
        return np.concatenate(made)


def _rings(outlines: Outlines, places: Places, number: int) -> Iterator[Places]:
    """Yield where the vertices of each ring of a polygon lie."""
    for ring in range(*outlines.polygons[number : number + 2]):
        yield places[slice(*outlines.rings[ring : ring + 2])]


def _repaired(
    outlines: Outlines, lonlat: Places, but: dict[int, Any]
) -> dict[int, Any]:
    """Return what is not valid so that it is, by number; some are looked after."""
    found = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, lonlat, (outlines.rings, outlines.polygons)
    )
    wrong = np.flatnonzero(~shapely.is_valid(found)).tolist()
    return {at: _surface(_valid(found[at])) for at in wrong if at not in but}


def _valid(polygon: Any) -> Any:  # noqa: ANN401  (shapely is untyped)
    if shapely.is_valid(polygon):
        return polygon
    return shapely.make_valid(polygon, method="structure", keep_collapsed=False)


def _surface(shape: Any) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return a shape's surfaces as one, exteriors counter-clockwise."""
    parts = shapely.get_parts(shape)
    parts = shapely.orient_polygons(parts[shapely.area(parts) > 0])
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
