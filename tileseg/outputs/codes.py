"""What the values of a raster of changes mean, and the COG that holds them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from tileseg.cards.card import NODATA
from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env
from tileseg.window import Window

__all__ = ["Codes", "Writer", "raster"]

Color = tuple[int, int, int]
"""Red, green, blue, each 0 to 255."""

_UNCHANGED, _UNDECIDED, _TOO_SMALL = (232,) * 3, (176,) * 3, (205,) * 3
_NEW_SHARE = 0.75  # of a change's colour is that of what it became
_BLOCK = 512
_BLOCKS: dict[str, Any] = {
    "tiled": True,
    "blockxsize": _BLOCK,
    "blockysize": _BLOCK,
    "compress": "deflate",
    "zlevel": 1,  # read once
    "sparse_ok": True,
    "bigtiff": "if_safer",
}
_COG: dict[str, Any] = {
    "COMPRESS": "DEFLATE",
    "BLOCKSIZE": _BLOCK,
    "OVERVIEW_RESAMPLING": "MODE",  # invents no value
    "BIGTIFF": "IF_SAFER",
}


@dataclass(frozen=True, slots=True)
class Codes:
    """Of N classes: old × N + new, then two for what is left out, and nodata."""

    classes: tuple[str, ...]
    """Names, none twice."""
    colors: tuple[Color, ...]
    """Of each class."""

    @property
    def count(self) -> int:
        """Codes of two classes: N × N."""
        return len(self.classes) ** 2

    @property
    def undecided(self) -> int:
        """The classes differ, and one of them is not sure enough."""
        return self.count

    @property
    def too_small(self) -> int:
        """A change of a smaller area than was asked for."""
        return self.count + 1

    @property
    def nodata(self) -> int:
        """One of the masks says nothing: the greatest value of the type."""
        return int(np.iinfo(self.dtype).max)

    @property
    def dtype(self) -> str:
        """Bytes as long as they do, which is up to 15 classes."""
        return "uint8" if self.too_small < np.iinfo(np.uint8).max else "uint16"

    @property
    def changes(self) -> tuple[int, ...]:
        """The codes of two classes that differ."""
        unchanged = len(self.classes) + 1
        return tuple(code for code in range(self.count) if code % unchanged)

    @property
    def others(self) -> tuple[int, ...]:
        """The codes of what is no change."""
        unchanged = range(0, self.count, len(self.classes) + 1)
        return (*unchanged, self.undecided, self.too_small)

    def of(self, old: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the code of each pixel.

        Args:
            old: numbers of classes, 255 for none, of any shape.
            new: the same of the other mask.
        """
        pair = old.astype(self.dtype) * len(self.classes) + new
        is_known = (old != NODATA) & (new != NODATA)
        return np.where(is_known, pair, self.nodata).astype(self.dtype)

    def pair(self, code: int) -> tuple[str, str]:
        """Return the classes that a code is of, the old and the new one."""
        old, new = divmod(code, len(self.classes))
        return self.classes[old], self.classes[new]

    def name(self, code: int) -> str:
        """Return what a legend says."""
        if code >= self.count:
            return {self.undecided: "undecided", self.too_small: "too small"}[code]
        old, new = self.pair(code)
        return f"{old} unchanged" if old == new else f"{old} > {new}"

    def color(self, code: int) -> Color:
        """Return grey for what is no change, else mostly what it became."""
        if code >= self.count:
            return {self.undecided: _UNDECIDED, self.too_small: _TOO_SMALL}[code]
        old, new = divmod(code, len(self.classes))
        if old == new:
            return _UNCHANGED
        both = zip(self.colors[old], self.colors[new], strict=True)
        red, green, blue = (
            round((1 - _NEW_SHARE) * was + _NEW_SHARE * became) for was, became in both
        )
        return red, green, blue


class Writer:
    """A raster of codes that is being written."""

    def __init__(self, dataset: Any, codes: Codes) -> None:  # noqa: ANN401  (rasterio is untyped)
        self._dataset, self._codes = dataset, codes

    def write(self, pixels: NDArray[Any], window: Window) -> None:
        """Write a window."""
        self._dataset.write(pixels, 1, window=window.slices)

    def name(self, found: Mapping[int, int], tags: Mapping[str, str]) -> None:
        """Say what codes mean: all that there may be, or of 16 bits those found.

        Args:
            found: codes and how many pixels have them.
            tags: of the raster, beside those.
        """
        codes = self._codes
        is_long = codes.dtype == "uint16"
        named = sorted(found) if is_long else range(codes.too_small + 1)
        names = {f"CLASS_{code}": codes.name(code) for code in named}
        rule = f"old x {len(codes.classes)} + new"
        counts = {f"PIXELS_{code}": number for code, number in found.items()}
        self._dataset.update_tags(CODE=rule, **names, **counts, **tags)
        self._dataset.set_band_description(1, "change")
        self._dataset.colorinterp = [ColorInterp.palette]
        table = {code: (*codes.color(code), 255) for code in named}
        self._dataset.write_colormap(1, {**table, codes.nodata: (0, 0, 0, 0)})


@contextmanager
def raster(path: Path, box: GeoBox, codes: Codes) -> Iterator[Writer]:
    """Write a COG window by window; it is there if all goes well.

    Raises:
        OutputError: it cannot be written.
    """
    crs = rasterio.CRS.from_wkt(box.crs) if box.crs else None
    facts = {
        "driver": "GTiff",
        "height": box.height,
        "width": box.width,
        "count": 1,
        "dtype": codes.dtype,
        "nodata": codes.nodata,
        "crs": crs,
        # rasterio has the identity for a raster without a transform.
        "transform": None if box.transform.is_identity else box.transform,
    }
    with TemporaryDirectory(prefix=".tileseg-", dir=path.parent) as folder, gdal_env():
        plain = Path(folder) / path.name
        try:
            with rasterio.open(plain, "w", **facts, **_BLOCKS) as dataset:
                yield Writer(dataset, codes)
            copy(plain, path, driver="COG", **_COG, **_overviews(box))
        except GDAL_ERRORS as err:
            msg = f"{path}: cannot be written: {err}"
            raise OutputError(msg) from err


def _overviews(box: GeoBox) -> dict[str, str]:
    """Return whether there are any: of one column they are no narrower, and invalid."""
    return {"OVERVIEWS": "NONE"} if box.width == 1 else {}
