"""GDAL, held short: its settings, and opening a GeoTIFF as that and nothing else."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.abc import FileContainer
from rasterio.enums import Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from tileseg.base.address import is_address, shown
from tileseg.errors import RefusedError
from tileseg.stores.remote import RemoteFile, fetcher
from tileseg.stores.source import Traffic
from tileseg.window import Window

__all__ = [
    "CACHE_BYTES",
    "GDAL_ERRORS",
    "gdal_env",
    "held_blocks",
    "hidden",
    "is_out_of_memory",
    "look_at",
    "open_dataset",
]

CACHE_BYTES = 64 << 20
"""What GDAL may keep of decoded blocks."""

GDAL_ERRORS = (RasterioError, rasterio._err.CPLE_BaseError)  # noqa: SLF001
"""What a failing read or write raises; damaged files and the COG driver the second."""

_NAME = "scene.tif"
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
    # What is remote is fetched by `remote.py`. No file can make GDAL ask the network;
    # one that could would ask a proxy that is not there.
    "GDAL_HTTP_PROXY": "127.0.0.1:9",
}


def hidden(dataset: Any, window: Window) -> NDArray[np.bool_] | None:  # noqa: ANN401  (rasterio is untyped)
    """Return where a mask in the file hides pixels of its first band; None without one.

    Raises:
        `GDAL_ERRORS`: it cannot be read.
    """
    if MaskFlags.per_dataset not in dataset.mask_flag_enums[0]:
        return None
    found: NDArray[np.bool_] = dataset.read_masks(1, window=window.slices) == 0
    return found


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether one of `GDAL_ERRORS` came of memory that was not to be had."""
    while error and not isinstance(error, rasterio._err.CPLE_OutOfMemoryError):  # noqa: SLF001
        error = error.__cause__
    return error is not None


def gdal_env() -> rasterio.Env:
    """Return the GDAL settings that every read and write here runs under."""
    return rasterio.Env(**_GDAL_OPTIONS)


def open_dataset(
    path: str | Path,
    traffic: Traffic | None = None,
    /,
    **options: int,
) -> Any:  # noqa: ANN401  (rasterio is untyped)
    """Open a GeoTIFF, as that and nothing else, whatever its name suggests.

    Of a remote one, opening, reading and closing belong to one thread, and what goes
    wrong on the way to it is raised as ours, never as one of `GDAL_ERRORS`.

    Args:
        path: a local path, or the handle of an address.
        traffic: where to count what a remote one costs.
        options: rasterio's.

    Raises:
        RefusedError: its header leads to other files, or asks for more than any scene
            needs.
        TilesegError: a remote file cannot be had.
    """
    name = str(path)
    file = RemoteFile(fetcher(name), traffic) if is_address(name) else None
    with warnings.catch_warnings(), _told(file):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = _open(path, file, options)
        fault = _fault(dataset)
    if fault:
        dataset.close()
        msg = f"{shown(name)}: {fault}; refused, as it may be hostile"
        raise RefusedError(msg)
    return dataset


@contextmanager
def look_at(path: str | Path, /, **options: int) -> Iterator[Any]:
    """Open a GeoTIFF to see what it says of itself.

    GDAL reads its directories when they are asked for, and where that fails it says
    that there is no mask, no tag, no overview: of a remote file that is told at the
    end, whatever was made of it.

    Raises:
        TilesegError: see `open_dataset`.
    """
    with (
        gdal_env(),
        open_dataset(path, **options) as dataset,
        _told(getattr(dataset, "file", None)),
    ):
        yield dataset


def _open(path: str | Path, file: RemoteFile | None, options: Any) -> Any:  # noqa: ANN401  (rasterio is untyped)
    if file is None:
        return rasterio.open(path, driver="GTiff", **options)
    dataset = rasterio.open(_NAME, driver="GTiff", opener=_Only(file), **options)
    dataset.file = file
    for name in ("read", "read_masks", "get_tag_item"):
        setattr(dataset, name, _telling(file, getattr(dataset, name)))
    return dataset


class _Only(FileContainer):  # type: ignore[misc]  # rasterio is untyped
    """All that GDAL may see of the world: one file, of a name that says nothing."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file

    def open(self, path: str, mode: str = "rb", **_options: object) -> RemoteFile:
        if path != _NAME or mode not in ("r", "rb"):
            raise FileNotFoundError(path)
        return self._file

    def isfile(self, path: str) -> bool:
        return path == _NAME

    def isdir(self, _path: str) -> bool:
        return False

    def ls(self, _path: str) -> list[str]:
        return []

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def mtime(self, _path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        return self._file.size if path == _NAME else 0


@contextmanager
def _told(file: RemoteFile | None) -> Iterator[None]:
    """Raise what a remote file has to say, whatever GDAL, or we, made of it."""
    try:
        yield
    except Exception:
        if file and file.error:
            raise file.error from None
        raise
    if file and file.error:
        raise file.error


def _telling(file: RemoteFile, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def told(*args: object, **options: object) -> Any:  # noqa: ANN401  (rasterio is untyped)
        with _told(file):
            return method(*args, **options)

    return told


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


def held_blocks(
    dataset: Any,  # noqa: ANN401  (rasterio is untyped)
    indexes: list[int],
    window: Window,
) -> NDArray[np.bool_]:
    """Return True, (block rows, block columns), where the file holds a window's blocks.

    Where it does not, GDAL reads 0 without a nodata value, which nobody measured; a
    writer that was killed leaves such files, and so do directories that are damaged.

    Args:
        dataset: an open GeoTIFF.
        indexes: of the bands that are used, from 1; all of them must be held.
        window: in pixels of the dataset.
    """
    high, wide = dataset.block_shapes[0]
    by_pixel = dataset.interleaving == Interleaving.pixel  # then in the same blocks
    rows = range(window.row // high, -(-window.row_stop // high))
    columns = range(window.col // wide, -(-window.col_stop // wide))
    held = [
        all(
            dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index)
            for index in (indexes[:1] if by_pixel else indexes)
        )
        for row, col in product(rows, columns)
    ]
    return np.array(held, np.bool_).reshape(len(rows), len(columns))
