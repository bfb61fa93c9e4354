"""Arrays of uint8 -> the bytes of GeoTIFFs. The rules for every raster we write.

GDAL says where a raster lies and what its values mean, in tags that are taken as they
are; the blocks are encoded here, and `cog.py` puts the file together.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.io import MemoryFile
from zlib_ng import zlib_ng

from tileseg.cards.card import CONFIDENCE_STEPS, NODATA
from tileseg.cards.ensemble import Ensemble
from tileseg.geobox import GeoBox
from tileseg.masks.cog import Image, Tag, frame, read_tags, wrap
from tileseg.masks.overview import SHRINK, Pixels
from tileseg.scenes.raster import Tie

__all__ = [
    "SHARD_FORMAT",
    "Look",
    "block_side",
    "can_write",
    "cut",
    "deflate",
    "inflate",
    "looks",
    "raster_tags",
    "shard_bytes",
    "sketch_of",
]

SHARD_FORMAT = 6
"""Of the files that workers make; another number, and none is used again."""

_BLOCK, _SMALL_BLOCK = 512, 256
_SKETCH, _UNDEFINED = 65000, 7  # a private tag, and its type: bytes
_TILE_UNIT = 16  # pixels: a TIFF's tiles are multiples of it
_STATISTICS = ("minimum", "maximum", "mean", "stddev", "valid_percent")  # GDAL's
_DESCRIPTIONS = {
    "confidence": "probability of the class",
    "margin": "probability of the class minus that of the next",
    "entropy": "entropy of the probabilities, 1 where all are equal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a raster says about its values."""

    bands: tuple[str, ...]
    """What each of its bands is."""
    overviews: str
    """How they are made: MODE of classes, AVERAGE of what is measured."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Dataset tags."""
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """Value to red, green, blue; empty for a grey raster."""
    scale: float = 1.0
    """physical = value * scale."""
    statistics: Sequence[Mapping[str, Any]] = ()
    """Of each band, as `Moments` gives them; empty where nobody has counted."""
    pixels: Mapping[int, int] = field(default_factory=dict)
    """Class value to how many pixels have it; empty likewise."""


@cache
def _spelled(wkt: str | None) -> CRS | None:
    """Return a CRS in words that GeoTIFF's keys bring back; as it is if none do.

    They name what an authority names, and lose some of what is spelled out (vertical
    datums, for one).
    """
    if wkt is None:
        return None
    crs = CRS.from_wkt(wkt)
    return next((item for item in _wordings(crs) if _comes_back(item, crs)), crs)


def _wordings(crs: CRS) -> Iterator[CRS]:
    """Yield the same CRS in other words."""
    yield crs
    if authority := crs.to_authority():
        yield CRS.from_authority(*authority)
    with suppress(CRSError):
        yield CRS.from_wkt(crs.to_wkt(version="WKT1_GDAL"))


def _comes_back(spelled: CRS, meant: CRS) -> bool:
    profile = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile, crs=spelled):
            pass
        with memory.open(driver="GTiff") as dataset:
            return bool(dataset.crs == meant)


def can_write(wkt: str | None) -> bool:
    """Return whether a raster that we write says of itself that it has this CRS."""
    return wkt is None or _comes_back(_spelled(wkt), CRS.from_wkt(wkt))


def looks(ensemble: Ensemble, layers: Iterable[str] = ()) -> dict[str, Look]:
    """Return each raster and how it presents itself: the mask, and `layers`."""
    card = ensemble.card
    names = {f"CLASS_{item.value}": item.name for item in card.classes}
    if card.fields:
        names["FIELDS"] = ",".join(map(str, card.fields))
    origin = {"MODEL": ensemble.title, "MODEL_SHA256": ensemble.joined("sha256")}
    if ensemble.tta != "none":
        origin["TTA"] = ensemble.tta
    mask = Look(
        bands=("class",),
        overviews="MODE",
        tags={**names, **origin},
        colors={item.value: item.rgb for item in card.classes},
    )
    chances = {"probabilities": tuple(item.name for item in card.classes)}
    others = {
        name: Look(
            bands=chances.get(name) or (_DESCRIPTIONS[name],),
            overviews="AVERAGE",
            tags=origin,
            scale=1 / CONFIDENCE_STEPS,
        )
        for name in layers
    }
    return {"mask": mask, **others}


def raster_tags(
    geobox: GeoBox, look: Look | int, *, point: bool = False, tie: Tie | None = None
) -> dict[int, Tag]:
    """Return the TIFF tags of a raster of uint8: those that GDAL writes.

    Args:
        geobox: where its upper left corner lies; its size does not matter.
        look: what it says about its values; or only how many bands there are.
        point: whether coordinates mean the pixels' centres.
        tie: what places it where no transform does.
    """
    bands = look if isinstance(look, int) else len(look.bands)
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**_profile(geobox), count=bands) as dataset:
            if isinstance(look, Look):
                _dress(dataset, look, point=point)
            if tie and tie.points:
                points = [GroundControlPoint(*point) for point in tie.points]
                dataset.gcps = points, tie.crs and CRS.from_wkt(tie.crs)
            if tie and tie.rpc:
                dataset.update_tags(ns="RPC", **dict(tie.rpc))
        return read_tags(bytes(memory.getbuffer()))


def _profile(geobox: GeoBox) -> dict[str, Any]:
    # A raster without a transform has the identity for rasterio; ours has none then.
    transform = None if geobox.transform.is_identity else geobox.transform
    return {
        "driver": "GTiff",
        "height": 1,
        "width": 1,
        "dtype": "uint8",
        "nodata": NODATA,
        "interleave": "band",
        "photometric": "minisblack",  # of three bands too
        "crs": _spelled(geobox.crs),
        "transform": transform,
        "tiled": True,
        "compress": "deflate",
        "endianness": "LITTLE",
        "sparse_ok": True,
    }


def _dress(dataset: Any, look: Look, *, point: bool) -> None:  # noqa: ANN401  (rasterio is untyped)
    dataset.update_tags(AREA_OR_POINT="Point" if point else "Area", **look.tags)
    counts = {f"PIXELS_{value}": number for value, number in look.pixels.items()}
    dataset.update_tags(**counts)
    dataset.descriptions = look.bands
    for band, known in enumerate(look.statistics, start=1):
        names = [name for name in _STATISTICS if name in known]
        dataset.update_tags(
            band, **{f"STATISTICS_{it.upper()}": known[it] for it in names}
        )
    if look.colors:
        dataset.colorinterp = [ColorInterp.palette]
        transparent = {NODATA: (0, 0, 0, 0)}
        dataset.write_colormap(1, {**_opaque(look.colors), **transparent})
    if look.scale != 1:
        dataset.scales = (look.scale,) * len(look.bands)


def _opaque(colors: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[int, ...]]:
    return {value: (*rgb, 255) for value, rgb in colors.items()}


def block_side(shard: int) -> int:
    """Return the side of a raster's blocks in pixels, for the side of its shards.

    Those of its overviews have half of it: so a shard of whole blocks is whole blocks
    of its first overview too.
    """
    return _SMALL_BLOCK if shard % _BLOCK and not shard % _SMALL_BLOCK else _BLOCK


def cut(pixels: Pixels, block: int) -> Iterator[Pixels]:
    """Yield a raster's blocks, row-major, (block, block), filled up with nodata.

    Of several bands those of one place in a row.
    """
    *_, height, width = pixels.shape
    planes = pixels.reshape(-1, height, width)
    for row in range(0, height, block):
        for col in range(0, width, block):
            for plane in planes:
                part = plane[row : row + block, col : col + block]
                if part.shape != (block, block):
                    lacking = [(0, block - side) for side in part.shape]
                    part = np.pad(part, lacking, constant_values=NODATA)
                yield part


def deflate(block: Pixels) -> bytes:
    """Return a block as TIFF's DEFLATE; of nothing but nodata always the same bytes."""
    if block[0, 0] == NODATA and block.min() == NODATA:
        return _nothing(block.shape)
    return _deflated(block)


@cache
def _nothing(shape: tuple[int, ...]) -> bytes:
    return _deflated(np.full(shape, NODATA, np.uint8))


def _deflated(block: Pixels) -> bytes:
    # Runs only: on masks as small as zlib's level 6 and ten times as fast; and nothing
    # is looked up by hashes, which zlib-ng has others of on other processors.
    packer = zlib_ng.compressobj(
        1, zlib_ng.DEFLATED, zlib_ng.MAX_WBITS, 9, zlib_ng.Z_RLE
    )
    return packer.compress(np.ascontiguousarray(block).data) + packer.flush()


def inflate(data: bytes, block: int) -> Pixels:
    """Return what `deflate` was given."""
    pixels = np.frombuffer(zlib_ng.decompress(data, bufsize=block**2), np.uint8)
    return pixels.reshape(block, block)


def shard_bytes(
    pixels: Pixels,
    geobox: GeoBox,
    *,
    overviews: str = "MODE",
    block: int = _BLOCK,
    sketch: bytes = b"",
) -> bytes:
    """Return a small COG that anything can open, made of a raster's own blocks.

    Args:
        pixels: the shard's.
        geobox: where it lies.
        overviews: how its two overviews are made, MODE or AVERAGE.
        block: side of the raster's blocks; the second overview is a block of its own.
        sketch: whatever belongs to the shard, for `sketch_of`.
    """
    half = SHRINK[overviews](pixels)
    quarter = SHRINK[overviews](half)
    whole = -(-max(quarter.shape[-2:]) // _TILE_UNIT) * _TILE_UNIT
    levels = (pixels, block), (half, block // 2), (quarter, whole)
    blocks = [[deflate(part) for part in cut(*level)] for level in levels]
    images = [
        _image(level.shape, side, [len(item) for item in own])
        for (level, side), own in zip(levels, blocks, strict=True)
    ]
    stored = (wrap(block) for own in reversed(blocks) for block in own)
    tags = raster_tags(geobox, images[0].bands)
    if sketch:
        tags[_SKETCH] = _UNDEFINED, len(sketch), sketch
    return b"".join([frame(images, tags), *stored])


def sketch_of(data: bytes) -> bytes:
    """Return what `shard_bytes` was given of that name."""
    return read_tags(data).get(_SKETCH, (_UNDEFINED, 0, b""))[2]


def _image(shape: tuple[int, ...], block: int, counts: list[int]) -> Image:
    *bands, height, width = shape
    return Image(
        height=height,
        width=width,
        block=block,
        counts=np.array(counts, np.uint32),
        bands=prod(bands),
    )
