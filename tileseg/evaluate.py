"""How right a mask is at places where the truth is known."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import CRSError
from rasterio.warp import transform

from tileseg.card import NODATA
from tileseg.errors import InputError, UsageError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_dataset

__all__ = ["Confusion", "check_points"]

_WGS84 = "EPSG:4326"  # of GeoJSON, RFC 7946


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Counts of (true class, class in the mask)."""

    names: tuple[str, ...]
    """Classes, in the order of their mask values."""
    counts: NDArray[np.int64]
    """(classes, classes + 1): true by mapped; the last column is nodata."""

    @property
    def accuracy(self) -> float:
        """Share of points that the mask gets right; nodata is wrong."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def points(self) -> int:
        """How many places were looked at."""
        return int(self.counts.sum())

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1."""
        return float(self.f1.mean())

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 per class, (classes,), 0 to 1."""
        right = np.diag(self.counts)
        mapped = self.counts[:, :-1].sum(axis=0)
        known = self.counts.sum(axis=1)
        return np.asarray(2 * right / np.maximum(mapped + known, 1))

    def __str__(self) -> str:
        """Return a table for a terminal."""
        wide = max(map(len, self.names)) + 2
        heads = [name[:9] for name in (*self.names, "nodata")]
        lines = [" " * wide + "".join(f"{head:>10}" for head in heads) + "        F1"]
        for name, row, f1 in zip(self.names, self.counts, self.f1, strict=True):
            cells = "".join(f"{int(count):>10}" for count in row)
            lines.append(f"{name:<{wide}}{cells}{f1:>10.3f}")
        lines.append(
            f"accuracy {self.accuracy:.3f} at {self.points} points, "
            f"macro-F1 {self.macro_f1:.3f}; rows are true, columns mapped"
        )
        return "\n".join(lines)


def check_points(mask: Path, points: Path) -> Confusion:
    """Compare a mask with GeoJSON points that have a `class` property.

    Raises:
        InputError: a file cannot be read.
        UsageError: a point lies outside the mask, or its class is not in it.
    """
    try:
        features = json.loads(points.read_text(encoding="utf-8"))["features"]
        places = [item["geometry"]["coordinates"] for item in features]
        truth = [str(item["properties"]["class"]) for item in features]
        longitudes, latitudes = zip(*places, strict=True)
    except (OSError, ValueError, KeyError, TypeError) as err:
        msg = f"{points}: cannot be read as GeoJSON points with a `class`: {err!r}"
        raise InputError(msg) from err
    try:
        with gdal_env(), open_dataset(mask) as dataset:
            names = _names(dataset.tags())
            xs, ys = transform(_WGS84, dataset.crs, longitudes, latitudes)
            at = [dataset.index(x, y) for x, y in zip(xs, ys, strict=True)]
            values = [int(v) for (v,) in dataset.sample(zip(xs, ys, strict=True))]
            height, width = dataset.shape
    except (*GDAL_ERRORS, CRSError) as err:
        msg = f"{mask}: cannot be read as a mask with a CRS: {err}"
        raise InputError(msg) from err
    counts = np.zeros((len(names), len(names) + 1), np.int64)
    for (row, column), value, name in zip(at, values, truth, strict=True):
        if name not in names:
            msg = f"{points}: class {name!r} is not in {mask}: {', '.join(names)}"
            raise UsageError(msg)
        if not (0 <= row < height and 0 <= column < width):
            msg = f"{points}: a point of {name!r} lies outside {mask}"
            raise UsageError(msg)
        counts[names.index(name), len(names) if value == NODATA else value] += 1
    return Confusion(names, counts)


def _names(tags: dict[str, str]) -> tuple[str, ...]:
    """Return the class names of a mask of ours, in the order of their values."""
    found = {
        int(key.removeprefix("CLASS_")): name
        for key, name in tags.items()
        if key.startswith("CLASS_")
    }
    return tuple(found[value] for value in sorted(found))
