"""Polygons on the ground -> a file of features: what each format wants, and no more.

GeoPackage, FlatGeobuf and GeoJSON are written by pyogrio, whose GDAL is not the one
of rasterio and has settings of its own; GeoParquet by pyarrow.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio import errors
from pyproj import CRS
from pyproj.exceptions import ProjError

from tileseg.area import lonlat_digits
from tileseg.attributes import Attribute, Origin
from tileseg.card import CONFIDENCE_STEPS
from tileseg.columns import (
    FIELD_COLUMNS,
    Constant,
    collection,
    given,
    of_fields,
    of_origin,
)
from tileseg.errors import OutputError, first_line
from tileseg.geobox import GeoBox
from tileseg.ground import footprint
from tileseg.lonlat import LonLat
from tileseg.measure import Measure
from tileseg.outlines import Outlines
from tileseg.vectorize import Areas
from tileseg.window import Window
from tileseg.wkb import bounds_of, encode, on_ground

__all__ = ["FORMATS", "Meaning", "is_lonlat", "write_failures", "write_features"]

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
_ROW_GROUP = 1 << 16  # features that a reader of GeoParquet takes or leaves at once
_COLUMNS = (
    ("id", pa.int64()),
    ("class_id", pa.int32()),
    ("class_name", pa.string()),
    ("area_ha", pa.float64()),
    ("perimeter_m", pa.float64()),
)
_SURE_COLUMNS = ("mean_confidence", pa.float64()), ("min_confidence", pa.float64())
_BOX = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
_HECTARE = 10_000.0  # square metres


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the values of a mask mean, where it lies, and what else is known of it."""

    names: Mapping[int, str]
    """Value to class."""
    geobox: GeoBox
    """The scene's."""
    has_confidence: bool = False
    """Whether areas say how sure they are."""
    eliminated: str = ""
    """What was done with small polygons; empty for nothing."""
    simplified: float | None = None
    """Metres that borders are simplified by; None if they are as traced."""
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """More columns: by name, what each value has there."""
    origin: Origin | None = None
    """What the areas come from; None for no such columns."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """Columns that somebody gives: by name, what all areas have there."""
    are_fields: bool = False
    """Whether every area is an agricultural field; such a file is fiboa's, too."""

    @property
    def constants(self) -> list[Constant]:
        """The columns that have one value."""
        origin = self.origin or Origin()
        return [
            *(of_origin(origin) if self.origin else ()),
            *(given(*item) for item in self.attributes.items()),
            *(of_fields(origin) if self.are_fields else ()),
        ]

    @property
    def description(self) -> str:
        """What the file says of itself; empty where there is nothing to say."""
        said = [self.eliminated] if self.eliminated else []
        if self.simplified is not None:
            said.append(
                f"Borders are simplified, tolerance {self.simplified:g} m: corners "
                "between two classes may cut off triangles of "
                f"{self.simplified**2:g} m2"
            )
        return ". ".join(said)


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
    table = _Table(areas, meaning, path.suffix)
    if table.lonlat:
        # GeoJSON means WGS 84 where nothing is said; of lines, GDAL wants to be told.
        crs = None if has_room else "OGC:CRS84"
        options |= _geojson(table.lonlat.digits)
    try:
        if path.suffix == ".parquet":
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


class _Table:
    """Areas as rows of a file, so many at a time."""

    def __init__(self, areas: Iterable[Areas], meaning: Meaning, suffix: str) -> None:
        self._areas, self._meaning = areas, meaning
        self._measure = Measure(meaning.geobox)
        self.count = 0
        """Rows so far."""
        self.error: BaseException | None = None
        """What the areas raised, or a signal while they came."""
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        """Of all geometries so far."""
        self.lonlat = LonLat(meaning.geobox) if is_lonlat(suffix) else None
        """The way to longitude and latitude, where these are wanted."""
        has_boxes = suffix == ".parquet"
        constants = meaning.constants
        if has_boxes:
            constants = [item.packed() for item in constants]
        self._constants = {it.name: it.rows(_ROW_GROUP) for it in constants}
        columns = [*_COLUMNS, *((name, pa.string()) for name in meaning.texts)]
        columns += _SURE_COLUMNS if meaning.has_confidence else ()
        columns += FIELD_COLUMNS if meaning.are_fields else ()
        if meaning.are_fields:
            columns[0] = pa.field("id", pa.string(), nullable=False)
        box = [("bbox", _BOX)] if has_boxes else []
        shape = pa.field("geometry", pa.binary(), nullable=not meaning.are_fields)
        fields = [item.field for item in constants]
        self.schema = pa.schema([*columns, *fields, *box, shape])

    def batches(self) -> Iterator[Any]:
        """Yield the rows, each time as many but for the last."""
        try:
            for areas in _even(self._areas, _ROW_GROUP):
                yield self._rows(areas)
        except GeneratorExit:  # nobody wants more
            raise
        except BaseException as err:
            self.error = err
            raise

    def _rows(self, areas: Areas) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        transform = self._meaning.geobox.transform
        outlines, places = on_ground(areas.outlines, transform)
        columns = self._attributes(areas)
        if "bbox" in self.schema.names:
            boxes = bounds_of(outlines, places)
            self.bounds[:2] = np.minimum(self.bounds[:2], boxes[:, :2].min(axis=0))
            self.bounds[2:] = np.maximum(self.bounds[2:], boxes[:, 2:].max(axis=0))
            sides = [pa.array(side) for side in boxes.T]
            columns["bbox"] = pa.StructArray.from_arrays(sides, fields=list(_BOX))
        columns["geometry"] = self._shapes(outlines, places)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=self.schema)

    def _shapes(self, outlines: Outlines, places: NDArray[np.float64]) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """Return the geometries, on the ground or in longitude and latitude."""
        if self.lonlat is None:
            return _binary(*encode(outlines, places))
        try:
            places, anew = self.lonlat.placed(outlines, places)
        except ValueError as err:
            msg = f"GeoJSON: {err}; choose gpkg, parquet or fgb"
            raise OutputError(msg) from err
        found = _binary(*encode(outlines, places))
        if not anew:
            return found
        shapes = found.to_numpy(zero_copy_only=False)
        shapes[list(anew)] = shapely.to_wkb(list(anew.values()), byte_order=1)
        return pa.array(shapes, pa.binary())

    def _attributes(self, areas: Areas) -> dict[str, Any]:
        """Return the columns but the geometry; what is not known is null."""
        count, names = len(areas), self._meaning.names
        columns: dict[str, Any] = {
            "id": np.arange(self.count + 1, self.count + count + 1),
            "class_id": areas.classes.astype(np.int32),
            "class_name": [names[value] for value in areas.classes.tolist()],
            "area_ha": self._measure.hectares(areas.outlines),
            "perimeter_m": self._measure.metres(areas.outlines),
        }
        for name, texts in self._meaning.texts.items():
            columns[name] = [texts[value] for value in areas.classes.tolist()]
        if self._meaning.are_fields:
            columns["id"] = columns["id"].astype(str)
        self.count += count
        if self._meaning.has_confidence:
            assert areas.sureness, "areas of a mask with a confidence have one"
            total, least = areas.sureness.total, areas.sureness.least
            columns["mean_confidence"] = total / (areas.pixels * CONFIDENCE_STEPS)
            columns["min_confidence"] = least / CONFIDENCE_STEPS
        if self._meaning.are_fields:
            hectares, metres = columns["area_ha"], columns["perimeter_m"]
            square = None if hectares is None else hectares * _HECTARE
            columns["metrics:area"] = square
            columns["metrics:perimeter"] = metres
        kinds = {item.name: item.type for item in self.schema}
        arrays = {
            name: pa.nulls(count, kinds[name])
            if values is None
            else pa.array(values, kinds[name])
            for name, values in columns.items()
        }
        return arrays | {
            name: values.slice(0, count) for name, values in self._constants.items()
        }


def _even(parts: Iterable[Areas], size: int) -> Iterator[Areas]:
    """Yield the same areas, `size` at a time; the last may be fewer."""
    held: list[Areas] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) < size:
            continue
        areas = Areas.joined(held)
        stop = len(areas) - len(areas) % size
        for begin in range(0, stop, size):
            yield areas.take(slice(begin, begin + size))
        held = [areas.take(slice(stop, None))]
    if any(map(len, held)):
        yield Areas.joined(held)


def _binary(offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    """Return bytes as a column of Arrow; nothing is copied."""
    if offsets[-1] > np.iinfo(np.int32).max:
        msg = f"polygons of {offsets[-1]} bytes are more than a column can hold"
        raise OutputError(msg)
    places = pa.py_buffer(offsets.astype(np.int32))
    return pa.Array.from_buffers(
        pa.binary(), len(offsets) - 1, [None, places, pa.py_buffer(data)]
    )


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
    numbers = pa.list_(pa.int64())
    columns = {
        "shard": pa.array([item["shard"] for item in failures], numbers),
        "window": pa.array([item["window"] for item in failures], numbers),
        "reason": pa.array([item["reason"] for item in failures], pa.string()),
        "geometry": _wkb(np.array(outlines, object)),
    }
    digits = lonlat_digits(geobox)
    options = _geojson(digits) if digits else {}
    try:
        _write_ogr(pa.table(columns), None, path, layer="failures", **options)
    except _WRITE_ERRORS as err:
        msg = f"{path}: cannot be written: {first_line(err)}"
        raise OutputError(msg) from err


def _wkb(outlines: NDArray[Any]) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    return pa.array(shapely.to_wkb(outlines, byte_order=1), pa.binary())


def _parquet_writer(path: Path, schema: Any) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    # Arrow's own schema would hide what is said of the file when all is written.
    return pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)


def _write_parquet(table: _Table, meaning: Meaning, path: Path) -> None:
    """Write GeoParquet 1.1, with the box of each feature so that readers can skip."""
    sides = [side.name for side in _BOX]
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [],
        "crs": _projjson(meaning.geobox.crs),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in sides}},
    }
    with _parquet_writer(path, table.schema) as writer:
        for batch in table.batches():
            writer.write_batch(batch, row_group_size=_ROW_GROUP)
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
