"""A raster of classes that anybody made: what it says of itself, and its labels."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.attributes import Origin
from tileseg.base.times import last, of_properties, of_tags
from tileseg.errors import InputError, UsageError
from tileseg.evaluation.reference import class_tags
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.window import Window

__all__ = ["ClassRaster", "describe", "read_window"]

_MASKED = -1  # no class has it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRaster:
    """What a raster of classes says of itself."""

    path: str
    band: int
    """The one with the classes, from 1."""
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

    @property
    def unclassed(self) -> list[int]:
        """Labels that are no class: nodata, and what stands where it is masked."""
        found = list[int]()
        if self.nodata is not None and self.can_hold(self.nodata):
            found.append(int(self.nodata))
        return [*found, _MASKED] if self.is_masked else found

    def can_hold(self, value: float) -> bool:
        """Return whether pixels of its type can have a value."""
        return 0 <= value <= np.iinfo(self.dtype).max and value % 1 == 0

    def labels(self, window: Window) -> NDArray[Any]:
        """Return a window's classes, `unclassed` where there is none.

        Raises:
            InputError: it cannot be read.
        """
        labels = read_window(self.path, window, self.band)
        if not self.is_masked:
            return labels
        is_valid = read_window(self.path, window, self.band, masks=True)
        return np.where(is_valid, labels.astype(np.int32), _MASKED)


def describe(path: str, band: int = 1) -> ClassRaster:
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
            return ClassRaster(
                path=path,
                band=band,
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


def read_window(
    path: str, window: Window, band: int = 1, *, masks: bool = False
) -> NDArray[Any]:
    """Return a window of a band, or of its mask.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with gdal_env(), open_dataset(path) as dataset:
            read = dataset.read_masks if masks else dataset.read
            pixels: NDArray[Any] = read(band, window=window.slices)
    except GDAL_ERRORS as err:
        msg = f"{path}: {window} cannot be read: {err}"
        raise InputError(msg) from err
    return pixels
