"""Pixels brought to another grid: which pixels are needed, and what becomes of them."""

from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling, WktVersion
from rasterio.errors import CRSError
from rasterio.warp import calculate_default_transform, reproject, transform

from tileseg.errors import InputError, UsageError
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS
from tileseg.window import Window

if TYPE_CHECKING:
    from tileseg.scenes.raster import Resampled

__all__ = [
    "METHODS",
    "covering_box",
    "needed",
    "resample",
    "same_crs",
    "scale_between",
]

METHODS = {
    "nearest": Resampling.nearest,
    "bilinear": Resampling.bilinear,
    "cubic": Resampling.cubic,
}

_REACH = {"nearest": 1, "bilinear": 1, "cubic": 2}  # pixels each way, the kernel's
_SPARE = 2  # pixels more that are read, for lines that the projection bends
_LATTICE = 21  # points each way that say where a block lies
_TOLERANCE = 0.01  # pixels by which GDAL may be off between exact points
_NOTHING = 1e-6  # weight of invalid pixels that changes no stored value
_OFF = 1e-6  # pixels that make no pixel more
_MOST = 2**31 - 1  # pixels each way of a GeoTIFF
_MOST_AT_ONCE = 1 << 24  # pixels of the source for one block: 4096 x 4096
_PLANE = "EPSG:3857"  # of a raster without a CRS that stays where it is

Read = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]


def resample(
    read: Read, source: GeoBox, target: GeoBox, how: "Resampled"
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return pixels, (bands, height, width), and validity, (height, width), of a grid.

    A pixel is valid if its centre lies in the source and every source pixel that it
    takes a part of is valid; beyond the source's edge there are none to take.

    Args:
        read: what gives the source's pixels and their validity in a window.
        source: the whole source's grid.
        target: the grid that is wanted; always the same for the same pixels, since
            GDAL's arithmetic depends on it in the last bit.
        how: the method, and the scale.

    Raises:
        InputError: the projection does not lead there.
        UsageError: too many of the source's pixels are needed at once.
    """
    part = needed(source, target, how)
    if part.size > _MOST_AT_ONCE:
        msg = (
            f"{how.raster.href}: {target.height} x {target.width} new pixels need "
            f"{part.height} x {part.width} of it at once, wanted at most "
            f"{_MOST_AT_ONCE} in all: they lie across 180 degrees, a pole or where the "
            "crs is not made for; choose another crs, or cut the scene there"
        )
        raise UsageError(msg)
    stored, has_data = read(part)
    shape = target.height, target.width
    pixels = np.zeros((len(stored), *shape), stored.dtype)
    if not has_data.any():
        return pixels, np.zeros(shape, np.bool_)
    stored[:, ~has_data] = 0
    box = source.crop(part)
    _warp(stored, pixels, box, target, how)
    lack = np.ones(shape, np.float32)
    _warp((~has_data).astype(np.float32), lack, box, target, how)
    is_whole: NDArray[np.bool_] = np.abs(lack) < _NOTHING
    return pixels, is_whole


def needed(source: GeoBox, target: GeoBox, how: "Resampled") -> Window:
    """Return the source's pixels that a grid is made of; empty if it lies elsewhere."""
    x, y = _lattice(target)
    if not same_crs(source.crs, target.crs):
        x, y = _moved(target.crs, source.crs, x, y)
    cols, rows = _apply(~source.transform, x, y)
    inside = np.isfinite(cols) & np.isfinite(rows)
    if not inside.any():
        return Window(0, 0, 0, 0)
    spare = [ceil(_REACH[how.method] * max(1.0, 1 / s)) + _SPARE for s in how.scale]
    left, right = floor(cols[inside].min()), ceil(cols[inside].max())
    top, bottom = floor(rows[inside].min()), ceil(rows[inside].max())
    wide = Window(
        top - spare[1],
        left - spare[0],
        bottom - top + 2 * spare[1],
        right - left + 2 * spare[0],
    )
    return wide.intersect(source.window)


def same_crs(one: str | None, other: str | None) -> bool:
    """Return whether two CRSs are the same place in perhaps other words."""
    if one == other or not (one and other):
        return one == other
    try:
        return bool(CRS.from_wkt(one) == CRS.from_wkt(other))
    except CRSError:
        return False


def covering_box(
    boxes: Sequence[GeoBox],
    crs: str,
    resolution: float | None,
    *,
    on: GeoBox | None = None,
) -> GeoBox:
    """Return the grid, north up with square pixels, that covers grids.

    Its pixels are counted from the first grid's corner where that has the same CRS,
    else from the CRS's origin, so that neighbouring scenes have pixels in common.

    Args:
        boxes: what is covered.
        crs: anything that PROJ knows; empty for the first grid's.
        resolution: side of a pixel; None for about the first grid's.
        on: a grid of which it is to be a part.

    Raises:
        UsageError: the CRS is unknown or is not reached, or the grid is too large.
    """
    first = boxes[0]
    wanted = _wkt(crs, first.crs) if crs else first.crs
    is_moved = not same_crs(first.crs, wanted)
    left, top, right, bottom = _bounds(boxes, wanted)
    x, y = (0.0, 0.0) if is_moved else (left, top)
    side = resolution or _side(first, wanted, is_moved=is_moved)
    if on:
        x, y, side = on.transform.c, on.transform.f, on.transform.a
    cols = floor((left - x) / side + _OFF), ceil((right - x) / side - _OFF)
    rows = floor((y - top) / side + _OFF), ceil((y - bottom) / side - _OFF)
    height, width = max(1, rows[1] - rows[0]), max(1, cols[1] - cols[0])
    if max(height, width) > _MOST:
        msg = f"resolution {side:g}: makes a scene of {height} x {width} pixels"
        raise UsageError(msg)
    place = Affine(side, 0.0, x + cols[0] * side, 0.0, -side, y - rows[0] * side)
    return GeoBox(height, width, place, wanted)


def scale_between(source: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Return the target's pixels per pixel of the source, along its columns and rows.

    Measured in the middle of the target.
    """
    cols = np.array([0.0, 1.0, 0.0]) + target.width / 2
    rows = np.array([0.0, 0.0, 1.0]) + target.height / 2
    x, y = _apply(target.transform, cols, rows)
    if not same_crs(source.crs, target.crs):
        x, y = _moved(target.crs, source.crs, x, y)
    places = np.array(_apply(~source.transform, x, y))
    reach = np.hypot(*(places[:, 1:] - places[:, :1]).T)
    if not (np.isfinite(reach).all() and (reach > 0).all()):
        return 1.0, 1.0
    return round(1 / float(reach[0]), 9), round(1 / float(reach[1]), 9)


def _wkt(crs: str, known: str | None) -> str:
    """Return a CRS as WKT2; in the words that are known, if it is that."""
    try:
        wkt = str(CRS.from_user_input(crs).to_wkt(version=WktVersion.WKT2_2019))
    except CRSError as err:
        msg = f"crs: got {crs!r}, wanted a CRS that PROJ knows, as EPSG:32631"
        raise UsageError(msg) from err
    if not known:
        msg = (
            f"crs {crs!r}: the scene does not say where it lies, so nothing leads there"
        )
        raise UsageError(msg)
    return known if same_crs(known, wkt) else wkt


def _side(box: GeoBox, crs: str | None, *, is_moved: bool) -> float:
    """Return the side of square pixels about as large as a grid's."""
    if not is_moved:
        return box.side
    left, top, right, bottom = _bounds((box,), box.crs)
    place, _, _ = calculate_default_transform(
        box.crs, crs, box.width, box.height, left, bottom, right, top
    )
    return float(place.a)


def _bounds(
    boxes: Sequence[GeoBox], crs: str | None
) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of grids in a CRS."""
    points = []
    for box in boxes:
        x, y = _lattice(box)
        if not same_crs(box.crs, crs):
            x, y = _moved(box.crs, crs, x, y)
        points.append((x, y))
    x, y = np.concatenate(points, axis=1)
    if not np.isfinite([x, y]).all():
        msg = "crs: does not reach the whole scene; choose one that is made for it"
        raise UsageError(msg)
    return float(x.min()), float(y.max()), float(x.max()), float(y.min())


def _lattice(box: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of points all over a grid, corners included."""
    cols, rows = np.meshgrid(
        np.linspace(0, box.width, _LATTICE), np.linspace(0, box.height, _LATTICE)
    )
    return _apply(box.transform, cols.ravel(), rows.ravel())


def _apply(
    by: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return by.a * x + by.b * y + by.c, by.d * x + by.e * y + by.f


def _moved(
    source: str | None,
    target: str | None,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points in another CRS; Inf where it does not reach."""
    try:
        new_x, new_y = transform(source, target, x, y)
    except (CRSError, *GDAL_ERRORS) as err:
        msg = f"crs: nothing leads there: {err.__cause__ or err}"
        raise UsageError(msg) from err
    return np.array(new_x), np.array(new_y)


def _warp(
    source: NDArray[Any],
    target: NDArray[Any],
    box: GeoBox,
    target_box: GeoBox,
    how: "Resampled",
) -> None:
    """Fill `target` where the source lies, and leave it elsewhere."""
    try:
        reproject(
            source,
            target,
            src_transform=box.transform,
            src_crs=box.crs or _PLANE,
            dst_transform=target_box.transform,
            dst_crs=target_box.crs or _PLANE,
            resampling=METHODS[how.method],
            init_dest_nodata=False,
            tolerance=_TOLERANCE,
            # Said, since GDAL would guess it from the window it is given.
            XSCALE=how.scale[0],
            YSCALE=how.scale[1],
        )
    except GDAL_ERRORS as err:
        msg = f"cannot be brought to another grid: {err.__cause__ or err}"
        raise InputError(msg) from err
