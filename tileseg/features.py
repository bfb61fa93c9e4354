"""Polygons on the ground -> a file of features: what each format wants, and no more.

GeoPackage, FlatGeobuf and GeoJSON are written by pyogrio, whose GDAL is not the one
of rasterio and has settings of its own; GeoParquet by pyarrow.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from shapely.affinity import affine_transform

from tileseg.area import lonlat_digits, pixel_lean, row_hectares, row_metres
from tileseg.card import CONFIDENCE_STEPS
from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.outlines import Outlines
from tileseg.vectorize import Areas
from tileseg.wkb import bounds_of, encode, on_ground

__all__ = ["FORMATS", "Meaning", "write_failures", "write_features"]

_DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
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
_SIDE_PIECES = 16  # of a side that is projected: straight on one map, not on another


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
    geobox = meaning.geobox
    text = meaning.description
    transform, options = geobox.transform, {"DESCRIPTION": text} if text else {}
    if path.suffix == ".geojson":
        transform, options = _turned(geobox), options | _geojson(geobox)
    table = _Table(areas, meaning, transform, has_boxes=path.suffix == ".parquet")
    try:
        if path.suffix == ".parquet":
            _write_parquet(table, geobox.crs, path, text)
        else:
            reader = pa.RecordBatchReader.from_batches(table.schema, table.batches())
            _write_ogr(reader, geobox.crs, path, layer="polygons", **options)
    except (*_WRITE_ERRORS, RuntimeError) as err:
        if table.error:  # pyogrio says that there was one, not which
            raise table.error from None
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err
    return table.count


class _Table:
    """Areas as rows of a file, so many at a time."""

    def __init__(
        self,
        areas: Iterable[Areas],
        meaning: Meaning,
        transform: Affine,
        *,
        has_boxes: bool,
    ) -> None:
        self._areas, self._meaning, self._transform = areas, meaning, transform
        self._measure = _Measure(meaning.geobox)
        self.count = 0
        """Rows so far."""
        self.error: BaseException | None = None
        """What the areas raised, or a signal while they came."""
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        """Of all geometries so far."""
        columns = [*_COLUMNS, *((name, pa.string()) for name in meaning.texts)]
        columns += _SURE_COLUMNS if meaning.has_confidence else ()
        box = [("bbox", _BOX)] if has_boxes else []
        self.schema = pa.schema([*columns, *box, ("geometry", pa.binary())])

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
        outlines, places = on_ground(areas.outlines, self._transform)
        boxes = bounds_of(outlines, places)
        self.bounds[:2] = np.minimum(self.bounds[:2], boxes[:, :2].min(axis=0))
        self.bounds[2:] = np.maximum(self.bounds[2:], boxes[:, 2:].max(axis=0))
        columns = self._attributes(areas)
        if "bbox" in self.schema.names:
            sides = [pa.array(side) for side in boxes.T]
            columns["bbox"] = pa.StructArray.from_arrays(sides, fields=list(_BOX))
        columns["geometry"] = _binary(*encode(outlines, places))
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=self.schema)

    def _attributes(self, areas: Areas) -> dict[str, Any]:
        """Return the columns but the geometry; what is not known is null."""
        count, names = len(areas), self._meaning.names
        columns = {
            "id": np.arange(self.count + 1, self.count + count + 1),
            "class_id": areas.classes.astype(np.int32),
            "class_name": [names[value] for value in areas.classes.tolist()],
            "area_ha": self._measure.hectares(areas.outlines),
            "perimeter_m": self._measure.metres(areas.outlines),
        }
        for name, texts in self._meaning.texts.items():
            columns[name] = [texts[value] for value in areas.classes.tolist()]
        self.count += count
        if self._meaning.has_confidence:
            assert areas.sureness, "areas of a mask with a confidence have one"
            total, least = areas.sureness.total, areas.sureness.least
            columns["mean_confidence"] = total / (areas.pixels * CONFIDENCE_STEPS)
            columns["min_confidence"] = least / CONFIDENCE_STEPS
        kinds = {item.name: item.type for item in self.schema}
        return {
            name: pa.nulls(count, kinds[name])
            if values is None
            else pa.array(values, kinds[name])
            for name, values in columns.items()
        }


class _Measure:
    """How large and long pixels are on the ground, row by row."""

    def __init__(self, geobox: GeoBox) -> None:
        area, sides = row_hectares(geobox), row_metres(geobox)
        # Only what differs from the first row's is summed: in a plane nothing, and
        # there an area has exactly pixels x that of one.
        self._area = None if area is None else (area[0], _summed(area - area[0]))
        self._sides = sides and (sides[0], _summed(sides[1]), pixel_lean(geobox))

    def hectares(self, outlines: Outlines) -> NDArray[np.float64] | None:
        if self._area is None:
            return None
        first, more = self._area
        hectares: NDArray[np.float64] = outlines.pixels * first + outlines.area(more)
        return hectares

    def metres(self, outlines: Outlines) -> NDArray[np.float64] | None:
        return None if self._sides is None else outlines.perimeter(*self._sides)


def _summed(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of what is above each row, and of all."""
    return np.append(0, np.cumsum(rows))


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
    a, b, c, d, e, f = _turned(geobox)[:6]
    outline = shapely.orient_polygons(affine_transform(pieces, [a, b, d, e, c, f]))
    to_lonlat = Transformer.from_crs(geobox.crs, "OGC:CRS84", always_xy=True)
    x, y = shapely.get_coordinates(outline).T
    return outline if np.isfinite(to_lonlat.transform(x, y)).all() else None


def _wkb(outlines: NDArray[Any]) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    return pa.array(shapely.to_wkb(outlines, byte_order=1), pa.binary())


def _parquet_writer(path: Path, schema: Any) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    # Arrow's own schema would hide what is said of the file when all is written.
    return pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)


def _write_parquet(
    table: _Table, crs: str | None, path: Path, description: str
) -> None:
    """Write GeoParquet 1.1, with the box of each feature so that readers can skip."""
    sides = [side.name for side in _BOX]
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [],
        "crs": _projjson(crs),
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
        if description:
            writer.add_key_value_metadata({"description": description})


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
