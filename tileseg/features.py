"""Polygons on the ground -> a file of features: what each format wants, and no more.

GeoPackage, FlatGeobuf and GeoJSON are written by pyogrio, whose GDAL is not the one
of rasterio and has settings of its own; GeoParquet by pyarrow.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import floor, tau
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio import errors
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from tileseg.area import lonlat_digits
from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.vectorize import Polygons

__all__ = ["write_failures", "write_features"]

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
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
_ROW_GROUP = 1 << 16  # features that a reader of GeoParquet takes or leaves at once
_SIDE_PIECES = 16  # of a side that is projected: straight on one map, not on another


def write_features(
    polygons: Polygons, names: Mapping[int, str], geobox: GeoBox, path: Path
) -> None:
    """Write polygons to `path`, in the format that its suffix says.

    Features stand in the polygons' order, `id` counts from 1; exteriors run
    counter-clockwise on the ground, whichever way is up in the raster. The same
    polygons give the same bytes.

    Args:
        polygons: in scene pixels.
        names: of the mask's values.
        geobox: the scene's.
        path: the file to make.

    Raises:
        OutputError: it cannot be written.
    """
    transform, options = geobox.transform, {}
    if path.suffix == ".geojson":
        transform, options = _turned(geobox), _geojson(geobox)
    outlines = _grounded(polygons.outlines, transform)
    columns = _attributes(polygons, names)
    try:
        if path.suffix == ".parquet":
            _write_parquet(columns, outlines, geobox.crs, path)
        else:
            table = pa.table({**columns, "geometry": _wkb(outlines)})
            _write_ogr(table, geobox.crs, path, layer="polygons", **options)
    except _WRITE_ERRORS as err:
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err


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
    digits = lonlat_digits(geobox)
    outlines = [
        _footprint(item["window"], geobox) if digits else None for item in failures
    ]
    numbers = pa.list_(pa.int64())
    columns = {
        "shard": pa.array([item["shard"] for item in failures], numbers),
        "window": pa.array([item["window"] for item in failures], numbers),
        "reason": pa.array([item["reason"] for item in failures], pa.string()),
        "geometry": _wkb(np.array(outlines, object)),
    }
    crs, options = (geobox.crs, _geojson(geobox)) if digits else (None, {})
    try:
        _write_ogr(pa.table(columns), crs, path, layer="failures", **options)
    except _WRITE_ERRORS as err:
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err


def _footprint(window: Sequence[int], geobox: GeoBox) -> Any:  # noqa: ANN401  (shapely is untyped)
    """Return a window on the ground; None where a corner is not on the Earth."""
    row, col, height, width = window
    pixels = shapely.box(col, row, col + width, row + height)
    pieces = shapely.segmentize(pixels, max(height, width) / _SIDE_PIECES)
    (outline,) = _grounded(np.array([pieces]), _turned(geobox))
    to_lonlat = Transformer.from_crs(geobox.crs, "OGC:CRS84", always_xy=True)
    x, y = shapely.get_coordinates(outline).T
    return outline if np.isfinite(to_lonlat.transform(x, y)).all() else None


def _grounded(outlines: NDArray[Any], transform: Affine) -> NDArray[Any]:
    """Return the polygons in ground coordinates, exteriors counter-clockwise."""
    a, b, c, d, e, f = transform[:6]

    def place(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = pixels.T
        return np.stack([x * a + y * b + c, x * d + y * e + f], axis=1)

    placed = shapely.transform(outlines, place)
    return np.asarray(shapely.orient_polygons(placed, exterior_cw=False))


def _attributes(polygons: Polygons, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the columns but the geometry; what is not known is null."""
    classes = polygons.classes.tolist()
    hectares = polygons.hectares
    columns = {
        "id": pa.array(range(1, len(classes) + 1), pa.int64()),
        "class_id": pa.array(classes, pa.int32()),
        "class_name": pa.array([names[value] for value in classes], pa.string()),
        "area_ha": pa.nulls(len(classes), pa.float64())
        if hectares is None
        else pa.array(hectares),
    }
    if polygons.confidence is not None:
        columns["mean_confidence"] = pa.array(polygons.confidence)
    return columns


def _wkb(outlines: NDArray[Any]) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    return pa.array(shapely.to_wkb(outlines, byte_order=1), pa.binary())


def _write_parquet(
    columns: dict[str, Any], outlines: NDArray[Any], crs: str | None, path: Path
) -> None:
    """Write GeoParquet 1.1, with the box of each feature so that readers can skip."""
    bounds = shapely.bounds(outlines).reshape(-1, 4)
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], sides)
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"] if len(outlines) else [],
        "crs": _projjson(crs),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in sides}},
    }
    if len(outlines):
        low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        geometry["bbox"] = [*low.tolist(), *high.tolist()]
    facts = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": geometry},
    }
    table = pa.table({**columns, "bbox": boxes, "geometry": _wkb(outlines)})
    table = table.replace_schema_metadata({"geo": json.dumps(facts)})
    pq.write_table(table, path, compression="zstd", row_group_size=_ROW_GROUP)


def _write_ogr(
    table: Any,  # noqa: ANN401  (pyarrow is untyped)
    crs: str | None,
    path: Path,
    *,
    layer: str,
    **options: str,
) -> None:
    """Write a table with a column `geometry` in the format that the suffix says."""
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


def _geojson(geobox: GeoBox) -> dict[str, str]:
    """Return the driver's options for RFC 7946: WGS 84, cut at the antimeridian."""
    digits = lonlat_digits(geobox)
    assert digits, "a scene without longitudes was refused"
    return {"RFC7946": "YES", "COORDINATE_PRECISION": str(digits)}


def _turned(geobox: GeoBox) -> Affine:
    """Return the transform with the scene's middle within half a turn of Greenwich.

    Longitudes may count from 0 to 360 and beyond; GDAL cuts at the antimeridian, but
    loses what is more than a turn away.
    """
    assert geobox.crs, "a scene without a CRS was refused"
    crs = CRS.from_wkt(geobox.crs)
    if not crs.is_geographic:
        return geobox.transform
    turn = tau / crs.axis_info[0].unit_conversion_factor  # 360 of most units
    middle, _ = geobox.transform @ (geobox.width / 2, geobox.height / 2)
    return Affine.translation(-turn * floor(middle / turn + 0.5), 0) @ geobox.transform


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
