"""`nightly.toml`: from where scenes come, where results go, and what a night may take.

A table is a dataclass in `_TABLES`, and a field of `NightFile`.
"""

import os
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from tileseg.base.address import split
from tileseg.base.fields import (
    Limits,
    check_values,
    checked,
    one_of,
    read_toml,
    written,
)
from tileseg.base.locations import check_location, lies_in, work_beside
from tileseg.base.longitudes import is_bbox
from tileseg.errors import InputError, TilesegError, UsageError
from tileseg.settings import Job

__all__ = [
    "OF_A_NIGHT",
    "RECEIVER",
    "NightFile",
    "Schedule",
    "Source",
    "Target",
    "is_receiver",
    "is_web",
    "read_night",
    "secret",
]

RECEIVER = "an https address without user and password"
"""What a webhook is."""

_ORDERS = ("newest", "oldest", "smallest", "name")
_MOST_ITEMS = 10_000
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_AGO = re.compile(r"(\d{1,5}) (hour|day|week)s?")
OF_A_NIGHT = ("input", "join", "output", "work", "dry_run")
"""Fields of a job that are not for all scenes alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where scenes come from: a folder, prefix, list or catalog, or a STAC API."""

    scenes: str = ""
    """Anything that --scenes may be."""
    stac: str = ""
    """Address of a STAC API, that of its first page."""
    collections: tuple[str, ...] = ()
    """Which of its collections are searched; empty for all."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees that Items must meet."""
    aoi: str = ""
    """A vector file whose polygons they must meet."""
    since: str | date = ""
    """When they may be taken at the earliest: RFC 3339, a date, or `30 days` (hours,
    weeks) before now; UTC without a zone."""
    until: str | date = ""
    """And at the latest; a date is the whole day."""
    cloud_cover: float | None = None
    """Percent of clouds (`eo:cloud_cover`) at most; who does not say stays."""
    limit: int = 1000
    """Items at most: the newest ones, where the API can sort."""
    query: dict[str, Any] = field(default_factory=dict)
    """What else is asked of them, as the API's Query extension has it."""

    def __post_init__(self) -> None:
        """Refuse what is no source."""
        if bool(self.scenes) == bool(self.stac):
            got = "both" if self.scenes else "neither"
            msg = f"scenes, stac: wanted one of them, got {got}"
            raise UsageError(msg)
        _scenes, _stac, *others = fields(self)
        extra = [
            it.name for it in others if getattr(self, it.name) not in (it.default, {})
        ]
        if self.scenes and extra:
            msg = f"{extra[0]}: is for a search (stac), and scenes are no search"
            raise UsageError(msg)
        if self.bbox and self.aoi:
            msg = "bbox, aoi: wanted one of them, got both"
            raise UsageError(msg)
        if self.stac:
            self._check_api()
        check_values(self, self._limits)

    def _check_api(self) -> None:
        if not is_web(self.stac) or "?" in self.stac:
            msg = "stac: wanted the https address of an API, without a query"
            raise UsageError(msg)

    @staticmethod
    def _limits() -> Limits:
        when = "a date, a time as 2026-05-01T00:00:00Z, or as 30 days"
        return {
            "bbox": (is_bbox, "west, south, east, north in degrees, south < north"),
            "since": (_is_moment, when),
            "until": (_is_moment, when),
            "cloud_cover": (lambda x: 0 <= x <= 100, "0 to 100 percent"),  # noqa: PLR2004
            "limit": (lambda n: 0 < n <= _MOST_ITEMS, f"1 to {_MOST_ITEMS:,}"),
        }

    def period(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return from when to when, both in UTC; None for open.

        A date is the whole day.

        Raises:
            UsageError: the one is later than the other.
        """
        since, until = _moment(self.since, now), _moment(self.until, now)
        if until and _is_day(self.until):
            until += timedelta(days=1, seconds=-1)
        if since and until and since > until:
            got = f"{written(self.since)} to {written(self.until)}"
            msg = f"[source] since, until: got {got}, wanted the earlier time first"
            raise UsageError(msg)
        return since, until


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where results go."""

    output: str = ""
    """Directory or address; a directory each in it. It must be said."""
    work: str = ""
    """Where unfinished work lives; empty for `<output>.work`, of a bucket
    `out/<its last part>.work` on the disk."""

    def __post_init__(self) -> None:
        """Refuse what is no place."""
        for name in ("output", "work"):
            check_location(name, getattr(self, name))
        if not self.output.strip("/."):
            msg = f"output: got {self.output!r}, wanted a directory or address"
            raise UsageError(msg)
        # Else a scene of that name would have its results where others' work is.
        places = self.workplace, self.output
        if lies_in(*places) or lies_in(*reversed(places)):
            msg = f"work: got {self.workplace!r}, wanted a place beside output's"
            raise UsageError(msg)

    @property
    def workplace(self) -> str:
        """Where unfinished work lives, a directory each in it."""
        return self.work or work_beside(self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a night may take, what comes first, and what is done about failures."""

    deadline: str | time = ""
    """When it ends, by this machine's clock: `05:30`; empty for when all is done."""
    hours: float | None = None
    """Or: how long after a run began. Who goes on where one was stopped or killed has
    what is left of that one's."""
    order: str = "newest"
    """What comes first: `newest`, `oldest` (the Item's date, or when a file was
    written), `smallest`, or by `name`."""
    first: tuple[str, ...] = ()
    """Patterns of scenes' names that come before all others, the first one first."""
    retries: int = 3
    """Times that a failed scene is tried again before it is given up."""
    backoff: tuple[int, ...] = (1, 2, 4)
    """Nights from one try to the next; the last number goes on."""
    webhook: str = field(default="", repr=False)  # may itself be the secret
    """Who is told: an https address, or `env:NAME` or `file:PATH` that has it."""
    webhook_token: str = field(default="", repr=False)
    """What it is sent as a bearer's token: `env:NAME` or `file:PATH`."""

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        if self.deadline and self.hours is not None:
            msg = "deadline, hours: wanted one of them, got both"
            raise UsageError(msg)
        check_values(self, self._limits)

    @staticmethod
    def _limits() -> Limits:
        return {
            "deadline": (
                lambda x: x == "" or isinstance(x, time) or _CLOCK.fullmatch(x),
                "a time of day, as 05:30",
            ),
            "hours": (lambda x: 0 < x <= 240, "more than 0, at most 240"),  # noqa: PLR2004
            "order": one_of(*_ORDERS),
            "retries": (lambda n: n >= 0, "0 or more"),
            "backoff": (lambda n: n and min(n) > 0, "nights, 1 or more each"),
            "webhook": (
                lambda x: not x or _is_secret(x) or is_receiver(x),
                f"{RECEIVER}, env:NAME or file:PATH",
            ),
            "webhook_token": (
                lambda x: not x or _is_secret(x),
                "env:NAME or file:PATH",
            ),
        }

    def end(self, began: datetime) -> datetime | None:
        """Return when what began then is over; None for when all is done."""
        if self.hours is not None:
            return began + timedelta(hours=self.hours)
        if self.deadline == "":
            return None
        clock, local = self.deadline, began.astimezone()
        if isinstance(clock, str):
            hour, minute = map(int, clock.split(":"))
            clock = time(hour, minute)
        day = local.date() + timedelta(days=local.time() >= clock)
        return datetime.combine(day, clock).astimezone()


@dataclass(frozen=True, slots=True, kw_only=True)
class NightFile:
    """All tables of a night's file."""

    source: Source
    target: Target
    night: Schedule
    job: dict[str, Any]
    """Fields of each scene's job, checked."""


_TABLES = {"source": Source, "target": Target, "night": Schedule}


def read_night(
    path: str, job: dict[str, Any] | None = None, target: dict[str, Any] | None = None
) -> NightFile:
    """Read a night's file.

    Args:
        path: the file's.
        job: fields of a job that the command line states; they win.
        target: the same, of the target.

    Raises:
        UsageError: it is unreadable, or asks for what there is not.
    """
    values = read_toml(path)
    known = (*_TABLES, "job")
    for name, value in values.items():
        if name not in known or not isinstance(value, dict):
            msg = (
                f"{path}: {name}: is no table of a night's file; "
                f"it has {', '.join(f'[{it}]' for it in known)}"
            )
            raise UsageError(msg)
    stated = {"target": target or {}}
    tables = {
        name: _table(path, name, values.get(name, {}), stated.get(name, {}))
        for name in _TABLES
    }
    return NightFile(**tables, job=_job(path, values.get("job", {}), job or {}))


def _table(path: str, name: str, values: dict[str, Any], stated: dict[str, Any]) -> Any:  # noqa: ANN401  (of _TABLES)
    kind = _TABLES[name]
    told = checked(f"{path}: [{name}]", values, kind)
    try:
        return kind(**{**told, **stated})
    except UsageError as err:
        raise _placed(err, f"{path}: [{name}]", stated) from None


def _placed(error: UsageError, table: str, stated: dict[str, Any]) -> UsageError:
    """Return an error that says where: what the command line states says itself."""
    key = str(error).partition(":")[0]
    return error if key in stated else UsageError(f"{table} {error}")


def _job(path: str, values: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that all scenes have; results of old plans go."""
    told = {**checked(f"{path}: [job]", values, Job), **stated}
    for name in OF_A_NIGHT:
        if told.get(name):
            msg = f"{path}: [job] {name}: is of one scene, and a night has many"
            raise UsageError(msg)
    # What a person took back is not made again by whatever runs every night.
    told = {"overwrite": True, "again": False, **told}
    try:
        Job(**{**told, "input": "scene.tif"})
    except UsageError as err:
        raise _placed(err, f"{path}: [job]", stated) from None
    return told


def secret(said: str) -> str:
    """Return what `env:NAME` or `file:PATH` leads to, else what is said itself.

    Raises:
        InputError: there is nothing.
    """
    kind, _, name = said.partition(":")
    if not _is_secret(said):
        return said
    try:
        value = os.environ[name] if kind == "env" else Path(name).read_text("utf-8")
    except KeyError:
        msg = f"{said}: no such environment variable"
        raise InputError(msg) from None
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or "not a text"
        msg = f"{said}: cannot be read: {reason}"
        raise InputError(msg) from err
    value = value.strip()
    if not (value.isascii() and value.isprintable()):
        msg = f"{said}: wanted one line of plain text (ASCII)"
        raise InputError(msg)
    return value


def is_web(address: str) -> bool:
    """Return whether it leads to a web server, which is not asked.

    Raises:
        TilesegError: it is no address, or holds a password.
    """
    parts = split(address)
    return parts is not None and parts.scheme in ("https", "http")


def is_receiver(address: str) -> bool:
    """Return whether a night's end may be posted there; says no word of the address."""
    try:
        return is_web(address)
    except TilesegError:
        return False


def _is_secret(said: str) -> bool:
    kind, _, name = said.partition(":")
    return kind in ("env", "file") and bool(name) and not name.startswith("//")


def _is_moment(said: str | date) -> bool:
    try:
        _moment(said, datetime.now(UTC))
    except (ValueError, OverflowError):
        return False
    return True


def _is_day(said: str | date) -> bool:
    if isinstance(said, str):
        return bool(_DAY.fullmatch(said))
    return not isinstance(said, datetime)


def _moment(said: str | date, now: datetime) -> datetime | None:
    """Return a moment in UTC; without a zone it is UTC; None for an empty text."""
    if not said:
        return None
    if isinstance(said, str) and (found := _AGO.fullmatch(said)):
        now = now.astimezone(UTC).replace(microsecond=0)
        return now - timedelta(**{f"{found[2]}s": int(found[1])})
    if isinstance(said, str):
        said = datetime.fromisoformat(said)
    if not isinstance(said, datetime):
        said = datetime.combine(said, time())
    return said.astimezone(UTC) if said.tzinfo else said.replace(tzinfo=UTC)
