"""Opening a raster safely, and saying what it is. Reads no pixel."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.geobox import GeoBox
from tileseg.grid import Grid

__all__ = ["Band", "Scene", "open_scene"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, both byte orders
_STRIP_ROWS = 512  # rows of one read where blocks are lower than that
_STRIP_BYTES = 48 << 20  # one read's decoded pixels, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One band of a scene."""

    index: int
    """From 1, as rasterio counts."""
    name: str | None
    """Its description, or red, green, blue ... by colour interpretation."""
    nodata: float | None
    """The value that means no data; NaN and Inf always do."""
    scale: float
    """physical = stored * scale + offset; 1 where the file does not say."""
    offset: float
    """0 where the file does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a raster file says about itself; plain values, so it travels."""

    href: str
    """As the user wrote it."""
    path: str
    """Absolute; what is opened."""
    size: int
    """Of the file, in bytes."""
    geobox: GeoBox
    """Its grid on the ground."""
    dtype: str
    """numpy's name of the stored type."""
    bands: tuple[Band, ...]
    """All of them, in file order."""
    block: tuple[int, int]
    """(rows, columns) of a TIFF block."""
    has_mask: bool
    """True with a mask for all bands: an internal one, or NODATA_VALUES."""
    alpha: int | None
    """Index of the alpha band, where there is one: 0 is invalid."""
    point: bool
    """True if AREA_OR_POINT is Point."""

    @property
    def is_tiled(self) -> bool:
        """True where a block does not span the scene's width."""
        return self.block[1] < self.geobox.width

    @property
    def strip_rows(self) -> int:
        """Rows that one read brings: whole blocks."""
        height = self.block[0]
        if self.is_tiled:
            return height
        row_bytes = self.geobox.width * len(self.bands) * np.dtype(self.dtype).itemsize
        rows = min(_STRIP_ROWS, _STRIP_BYTES // row_bytes)
        return height * max(1, rows // height)

    def pixel_bytes(self, bands: tuple[Band, ...]) -> int:
        """Return what one pixel of a strip takes, its validity included."""
        return len(bands) * min(4, np.dtype(self.dtype).itemsize) + 1

    def select(self, wanted: tuple[str | int, ...]) -> tuple[Band, ...]:
        """Find bands by name (any case) or index from 1, in the order given.

        Raises:
            UsageError: one is missing, or a name occurs twice.
        """
        return tuple(self._band(key) for key in wanted)

    def _band(self, key: str | int) -> Band:
        found = [
            band
            for band in self.bands
            if band.index == key
            or (isinstance(key, str) and (band.name or "").casefold() == key.casefold())
        ]
        if len(found) == 1:
            return found[0]
        has = ", ".join(
            f"{band.index}: {band.name or '(unnamed)'}" for band in self.bands
        )
        problem = "has no band" if not found else "has more than one band"
        msg = (
            f"{self.href}: {problem} {key!r}; it has {has}. Describe the bands in the "
            f"file, or list them in the model's order in a job file: bands = [3, 2, 1]"
        )
        raise UsageError(msg)

    def band_shards(self, grid: Grid, *, pixel_bytes: int) -> int:
        """Return how many shards wide a run may be.

        Wider runs decode less twice; the bound keeps what a run holds per row of
        blocks under 48 MiB, in bands of equal width. Striped files are never cut,
        since a strip decodes whole.

        Args:
            grid: the scene's grid.
            pixel_bytes: held for each pixel of a strip.
        """
        if not self.is_tiled:
            return grid.shape.width
        width = _STRIP_BYTES // (self.strip_rows * pixel_bytes)
        bands = -(-grid.shape.width // max(1, width // grid.shard))
        return -(-grid.shape.width // bands)


def open_scene(href: str) -> Scene:
    """Open a local GeoTIFF and say what it is.

    Raises:
        UsageError: the path is remote, or its pixels are complex or a palette.
        RefusedError: it is not a GeoTIFF, or its name asks GDAL for something else.
        InputError: it is missing or damaged.
    """
    path = _local_file(href)
    try:
        with gdal_env(), open_dataset(path) as dataset:
            return _describe(href, path, dataset)
    except GDAL_ERRORS as err:
        msg = f"{href}: cannot be read as a GeoTIFF: {err}"
        raise InputError(msg) from err


def _local_file(href: str) -> Path:
    """Return the absolute path of a file that begins like a TIFF."""
    if href.startswith("/vsi"):
        msg = f"{href}: GDAL's virtual file names are refused; give a plain path"
        raise RefusedError(msg)
    if "://" in href:
        msg = f"{href}: only local files can be read so far; download it first"
        raise UsageError(msg)
    try:
        href.encode()
    except UnicodeEncodeError as err:
        msg = f"{href!a}: a file name that is not UTF-8 cannot be opened; rename it"
        raise InputError(msg) from err
    path = Path(href).absolute()
    try:
        mode = path.stat().st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):  # to open a pipe is to wait
            msg = f"{href}: cannot be read: it is not a file"
            raise InputError(msg)
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        msg = f"{href}: cannot be read: {reason}"
        raise InputError(msg) from err
    if magic not in _MAGIC:
        msg = f"{href}: not a GeoTIFF: it begins with {magic!r}"
        raise RefusedError(msg)
    return path


def _describe(href: str, path: Path, dataset: Any) -> Scene:  # noqa: ANN401  (rasterio is untyped)
    dtypes = set(dataset.dtypes)
    if len(dtypes) > 1 or "complex" in dataset.dtypes[0]:
        msg = f"{href}: pixels of type {', '.join(sorted(dtypes))} are not supported"
        raise UsageError(msg)
    if ColorInterp.palette in dataset.colorinterp:
        msg = f"{href}: a palette image holds colour numbers, not measurements"
        raise UsageError(msg)
    layout = dataset.tags(ns="IMAGE_STRUCTURE")
    colors = layout.get("SOURCE_COLOR_SPACE")
    if colors and layout.get("COMPRESSION") != "YCbCr JPEG":
        # GDAL gives red, green, blue and alpha made of them; a JPEG is RGB by nature.
        msg = f"{href}: pixels stored as {colors} colours hold no measurements"
        raise UsageError(msg)
    if dataset.transform.is_identity and (dataset.gcps[0] or dataset.rpcs):
        msg = f"{href}: placed by GCPs or RPCs only; rectify it first (gdalwarp)"
        raise UsageError(msg)
    terms = dataset.transform[:6]
    if not all(map(isfinite, terms)) or dataset.transform.is_degenerate:
        msg = f"{href}: its transform {terms} puts no pixel anywhere; correct it"
        raise InputError(msg)
    crs = dataset.crs.to_wkt(version="WKT2_2019") if dataset.crs else None
    return Scene(
        href=href,
        path=str(path),
        size=path.stat().st_size,
        geobox=GeoBox(dataset.height, dataset.width, dataset.transform, crs),
        dtype=dataset.dtypes[0],
        bands=tuple(_band(dataset, index) for index in dataset.indexes),
        block=dataset.block_shapes[0],
        has_mask=any(map(_is_mask, dataset.mask_flag_enums)),
        alpha=_alpha(dataset),
        point=dataset.tags().get("AREA_OR_POINT") == "Point",
    )


def _is_mask(flags: list[MaskFlags]) -> bool:
    """Return whether all bands share a mask that no alpha band is.

    An internal one, or the value of each band that means no data where all have it
    (NODATA_VALUES, which GDAL marks as nodata too).
    """
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _alpha(dataset: Any) -> int | None:  # noqa: ANN401  (rasterio is untyped)
    """Return the index of the alpha band.

    GDAL calls the fourth of four bytes alpha; one described as something else is not.
    """
    for index, color in zip(dataset.indexes, dataset.colorinterp, strict=True):
        name = dataset.descriptions[index - 1] or "alpha"
        if color == ColorInterp.alpha and name.casefold() == "alpha":
            return int(index)
    return None


def _band(dataset: Any, index: int) -> Band:  # noqa: ANN401  (rasterio is untyped)
    at = index - 1
    color = dataset.colorinterp[at]
    plain = (ColorInterp.undefined, ColorInterp.gray)
    # What controls a terminal has no place in a name, nor in a message that lists it.
    said = "".join(
        letter if letter.isprintable() else "?"
        for letter in dataset.descriptions[at] or ""
    )
    return Band(
        index=index,
        name=said or (None if color in plain else color.name),
        nodata=dataset.nodatavals[at],
        scale=dataset.scales[at],
        offset=dataset.offsets[at],
    )
