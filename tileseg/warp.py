"""Pixels brought to another grid: which pixels are needed, and what becomes of them."""

from collections.abc import Callable
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from tileseg.errors import InputError
from tileseg.gdal import GDAL_ERRORS
from tileseg.geobox import GeoBox
from tileseg.window import Window

if TYPE_CHECKING:
    from tileseg.raster import Resampled

__all__ = ["METHODS", "needed", "resample"]

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
    """
    stored, has_data = read(needed(source, target, how))
    shape = target.height, target.width
    pixels = np.zeros((len(stored), *shape), stored.dtype)
    if not has_data.any():
        return pixels, np.zeros(shape, np.bool_)
    stored[:, ~has_data] = 0
    box = source.crop(needed(source, target, how))
    _warp(stored, pixels, box, target, how)
    lack = np.ones(shape, np.float32)
    _warp((~has_data).astype(np.float32), lack, box, target, how)
    is_whole: NDArray[np.bool_] = np.abs(lack) < _NOTHING
    return pixels, is_whole


def needed(source: GeoBox, target: GeoBox, how: "Resampled") -> Window:
    """Return the source's pixels that a grid is made of; empty if it lies elsewhere."""
    x, y = _lattice(target)
    if source.crs != target.crs:
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
    new_x, new_y = transform(source, target, x, y)
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
