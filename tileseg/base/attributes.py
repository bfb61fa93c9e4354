"""What features say beside their area: columns that a person gives, or a run; pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

__all__ = ["COLUMNS", "Attribute", "Origin", "fault"]

Attribute = str | int | float | bool
"""What a column that somebody gives has in every row."""

COLUMNS = frozenset({
    "id", "class_id", "class_name", "area_ha", "perimeter_m", "mean_confidence",
    "min_confidence", "from", "to", "scene", "date", "model", "collection",
    "metrics:area", "metrics:perimeter", "determination:method",
    "determination:datetime", "determination:details", "bbox", "geometry",
})  # fmt: skip
"""Columns that a file may have anyhow."""

_TAKEN = COLUMNS | {"fid", "ogc_fid", "geom", "wkb_geometry", "rowid"}
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_:]{0,62}")
_MOST = 2**63  # of a whole number


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file's areas come from; None is not known."""

    scene: str | None = None
    """As the STAC Item of the result is called."""
    taken: datetime | None = None
    """When its last pixel was, UTC."""
    model: str | None = None
    """Name and version; of several, joined by ` + `."""


def fault(attributes: Mapping[str, Attribute]) -> str | None:
    """Say what is wrong with what somebody gives; None if nothing is.

    Names are compared as SQLite does, whatever their case.
    """
    seen = set(_TAKEN)
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            return (
                f"{name!r} is no name of a column, wanted letters, digits, _ and :, at "
                "most 63, no digit first"
            )
        if (plain := name.casefold()) in seen:
            return f"{name!r} is a column already; give another name"
        seen.add(plain)
        if isinstance(value, float) and not isfinite(value):
            return f"{name} is {value}, wanted a finite number"
        if isinstance(value, int) and not -_MOST <= value < _MOST:
            return f"{name} is {value}, wanted a number of 64 bits"
    return None
