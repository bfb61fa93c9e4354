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

from tileseg.card import NODATA
from tileseg.errors import OutputError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.geobox import GeoBox

__all__ = ["verify_confidence", "verify_mask"]

_VALUES = 256  # of a byte
_THREADS = min(8, os.cpu_count() or 1)

Counts = NDArray[np.int64]
"""Pixels by value, (256,)."""


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
        counts = _count(path)
        wanted = np.zeros(_VALUES, np.int64)
        for value, number in pixels.items():
            wanted[value] = number
        wanted[NODATA] += geobox.window.size - wanted.sum()
        _compare(path, "pixels by value", _nonzero(counts), _nonzero(wanted))
        _check_overviews(path, counts)


def verify_confidence(path: Path, geobox: GeoBox, mask: Path) -> None:
    """Refuse a confidence raster whose nodata is not exactly the mask's.

    Raises:
        OutputError: it is not, or cannot be read.
    """
    with _explained(path):
        _check_grid(path, geobox)
        _check_overviews(path, _count(path, mask))


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


def _check_grid(path: Path, geobox: GeoBox) -> None:
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
            "bands": (("uint8",), (NODATA,)),
        }
        for what, value in got.items():
            _compare(path, what, value, wanted[what])
        if dataset.crs != geobox.crs:  # the same place in other words is the same
            _compare(path, "CRS", dataset.crs and dataset.crs.to_wkt(), geobox.crs)


def _check_overviews(path: Path, counts: Counts) -> None:
    """Refuse overviews that cannot be read or have values that the raster has not."""
    with gdal_env(), open_dataset(path) as dataset:
        levels = len(dataset.overviews(1))
    for level in range(levels):
        invented = (_count(path, overview_level=level) > 0) & (counts == 0)
        what = f"values that only overview {level + 1} has"
        _compare(path, what, invented.nonzero()[0].tolist(), [])


def _nonzero(counts: Counts) -> dict[int, int]:
    return {int(value): int(counts[value]) for value in counts.nonzero()[0]}


def _count(path: Path, mask: Path | None = None, **options: int) -> Counts:
    """Count the pixels of a raster by value; compare its nodata with a mask's.

    Block by block, so that memory does not grow with the raster.
    """
    with gdal_env(), ExitStack() as stack:
        # Opened here, since Python's filters of warnings belong to all threads.
        parts = [
            partial(
                _count_part,
                first,
                stack.enter_context(open_dataset(path, **options)),
                mask and stack.enter_context(open_dataset(mask)),
            )
            for first in range(_THREADS)
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = pool.map(lambda part: part(), parts)
            return sum(counts, np.zeros(_VALUES, np.int64))


def _count_part(first: int, dataset: Any, mask: Any) -> Counts:  # noqa: ANN401  (rasterio is untyped)
    """Count every `_THREADS`th block, from block `first` on."""
    counts = np.zeros(_VALUES, np.int64)
    with gdal_env():
        for _, window in islice(dataset.block_windows(1), first, None, _THREADS):
            block = dataset.read(1, window=window)
            counts += np.bincount(block.ravel(), minlength=_VALUES)
            if mask:
                is_hole = mask.read(1, window=window) == NODATA
                differing = int(((block == NODATA) != is_hole).sum())
                what = f"pixels with nodata only here or in {mask.name}, in {window}"
                _compare(Path(dataset.name), what, differing, 0)
    return counts
