"""What a scene is put together from: files, and what is said of them from outside."""

from dataclasses import dataclass

from tileseg.base.times import Period

__all__ = ["BandFacts", "Layer", "Mosaic", "Stack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BandFacts:
    """What a catalog says of one band of a file; None: as the file itself says."""

    name: str | None = None
    """What the model's card may call it."""
    nodata: float | None = None
    """The value that means no data."""
    scale: float | None = None
    """physical = stored * scale + offset."""
    offset: float | None = None
    """See `scale`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One raster file of a scene."""

    href: str
    """A local path or an address, as the user or a catalog wrote it."""
    bands: tuple[BandFacts, ...] = ()
    """Of each of its bands, in file order; empty where nothing is said."""
    taken: Period | None = None
    """When its pixels were taken, as a catalog says; None: as the file itself says."""


Stack = tuple[Layer, ...]
"""Files of one place whose bands, in this order, are the bands of one raster."""

Mosaic = tuple[Stack, ...]
"""Rasters side by side; where two overlap the first one that has data counts."""
