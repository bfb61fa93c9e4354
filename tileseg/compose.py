"""Rasters put together to one scene: bands stacked, files side by side, one grid.

Pure: what comes out says what is to be read from where.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from tileseg.area import pixel_metres
from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.raster import Beside, Resampled, Scene, Stacked
from tileseg.warp import covering_box, same_crs, scale_between
from tileseg.window import Window

__all__ = ["Target", "compose", "resampled"]

_BLOCK = 512  # side of what is resampled at once
_OFF = 1e-6  # pixels by which grids of one stack may differ
_AWRY = 1e-3  # pixels by which rasters side by side may
_EXACT = {"uint8", "int8", "uint16", "int16", "float32"}  # fp32 holds all their values


@dataclass(frozen=True, slots=True)
class Target:
    """The grid that is wanted."""

    crs: str = ""
    """Anything that PROJ knows; empty for the scene's own."""
    resolution: float | None = None
    """Side of a pixel in the CRS's unit; None for the scene's own, about."""
    method: str = "bilinear"
    """`nearest`, `bilinear` or `cubic`."""

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return bool(self.crs or self.resolution)


def compose(
    stacks: Sequence[Sequence[Scene]],
    wanted: tuple[str | int, ...],
    target: Target,
    *,
    resample: bool,
) -> Scene:
    """Return the scene that rasters make.

    Args:
        stacks: of each place, the rasters whose bands are to be one raster's.
        wanted: the bands that are needed, by name or index; empty for all.
        target: the grid that is wanted.
        resample: whether rasters of other grids are brought to the finest one.

    Raises:
        UsageError: they do not fit together, or do not lead to the target.
    """
    is_even = all(_same_grid(stack[0], item) for stack in stacks for item in stack)
    if is_even and not (target.is_given and _is_scattered(stacks)):
        whole = _beside([_stack(stack) for stack in stacks])
        if not target.is_given:
            return whole
        box = covering_box((whole.geobox,), target.crs, target.resolution)
        return resampled(whole, box, target.method)
    if not (resample or target.is_given):
        return _beside([_stack(stack) for stack in stacks])  # says what does not fit
    boxes = [_finest(stack, wanted) for stack in stacks]
    if not target.is_given:
        return _beside(
            [
                _stack([resampled(item, box, target.method) for item in stack])
                for stack, box in zip(stacks, boxes, strict=True)
            ]
        )
    whole_box = covering_box(boxes, target.crs, target.resolution)
    crs, side = whole_box.crs or "", whole_box.transform.a
    places = [covering_box((box,), crs, side, on=whole_box) for box in boxes]
    return _beside(
        [
            _stack([resampled(item, box, target.method) for item in stack])
            for stack, box in zip(stacks, places, strict=True)
        ]
    )


def resampled(raster: Scene, box: GeoBox, method: str) -> Scene:
    """Return a raster on another grid; itself if that is its own."""
    if _is_same(raster.geobox, box):
        return raster
    scale = scale_between(raster.geobox, box)
    return replace(
        raster,
        geobox=box,
        block=(_BLOCK, _BLOCK),
        origin=Resampled(raster, method, scale),
    )


def _stack(rasters: Sequence[Scene]) -> Scene:
    """Return one raster of all bands."""
    first = rasters[0]
    if len(rasters) == 1:
        return first
    for item in rasters[1:]:
        if not _same_grid(first, item):
            msg = (
                f"{first.href} and {item.href}: are not of one grid "
                f"({_told(first.geobox)}; {_told(item.geobox)}); to have them "
                "resampled say so in a job file: resolution = 10, say"
            )
            raise UsageError(msg)
    bands = [band for item in rasters for band in item.bands]
    return replace(
        first,
        href=_named(rasters),
        dtype=_common_dtype(rasters),
        bands=tuple(
            replace(band, index=index) for index, band in enumerate(bands, start=1)
        ),
        block=_block(rasters),
        origin=Stacked(tuple(rasters)),
    )


def _beside(rasters: Sequence[Scene]) -> Scene:
    """Return one raster that covers all."""
    first = rasters[0]
    if len(rasters) == 1:
        return first
    for item in rasters[1:]:
        _check_alike(first, item)
    offsets = [_offset(first, item) for item in rasters]
    top, left = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    places = tuple(
        Window(row - top, col - left, item.geobox.height, item.geobox.width)
        for (row, col), item in zip(offsets, rasters, strict=True)
    )
    return replace(
        first,
        href=_named(rasters),
        geobox=_whole_box(rasters, places),
        dtype=_common_dtype(rasters),
        block=_block(rasters),
        origin=Beside(places, tuple(_shared(first, item) for item in rasters)),
    )


def _whole_box(rasters: Sequence[Scene], places: Sequence[Window]) -> GeoBox:
    """Return the grid of all; bit-equal to the corner raster's if there is one."""
    height = max(place.row_stop for place in places)
    width = max(place.col_stop for place in places)
    for place, item in zip(places, rasters, strict=True):
        if (place.row, place.col) == (0, 0):
            return replace(item.geobox, height=height, width=width)
    return rasters[0].geobox.crop(Window(-places[0].row, -places[0].col, height, width))


def _shared(first: Scene, item: Scene) -> Scene:
    """Return the same raster with what it has in common with the first one.

    What is one object travels once: a thousand files say the same CRS and bands.
    """
    crs = item.geobox.crs and sys.intern(item.geobox.crs)
    bands = first.bands if first.bands == item.bands else item.bands
    return replace(item, geobox=replace(item.geobox, crs=crs), bands=bands)


def _check_alike(first: Scene, item: Scene) -> None:
    """Refuse rasters that cannot be one picture."""
    got, wanted = (
        {
            "bands": [band.name for band in raster.bands],
            "scale and offset": [(band.scale, band.offset) for band in raster.bands],
        }
        for raster in (item, first)
    )
    for what, value in wanted.items():
        if got[what] != value:
            msg = (
                f"{first.href} and {item.href}: differ in {what} ({value}; "
                f"{got[what]}), so they are not one scene; segment them one by one"
            )
            raise UsageError(msg)


def _offset(first: Scene, item: Scene) -> tuple[int, int]:
    """Return the (row, column) of the first raster's grid where another one begins."""
    col, row = ~first.geobox.transform @ (item.geobox.transform @ (0, 0))
    at = round(row), round(col)
    box = replace(item.geobox, crs=first.geobox.crs)
    meant = first.geobox.crop(Window(*at, box.height, box.width))
    if not same_crs(first.geobox.crs, item.geobox.crs) or not _is_same(
        meant, box, _AWRY
    ):
        msg = (
            f"{first.href} and {item.href}: are not of one grid ({_told(first.geobox)};"
            f" {_told(item.geobox)}); to have them brought to one say so in a job "
            "file: crs = 'EPSG:32631', say, or resolution = 10"
        )
        raise UsageError(msg)
    return at


def _same_grid(one: Scene, other: Scene) -> bool:
    return _is_same(one.geobox, other.geobox)


def _is_same(one: GeoBox, other: GeoBox, most: float = _OFF) -> bool:
    """Return whether two grids have the same pixels at the same places."""
    if (one.height, one.width) != (other.height, other.width):
        return False
    corners = [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    back = ~one.transform
    drift = [
        np.subtract(back @ (other.transform @ corner), corner) for corner in corners
    ]
    return bool(np.abs(drift).max() <= most) and same_crs(one.crs, other.crs)


def _is_scattered(stacks: Sequence[Sequence[Scene]]) -> bool:
    """Return whether rasters side by side lie on several grids."""
    try:
        for stack in stacks:
            _offset(stacks[0][0], stack[0])
    except UsageError:
        return True
    return False


def _finest(stack: Sequence[Scene], wanted: tuple[str | int, ...]) -> GeoBox:
    """Return the grid of the smallest pixels among those that are needed."""
    keys = {key.casefold() if isinstance(key, str) else key for key in wanted}
    owners = [(item, band) for item in stack for band in item.bands]
    needed = [
        item.geobox
        for index, (item, band) in enumerate(owners, start=1)
        if index in keys or (band.name or "").casefold() in keys
    ]
    boxes = needed or [item.geobox for item in stack]
    return min(boxes, key=lambda box: pixel_metres(box) or _side(box))


def _side(box: GeoBox) -> float:
    return sqrt(abs(box.transform.determinant))


def _common_dtype(rasters: Sequence[Scene]) -> str:
    """Return the type that holds the values of all exactly."""
    first = rasters[0]
    for item in rasters[1:]:
        types = {first.dtype, item.dtype}
        if len(types) > 1 and not types <= _EXACT:
            msg = (
                f"{first.href} and {item.href}: hold {first.dtype} and {item.dtype}, "
                "which no common type that the network takes holds exactly; convert one"
            )
            raise UsageError(msg)
    return str(np.result_type(*{item.dtype for item in rasters}))


def _block(rasters: Sequence[Scene]) -> tuple[int, int]:
    rows, cols = (max(item.block[axis] for item in rasters) for axis in (0, 1))
    return rows, cols


def _named(rasters: Sequence[Scene]) -> str:
    return f"{rasters[0].href} and {len(rasters) - 1} more"


def _told(box: GeoBox) -> str:
    return (
        f"{box.height} x {box.width} pixels of {_side(box):g} from "
        f"{box.transform.c:.10g}, {box.transform.f:.10g}"
    )
