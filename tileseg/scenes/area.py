"""How large a pixel is, in hectares or degrees. Knows coordinate systems, no files."""

from math import ceil, degrees, hypot, isfinite, log10

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.window import Window

__all__ = [
    "check_lonlat",
    "check_metres",
    "lonlat_digits",
    "metres_per_unit",
    "pixel_lean",
    "pixel_metres",
    "row_hectares",
    "row_metres",
]

_HECTARE = 10_000.0  # square metres
_POLE = 90.0  # degrees
_DIGITS = 7  # of a degree: a centimetre
_CORNER = ((0, 0), (0, 1), (1, 0))  # of a pixel, and the corners next to it


def row_hectares(geobox: GeoBox) -> NDArray[np.float64] | None:
    """Return the area of one pixel of each row, (height,), in hectares.

    Projected coordinates: the plane area in the CRS's unit. Geographic ones: the
    geodesic area on the CRS's ellipsoid of the pixel in the middle of the row. None
    where the CRS is missing or says nothing about metres.
    """
    crs = _known(geobox.crs)
    if crs is None:
        return None
    if crs.is_projected:
        unit = crs.axis_info[0].unit_conversion_factor
        area = abs(geobox.transform.determinant) * unit**2 / _HECTARE
        return np.full(geobox.height, area)
    geod = crs.get_geod()
    assert geod, "a CRS that is known and not projected has an ellipsoid"
    unit = degrees(crs.axis_info[0].unit_conversion_factor)  # grads are no degrees
    rows = range(geobox.height)
    return np.array([_pixel(geobox, geod, row, unit) for row in rows])


def row_metres(
    geobox: GeoBox,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return how long the sides of pixels are, in metres.

    The upper side of a pixel of each row, and the lower of the last, (height + 1,); the
    left side in each row, (height,). In the plane of projected coordinates, else
    geodesic, in the middle of the row. None where `row_hectares` is.
    """
    crs, transform, column = _known(geobox.crs), geobox.transform, geobox.width // 2
    if crs is None:
        return None
    if crs.is_projected:
        unit = crs.axis_info[0].unit_conversion_factor
        across, down = hypot(transform.a, transform.d), hypot(transform.b, transform.e)
        ones = np.ones(geobox.height + 1)
        return ones * across * unit, ones[1:] * down * unit
    geod = crs.get_geod()
    assert geod, "a CRS that is known and not projected has an ellipsoid"
    unit = degrees(crs.axis_info[0].unit_conversion_factor)
    rows = np.arange(geobox.height + 1)
    a, b, c, d, e, f = transform[:6]
    here, beside = (
        _on_earth(unit * np.array([at * a + rows * b + c, at * d + rows * e + f]))
        for at in (column, column + 1)
    )
    _, _, across = geod.inv(*here, *beside)
    _, _, down = geod.inv(*here[:, :-1], *here[:, 1:])
    return across, down


def pixel_lean(geobox: GeoBox) -> float:
    """Return the cosine of the angle between the upper and the left side of a pixel.

    In the plane of projected coordinates; 0 of others, as if pixels were rectangles.
    """
    crs, (a, b, _, d, e, _, *_) = _known(geobox.crs), geobox.transform
    if crs is None or not crs.is_projected:
        return 0.0
    return float((a * b + d * e) / (hypot(a, d) * hypot(b, e)))


def metres_per_unit(crs: str | None) -> float | None:
    """Return how many metres a unit of a projected CRS is; None of any other."""
    try:
        found = CRS.from_user_input(crs) if crs else None
    except CRSError:
        return None
    if found is None or not found.is_projected:
        return None
    return float(found.axis_info[0].unit_conversion_factor)


def pixel_metres(geobox: GeoBox) -> float | None:
    """Return the side of a pixel in the middle, in metres, as if it were square."""
    middle = Window(geobox.height // 2, 0, 1, geobox.width)
    area = row_hectares(geobox.crop(middle))
    return None if area is None else float(np.sqrt(area[0] * _HECTARE))


def _known(wkt: str | None) -> CRS | None:
    """Return a CRS that says something about metres; None of any other."""
    try:
        crs = CRS.from_wkt(wkt) if wkt else None
    except CRSError:
        return None
    if crs is None or crs.is_projected:
        return crs
    return crs if crs.is_geographic and crs.get_geod() else None


def _on_earth(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return longitudes and latitudes, none beyond a pole, as global grids have."""
    return np.stack([places[0], places[1].clip(-_POLE, _POLE)])


def _pixel(geobox: GeoBox, geod: Geod, row: int, unit: float) -> float:
    column = geobox.width // 2
    corners = ((0, 0), (0, 1), (1, 1), (1, 0))
    places = [geobox.transform @ (column + x, row + y) for x, y in corners]
    longitudes, latitudes = _on_earth(unit * np.array(places).T)
    area, _ = geod.polygon_area_perimeter(longitudes, latitudes)
    return abs(float(area)) / _HECTARE


def lonlat_digits(geobox: GeoBox) -> int | None:
    """Return the digits of a degree that tell a scene's pixels apart.

    At least seven, and as many as a hundredth of a pixel needs, else small pixels
    would be rounded into invalid polygons. None where nothing leads to longitude and
    latitude: no CRS, or one of another world.
    """
    if geobox.crs is None:
        return None
    column, row = geobox.width // 2, geobox.height // 2
    places = [geobox.transform @ (column + x, row + y) for x, y in _CORNER]
    try:
        crs = CRS.from_wkt(geobox.crs)
        to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        (x, y), *others = [to_lonlat.transform(*place) for place in places]
    except ProjError:
        return None
    size = min(hypot(east - x, north - y) for east, north in others)
    return max(_DIGITS, ceil(2 - log10(size))) if isfinite(size) and size else None


def check_lonlat(geobox: GeoBox, href: str) -> None:
    """Refuse to make GeoJSON, which is in longitude and latitude, of what has none.

    Args:
        geobox: where a raster lies.
        href: what it is called.

    Raises:
        UsageError: see above.
    """
    if lonlat_digits(geobox) is None:
        msg = (
            f"{href}: its CRS does not lead to longitude and latitude, which GeoJSON "
            "is in: choose gpkg, parquet or fgb"
        )
        raise UsageError(msg)


def check_metres(geobox: GeoBox, href: str, option: str) -> None:
    """Refuse an option that is in metres or hectares where nothing says what these are.

    Args:
        geobox: where a raster lies.
        href: what it is called.
        option: as it is given, `--simplify`.

    Raises:
        UsageError: see above.
    """
    if pixel_metres(geobox) is None:
        msg = (
            f"{href}: its CRS does not say how long a metre is, which {option} needs: "
            f"give it a CRS, or leave {option} out"
        )
        raise UsageError(msg)
