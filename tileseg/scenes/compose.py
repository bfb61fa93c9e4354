"""Rasters put together to one scene: bands stacked, files side by side, one grid.

Pure: what comes out says what is to be read from where.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from tileseg.base.rules import Rule
from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.scenes.area import metres_per_unit, pixel_metres
from tileseg.scenes.raster import Band, Beside, File, Mask, Resampled, Scene, Stacked
from tileseg.scenes.warp import covering_box, needed, same_crs, scale_between
from tileseg.window import Window

__all__ = ["Target", "Wish", "compose", "masked"]

_BLOCK, _LEAST = 512, 16  # sides of what is resampled at once
_COARSEST = 1 / 128  # pixels for one
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
    is_metres: bool = False
    """Whether the resolution is in metres, whatever the CRS's unit."""
    method: str = "bilinear"
    """`nearest`, `bilinear` or `cubic`."""

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return bool(self.crs or self.resolution)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of a scene."""

    bands: tuple[str | int, ...] = ()
    """Those that are needed, by name or index; empty for all."""
    target: Target = Target()
    """The grid."""
    resample: bool = False
    """Whether files of other grids are brought to the finest one."""
    rules: tuple[Rule, ...] = ()
    """What makes pixels invalid from outside."""
    may_lie_nowhere: bool = False
    """Whether it may be placed by GCPs or RPCs only."""


def compose(stacks: Sequence[Sequence[Scene]], wish: Wish) -> Scene:
    """Return the scene that rasters make.

    Args:
        stacks: of each place, the rasters whose bands are to be one raster's.
        wish: what is wanted; of its rules those about the scene's own bands.

    Raises:
        UsageError: they do not fit together, or do not lead to the target.
    """
    used = [_used(stack, wish.bands) for stack in stacks]
    for item in (item for stack in used for item in stack):
        if any(file.is_palette for file in item.files):
            msg = f"{item.href}: a palette image holds colour numbers, not measurements"
            raise UsageError(msg)
    target = wish.target
    if not (wish.resample or target.is_given):
        for stack in used:
            _check_even(stack)
    boxes = [_finest(stack) for stack in used]
    if not target.is_given:
        return _beside(list(map(_place, stacks, boxes, repeat(wish))))
    side = _resolution(target, boxes[0])
    if len(stacks) > 1 and not wish.rules and _is_one_grid(used):
        plain = replace(wish, target=Target())
        whole = _beside(list(map(_place, stacks, boxes, repeat(plain))))
        box = covering_box((whole.geobox,), target.crs, side)
        return resampled(whole, box, target.method)
    box = covering_box(boxes, target.crs, side)
    parts = [covering_box((item,), box.crs or "", None, on=box) for item in boxes]
    return _beside(list(map(_place, stacks, parts, repeat(wish))))


def masked(scene: Scene, raster: Scene, band: Band, rule: Rule) -> Scene:
    """Return a scene some of whose pixels a rule about another raster makes invalid.

    What that raster calls nodata is a value like any other; where it is not there at
    all, nothing is known and the pixel is invalid.

    Raises:
        UsageError: it lies elsewhere.
    """
    bare = _bare(raster, is_sparse=not rule.band)
    there = resampled(bare, scene.geobox, "nearest")
    how = there.origin
    if isinstance(how, Resampled) and not needed(raster.geobox, scene.geobox, how).size:
        msg = f"mask: {raster.href}: does not lie on {scene.href}"
        raise UsageError(msg)
    mask = Mask(there, replace(band, nodata=None), rule)
    return replace(scene, masks=(*scene.masks, mask))


def _place(stack: Sequence[Scene], box: GeoBox, wish: Wish) -> Scene:
    """Return the one raster of a place, on a grid, with what its own bands mask."""
    rasters = [resampled(item, box, wish.target.method) for item in stack]
    scene = _stack(rasters, _common_dtype(_used(stack, wish.bands)))
    for rule in wish.rules:
        (band,) = scene.select((rule.band,))
        owner, own = _owners(stack)[band.index - 1]
        scene = masked(scene, owner, own, rule)
    return scene


def _bare(raster: Scene, *, is_sparse: bool) -> Scene:
    """Return a raster of which every value counts."""
    match raster.origin:
        case File() as file:
            origin = replace(file, has_mask=False, alpha=None, is_sparse=is_sparse)
            bands = tuple(replace(band, nodata=None) for band in raster.bands)
            return replace(raster, bands=bands, origin=origin)
    msg = "a mask is a file"
    raise AssertionError(msg)


def _resolution(target: Target, box: GeoBox) -> float | None:
    if not (target.resolution and target.is_metres):
        return target.resolution
    unit = metres_per_unit(target.crs or box.crs)
    if unit is None:
        msg = (
            f"resolution: the CRS knows no metres, and the model's is "
            f"{target.resolution:g} m: give a crs in metres too, as EPSG:32631"
        )
        raise UsageError(msg)
    return target.resolution / unit


def resampled(raster: Scene, box: GeoBox, method: str) -> Scene:
    """Return a raster on another grid; itself if that is its own."""
    if _is_same(raster.geobox, box):
        return raster
    scale = scale_between(raster.geobox, box)
    if min(scale) < _COARSEST:
        msg = (
            f"{raster.href}: pixels {1 / min(scale):.0f} times as large are too far "
            f"from what is there; wanted at most {1 / _COARSEST:.0f} times"
        )
        raise UsageError(msg)
    side = _BLOCK
    while side > _LEAST and side / min(scale) > 2 * _BLOCK:
        side //= 2  # of what is much coarser a block rests on many pixels
    return replace(
        raster,
        geobox=box,
        block=(side, side),
        origin=Resampled(raster, method, scale),
        tie=None,
        masks=(),
    )


def _stack(rasters: Sequence[Scene], dtype: str) -> Scene:
    """Return one raster of all bands; the type holds those that are needed."""
    first = rasters[0]
    if len(rasters) == 1:
        return first
    bands = [band for item in rasters for band in item.bands]
    return replace(
        first,
        href=_named(rasters),
        dtype=dtype,
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
        masks=(),
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
            "GCPs or RPCs": raster.tie,
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
    if not _is_on(first, item):
        msg = (
            f"{first.href} and {item.href}: are not of one grid ({_told(first.geobox)};"
            f" {_told(item.geobox)}); to have them brought to one say so in a job "
            "file: crs = 'EPSG:32631', say, or resolution = 10"
        )
        raise UsageError(msg)


def _offset(first: Scene, item: Scene) -> tuple[int, int]:
    """Return the (row, column) of the first raster's grid where another one begins."""
    col, row = ~first.geobox.transform @ (item.geobox.transform @ (0, 0))
    return round(row), round(col)


def _is_on(first: Scene, item: Scene) -> bool:
    """Return whether a raster is of another one's grid, wherever on it."""
    if not same_crs(first.geobox.crs, item.geobox.crs):
        return False
    box = replace(item.geobox, crs=first.geobox.crs)
    at = Window(*_offset(first, item), box.height, box.width)
    return _is_same(first.geobox.crop(at), box, _AWRY)


def _check_even(stack: Sequence[Scene]) -> None:
    """Refuse files of several grids whose bands are to be one raster's."""
    first = stack[0]
    for item in stack[1:]:
        if not _is_same(first.geobox, item.geobox):
            msg = (
                f"{first.href} and {item.href}: are not of one grid "
                f"({_told(first.geobox)}; {_told(item.geobox)}); to have them "
                "resampled say so in a job file: resolution = 10, say"
            )
            raise UsageError(msg)


def _is_same(one: GeoBox, other: GeoBox, most: float = _OFF) -> bool:
    """Return whether two grids have the same pixels at the same places."""
    if one == other:  # however far from the origin, where the sums below are rough
        return True
    if (one.height, one.width) != (other.height, other.width):
        return False
    corners = [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    back = ~one.transform
    drift = [
        np.subtract(back @ (other.transform @ corner), corner) for corner in corners
    ]
    return bool(np.abs(drift).max() <= most) and same_crs(one.crs, other.crs)


def _is_one_grid(stacks: Sequence[Sequence[Scene]]) -> bool:
    """Return whether all rasters of all places lie on one grid."""
    first = stacks[0][0]
    return all(
        _is_on(first, stack[0])
        and all(_is_same(stack[0].geobox, item.geobox) for item in stack[1:])
        for stack in stacks
    )


def _owners(stack: Sequence[Scene]) -> list[tuple[Scene, Band]]:
    """Return, for each band of a stack, whose it is and which of that."""
    return [(item, band) for item in stack for band in item.bands]


def _used(stack: Sequence[Scene], wanted: tuple[str | int, ...]) -> list[Scene]:
    """Return the rasters that have a band that is wanted; all, if none has."""
    keys = {key.casefold() if isinstance(key, str) else key for key in wanted}
    used = {
        id(item): item  # two addresses may be shown alike
        for index, (item, band) in enumerate(_owners(stack), start=1)
        if index in keys or (band.name or "").casefold() in keys
    }
    return list(used.values()) or list(stack)


def _finest(stack: Sequence[Scene]) -> GeoBox:
    """Return the grid of the smallest pixels."""
    boxes = [item.geobox for item in stack]
    return min(boxes, key=lambda box: pixel_metres(box) or box.side)


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
        f"{box.height} x {box.width} pixels of {box.side:g} from "
        f"{box.transform.c:.10g}, {box.transform.f:.10g}"
    )
