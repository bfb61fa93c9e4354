"""Columns that say the same of every feature of a file, and those of fiboa.

fiboa (Field Boundaries for Agriculture) 0.3 extends Vecorel 0.1; a file in its words is
a collection of fields.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tileseg.base.attributes import Attribute, Origin

__all__ = ["FIELD_COLUMNS", "Constant", "collection", "given", "of_fields", "of_origin"]

FIELD_COLUMNS = ("metrics:area", pa.float32()), ("metrics:perimeter", pa.float32())
"""fiboa's, with a value for each feature: square metres, and metres."""

_SCHEMAS = (
    "https://vecorel.org/specification/v0.1.0/schema.yaml",
    "https://fiboa.org/specification/v0.3.0/schema.yaml",
)
_NAMELESS = "polygons"
_MOMENT = pa.timestamp("ms", tz="UTC")
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True, slots=True)
class Constant:
    """A column of one value."""

    name: str
    type: Any
    """Arrow's."""
    value: object
    """None for null."""
    is_required: bool = False
    """Whether a reader may count on it."""

    def packed(self) -> "Constant":
        """Return it as a dictionary of one text, which costs a file next to nothing."""
        if self.type != pa.string():
            return self
        kind = pa.dictionary(pa.int8(), self.type)
        return Constant(self.name, kind, self.value, self.is_required)

    @property
    def field(self) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """As a schema has it."""
        return pa.field(self.name, self.type, nullable=not self.is_required)

    def rows(self, count: int) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """Return so many rows."""
        if self.value is None:
            return pa.nulls(count, self.type)
        if not pa.types.is_dictionary(self.type):
            return pa.repeat(pa.scalar(self.value, self.type), count)
        first = pa.repeat(pa.scalar(0, pa.int8()), count)
        return pa.DictionaryArray.from_arrays(first, [self.value])


def of_origin(origin: Origin) -> Iterator[Constant]:
    """Yield what each feature says of where it comes from."""
    taken = origin.taken
    yield Constant("scene", pa.string(), origin.scene)
    yield Constant("date", pa.date32(), taken and taken.date())
    yield Constant("model", pa.string(), origin.model)


def given(name: str, value: Attribute) -> Constant:
    """Return a column that somebody gives."""
    return Constant(name, _TYPES[type(value)], value)


def of_fields(origin: Origin) -> Iterator[Constant]:
    """Yield what fiboa wants to know of all fields."""
    taken = origin.taken
    yield Constant("collection", pa.string(), _name(origin), is_required=True)
    yield Constant("determination:method", pa.string(), "auto-imagery")
    yield Constant("determination:datetime", _MOMENT, taken)
    yield Constant("determination:details", pa.string(), origin.model)


def collection(origin: Origin) -> str:
    """Return what a GeoParquet file of fields says of itself, as JSON."""
    return json.dumps({"schemas": {_name(origin): _SCHEMAS}})


def _name(origin: Origin) -> str:
    """Return what the fields of a scene are called together."""
    return origin.scene or _NAMELESS
