"""Pixels for the corpus, and files that GDAL writes."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from tiff import NORTH_UP


def noise(bands, height, width, dtype="uint16", *, low=1, high=9_999):
    """Return pixels that are the same each time, low to high."""
    seed = zlib.crc32(f"{bands} {height} {width} {dtype} {low} {high}".encode())
    random = np.random.default_rng(seed)
    whole = random.integers(low, high, (bands, height, width), endpoint=True)
    return whole.astype(dtype)


def raster(path: Path, pixels: np.ndarray, **profile) -> None:
    """Write `pixels`, (bands, height, width), by GDAL."""
    bands, height, width = pixels.shape
    settings = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "crs": "EPSG:32631",
        "transform": NORTH_UP,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{**settings, **profile}) as dataset:
            dataset.write(pixels)
