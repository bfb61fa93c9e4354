"""Arrays of uint8 -> the bytes of GeoTIFFs. The rules for every raster we write."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.io import MemoryFile

from tileseg.card import NODATA
from tileseg.geobox import GeoBox
from tileseg.raster import Tie

__all__ = ["Look", "can_write", "create", "shard_bytes", "write_cog"]

_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a raster says about its values."""

    description: str
    """Of its one band."""
    overviews: str
    """How overviews are made: NEAREST or MODE, which invent no value."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Dataset tags."""
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """Value to red, green, blue; empty for a grey raster."""
    scale: float = 1.0
    """physical = value * scale."""


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


def _profile(geobox: GeoBox) -> dict[str, Any]:
    # A raster without a transform has the identity for rasterio; ours has none then.
    transform = None if geobox.transform.is_identity else geobox.transform
    return {
        "driver": "GTiff",
        "height": geobox.height,
        "width": geobox.width,
        "count": 1,
        "dtype": "uint8",
        "nodata": NODATA,
        "crs": _spelled(geobox.crs),
        "transform": transform,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "zlevel": 1,  # these files are read once and thrown away
        "bigtiff": "IF_SAFER",
    }


def create(
    path: Path, geobox: GeoBox, look: Look, *, point: bool, tie: Tie | None = None
) -> Any:  # noqa: ANN401  (rasterio is untyped)
    """Open a new GeoTIFF of one uint8 band for writing window by window."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path, "w", **_profile(geobox))
    dataset.update_tags(AREA_OR_POINT="Point" if point else "Area", **look.tags)
    dataset.set_band_description(1, look.description)
    if tie and tie.points:
        points = [GroundControlPoint(*point) for point in tie.points]
        dataset.gcps = points, tie.crs and CRS.from_wkt(tie.crs)
    if tie and tie.rpc:
        dataset.update_tags(ns="RPC", **dict(tie.rpc))
    if look.colors:
        dataset.colorinterp = [ColorInterp.palette]
        transparent = {NODATA: (0, 0, 0, 0)}
        dataset.write_colormap(1, {**_opaque(look.colors), **transparent})
    if look.scale != 1:
        dataset.scales = (look.scale,)
    return dataset


def _opaque(colors: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[int, ...]]:
    return {value: (*rgb, 255) for value, rgb in colors.items()}


def shard_bytes(pixels: NDArray[np.uint8], geobox: GeoBox) -> bytes:
    """Return a small GeoTIFF of `pixels`, (height, width), that anything can open."""
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**_profile(geobox)) as dataset:
            dataset.write(pixels, 1)
        return bytes(memory.getbuffer())


def write_cog(source: Path, path: Path, look: Look, *, width: int) -> None:
    """Copy a GeoTIFF, `width` pixels wide, into a COG with overviews."""
    rasterio.shutil.copy(
        source,
        path,
        driver="COG",
        BLOCKSIZE=_BLOCK,
        COMPRESS="DEFLATE",
        # GDAL's default (cubic, average) would invent classes between classes.
        OVERVIEW_RESAMPLING=look.overviews,
        # One column cannot be narrower, and an overview of it is no valid one.
        OVERVIEWS="NONE" if width == 1 else "AUTO",
        BIGTIFF="IF_SAFER",
        NUM_THREADS="ALL_CPUS",
    )
