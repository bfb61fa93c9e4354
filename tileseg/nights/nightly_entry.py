"""What nights know of one scene: how tries ended, when it is tried again. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from statistics import linear_regression
from typing import Any

from tileseg.errors import ExitCode
from tileseg.nights.nightly_file import Schedule
from tileseg.plans.cost import total

__all__ = ["FAILED", "REMEMBERED", "Entry", "Outcome", "Speed"]

FAILED = ("failed", "partial", "parked")
"""States of a scene that is tried again, unless it is given up."""

_LIVE = ("done", "released", "unchanged", "kept", "partial")
"""Of one whose last try left what is live, or would have replaced it."""

_NOT_THE_SCENES = (ExitCode.OUTPUT, ExitCode.STORAGE, ExitCode.BUSY)
"""What ends a scene and is not its fault: no reason to give it up."""

REMEMBERED = 8
"""Scenes that say how fast the next one will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt at a scene ended."""

    state: str
    """`done`, `released`, `unchanged`, `kept`, `partial`, `failed`, `parked` or
    `waiting`."""
    exit_code: int = 0
    error: str | None = None
    seconds: float | None = None
    workers: int = 1
    tiles: int | None = None
    """Done by it, forwarded or skipped: as a plan counts them."""
    is_whole: bool = True
    """Whether one attempt did all of it."""
    size: int = 0
    """Bytes of the products."""
    spent: dict[str, Any] | None = None
    """What devices took, see `cost.py`; None where nothing was done."""
    item: str = ""
    """Path of its STAC Item in its folder; empty without one."""
    products: tuple[str, ...] = ()
    """Paths of all products in its folder."""
    request: str = ""
    """Id of what was asked for; empty where it was not even known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of a scene since it was last tried."""

    scene: str
    mark: str
    """Of which version it was; see `nightly_source`."""
    asked: str
    """Digest of what was asked of it: options, models, versions of packages."""
    how: str = ""
    """And of all that a night's file said."""
    state: str
    """See `Outcome`; `unchanged` is `done`, too, but on a former night."""
    night: str
    """When it was last tried."""
    exit_code: int = 0
    error: str | None = None
    attempts: int = 0
    """Failed ones since it last went well, or changed."""
    next: str | None = None
    """The night on which it is tried again, if it failed."""
    given_up: bool = False
    """Whether it is not tried again until it changes, or somebody says so."""
    seconds: float | None = None
    """Of all attempts of that night, as the three that follow."""
    workers: float = 1
    tiles: int | None = None
    spent: dict[str, Any] | None = None
    size: int = 0
    item: str = ""
    products: tuple[str, ...] = ()
    request: str = ""
    claim: str = ""
    """Another scene of its name that was refused its place, and the version of that."""

    def after(
        self, outcome: Outcome, before: "Entry | None", night: str, schedule: Schedule
    ) -> "Entry":
        """Return what is known of it when one more try has ended.

        Args:
            outcome: how that ended.
            before: what was known of it by then, if it was tried tonight already.
            night: tonight.
            schedule: when a failed one is tried again, and how often.
        """
        known = {
            each.name: getattr(outcome, each.name)
            for each in fields(Outcome)
            if each.name != "is_whole"
        }
        known |= _in_all(before, outcome)
        entry = replace(self, **known, night=night, next=None, given_up=False)
        if outcome.state in FAILED:
            return _failed(entry, schedule)
        return entry if outcome.state == "waiting" else replace(entry, attempts=0)

    def turned(
        self, live: Mapping[str, Any], item: str, *, is_released: bool
    ) -> "Entry":
        """Return what is known of it when a person made a result live: `State.turn`."""
        products = tuple(str(it["path"]) for it in live["outputs"])
        entry = replace(self, item=item, products=products)
        well = replace(entry, exit_code=0, error=None, attempts=0, next=None)
        well = replace(well, given_up=False)
        if is_released and self.state == "parked":
            return replace(well, state="released")
        if self.state in _LIVE and live["request_id"] != self.request:
            text = "a person put another version back; tileseg versions lists them"
            code = int(ExitCode.BUSY)
            return replace(well, state="kept", exit_code=code, error=text)
        if self.state != "kept":
            return entry
        if live["status"] == "partial":
            return replace(well, state="partial", exit_code=int(ExitCode.PARTIAL))
        return replace(well, state="unchanged" if self.seconds is None else "done")


def _failed(entry: Entry, night: Schedule) -> Entry:
    """Return a failed one with when it is tried again, if it is."""
    if entry.exit_code in _NOT_THE_SCENES:
        return replace(entry, next=_nights_after(entry.night, 1))
    attempts = entry.attempts + 1
    if attempts > night.retries:
        return replace(entry, attempts=attempts, given_up=True)
    nights = night.backoff[min(attempts, len(night.backoff)) - 1]
    later = _nights_after(entry.night, nights)
    return replace(entry, attempts=attempts, next=later)


def _nights_after(night: str, number: int) -> str:
    return (date.fromisoformat(night) + timedelta(days=number)).isoformat()


def _in_all(before: Entry | None, outcome: Outcome) -> dict[str, Any]:
    """Return what a scene took this night, if an attempt before this one made some."""
    if before is None or not before.seconds:
        return {}
    if outcome.seconds is None:
        names = ("seconds", "workers", "tiles", "spent")
        return {name: getattr(before, name) for name in names}
    seconds = before.seconds + outcome.seconds
    held = before.seconds * before.workers + outcome.seconds * outcome.workers
    return {
        "seconds": seconds,
        "workers": held / seconds,
        "tiles": (before.tiles or 0) + (outcome.tiles or 0),
        "spent": total(it for it in (before.spent, outcome.spent) if it),
    }


@dataclass(frozen=True, slots=True)
class Speed:
    """How long scenes took: of the last ones tiles, seconds and devices' seconds."""

    samples: tuple[tuple[int, float, float], ...] = ()

    def and_of(self, outcome: Outcome) -> "Speed":
        """Return it with one scene more, if that says something."""
        if outcome.state != "done" or not (outcome.tiles and outcome.is_whole):
            return self
        if not (outcome.seconds and outcome.spent):
            return self
        sample = outcome.tiles, outcome.seconds, outcome.spent["device_seconds"]
        return Speed((*self.samples, sample)[-REMEMBERED:])

    def seconds(self, tiles: int) -> float | None:
        """Return how long so many tiles will take; None where nothing is known."""
        return _expected([(sample[0], sample[1]) for sample in self.samples], tiles)

    def device_seconds(self, tiles: int) -> float | None:
        """Return how long devices will be held for them, as `cost.py` counts it."""
        return _expected([(sample[0], sample[2]) for sample in self.samples], tiles)


def _expected(samples: Sequence[tuple[int, float]], tiles: int) -> float | None:
    """Return what so many tiles will take, by what others did; None without any.

    Something for the scene and something for each tile, where the samples tell the
    two apart: many small scenes do not make a large one seem endless.
    """
    if not samples:
        return None
    done, spent = zip(*samples, strict=True)
    if len(set(done)) > 1:
        slope, start = linear_regression(done, spent)
        if slope > 0 and start > 0:
            return start + slope * tiles
    return float(tiles * sum(spent) / sum(done))
