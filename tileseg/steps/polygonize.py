"""Any raster of classes -> a file of polygons, by processes side by side.

Windows of whole blocks take the place of shards; the file does not depend on them.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.attributes import Attribute, fault
from tileseg.base.processes import Spread, side_by_side
from tileseg.errors import UsageError
from tileseg.evaluation.class_raster import ClassRaster, describe, read_window
from tileseg.geobox import GeoBox
from tileseg.polygons.borders import Borders, Gauge, borders_of
from tileseg.polygons.eliminate import eliminate, settled
from tileseg.polygons.features import FORMATS, is_lonlat, write_features
from tileseg.polygons.join import join
from tileseg.polygons.simplify import Manner, polygonise_simply, tolerance_of
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import Pieces
from tileseg.publishing.publish import check_new, staging_file
from tileseg.scenes.area import check_lonlat, check_metres
from tileseg.settings import MOST_METRES
from tileseg.window import Window

__all__ = ["Wish", "polygonize", "windows"]

logger = logging.getLogger(__name__)

_SIDE, _LEAST_SIDE = 1536, 256  # pixels of a window, or some more: whole blocks
_ROW_PIXELS = 1 << 26  # of windows beside each other: all their pieces are held
_CLASS_TYPES = "uint8", "uint16"
_MANY = 200  # values in a window, from where they are hardly classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be made of what."""

    mask: str
    """A GeoTIFF of classes, uint8 or uint16."""
    output: Path
    """The file to make; its suffix says the format."""
    band: int | None = None
    """The one with the classes, from 1; None where there is but one."""
    confidence: str | None = None
    """A confidence raster of the mask's grid."""
    without: tuple[int, ...] = field(default=())
    """Values that get no polygons, beside nodata."""
    simplify: float | None = None
    """Metres on the ground that borders are simplified by; None for not."""
    min_area: float | None = None
    """Hectares; smaller polygons become parts of neighbours. None for none."""
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """More columns: by name, what each value has there."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """More of one value each, by name."""
    workers: int = 1
    """Processes."""
    overwrite: bool = False
    """Whether a file of that name may be replaced."""


def polygonize(wish: Wish) -> int:
    """Make the file; return the number of its features.

    Raises:
        UsageError: the mask is of another type, or the format cannot hold its place.
        OtherPlanError: the file is there already, and nobody said overwrite.
        BusyError: somebody else makes it.
        InputError: a raster cannot be read.
        OutputError: the file cannot be written.
    """
    raster = describe(wish.mask, wish.band or 1)
    _check(wish, raster)
    check_new(wish.output, overwrite=wish.overwrite)
    _tell_of_photograph(wish, raster)
    tagged, most = raster.names, np.iinfo(raster.dtype).max
    names = {value: tagged.get(value, str(value)) for value in range(most + 1)}
    with staging_file(wish.output) as made, side_by_side(wish.workers) as spread:
        rows, eliminated = _rows(wish, raster, spread)
        meaning = Meaning(
            names,
            raster.box,
            has_confidence=wish.confidence is not None,
            eliminated=eliminated,
            simplified=wish.simplify,
            texts=wish.texts,
            origin=raster.origin,
            attributes=wish.attributes,
            are_fields=bool(raster.fields)
            and raster.fields >= tagged.keys() - set(wish.without),
        )
        areas = join(rows, is_noded=wish.simplify is not None)
        return write_features(areas, meaning, made)


def windows(box: GeoBox, block: tuple[int, int]) -> Iterator[list[Window]]:
    """Yield windows of whole blocks, row by row; together they are all of a raster."""
    rows, columns = _rows_of(box), _SIDE
    if block[1] >= box.width:  # strips: none is read twice
        rows, columns = max(1, _SIDE**2 // box.width), box.width
    sides = zip((rows, columns), block, strict=True)
    high, wide = (-(-side // unit) * unit for side, unit in sides)
    return _cut(box, high, wide)


def _rows_of(box: GeoBox) -> int:
    """Return how high a row of windows may be: less where the raster is very wide."""
    return min(_SIDE, max(_LEAST_SIDE, _ROW_PIXELS // box.width))


def _cut(box: GeoBox, high: int, wide: int) -> Iterator[list[Window]]:
    for row in range(0, box.height, high):
        yield [
            Window(row, col, high, wide).intersect(box.window)
            for col in range(0, box.width, wide)
        ]


def _check(wish: Wish, raster: ClassRaster) -> None:
    """Refuse what cannot be made, before anything is read."""
    if raster.bands > 1 and wish.band is None:
        msg = (
            f"{wish.mask}: has {raster.bands} bands, wanted one of classes; a "
            "photograph has none (tileseg segment makes a mask of it), else say which "
            "it is: --band"
        )
        raise UsageError(msg)
    if raster.dtype not in _CLASS_TYPES:
        known = " or ".join(_CLASS_TYPES)
        msg = f"{wish.mask}: wanted classes of type {known}, got {raster.dtype}"
        raise UsageError(msg)
    for value in wish.without:
        if not raster.can_hold(value):
            msg = f"--without {value}: no pixel of {raster.dtype} has this value"
            raise UsageError(msg)
    suffix = wish.output.suffix
    if suffix not in FORMATS:
        msg = f"{wish.output}: wanted a name that ends in {', '.join(FORMATS)}"
        raise UsageError(msg)
    if is_lonlat(suffix):
        check_lonlat(raster.box, wish.mask)
    if wrong := fault(wish.attributes):
        msg = f"--attribute: {wrong}"
        raise UsageError(msg)
    _check_metres(wish, raster.box)
    if wish.confidence is not None:
        other = describe(wish.confidence)
        if (other.box, other.dtype) != (raster.box, "uint8"):
            msg = f"{wish.confidence}: is not a confidence raster of {wish.mask}"
            raise UsageError(msg)


def _tell_of_photograph(wish: Wish, raster: ClassRaster) -> None:
    """Warn of values that are hardly classes, by a look into the middle."""
    if raster.names or raster.has_colors:
        return
    box = raster.box
    top, left = ((side - _SIDE) // 2 for side in (box.height, box.width))
    window = Window(top, left, _SIDE, _SIDE).intersect(box.window)
    found = len(np.unique(read_window(wish.mask, window, raster.band)))
    if found >= _MANY:
        text = (
            "%s: has %d values within %d x %d pixels, no colour table and no CLASS_ "
            "tags, as a photograph has, wanted classes: if it is none of classes, stop "
            "this, which makes polygons of single pixels"
        )
        logger.warning(text, wish.mask, found, window.height, window.width)


def _check_metres(wish: Wish, box: GeoBox) -> None:
    """Refuse to measure by what is no length or area on the ground."""
    if wish.simplify is not None and not 0 < wish.simplify <= MOST_METRES:
        msg = (
            f"--simplify {wish.simplify}: wanted metres, more than 0, at most "
            f"{MOST_METRES:,}"
        )
        raise UsageError(msg)
    if wish.min_area is not None and not 0 < wish.min_area < inf:
        msg = f"--min-area {wish.min_area}: wanted hectares, more than 0"
        raise UsageError(msg)
    wanted = {"--simplify": wish.simplify, "--min-area": wish.min_area}
    for option, value in wanted.items():
        if value is not None:
            check_metres(box, wish.mask, option)


def _rows(
    wish: Wish, raster: ClassRaster, spread: Spread
) -> tuple[Iterator[list[Pieces]], str]:
    """Return the pieces of each row of windows, and what was done with small ones."""
    if wish.min_area is None:
        return spread(partial(_pieces, wish, raster), _windows(wish, raster)), ""
    gauge = Gauge.of(raster.box, wish.min_area)
    parts = (
        [(window, gauge.crop(window)) for window in row]
        for row in _windows(wish, raster)
    )
    found = eliminate(spread(partial(_borders, wish, raster), parts), gauge)
    changes = (
        [(window, found.of(window)) for window in row] for row in _windows(wish, raster)
    )
    rows = spread(partial(_settled, wish, raster), changes)
    return rows, found.told(wish.min_area)


def _windows(wish: Wish, raster: ClassRaster) -> Iterator[list[Window]]:
    """Return the windows that pieces are made of, row by row."""
    if wish.simplify is None:
        return windows(raster.box, raster.block)
    # Corners on their borders stay: not where depends on how the mask is stored.
    return _cut(raster.box, _rows_of(raster.box), _SIDE)


def _borders(wish: Wish, raster: ClassRaster, part: tuple[Window, Gauge]) -> Borders:
    """Return what decides which pieces of one window are small."""
    window, gauge = part
    plain = replace(wish, confidence=None)
    return borders_of(_traced(plain, raster, window), gauge)


def _settled(
    wish: Wish, raster: ClassRaster, change: tuple[Window, NDArray[Any]]
) -> Pieces:
    """Return the pieces of one window when small ones are merged."""
    window, classes = change
    pieces = _traced(wish, raster, window)
    return settled(pieces, classes, _manner(wish, raster, window))


def _traced(wish: Wish, raster: ClassRaster, window: Window) -> Pieces:
    """Return the pieces of one window, of all classes and with all corners."""
    return _pieces(replace(wish, without=(), simplify=None), raster, window)


def _manner(wish: Wish, raster: ClassRaster, window: Window) -> Manner:
    """Return how the pieces of one window are made."""
    return Manner(
        nodata=raster.unclassed,
        left_out=wish.without,
        tolerance=tolerance_of(wish.simplify, raster.box.crop(window)),
    )


def _pieces(wish: Wish, raster: ClassRaster, window: Window) -> Pieces:
    """Return the pieces of one window."""
    labels = raster.labels(window)
    confidence = read_window(wish.confidence, window) if wish.confidence else None
    manner = _manner(wish, raster, window)
    return polygonise_simply(labels, confidence, window, manner)
