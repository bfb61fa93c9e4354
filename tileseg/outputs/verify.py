"""Is a finished raster what was meant? It is read again, before it is published."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.masks.overview import Pixels
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.window import Window

__all__ = ["verify_layer", "verify_mask"]

_VALUES = 256  # of a byte
_THREADS = min(8, os.cpu_count() or 1)

_LIKELY = 8  # values that are looked for before all are
_IN_A_ROW = 8  # blocks that are read at once

Counts = NDArray[np.int64]
"""Pixels by value, (256,)."""

Values = tuple[int, ...]


def verify_mask(path: Path, geobox: GeoBox, pixels: Mapping[int, int]) -> None:
    """Refuse a mask that is not exactly what its shards say.

    Args:
        path: the raster.
        geobox: the scene's grid.
        pixels: mask value to number of pixels, by the receipts; the rest is nodata.

    Raises:
        OutputError: it is not that, or cannot be read.
    """
    with _explained(path):
        _check_grid(path, geobox)
        wanted = np.zeros(_VALUES, np.int64)
        for value, number in pixels.items():
            wanted[value] = number
        wanted[NODATA] += geobox.window.size - wanted.sum()
        likely = _commonest(wanted)
        counts = _count(path, likely)
        _compare(path, "pixels by value", _nonzero(counts), _nonzero(wanted))
        _check_overviews(path, counts, likely)


def verify_layer(path: Path, geobox: GeoBox, mask: Path, bands: int = 1) -> None:
    """Refuse a raster of `LAYERS` of which a band has other nodata than the mask.

    Args:
        path: the raster.
        geobox: the scene's grid.
        mask: the finished mask.
        bands: how many it is to have.

    Raises:
        OutputError: it is not that, or cannot be read.
    """
    with _explained(path):
        _check_grid(path, geobox, bands)
        for band in range(1, bands + 1):
            counts = _count(path, band=band, mask=mask)
            (values,) = counts[:NODATA].nonzero()
            if values.size:  # a mean lies between the least and the greatest
                counts[values[0] : values[-1]] = 1
            _check_overviews(path, counts, band=band)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except GDAL_ERRORS as err:
        msg = f"{path}: was written and cannot be read: {err.__cause__ or err}"
        raise OutputError(msg) from err


def _compare(path: Path, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        msg = (
            f"{path}: is not what was meant: {what}: got {got}, wanted {wanted}; run "
            "again, and look at the disk and the memory if it stays so"
        )
        raise OutputError(msg)


def _check_grid(path: Path, geobox: GeoBox, bands: int = 1) -> None:
    """Compare what the file says of itself; the transform to the last bit."""
    with gdal_env(), open_dataset(path) as dataset:
        got = {
            "size": (dataset.height, dataset.width),
            "transform": dataset.transform,
            "bands": (dataset.dtypes, dataset.nodatavals),
        }
        wanted = {
            "size": (geobox.height, geobox.width),
            "transform": geobox.transform,
            "bands": (("uint8",) * bands, (NODATA,) * bands),
        }
        for what, value in got.items():
            _compare(path, what, value, wanted[what])
        if dataset.crs != geobox.crs:  # the same place in other words is the same
            _compare(path, "CRS", dataset.crs and dataset.crs.to_wkt(), geobox.crs)


def _check_overviews(
    path: Path, counts: Counts, likely: Values = (), band: int = 1
) -> None:
    """Refuse overviews that cannot be read or have values of which there are none."""
    with gdal_env(), open_dataset(path) as dataset:
        levels = len(dataset.overviews(1))
    for level in range(levels):
        found = _count(path, likely, band=band, overview_level=level)
        invented = (found > 0) & (counts == 0)
        what = f"values that only overview {level + 1} has"
        _compare(path, what, invented.nonzero()[0].tolist(), [])


def _nonzero(counts: Counts) -> dict[int, int]:
    return {int(value): int(counts[value]) for value in counts.nonzero()[0]}


def _commonest(counts: Counts) -> Values:
    """Return the values with the most pixels, the commonest first; few at most."""
    order = np.argsort(-counts, kind="stable")[:_LIKELY]
    return tuple(int(value) for value in order if counts[value])


def _count(
    path: Path,
    likely: Values = (),
    band: int = 1,
    mask: Path | None = None,
    **options: int,
) -> Counts:
    """Count the pixels of a band by value; compare its nodata with a mask's.

    Some blocks at a time, so that memory does not grow with the raster.

    Args:
        path: the raster.
        likely: what it may well be made of: that is counted faster.
        band: which one.
        mask: another raster of the same size.
        options: rasterio's.
    """
    with gdal_env(), ExitStack() as stack:
        # Opened here, since Python's filters of warnings belong to all threads.
        parts = [
            partial(
                _count_part,
                first,
                stack.enter_context(open_dataset(path, **options)),
                mask and stack.enter_context(open_dataset(mask)),
                likely,
                band,
            )
            for first in range(_THREADS)
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = pool.map(lambda part: part(), parts)
            return sum(counts, np.zeros(_VALUES, np.int64))


def _count_part(
    first: int,
    dataset: Any,  # noqa: ANN401  (rasterio is untyped)
    mask: Any,  # noqa: ANN401
    likely: Values,
    band: int,
) -> Counts:
    """Count every `_THREADS`th of some blocks in a row, from the first on."""
    counts = np.zeros(_VALUES, np.int64)
    with gdal_env():
        for window in islice(_windows(dataset), first, None, _THREADS):
            pixels = dataset.read(band, window=window.slices)
            counts += _histogram(pixels, likely)
            if mask:
                is_hole = mask.read(1, window=window.slices) == NODATA
                differing = np.count_nonzero((pixels == NODATA) != is_hole)
                what = f"pixels with nodata only here or in {mask.name}, in {window}"
                _compare(Path(dataset.name), what, differing, 0)
    return counts


def _windows(dataset: Any) -> Iterator[Window]:  # noqa: ANN401  (rasterio is untyped)
    """Yield some blocks of a row at a time; every pixel once."""
    whole = Window(0, 0, dataset.height, dataset.width)
    high, wide = dataset.block_shapes[0]
    for row in range(0, whole.height, high):
        for col in range(0, whole.width, wide * _IN_A_ROW):
            yield Window(row, col, high, wide * _IN_A_ROW).intersect(whole)


def _histogram(pixels: Pixels, likely: Values) -> Counts:
    """Count pixels by value: comparing with some is faster than sorting into bins."""
    counts = np.zeros(_VALUES, np.int64)
    left = pixels.size
    for value in likely:
        counts[value] = np.count_nonzero(pixels == value)
        left -= counts[value]
        if not left:
            return counts
    if pixels.size % 2:
        return np.bincount(pixels.ravel(), minlength=_VALUES)
    # Two at once: half as many to sort.
    pairs = np.bincount(pixels.ravel().view(np.uint16), minlength=_VALUES**2)
    table: Counts = pairs.reshape(_VALUES, _VALUES)
    counts[:] = table.sum(axis=0) + table.sum(axis=1)
    return counts
