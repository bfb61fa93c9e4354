"""GDAL, held short: its settings, and opening a GeoTIFF as that and nothing else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from tileseg.window import Window

__all__ = [
    "CACHE_BYTES",
    "GDAL_ERRORS",
    "gdal_env",
    "open_bytes",
    "open_dataset",
    "strike_absent",
]

CACHE_BYTES = 64 << 20
"""What GDAL may keep of decoded blocks."""

GDAL_ERRORS = (RasterioError, rasterio._err.CPLE_BaseError)  # noqa: SLF001
"""What a failing read or write raises; damaged files and the COG driver the second."""

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
    """Open a local GeoTIFF, as that and nothing else, whatever its name suggests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, driver="GTiff", **options)


@contextmanager
def open_bytes(data: bytes) -> Iterator[Any]:
    """Open the bytes of a GeoTIFF, as that and nothing else."""
    with warnings.catch_warnings(), MemoryFile(data) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff") as dataset:
            yield dataset


def strike_absent(
    valid: NDArray[np.bool_],
    dataset: Any,  # noqa: ANN401  (rasterio is untyped)
    indexes: list[int],
    window: Window,
) -> None:
    """Make pixels invalid whose block the file does not hold.

    Without a nodata value GDAL reads them as 0, which nobody measured; a writer that
    was killed leaves such files, and so do directories that are damaged.

    Args:
        valid: of the window, (height, width).
        dataset: an open GeoTIFF.
        indexes: of the bands that are used, from 1.
        window: in pixels of the dataset.
    """
    high, wide = dataset.block_shapes[0]
    by_pixel = dataset.interleaving == Interleaving.pixel  # then in the same blocks
    rows = range(window.row // high, -(-window.row_stop // high))
    columns = range(window.col // wide, -(-window.col_stop // wide))
    for index, row, col in product(indexes[:1] if by_pixel else indexes, rows, columns):
        if dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index):
            continue
        top, left = row * high - window.row, col * wide - window.col
        valid[max(0, top) : top + high, max(0, left) : left + wide] = False
