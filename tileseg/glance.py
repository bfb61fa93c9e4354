"""A scene at reduced size, for people: through overviews where there are any."""

from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from tileseg.address import is_address
from tileseg.errors import InputError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.geobox import GeoBox
from tileseg.raster import Band, Beside, File, Resampled, Scene, Stacked
from tileseg.warp import needed, resample
from tileseg.window import Window

__all__ = ["glance"]

Picture = NDArray[np.float64]

_MOST = 4  # pixels each way that are fetched of a remote file to show one


def glance(
    scene: Scene, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture:
    """Return bands of a window decimated to `shape`, NaN where a file has nodata.

    Raises:
        InputError: a file cannot be read; or a remote one has no overviews that are
            small enough, so that it would be fetched whole, again, for a picture.
    """
    match scene.origin:
        case File() as file:
            return _of_file(file, bands, window, shape)
        case Stacked(rasters):
            return _of_stack(rasters, bands, window, shape)
        case Beside() as beside:
            return _of_places(beside, bands, window, shape)
        case Resampled() as resampled:
            return _of_resampled(resampled, scene.geobox, bands, window, shape)


def _of_file(
    file: File, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture:
    indexes = [band.index for band in bands]
    try:
        with gdal_env(), open_dataset(file.path) as dataset:
            if is_address(file.path):
                _check_small(file, dataset.overviews(1), window, shape)
            stored: NDArray[Any] = dataset.read(
                indexes, window=window.slices, out_shape=(len(indexes), *shape)
            )
    except GDAL_ERRORS as err:
        msg = f"{file.href}: cannot be read: {err.__cause__ or err}"
        raise InputError(msg) from err
    pixels = stored.astype(np.float64)
    for values, band in zip(pixels, bands, strict=True):
        values[values == band.nodata] = np.nan
    return pixels


def _check_small(
    file: File, overviews: list[int], window: Window, shape: tuple[int, int]
) -> None:
    """Refuse to fetch far more than is shown."""
    factor = max(window.height / shape[0], window.width / shape[1])
    if factor > _MOST * max(overviews, default=1):
        msg = (
            f"{file.href}: would be fetched again for a picture {factor:.0f} times "
            "smaller; write overviews into it (gdaladdo)"
        )
        raise InputError(msg)


def _of_stack(
    rasters: tuple[Scene, ...],
    bands: tuple[Band, ...],
    window: Window,
    shape: tuple[int, int],
) -> Picture:
    owners = [(raster, band) for raster in rasters for band in raster.bands]
    chosen = [owners[band.index - 1] for band in bands]
    layers = [glance(raster, (band,), window, shape) for raster, band in chosen]
    return np.concatenate(layers)


def _of_places(
    beside: Beside, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture:
    pixels = np.full((len(bands), *shape), np.nan)
    scale = np.array(shape) / (window.height, window.width)
    for place, raster in zip(beside.places, beside.rasters, strict=True):
        part = place.intersect(window)
        if not part.size:
            continue
        box = part.relative_to(window)
        first = np.floor(scale * (box.row, box.col)).astype(int)
        last = np.ceil(scale * (box.row_stop, box.col_stop)).astype(int)
        at = pixels[:, first[0] : last[0], first[1] : last[1]]
        own = tuple(raster.bands[band.index - 1] for band in bands)
        found = glance(raster, own, part.relative_to(place), at.shape[1:])
        np.copyto(at, found, where=np.isnan(at))
    return pixels


def _of_resampled(
    resampled: Resampled,
    geobox: GeoBox,
    bands: tuple[Band, ...],
    window: Window,
    shape: tuple[int, int],
) -> Picture:
    """Resample, by nearest, a source that is decimated to about twice the size."""
    source = resampled.raster
    own = tuple(source.bands[band.index - 1] for band in bands)
    target = _shrunk(geobox.crop(window), shape)
    part = needed(source.geobox, target, resampled)
    if not part.size:
        return np.full((len(bands), *shape), np.nan)
    small = min(2 * shape[0], part.height), min(2 * shape[1], part.width)
    pixels = glance(source, own, part, small)
    box = _shrunk(source.geobox.crop(part), small)
    how = Resampled(source, "nearest", (1.0, 1.0))

    def read(at: Window) -> tuple[Picture, NDArray[np.bool_]]:
        found = pixels[:, *at.slices].copy()
        return found, np.logical_not(np.isnan(found).any(axis=0))

    found, is_there = resample(read, box, target, how)
    found[:, ~is_there] = np.nan
    return found


def _shrunk(box: GeoBox, shape: tuple[int, int]) -> GeoBox:
    """Return the same place in fewer pixels."""
    scale = Affine.scale(box.width / shape[1], box.height / shape[0])
    return GeoBox(*shape, box.transform @ scale, box.crs)
