"""GDAL, held short: its settings, and opening a GeoTIFF as that and nothing else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from tileseg.errors import RefusedError

__all__ = ["CACHE_BYTES", "GDAL_ERRORS", "gdal_env", "open_bytes", "open_dataset"]

CACHE_BYTES = 64 << 20
"""What GDAL may keep of decoded blocks."""

GDAL_ERRORS = (RasterioError, rasterio._err.CPLE_BaseError)  # noqa: SLF001
"""What a failing read or write raises; damaged files and the COG driver the second."""

_MOST_BANDS = 1000
_BLOCK_BYTES = 128 << 20  # of one block, decoded: it is held whole, whatever is wanted

_GDAL_OPTIONS = {
    # Bytes, not MB, through rasterio: enough for one row of blocks, and no more for a
    # larger scene or machine.
    "GDAL_CACHEMAX": CACHE_BYTES,
    # Sidecars can replace the grid or reach the network: no .ovr, .msk, .aux.xml.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    # The report names the file; GDAL's own message on stderr says less.
    "CPL_LOG_ERRORS": "OFF",
}


def gdal_env() -> rasterio.Env:
    """Return the GDAL settings that every read and write here runs under."""
    return rasterio.Env(**_GDAL_OPTIONS)


def open_dataset(path: str | Path, **options: int) -> Any:  # noqa: ANN401  (rasterio is untyped)
    """Open a local GeoTIFF, as that and nothing else, whatever its name suggests.

    Raises:
        RefusedError: its header leads to other files, or asks for more than any scene
            needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path, driver="GTiff", **options)
    if fault := _fault(dataset):
        dataset.close()
        msg = f"{path}: {fault}; refused, as it may be hostile"
        raise RefusedError(msg)
    return dataset


def _fault(dataset: Any) -> str:  # noqa: ANN401  (rasterio is untyped)
    """Say what is wrong with a header, before any pixel is read; empty if nothing.

    A few bytes can ask for gigabytes: a block is decoded whole, all its bands too
    where they lie pixel by pixel.
    """
    if dataset.tags(ns="OVERVIEWS"):  # GDAL would open that, with any of its drivers
        return "names another file as its overviews"
    if dataset.count > _MOST_BANDS:
        return f"has {dataset.count} bands, wanted at most {_MOST_BANDS}"
    by_pixel = dataset.interleaving == Interleaving.pixel
    height, width = dataset.block_shapes[0]
    depth = dataset.count if by_pixel else 1
    size = height * width * depth * max(map(_itemsize, dataset.dtypes))
    if size > _BLOCK_BYTES:
        return (
            f"has blocks of {height} x {width} pixels, {size} bytes each, wanted at "
            f"most {_BLOCK_BYTES} (gdal_translate -co TILED=YES cuts it anew)"
        )
    return ""


def _itemsize(dtype: str) -> int:
    """Return the bytes of a pixel; of GDAL's complex integers too."""
    return np.dtype("complex64" if dtype == "complex_int16" else dtype).itemsize


@contextmanager
def open_bytes(data: bytes) -> Iterator[Any]:
    """Open the bytes of a GeoTIFF, as that and nothing else."""
    with warnings.catch_warnings(), MemoryFile(data) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff") as dataset:
            yield dataset
