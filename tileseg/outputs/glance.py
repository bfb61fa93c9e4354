"""Rasters at reduced size, for people: through overviews where there are any."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from tileseg.base.address import is_address
from tileseg.errors import InputError, TilesegError
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, look_at, open_dataset
from tileseg.scenes.raster import Band, Beside, File, Resampled, Scene, Stacked
from tileseg.scenes.warp import needed, resample
from tileseg.window import Window

__all__ = ["glance", "labels_of", "stretched", "try_glance"]

logger = logging.getLogger(__name__)

Picture = NDArray[np.float64]

_STRETCH = (1, 99)  # percentiles of the valid pixels
_SAMPLES = 100_000  # valid pixels that these are taken from, about
_MOST_FETCHED = 64 << 20  # bytes of a remote file, for a picture that nobody asked for


def glance(
    scene: Scene, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture:
    """Return bands of a window decimated to `shape`, NaN where a file has nodata.

    And NaN where a remote file would have to be fetched anew, as it has no overviews.

    Raises:
        InputError: a file cannot be read.
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


def try_glance(
    scene: Scene, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture | None:
    """Do as `glance` does; return None where that cannot be read."""
    try:
        return glance(scene, bands, window, shape)
    except TilesegError as err:
        # A damaged block, or a dead server: the mask is there all the same.
        logger.warning("no picture of the scene: %s", err)
        return None


def labels_of(mask: Path, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask decimated to `shape`, from its overviews."""
    with gdal_env(), open_dataset(mask) as dataset:
        labels: NDArray[np.uint8] = dataset.read(
            1, window=window.slices, out_shape=shape
        )
    return labels


def stretched(
    picture: NDArray[Any] | None, is_nodata: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return a picture stretched to 0..1, as `is_nodata` by 3, white where that is."""
    if picture is None:
        return np.ones((*is_nodata.shape, 3), np.float32)
    pixels = np.nan_to_num(picture.astype(np.float32), nan=0, posinf=0, neginf=0)
    (valid,) = np.nonzero(~is_nodata.ravel())
    if valid.size:
        some = valid[:: -(-valid.size // _SAMPLES)]
        values = pixels.reshape(len(pixels), -1)[:, some]
        low, high = np.percentile(values, _STRETCH, axis=1)[:, :, None, None]
        pixels -= low
        pixels /= np.maximum(high - low, np.float32(1e-9))
        pixels.clip(0, 1, out=pixels)
    np.copyto(pixels, 1, where=is_nodata)
    return np.moveaxis(pixels, 0, -1)


def _of_file(
    file: File, bands: tuple[Band, ...], window: Window, shape: tuple[int, int]
) -> Picture:
    indexes = [band.index for band in bands]
    try:
        with look_at(file.path) as dataset:
            if is_address(file.path):
                size = _to_fetch(file, dataset, window, shape)
                if size > _MOST_FETCHED:
                    text = "%s: not shown: without overviews %d MB would be fetched"
                    logger.info(text, file.href, size // 1_000_000)
                    return np.full((len(indexes), *shape), np.nan)
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


def _to_fetch(
    file: File,
    dataset: Any,  # noqa: ANN401  (rasterio is untyped)
    window: Window,
    shape: tuple[int, int],
) -> float:
    """Return about how many bytes of a file the coarsest overview that does takes."""
    coarsest = min(window.height / shape[0], window.width / shape[1])
    factors: list[int] = dataset.overviews(1)
    factor = max((factor for factor in factors if factor <= coarsest), default=1)
    share = window.size / int(dataset.height * dataset.width)
    return file.size * share / factor**2


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
