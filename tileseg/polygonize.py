"""Any raster of classes -> a file of polygons, by processes side by side.

Windows of whole blocks take the place of shards; the file does not depend on them.
"""

import json
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.area import check_lonlat, check_metres
from tileseg.attributes import Attribute, Origin, fault
from tileseg.borders import Borders, Gauge, borders_of
from tileseg.eliminate import eliminate, settled
from tileseg.errors import InputError, LostError, UsageError
from tileseg.features import FORMATS, is_lonlat, write_features
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.geobox import GeoBox
from tileseg.join import join
from tileseg.publish import check_new, staging_file
from tileseg.reference import class_tags
from tileseg.settings import MOST_METRES
from tileseg.simplify import Manner, polygonise_simply, tolerance_of
from tileseg.table import Meaning
from tileseg.times import last, of_properties, of_tags
from tileseg.vectorize import Pieces
from tileseg.window import Window

__all__ = ["Wish", "polygonize", "windows"]

logger = logging.getLogger(__name__)

_SIDE, _LEAST_SIDE = 1536, 256  # pixels of a window, or some more: whole blocks
_ROW_PIXELS = 1 << 26  # of windows beside each other: all their pieces are held
_CLASS_TYPES = "uint8", "uint16"
_MASKED = -1  # no class has it
_MANY = 200  # values in a window, from where they are hardly classes


_Spread = Callable[[Callable[[Any], Any], Iterator[list[Any]]], Iterator[list[Any]]]
"""Makes something of each item of rows, in their order."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raster:
    """What a raster of classes says of itself."""

    box: GeoBox
    bands: int
    """How many there are, but for an alpha band."""
    block: tuple[int, int]
    dtype: str
    nodata: float | None
    is_masked: bool
    names: dict[int, str]
    has_colors: bool
    origin: Origin | None
    """None if it does not say where it comes from."""
    fields: frozenset[int]
    """Classes that are agricultural fields."""


def polygonize(wish: Wish) -> int:
    """Make the file; return the number of its features.

    Raises:
        UsageError: the mask is of another type, or the format cannot hold its place.
        OtherPlanError: the file is there already, and nobody said overwrite.
        BusyError: somebody else makes it.
        InputError: a raster cannot be read.
        OutputError: the file cannot be written.
    """
    raster = _look(wish.mask, wish.band or 1)
    _check(wish, raster)
    check_new(wish.output, overwrite=wish.overwrite)
    _tell_of_photograph(wish, raster)
    tagged, most = raster.names, np.iinfo(raster.dtype).max
    names = {value: tagged.get(value, str(value)) for value in range(most + 1)}
    with staging_file(wish.output) as made, _crew(wish.workers) as spread:
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


def _look(path: str, band: int = 1) -> _Raster:
    """Return what a raster says of itself and of a band.

    Raises:
        InputError: it cannot be read.
        UsageError: it has no such band.
    """
    try:
        with gdal_env(), open_dataset(path) as dataset:
            if not 1 <= band <= dataset.count:
                msg = f"{path}: has no band {band}, wanted 1 to {dataset.count}"
                raise UsageError(msg)
            kinds = dataset.colorinterp
            crs = dataset.crs.to_wkt() if dataset.crs else None
            tags = dataset.tags()
            return _Raster(
                box=GeoBox(dataset.height, dataset.width, dataset.transform, crs),
                bands=sum(kind.name != "alpha" for kind in kinds),
                block=dataset.block_shapes[band - 1],
                dtype=dataset.dtypes[band - 1],
                nodata=dataset.nodatavals[band - 1],
                is_masked=any(
                    flag.name == "per_dataset"
                    for flag in dataset.mask_flag_enums[band - 1]
                ),
                names=class_tags(tags),
                has_colors=kinds[band - 1].name == "palette",
                origin=_origin(path, {**tags, **dataset.tags(ns="IMAGERY")}),
                fields=_fields(tags.get("FIELDS", "")),
            )
    except (*GDAL_ERRORS, ValueError) as err:  # the second of a CRS
        msg = f"{path}: cannot be read as a raster of classes: {err}"
        raise InputError(msg) from err


def _fields(text: str) -> frozenset[int]:
    """Return the classes that a mask of ours calls fields; none of other words."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        return frozenset()
    return frozenset(map(int, text.split(",")))


def _origin(path: str, tags: Mapping[str, str]) -> Origin | None:
    """Return what a raster's tags say of where it comes from, and the Item beside it.

    A run's `mask.tif` has its model in a tag, its scene and date in `item.json`.
    """
    item = _item_beside(path)
    said = of_properties(item.get("properties", {}))
    found = Origin(
        scene=tags.get("SCENE") or item.get("id"),
        taken=last(said or of_tags(tags)),
        model=tags.get("MODEL"),
    )
    return None if found == Origin() else found


def _item_beside(path: str) -> dict[str, Any]:
    """Return the STAC Item of a run's mask; nothing of another one, or without."""
    beside = Path(path).with_name("item.json")
    if Path(path).name != "mask.tif" or not beside.is_file():
        return {}
    try:
        item = json.loads(beside.read_bytes())
    except (OSError, ValueError) as err:
        msg = f"{beside}: cannot be read as the STAC Item of {path}: {err}"
        raise InputError(msg) from err
    is_item = isinstance(item, dict) and item.get("type") == "Feature"
    return item if is_item and isinstance(item.get("id"), str) else {}


def _check(wish: Wish, raster: _Raster) -> None:
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
        if not _is_class(value, raster.dtype):
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
        other = _look(wish.confidence)
        if (other.box, other.dtype) != (raster.box, "uint8"):
            msg = f"{wish.confidence}: is not a confidence raster of {wish.mask}"
            raise UsageError(msg)


def _tell_of_photograph(wish: Wish, raster: _Raster) -> None:
    """Warn of values that are hardly classes, by a look into the middle."""
    if raster.names or raster.has_colors:
        return
    box = raster.box
    top, left = ((side - _SIDE) // 2 for side in (box.height, box.width))
    window = Window(top, left, _SIDE, _SIDE).intersect(box.window)
    found = len(np.unique(_read(wish.mask, window, wish.band or 1)))
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
    wish: Wish, raster: _Raster, spread: _Spread
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


def _windows(wish: Wish, raster: _Raster) -> Iterator[list[Window]]:
    """Return the windows that pieces are made of, row by row."""
    if wish.simplify is None:
        return windows(raster.box, raster.block)
    # Corners on their borders stay: not where depends on how the mask is stored.
    return _cut(raster.box, _rows_of(raster.box), _SIDE)


@contextmanager
def _crew(workers: int) -> Iterator[_Spread]:
    """Yield what makes something of each item of rows, by so many processes."""
    if workers == 1:
        yield lambda make, rows: ([make(item) for item in row] for row in rows)
        return
    with ExitStack() as stack:
        # Not forked: GDAL and pyarrow have threads, which would be lost half-way.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _serve)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield partial(_made, pool, workers)


def _serve() -> None:
    """Leave signals to the process that started this one, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it comes to all
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = parent_process()
    assert parent, "somebody started this process"
    parent.join()
    os._exit(1)


def _made(
    pool: ProcessPoolExecutor,
    ahead: int,
    make: Callable[[Any], Any],
    rows: Iterator[list[Any]],
) -> Iterator[list[Any]]:
    """Yield what is made of each row; the next one is being made meanwhile."""
    pending: deque[list[Future[Any]]] = deque()
    try:
        for row in rows:
            pending.append([pool.submit(make, item) for item in row])
            while sum(map(len, list(pending)[1:])) >= 2 * ahead:
                yield [item.result() for item in pending.popleft()]
        while pending:
            yield [item.result() for item in pending.popleft()]
    except BrokenProcessPool as err:
        msg = "a worker was killed, maybe for want of memory: use fewer --workers"
        raise LostError(msg) from err


def _borders(wish: Wish, raster: _Raster, part: tuple[Window, Gauge]) -> Borders:
    """Return what decides which pieces of one window are small."""
    window, gauge = part
    plain = replace(wish, confidence=None)
    return borders_of(_traced(plain, raster, window), gauge)


def _settled(
    wish: Wish, raster: _Raster, change: tuple[Window, NDArray[Any]]
) -> Pieces:
    """Return the pieces of one window when small ones are merged."""
    window, classes = change
    pieces = _traced(wish, raster, window)
    return settled(pieces, classes, _manner(wish, raster, window))


def _traced(wish: Wish, raster: _Raster, window: Window) -> Pieces:
    """Return the pieces of one window, of all classes and with all corners."""
    return _pieces(replace(wish, without=(), simplify=None), raster, window)


def _manner(wish: Wish, raster: _Raster, window: Window) -> Manner:
    """Return how the pieces of one window are made."""
    nodata = list[int]()
    if raster.nodata is not None and _is_class(raster.nodata, raster.dtype):
        nodata.append(int(raster.nodata))
    if raster.is_masked:
        nodata.append(_MASKED)
    return Manner(
        nodata=nodata,
        left_out=wish.without,
        tolerance=tolerance_of(wish.simplify, raster.box.crop(window)),
    )


def _pieces(wish: Wish, raster: _Raster, window: Window) -> Pieces:
    """Return the pieces of one window."""
    band = wish.band or 1
    labels = _read(wish.mask, window, band)
    if raster.is_masked:
        is_valid = _read(wish.mask, window, band, masks=True)
        labels = np.where(is_valid, labels.astype(np.int32), _MASKED)
    confidence = _read(wish.confidence, window) if wish.confidence else None
    manner = _manner(wish, raster, window)
    return polygonise_simply(labels, confidence, window, manner)


def _is_class(value: float, dtype: str) -> bool:
    """Return whether pixels of a type can have a value."""
    return 0 <= value <= np.iinfo(dtype).max and value % 1 == 0


def _read(
    path: str, window: Window, band: int = 1, *, masks: bool = False
) -> NDArray[Any]:
    """Return a window of a band, or of its mask."""
    try:
        with gdal_env(), open_dataset(path) as dataset:
            read = dataset.read_masks if masks else dataset.read
            pixels: NDArray[Any] = read(band, window=window.slices)
    except GDAL_ERRORS as err:
        msg = f"{path}: {window} cannot be read: {err}"
        raise InputError(msg) from err
    return pixels
