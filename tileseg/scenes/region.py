"""What part of a scene is asked for: a box of longitudes and latitudes, or polygons.

Both become pixels of the scene once, before anything is read: the window that meets
them, and of polygons the outline within it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, tau
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio.features import rasterize

from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.scenes.vectors import LONLAT, read_features
from tileseg.window import Window

__all__ = [
    "Region",
    "Stencil",
    "lonlat_of_file",
    "region_of_bbox",
    "region_of_file",
]

_GRAIN = 256  # parts of a pixel that vertices lie on: finer is the projections' noise
_PIECES = 1024  # of a line across the scene: straight on one map, not on another
_STRAIGHT = 1e-5  # degrees, about a metre
_NEARLY_ROUND = 340  # degrees
_LATTICE = 33  # places per side that say which longitudes and latitudes a scene has
_MOST_VERTICES = 5_000_000


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a scene that is asked for; plain values, so it travels."""

    window: Window
    """The least window of whole pixels that holds it."""
    outline: bytes | None = None
    """Polygons in scene pixels (WKB; x = column, y = row); None: all of the window."""

    @property
    def sha256(self) -> str | None:
        """The outline's digest; None without one."""
        return hashlib.sha256(self.outline).hexdigest() if self.outline else None


class _NowhereError(Exception):
    """A place on the Earth that a CRS does not have."""


class Stencil:
    """A region's outline, laid on one window after the other.

    A pixel is inside if its centre is. All vertices lie on a grid of 1/256 pixel, so
    that the answer does not depend on the window.
    """

    def __init__(self, outline: bytes) -> None:
        """Take the outline apart, once."""
        parts = shapely.get_parts(shapely.from_wkb(outline))
        self._bounds = shapely.bounds(parts)
        fine = shapely.transform(parts, lambda at: at * _GRAIN)
        self._shapes = [shapely.geometry.mapping(part) for part in fine]

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Return True, (height, width), where a pixel of the window is inside."""
        left, top, right, bottom = self._bounds.T
        meets = (left < window.col_stop) & (right > window.col)
        meets &= (top < window.row_stop) & (bottom > window.row)
        shape = window.height, window.width
        shapes = [self._shapes[at] for at in meets.nonzero()[0]]
        if not shapes:
            return np.zeros(shape, np.bool_)
        corner = Affine.scale(_GRAIN) @ Affine.translation(window.col, window.row)
        burnt = rasterize(shapes, out_shape=shape, transform=corner, dtype="uint8")
        return np.asarray(burnt, np.bool_)


def region_of_bbox(bbox: Sequence[float], geobox: GeoBox, name: str) -> Region:
    """Return the window of a scene that meets a box of longitudes and latitudes.

    Args:
        bbox: west, south, east, north in degrees (WGS 84); west > east crosses the
            antimeridian.
        geobox: the scene's.
        name: the scene's, for messages.

    Raises:
        UsageError: the scene does not meet the box, or says not where it lies.
    """
    west, south, east, north = bbox
    box = shapely.box(west, south, east + 360 * (west > east), north)
    what = f"bbox {','.join(f'{number:g}' for number in bbox)}"
    return Region(_window(_placed(box, LONLAT, geobox, name), geobox, what, name))


def region_of_file(path: str, geobox: GeoBox, name: str) -> Region:
    """Return the part of a scene inside the polygons of a vector file.

    Args:
        path: GeoJSON, GeoPackage, FlatGeobuf or GeoParquet; their first layer.
        geobox: the scene's.
        name: the scene's, for messages.

    Raises:
        InputError: the file is missing or damaged.
        RefusedError: it is of another format.
        UsageError: it holds no polygon, or none that meets the scene.
    """
    polygons, crs = read_polygons(path)
    outline = _placed(polygons, crs, geobox, name)
    window = _window(outline, geobox, f"aoi {path}", name)
    return Region(window, shapely.to_wkb(outline, byte_order=1, output_dimension=2))


def lonlat_of_file(path: str) -> dict[str, Any]:
    """Return the polygons of a vector file as GeoJSON geometry, WGS 84.

    Raises:
        TilesegError: see `region_of_file`.
    """
    polygons, crs = read_polygons(path)
    try:
        there = CRS.from_user_input(crs)
        if not there.equals(CRS(LONLAT), ignore_axis_order=True):
            polygons = _projected(polygons, there, CRS(LONLAT))
            # What lies on a line is not needed to say it.
            polygons = shapely.simplify(polygons, _STRAIGHT)
    except (ProjError, _NowhereError) as err:
        msg = f"--aoi {path}: its CRS does not lead to longitude and latitude"
        raise UsageError(msg) from err
    plain = shapely.to_geojson(shapely.force_2d(polygons))
    return dict(json.loads(plain))


def _window(outline: Any, geobox: GeoBox, what: str, name: str) -> Window:  # noqa: ANN401  (shapely is untyped)
    if outline.is_empty:
        msg = f"{name}: lies outside --{what}"
        raise UsageError(msg)
    left, top, right, bottom = outline.bounds
    row, col = floor(top), floor(left)
    window = Window(row, col, ceil(bottom) - row, ceil(right) - col)
    return window.intersect(geobox.window)


def _placed(polygons: Any, crs: str, geobox: GeoBox, name: str) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return what of the polygons meets the scene, in its pixels."""
    if geobox.crs is None:
        msg = f"{name}: has no CRS, so no --bbox or --aoi can be found in it"
        raise UsageError(msg)
    try:
        here, there = CRS.from_wkt(geobox.crs), CRS.from_user_input(crs)
        if there != here:
            if there != CRS(LONLAT):
                polygons = _projected(polygons, there, CRS(LONLAT))
            polygons = _from_lonlat(polygons, here, geobox)
    except ProjError as err:
        msg = f"{name}: its CRS does not lead to longitude and latitude, or the area's"
        raise UsageError(msg) from err
    except _NowhereError as err:
        msg = f"{name}: part of the area asked for has no place in its CRS"
        raise UsageError(msg) from err
    outline = shapely.transform(polygons, lambda at: _affine(at, ~geobox.transform))
    scene = shapely.box(0, 0, geobox.width, geobox.height)
    outline = _surfaces(shapely.intersection(shapely.make_valid(outline), scene))
    rounded = shapely.transform(outline, lambda at: np.round(at * _GRAIN) / _GRAIN)
    # Not made valid again, which would leave the grain; who is drawn need not be valid.
    parts = shapely.get_parts(rounded)
    return shapely.multipolygons(parts[shapely.area(parts) > 0])


def _projected(polygons: Any, source: CRS, target: CRS) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return polygons of one CRS in another, long sides in pieces."""
    left, bottom, right, top = shapely.bounds(polygons)
    pieces = shapely.segmentize(polygons, max(right - left, top - bottom) / _PIECES)
    move = Transformer.from_crs(source, target, always_xy=True).transform

    def place(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return _finite(np.stack(move(*at.T), axis=1))

    return shapely.transform(pieces, place)


def _finite(places: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(places).all():
        raise _NowhereError
    return places


def _from_lonlat(polygons: Any, crs: CRS, geobox: GeoBox) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return polygons in longitude and latitude in a scene's CRS, what is far cut off.

    What is far need not have a place in the scene's CRS. Longitudes of polygons and
    scene may be whole turns apart.
    """
    turn = None
    if crs.is_geographic:
        turn = tau / crs.axis_info[0].unit_conversion_factor  # 360 of most units
    middle, near = _surroundings(crs, geobox, turn)
    turns = round(middle / 360)
    copies = [
        shapely.transform(polygons, partial(np.add, (360 * (turns + more), 0)))
        for more in (-1, 0, 1)
    ]
    close = shapely.union_all(shapely.intersection(copies, near))
    west, south, east, north = near.bounds
    longest = max(east - west, north - south) / _PIECES
    pieces = shapely.segmentize(close, longest)
    move = Transformer.from_crs(LONLAT, crs, always_xy=True).transform

    def place(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = move(*lonlat.T)
        if turn:  # a change of datum may bring longitudes back to -180 .. 180
            x = x + turn * np.round(lonlat[:, 0] / 360 - x / turn)
        return _finite(np.stack([x, y], axis=1))

    return shapely.transform(pieces, place)


def _surroundings(crs: CRS, geobox: GeoBox, turn: float | None) -> tuple[float, Any]:
    """Return a scene's middle longitude and a box of degrees that it lies well in.

    Raises:
        ProjError: nowhere it leads to longitude and latitude.
    """
    steps = np.linspace(0, 1, _LATTICE)
    lattice = np.stack(np.meshgrid(steps * geobox.width, steps * geobox.height))
    x, y = _affine(lattice.reshape(2, -1).T, geobox.transform).T
    back = Transformer.from_crs(crs, LONLAT, always_xy=True)
    longitude, latitude = map(np.asarray, back.transform(x, y))
    is_there = np.isfinite(longitude) & np.isfinite(latitude)
    if not is_there.any():
        msg = "no longitude and latitude"
        raise ProjError(msg)
    longitude, latitude, x = longitude[is_there], latitude[is_there], x[is_there]
    middle = float(longitude[len(longitude) // 2])
    if turn:  # counted as the scene does
        middle += 360 * round(float(x[len(x) // 2]) / turn - middle / 360)
    elif np.ptp(longitude) > _NEARLY_ROUND:  # cut where the projection is
        middle = _origin(crs, middle)
    longitude = middle + (longitude - middle + 180) % 360 - 180
    wide, high = np.ptp(longitude) / 8 + 0.1, np.ptp(latitude) / 8 + 0.1
    return middle, shapely.box(
        max(longitude.min() - wide, middle - 180),
        max(latitude.min() - high, -90),
        min(longitude.max() + wide, middle + 180),
        min(latitude.max() + high, 90),
    )


def _origin(crs: CRS, default: float) -> float:
    """Return the longitude in the middle of a projection of the whole Earth."""
    operation = crs.coordinate_operation
    names = ("Longitude of natural origin", "Longitude of projection centre")
    params = operation.params if operation else []
    found = (float(item.value) for item in params if item.name in names)
    return next(found, default)


def _affine(at: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """Return places, (n, 2), moved by a transform."""
    a, b, c, d, e, f = transform[:6]
    x, y = at.T
    return np.stack([x * a + y * b + c, x * d + y * e + f], axis=1)


def _surfaces(geometry: Any) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return the polygons among what is there, as one geometry."""
    parts = shapely.get_parts(shapely.make_valid(geometry))
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = shapely.get_parts(parts)
    is_polygon = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    return shapely.union_all(parts[is_polygon & (shapely.area(parts) > 0)])


def read_polygons(path: str) -> tuple[Any, str]:
    """Return the polygons of a vector file as one geometry, and their CRS.

    Raises:
        TilesegError: see `region_of_file`.
    """
    found = read_features(path, f"--aoi {path}")
    polygons = _surfaces(found.geometries)
    vertices = shapely.get_num_coordinates(polygons)
    if not 0 < vertices <= _MOST_VERTICES:
        msg = f"--aoi {path}: wanted polygons of 1 to {_MOST_VERTICES} vertices"
        raise UsageError(f"{msg}, got {vertices}")
    return polygons, found.crs
