"""What a raster is, as plain values: a file, or rasters stacked, beside, resampled.

A scene is such a tree; it travels to workers. Opens no file, reads no pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tileseg.base.rules import Rule
from tileseg.base.times import Period, together
from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.grid import Grid
from tileseg.window import Window

__all__ = ["Band", "Beside", "File", "Mask", "Resampled", "Scene", "Stacked", "Tie"]

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
class File:
    """The pixels of one raster file."""

    href: str
    """As the user or a catalog wrote it, of an address what may be shown."""
    path: str
    """What is opened: absolute, or an address's handle."""
    size: int
    """In bytes."""
    has_mask: bool
    """True with a mask for all bands: an internal one, or NODATA_VALUES."""
    alpha: int | None
    """Index of the alpha band, where there is one: 0 is invalid."""
    is_palette: bool
    """True where values are numbers of colours."""
    is_sparse: bool = False
    """True where a block that the file does not hold counts as GDAL reads it."""
    taken: Period | None = None
    """When its pixels were taken, where that is said."""
    codec: str = ""
    """How its blocks are compressed, as GDAL calls it; empty for not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """What places a raster on the ground that has no transform."""

    points: tuple[tuple[float, float, float, float, float], ...]
    """Ground control points: row, column, x, y, z."""
    crs: str | None
    """Of their x and y, as WKT2."""
    rpc: tuple[tuple[str, str], ...]
    """Rational polynomials, as GDAL words them."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """Rasters of one grid; their bands in this order."""

    rasters: tuple["Scene", ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """Rasters of equal bands at their places; the first that has data counts."""

    places: tuple[Window, ...]
    """Of each raster, in pixels of the whole."""
    rasters: tuple["Scene", ...]


@dataclass(frozen=True, slots=True)
class Resampled:
    """A raster brought to another grid."""

    raster: "Scene"
    method: str
    """`nearest`, `bilinear` or `cubic`."""
    scale: tuple[float, float]
    """Pixels of the new grid per pixel of the old, along x and y."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What makes pixels invalid from outside."""

    raster: "Scene"
    """On the grid of what it masks."""
    band: Band
    """Of that raster."""
    rule: Rule
    """Which of its values do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A raster, whatever it is made of."""

    href: str
    """As the user wrote it; of several files the first one's, and how many more."""
    geobox: GeoBox
    """Its grid on the ground."""
    dtype: str
    """numpy's name of a type that holds the stored values of all files."""
    bands: tuple[Band, ...]
    """All of them, in order."""
    block: tuple[int, int]
    """(rows, columns) that are best read together, from the first pixel on."""
    point: bool
    """True if AREA_OR_POINT is Point."""
    origin: File | Stacked | Beside | Resampled
    """Where its pixels come from."""
    tie: "Tie | None" = None
    """What places it where no transform does."""
    masks: tuple[Mask, ...] = ()
    """What makes them invalid from outside."""

    @property
    def files(self) -> tuple[File, ...]:
        """Every file there is to it, masks included, once each."""
        return tuple({file.path: file for file in self._files()}.values())

    def _files(self) -> Iterator[File]:
        match self.origin:
            case File():
                yield self.origin
            case Stacked(rasters) | Beside(_, rasters):
                for raster in rasters:
                    yield from raster._files()  # noqa: SLF001  (of the same class)
            case Resampled(raster):
                yield from raster._files()  # noqa: SLF001
        for mask in self.masks:
            yield from mask.raster._files()  # noqa: SLF001

    @property
    def taken(self) -> Period | None:
        """When its pixels were taken, masks not counted; None where no file says it."""
        match self.origin:
            case File():
                return self.origin.taken
            case Stacked(rasters) | Beside(_, rasters):
                return together(raster.taken for raster in rasters)
            case Resampled(raster):
                return raster.taken

    def facts(self) -> list[Any]:
        """Return how its pixels come from its files, by their number, as JSON has it.

        What decides a pixel beside the files' bytes; names of places are none of it.
        """
        numbers = {file.path: at for at, file in enumerate(self.files)}
        return self._facts(numbers)

    def _facts(self, numbers: dict[str, int]) -> list[Any]:
        made: list[Any]
        match self.origin:
            case File() as file:
                nodata = [str(band.nodata) for band in self.bands]
                made = [numbers[file.path], file.has_mask, file.alpha, nodata]
                made.append(file.is_sparse)
            case Stacked(rasters):
                made = [item._facts(numbers) for item in rasters]  # noqa: SLF001
            case Beside(places, rasters):
                made = [
                    [place.row, place.col, item._facts(numbers)]  # noqa: SLF001
                    for place, item in zip(places, rasters, strict=True)
                ]
            case Resampled(raster, method, scale):
                made = [raster._facts(numbers), method, *scale]  # noqa: SLF001
        box = self.geobox
        masks = [
            [mask.raster._facts(numbers), mask.band.index, mask.rule.facts()]  # noqa: SLF001
            for mask in self.masks
        ]
        grid = [box.height, box.width, *list(box.transform)[:6], box.crs]
        return [type(self.origin).__name__, self.dtype, grid, made, masks]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def is_resampled(self) -> bool:
        """Whether any of its bands is not as stored."""
        match self.origin:
            case File():
                return False
            case Stacked(rasters) | Beside(_, rasters):
                return any(raster.is_resampled for raster in rasters)
        return True

    @property
    def is_masked(self) -> bool:
        """Whether anything makes its pixels invalid from outside."""
        match self.origin:
            case Stacked(rasters) | Beside(_, rasters):
                return bool(self.masks) or any(item.is_masked for item in rasters)
        return bool(self.masks)

    @property
    def is_tiled(self) -> bool:
        """True where a block does not span the scene's width."""
        return self.block[1] < self.geobox.width

    @property
    def strip_rows(self) -> int:
        """Rows that one read brings: whole blocks, several where they are low."""
        height = self.block[0]
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
        return tuple(self._band(key, wanted) for key in wanted)

    def _band(self, key: str | int, wanted: tuple[str | int, ...]) -> Band:
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
        order = ", ".join(map(str, wanted))
        example = [3, 2, 1, *range(4, len(wanted) + 1)]
        msg = (
            f"{self.href}: {problem} {key!r}; it has {has}. Describe the bands in the "
            f"file, or list those for {order} in a job file: bands = {example}"
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
