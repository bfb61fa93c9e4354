"""Areas of a mask -> rows of a table, in Arrow: what each column says, and where it is.

Of files it knows nothing but what they may want: degrees, or a box of each geometry.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from tileseg.base.attributes import Attribute, Origin
from tileseg.cards.card import CONFIDENCE_STEPS
from tileseg.errors import OutputError
from tileseg.geobox import GeoBox
from tileseg.polygons.columns import (
    FIELD_COLUMNS,
    Constant,
    given,
    of_fields,
    of_origin,
)
from tileseg.polygons.lonlat import LonLat
from tileseg.polygons.measure import Measure
from tileseg.polygons.outlines import Outlines
from tileseg.polygons.vectorize import Areas
from tileseg.polygons.wkb import bounds_of, encode, on_ground

__all__ = ["BOX_SIDES", "ROW_GROUP", "Meaning", "Table"]

ROW_GROUP = 1 << 16
"""Rows at a time: features that a reader of GeoParquet takes or leaves at once."""

BOX_SIDES = ("xmin", "ymin", "xmax", "ymax")
"""Of the column with the bounds of each geometry."""

_COLUMNS = (
    ("id", pa.int64()),
    ("class_id", pa.int32()),
    ("class_name", pa.string()),
    ("area_ha", pa.float64()),
    ("perimeter_m", pa.float64()),
)
_SURE_COLUMNS = ("mean_confidence", pa.float64()), ("min_confidence", pa.float64())
_BOX = pa.struct([(side, pa.float64()) for side in BOX_SIDES])
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


class Table:
    """Areas as rows, so many at a time."""

    def __init__(
        self,
        areas: Iterable[Areas],
        meaning: Meaning,
        *,
        is_lonlat: bool,
        has_boxes: bool,
    ) -> None:
        """Take nothing yet.

        Args:
            areas: in scene pixels.
            meaning: of their values.
            is_lonlat: whether geometries are wanted in longitude and latitude.
            has_boxes: whether each has a column with its bounds.
        """
        self._areas, self._meaning = areas, meaning
        self._measure = Measure(meaning.geobox)
        self.count = 0
        """Rows so far."""
        self.error: BaseException | None = None
        """What the areas raised, or a signal while they came."""
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        """Of all geometries so far, where each has its own."""
        self.lonlat = LonLat(meaning.geobox) if is_lonlat else None
        """The way to longitude and latitude, where these are wanted."""
        constants = meaning.constants
        if has_boxes:
            constants = [item.packed() for item in constants]
        self._constants = {it.name: it.rows(ROW_GROUP) for it in constants}
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
            for areas in _even(self._areas, ROW_GROUP):
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
        meaning, count, values = self._meaning, len(areas), areas.classes.tolist()
        columns: dict[str, Any] = {
            "id": np.arange(self.count + 1, self.count + count + 1),
            "class_id": areas.classes.astype(np.int32),
            "class_name": [meaning.names[value] for value in values],
            "area_ha": self._measure.hectares(areas.outlines),
            "perimeter_m": self._measure.metres(areas.outlines),
        }
        for name, texts in meaning.texts.items():
            columns[name] = [texts[value] for value in values]
        self.count += count
        if meaning.has_confidence:
            assert areas.sureness, "areas of a mask with a confidence have one"
            total, least = areas.sureness.total, areas.sureness.least
            columns["mean_confidence"] = total / (areas.pixels * CONFIDENCE_STEPS)
            columns["min_confidence"] = least / CONFIDENCE_STEPS
        if meaning.are_fields:
            hectares = columns["area_ha"]
            columns["id"] = columns["id"].astype(str)
            columns["metrics:area"] = None if hectares is None else hectares * _HECTARE
            columns["metrics:perimeter"] = columns["perimeter_m"]
        kinds = {item.name: item.type for item in self.schema}
        arrays = {
            name: pa.nulls(count, kinds[name])
            if column is None
            else pa.array(column, kinds[name])
            for name, column in columns.items()
        }
        return arrays | {
            name: column.slice(0, count) for name, column in self._constants.items()
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
