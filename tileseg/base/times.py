"""When pixels were taken: what files and catalogs say of it, as periods in UTC."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

__all__ = [
    "SOMETIME",
    "Period",
    "last",
    "of_properties",
    "of_tags",
    "spelled",
    "together",
]

# GDAL's word for an acquisition, Landsat's and others', then TIFF's for when the image
# was made, which is about the file where one of the others is there.
_TAGS = (
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_DATE",
    "DATE_ACQUIRED",
    "DATE",
    "TIFFTAG_DATETIME",
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_OTHER_DAY = re.compile(r"(\d{4}):?(\d\d):?(\d\d)(?=$|[ T])")  # TIFF's, and the basic


class Period(NamedTuple):
    """From one moment to another, both in it; UTC."""

    start: datetime
    end: datetime


SOMETIME = Period(datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
"""Where nothing is known: STAC wants a period, and this one holds any scene."""


def of_tags(tags: Mapping[str, str]) -> Period | None:
    """Return when a file's tags say that it was taken; None where they do not.

    A time without a zone, as TIFF has it, is taken for UTC; a date for the whole day.
    """
    found = (_period(tags.get(name)) for name in _TAGS)
    return next((item for item in found if item), None)


def of_properties(said: Mapping[str, Any]) -> Period | None:
    """Return when the properties of a STAC Item say that it was taken."""
    start, end = _period(said.get("start_datetime")), _period(said.get("end_datetime"))
    if start and end and start.start <= end.end:
        return Period(start.start, end.end)
    return _period(said.get("datetime"))


def together(periods: Iterable[Period | None]) -> Period | None:
    """Return the least period that holds all that are known."""
    known = [item for item in periods if item]
    if not known:
        return None
    return Period(min(it.start for it in known), max(it.end for it in known))


def last(period: Period | None) -> datetime | None:
    """Return the last moment of a period; None where nothing is known."""
    return None if period is None or period == SOMETIME else period.end


def spelled(at: datetime) -> str:
    """Return a moment as STAC has it."""
    return at.isoformat().replace("+00:00", "Z")


def _period(said: object) -> Period | None:
    """Return what a text says, a moment or a day; None if it says neither."""
    text = _OTHER_DAY.sub(r"\1-\2-\3", said.strip()) if isinstance(said, str) else ""
    if not _DAY.match(text):
        return None
    try:
        at = datetime.fromisoformat(text)
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    is_day = _DAY.fullmatch(text)
    return Period(at, at + timedelta(days=1, seconds=-1) if is_day else at)
