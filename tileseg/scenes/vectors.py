"""Vector files, read safely: geometries, their CRS, and what they are called."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError

from tileseg.errors import InputError, RefusedError, UsageError

__all__ = ["LONLAT", "Features", "read_features"]

LONLAT = "OGC:CRS84"
"""Longitude, then latitude, WGS 84."""

_SIGNS = {
    b"SQLite format 3\0": "GeoPackage",
    b"fgb\x03": "FlatGeobuf",
    b"PAR1": "GeoParquet",
    b"{": "GeoJSON",
}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a vector file's first layer holds."""

    geometries: NDArray[Any]
    """(n,), of shapely; None where a feature has none."""
    crs: str
    """WKT, or whatever else pyproj takes."""
    values: tuple[Any, ...] | None
    """(n,), of the column that was asked for."""


def read_features(path: str, what: str, *, column: str | None = None) -> Features:
    """Read GeoJSON, GeoPackage, FlatGeobuf or GeoParquet; their first layer.

    Args:
        path: the file.
        what: what it is called in messages.
        column: what else to read of each feature.

    Raises:
        InputError: the file is missing or damaged.
        RefusedError: it is of another format.
        UsageError: it lacks the column, or says not which CRS it is in.
    """
    kind = _kind(path, what)
    read = _read_parquet if kind == "GeoParquet" else _read_ogr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is said as an error
            wkb, crs, values = read(path, what, column)
        geometries = shapely.from_wkb(wkb)
    except UsageError:
        raise
    except _read_errors() as err:
        msg = f"{what}: cannot be read as {kind}: {err}"
        raise InputError(msg) from err
    if crs is None:
        msg = f"{what}: says not which CRS its coordinates are in"
        raise UsageError(msg)
    plain = None if values is None else tuple(np.asarray(values, object).tolist())
    return Features(np.asarray(geometries, object), crs, plain)


def _kind(path: str, what: str) -> str:
    """Return the format that a file begins as."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        msg = f"{what}: cannot be read: {reason}"
        raise InputError(msg) from err
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip() or head
    kind = next((kind for sign, kind in _SIGNS.items() if head.startswith(sign)), None)
    if kind is None:
        known = ", ".join(sorted(_SIGNS.values()))
        msg = f"{what}: wanted one of {known}, it begins with {head!r}"
        raise RefusedError(msg)
    return kind


def _read_errors() -> tuple[type[Exception], ...]:
    """Return what reading a damaged file raises."""
    import pyarrow as pa
    from pyogrio import errors

    ours = OSError, ValueError, LookupError, TypeError, AttributeError
    ogr = errors.DataSourceError, errors.DataLayerError, errors.FeatureError
    return (*ours, *ogr, errors.GeometryError, pa.ArrowException, ShapelyError)


def _read_ogr(path: str, what: str, column: str | None) -> tuple[Any, str | None, Any]:
    from pyogrio.raw import read

    columns = [column] if column else []
    meta, _, wkb, fields = read(path, columns=columns)
    if column and column not in meta["fields"]:
        raise _lacks(what, column)
    return wkb, meta["crs"], fields[0] if column else None


def _read_parquet(
    path: str, what: str, column: str | None
) -> tuple[Any, str | None, Any]:
    """Return the primary geometries of a GeoParquet file; its CRS may be left out."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    facts = json.loads((schema.metadata or {})[b"geo"])
    name = facts["primary_column"]
    if column and column not in schema.names:
        raise _lacks(what, column)
    shape = facts["columns"][name]
    if shape["encoding"] != "WKB":
        msg = f"{what}: wanted geometries in WKB, got {shape['encoding']}"
        raise UsageError(msg)
    table = pq.read_table(path, columns=[name, column] if column else [name])
    wkb = table[name].to_numpy(zero_copy_only=False)
    crs = shape.get("crs", LONLAT)
    text = crs if isinstance(crs, str | None) else json.dumps(crs)
    return wkb, text, table[column].to_pylist() if column else None


def _lacks(what: str, column: str) -> UsageError:
    return UsageError(f"{what}: has no column {column!r}; name the one with the class")
