"""Opening a raster safely, and saying what it is. Reads no pixel."""

import logging
from dataclasses import asdict, replace
from itertools import chain
from math import isfinite
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags

from tileseg.base.address import keep, shown, split
from tileseg.base.rules import Rule
from tileseg.base.times import of_tags
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.geobox import GeoBox
from tileseg.scenes.compose import Wish, compose, masked
from tileseg.scenes.gdal import GDAL_ERRORS, look_at
from tileseg.scenes.layer import BandFacts, Layer, Mosaic
from tileseg.scenes.raster import Band, File, Scene, Tie
from tileseg.stores.remote import fetcher

__all__ = ["Band", "Scene", "locate", "open_scene"]

logger = logging.getLogger(__name__)

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, both byte orders


def open_scene(source: Mosaic | str, wish: Wish | None = None) -> Scene:
    """Open a scene's files and say what it is.

    Args:
        source: what it is put together from; a path or address for one file.
        wish: what is wanted of it; None for the scene as it is.

    Raises:
        UsageError: one is at no address we read, its pixels are complex or a palette,
            or the files do not fit together.
        RefusedError: one is not a GeoTIFF, its name asks GDAL for something else, or
            its server says no.
        InputError: one is missing or damaged.
        StorageError: a server kept failing.
    """
    wish = wish or Wish()
    stacks = [[_open_layer(layer) for layer in stack] for stack in _mosaic(source)]
    for item in (item for stack in stacks for item in stack if item.tie):
        if not wish.may_lie_nowhere:
            msg = (
                f"{item.href}: placed by GCPs or RPCs only; rectify it first "
                "(gdalwarp), or say allow_ungeoreferenced = true in a job file"
            )
            raise UsageError(msg)
    own = tuple(rule for rule in wish.rules if rule.band)
    scene = compose(stacks, replace(wish, rules=own))
    for rule in wish.rules:
        if not rule.band:
            scene = _masked_by_file(scene, rule)
    return scene


def locate(source: Mosaic | str, wish: Wish | None = None) -> dict[str, str]:
    """Return what each of a scene's files is called, by its path or handle.

    None is opened as a raster.

    Raises:
        TilesegError: one does not begin like a TIFF, or cannot be had.
    """
    layers = [layer.href for stack in _mosaic(source) for layer in stack]
    masks = [rule.source for rule in (wish or Wish()).rules if not rule.band]
    return {_find(href)[0]: shown(href) for href in (*layers, *masks)}


def _mosaic(source: Mosaic | str) -> Mosaic:
    return ((Layer(href=source),),) if isinstance(source, str) else source


def _masked_by_file(scene: Scene, rule: Rule) -> Scene:
    mask = _open_layer(Layer(href=rule.source))
    if len(mask.bands) > 1:
        msg = f"mask: {mask.href}: has {len(mask.bands)} bands, wanted one"
        raise UsageError(msg)
    return masked(scene, mask, mask.bands[0], rule)


def _open_layer(layer: Layer) -> Scene:
    """Open one file, and believe what a catalog says of its bands."""
    href, (path, size) = shown(layer.href), _find(layer.href)
    try:
        with look_at(path) as dataset:
            _refuse(href, dataset)
            scene = _describe(href, path, size, dataset)
    except GDAL_ERRORS as err:
        msg = f"{href}: cannot be read as a GeoTIFF: {err}"
        raise InputError(msg) from err
    if not layer.bands:
        return scene
    if len(layer.bands) != len(scene.bands):
        msg = (
            f"{href}: has {len(scene.bands)} bands, and the catalog speaks of "
            f"{len(layer.bands)}; correct the catalog"
        )
        raise UsageError(msg)
    pairs = zip(scene.bands, layer.bands, strict=True)
    scene = replace(scene, bands=tuple(_with_facts(*pair) for pair in pairs))
    if layer.taken and isinstance(scene.origin, File):
        return replace(scene, origin=replace(scene.origin, taken=layer.taken))
    return scene


def _with_facts(band: Band, facts: BandFacts) -> Band:
    said = {key: value for key, value in asdict(facts).items() if value is not None}
    return replace(band, **said)


def _find(href: str) -> tuple[str, int]:
    """Return a file's path or handle, and its size.

    Raises:
        RefusedError: it does not begin like a TIFF.
    """
    path, size, magic = (_remote_file if split(href) else _local_file)(href)
    if magic not in _MAGIC:
        # Not with what: it may be a link to what nobody may read.
        msg = f"{shown(href)}: not a GeoTIFF: it does not begin as one"
        raise RefusedError(msg)
    return path, size


def _remote_file(href: str) -> tuple[str, int, bytes]:
    """Return a file's handle, its size now, and its first four bytes."""
    handle = keep(href)
    source = fetcher(handle)
    return handle, source.look().size, source.head[:4]


def _local_file(href: str) -> tuple[str, int, bytes]:
    """Return a file's absolute path, its size and its first four bytes."""
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
            magic, size = file.read(4), path.stat().st_size
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        msg = f"{href}: cannot be read: {reason}"
        raise InputError(msg) from err
    return str(path), size, magic


def _refuse(href: str, dataset: Any) -> None:  # noqa: ANN401  (rasterio is untyped)
    """Refuse a raster that holds no measurements, or lies nowhere."""
    dtypes = set(dataset.dtypes)
    if len(dtypes) > 1 or "complex" in dataset.dtypes[0]:
        msg = f"{href}: pixels of type {', '.join(sorted(dtypes))} are not supported"
        raise UsageError(msg)
    layout = dataset.tags(ns="IMAGE_STRUCTURE")
    colors = layout.get("SOURCE_COLOR_SPACE")
    if colors and layout.get("COMPRESSION") != "YCbCr JPEG":
        # GDAL gives red, green, blue and alpha made of them; a JPEG is RGB by nature.
        msg = f"{href}: pixels stored as {colors} colours hold no measurements"
        raise UsageError(msg)
    if _is_nowhere(dataset.transform, dataset.width, dataset.height):
        terms = dataset.transform[:6]
        msg = f"{href}: its transform {terms} tells no pixels apart; correct it"
        raise InputError(msg)


def _is_nowhere(transform: Affine, width: int, height: int) -> bool:
    """Return whether a corner's place does not lead back to it, within half a pixel."""
    if not all(map(isfinite, transform)) or transform.is_degenerate:
        return True
    corners = (0, 0), (width, height)
    found = [~transform @ (transform @ corner) for corner in corners]
    pairs = zip(chain(*found), chain(*corners), strict=True)
    return not all(abs(there - here) < 0.5 for there, here in pairs)  # noqa: PLR2004


def _describe(href: str, path: str, size: int, dataset: Any) -> Scene:  # noqa: ANN401  (rasterio is untyped)
    if dataset.subdatasets:
        text = "%s: holds %d images, of which the first is read"
        logger.warning(text, href, len(dataset.subdatasets))
    crs = dataset.crs.to_wkt(version="WKT2_2019") if dataset.crs else None
    return Scene(
        href=href,
        geobox=GeoBox(dataset.height, dataset.width, dataset.transform, crs),
        dtype=dataset.dtypes[0],
        bands=tuple(_band(dataset, index) for index in dataset.indexes),
        block=dataset.block_shapes[0],
        tie=_tie(dataset),
        point=dataset.tags().get("AREA_OR_POINT") == "Point",
        origin=File(
            href=href,
            path=path,
            size=size,
            has_mask=any(map(_is_mask, dataset.mask_flag_enums)),
            alpha=_alpha(href, dataset),
            is_palette=ColorInterp.palette in dataset.colorinterp,
            taken=of_tags({**dataset.tags(), **dataset.tags(ns="IMAGERY")}),
            codec=dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", ""),
        ),
    )


def _tie(dataset: Any) -> Tie | None:  # noqa: ANN401  (rasterio is untyped)
    """Return what places a raster that has no transform."""
    points, crs = dataset.gcps
    if not dataset.transform.is_identity or not (points or dataset.rpcs):
        return None
    return Tie(
        points=tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points),
        crs=crs.to_wkt(version="WKT2_2019") if crs else None,
        rpc=tuple(sorted(dataset.tags(ns="RPC").items())),
    )


def _is_mask(flags: list[MaskFlags]) -> bool:
    """Return whether all bands share a mask that no alpha band is.

    An internal one, or the value of each band that means no data where all have it
    (NODATA_VALUES, which GDAL marks as nodata too).
    """
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _alpha(href: str, dataset: Any) -> int | None:  # noqa: ANN401  (rasterio is untyped)
    """Return the index of the alpha band.

    GDAL calls the fourth of four bytes alpha; one described as something else is not.
    """
    for index, color in zip(dataset.indexes, dataset.colorinterp, strict=True):
        name = dataset.descriptions[index - 1] or "alpha"
        if color != ColorInterp.alpha:
            continue
        if name.casefold() == "alpha":
            return int(index)
        text = "%s: band %d is alpha by its tag and %r by its name: taken as that"
        logger.warning(text, href, index, name)
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
        name=said.strip() or (None if color in plain else color.name),
        nodata=dataset.nodatavals[at],
        scale=dataset.scales[at],
        offset=dataset.offsets[at],
    )
