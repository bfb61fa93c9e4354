"""Polygons on the ground -> a file of features: what each format wants, and no more.

GeoPackage, FlatGeobuf and GeoJSON are written by pyogrio, whose GDAL is not the one
of rasterio and has settings of its own; GeoParquet by pyarrow.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from pyogrio import errors
from pyproj import CRS
from pyproj.exceptions import ProjError

from tileseg.base.attributes import Origin
from tileseg.errors import OutputError, first_line
from tileseg.geobox import GeoBox
from tileseg.polygons.columns import collection
from tileseg.polygons.table import BOX_SIDES, ROW_GROUP, Meaning, Table
from tileseg.polygons.vectorize import Areas
from tileseg.scenes.area import lonlat_digits
from tileseg.scenes.ground import footprint
from tileseg.window import Window

__all__ = ["FORMATS", "is_lonlat", "write_failures", "write_features"]

_DRIVERS = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".geojson": "GeoJSON",
    ".geojsonl": "GeoJSONSeq",
}
FORMATS = *_DRIVERS, ".parquet"
"""Suffixes of the files that can be made."""

_OGR_OPTIONS = {
    # A GeoPackage says when it was changed: the same polygons give the same bytes.
    "OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z",
}
_WRITE_ERRORS = (
    OSError,
    pa.ArrowException,
    errors.CRSError,
    errors.DataLayerError,
    errors.DataSourceError,
    errors.FeatureError,
    errors.FieldError,
    errors.GeometryError,
)


def is_lonlat(suffix: str) -> bool:
    """Return whether a format is in longitude and latitude, whatever a scene is in."""
    return suffix.removeprefix(".") in ("geojson", "geojsonl")


def write_features(areas: Iterable[Areas], meaning: Meaning, path: Path) -> int:
    """Write areas to `path`, in the format that its suffix says, as they come.

    Returns their number.

    Features stand in the areas' order, `id` counts from 1; exteriors run
    counter-clockwise on the ground, whichever way is up in the raster. The same areas
    give the same bytes.

    Args:
        areas: in scene pixels, some at a time; memory does not grow with their number.
        meaning: of their values.
        path: the file to make.

    Raises:
        OutputError: it cannot be written.
        TilesegError: whatever the areas raise.
    """
    crs, text = meaning.geobox.crs, meaning.description
    has_room = path.suffix != ".geojsonl"  # lines are features, and nothing else
    options = {"DESCRIPTION": text} if text and has_room else {}
    is_parquet = path.suffix == ".parquet"
    table = Table(
        areas, meaning, is_lonlat=is_lonlat(path.suffix), has_boxes=is_parquet
    )
    if table.lonlat:
        # GeoJSON means WGS 84 where nothing is said; of lines, GDAL wants to be told.
        crs = None if has_room else "OGC:CRS84"
        options |= _geojson(table.lonlat.digits)
    try:
        if is_parquet:
            _write_parquet(table, meaning, path)
        else:
            reader = pa.RecordBatchReader.from_batches(table.schema, table.batches())
            _write_ogr(reader, crs, path, layer="polygons", **options)
    except (*_WRITE_ERRORS, RuntimeError) as err:
        if table.error:  # pyogrio says that there was one, not which
            raise table.error from None
        msg = f"{path}: cannot be written: {first_line(err)}"
        raise OutputError(msg) from err
    return table.count


def write_failures(
    failures: Sequence[Mapping[str, Any]], geobox: GeoBox, path: Path
) -> None:
    """Write where shards failed, and why, as GeoJSON (RFC 7946).

    The footprints are null where nothing leads to longitude and latitude.

    Args:
        failures: `shard`, `window` and `reason` of each, as in `run.json`.
        geobox: the scene's.
        path: the file to make.

    Raises:
        OutputError: it cannot be written.
    """
    found = [footprint(geobox.crop(Window(*item["window"]))) for item in failures]
    outlines = [item and shapely.geometry.shape(item.geometry) for item in found]
    shapes = shapely.to_wkb(np.array(outlines, object), byte_order=1)
    numbers = pa.list_(pa.int64())
    columns = {
        "shard": pa.array([item["shard"] for item in failures], numbers),
        "window": pa.array([item["window"] for item in failures], numbers),
        "reason": pa.array([item["reason"] for item in failures], pa.string()),
        "geometry": pa.array(shapes, pa.binary()),
    }
    digits = lonlat_digits(geobox)
    options = _geojson(digits) if digits else {}
    try:
        _write_ogr(pa.table(columns), None, path, layer="failures", **options)
    except _WRITE_ERRORS as err:
        msg = f"{path}: cannot be written: {first_line(err)}"
        raise OutputError(msg) from err


def _write_parquet(table: Table, meaning: Meaning, path: Path) -> None:
    """Write GeoParquet 1.1, with the box of each feature so that readers can skip."""
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [],
        "crs": _projjson(meaning.geobox.crs),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in BOX_SIDES}},
    }
    # Arrow's own schema would hide what is said of the file when all is written.
    settings = {"compression": "zstd", "store_schema": False}
    with pq.ParquetWriter(path, table.schema, **settings) as writer:
        for batch in table.batches():
            writer.write_batch(batch, row_group_size=ROW_GROUP)
        if np.isfinite(table.bounds).all():
            geometry |= {"geometry_types": ["Polygon"], "bbox": table.bounds.tolist()}
        facts = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {"geometry": geometry},
        }
        writer.add_key_value_metadata({"geo": json.dumps(facts)})
        if meaning.description:
            writer.add_key_value_metadata({"description": meaning.description})
        if meaning.are_fields:
            fields = collection(meaning.origin or Origin())
            writer.add_key_value_metadata({"collection": fields})


def _write_ogr(
    table: Any,  # noqa: ANN401  (pyarrow is untyped)
    crs: str | None,
    path: Path,
    *,
    layer: str,
    **options: str,
) -> None:
    """Write a table, or what yields its rows, in the format that the suffix says.

    It has a column `geometry`.
    """
    with _ogr_env():
        pyogrio.write_arrow(
            table,
            path,
            layer=layer,
            driver=_DRIVERS[path.suffix],
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=crs,
            layer_options=options,
        )


def _projjson(crs: str | None) -> dict[str, Any] | None:
    """Return a CRS as GeoParquet wants it; null means that it is not known."""
    if crs is None:
        return None
    try:
        return CRS.from_wkt(crs).to_json_dict()
    except ProjError:
        return None


def _geojson(digits: int) -> dict[str, str]:
    """Return the driver's options for degrees that are as RFC 7946 wants them."""
    # No crs is given, which means WGS 84; nor RFC7946=YES, by which GDAL cuts again.
    return {"COORDINATE_PRECISION": str(digits)}


@contextmanager
def _ogr_env() -> Iterator[None]:
    """Write under our settings of pyogrio's GDAL, and put back what was there."""
    before = {key: pyogrio.get_gdal_config_option(key) for key in _OGR_OPTIONS}
    pyogrio.set_gdal_config_options(_OGR_OPTIONS)
    try:
        with warnings.catch_warnings():
            # A scene that does not say where it lies has polygons that do not either.
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            yield
    finally:
        pyogrio.set_gdal_config_options(before)
