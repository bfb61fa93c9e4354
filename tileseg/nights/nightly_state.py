"""What nights remember: what became of each scene, when it is tried again, how fast.

One file at the target, `night-state.json`, written whole while scenes are done. Whoever
changes it holds it, reads it again, and changes what is his: a night the scenes that
ended, a person the one that was switched.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import PurePosixPath
from time import monotonic, sleep
from typing import Any

from tileseg.base.redact import json_bytes
from tileseg.errors import BusyError, OutputError, UsageError
from tileseg.nights.nightly_entry import FAILED, REMEMBERED, Entry, Outcome, Speed
from tileseg.nights.nightly_file import Schedule
from tileseg.nights.series import forget
from tileseg.stores.lock import hold, hold_file
from tileseg.stores.storage import Disk, Storage

__all__ = ["STATE", "State", "hold_state", "night_of", "read_state"]

STATE = "night-state.json"

_LOCK = ".night-state"
_PATIENCE_SECONDS = 30.0  # for others, who need moments
_PAUSE_SECONDS = 0.1
_VERSION = 1
_MIDDAY = timedelta(hours=12)


def night_of(now: datetime) -> str:
    """Return which night a moment is of: the date on which it fell, from noon to noon.

    By this machine's clock.
    """
    return (now.astimezone() - _MIDDAY).date().isoformat()


@dataclass(slots=True)
class State:
    """All of it."""

    night: str = ""
    """The last one."""
    began: str = ""
    """When its first run did."""
    run: str = ""
    """When a run with hours of its own did that has not ended by itself."""
    seconds: float = 0.0
    """Of all its runs together."""
    speed: Speed = field(default_factory=Speed)
    scenes: dict[str, Entry] = field(default_factory=dict)
    """By the name of their results."""
    forgotten: dict[str, Entry] = field(default_factory=dict)
    """Those to be looked at as new ones: what they took tonight still counts."""
    series: dict[str, Any] = field(default_factory=dict)
    """What `series.py` keeps of the Items."""

    is_told: bool = False
    """Whether Collection and summary say all that is known here."""

    @property
    def started(self) -> datetime:
        """From when its time counts: a run's with hours of its own, or the night's."""
        return datetime.fromisoformat(self.run or self.began)

    @property
    def tonight(self) -> dict[str, Entry]:
        """Those that were tried tonight."""
        known = {**self.forgotten, **self.scenes}
        return {name: it for name, it in known.items() if it.night == self.night}

    def begin(self, now: datetime, hours: float | None = None) -> None:
        """Be of tonight, from its first run on.

        Args:
            now: when a run of it begins.
            hours: that each run has. One that goes on where another was stopped or
                killed has what that one left.
        """
        began = now.isoformat(timespec="seconds")
        if self.night != night_of(now):
            self.night, self.seconds, self.is_told = night_of(now), 0.0, False
            self.began, self.run = began, ""
        if hours is None:
            self.run = ""
            return
        self.is_told &= not self.run  # that run's end is to be told
        if not self.run or self.started + timedelta(hours=hours) <= now:
            self.run = began

    def add(self, name: str, entry: Entry, outcome: Outcome, night: Schedule) -> Entry:
        """Take note of how a scene ended tonight; return what is known of it now.

        Args:
            name: of its results.
            entry: what it is, and its failed attempts before.
            outcome: how it ended.
            night: when a failed one is tried again, and how often.
        """
        entry = entry.after(outcome, self.tonight.get(name), self.night, night)
        self.speed = self.speed.and_of(outcome)
        self.scenes[name] = entry
        self.is_told = False
        forget(self.series, name)
        return entry

    def turn(
        self, name: str, live: Mapping[str, Any], item: str, *, is_released: bool
    ) -> bool:
        """Take note that a person made another result of a scene live.

        Args:
            name: of its results.
            live: the record of the one that is.
            item: path of its STAC Item there; empty without one.
            is_released: whether it is the one that was parked.

        Returns:
            whether that is news.
        """
        if (before := self.scenes.get(name)) is None:
            return False
        entry = before.turned(live, item, is_released=is_released)
        self.scenes[name] = entry
        self.is_told &= entry == before
        return forget(self.series, name) or entry != before

    def forget(self, name: str) -> bool:
        """Have a scene looked at as a new one; return whether it was known."""
        if known := self.scenes.pop(name, None):
            self.forgotten[name], self.is_told = known, False
        return forget(self.series, name) or known is not None

    def follow(self, name: str, scene: str, mark: str) -> bool:
        """Take note of where a scene lies by now; return whether that is news."""
        known = self.scenes.get(name)
        if known is None or known.scene == scene or known.mark != mark:
            return False
        self.scenes[name], self.is_told = replace(known, scene=scene), False
        return True

    def refuse(self, name: str, claim: str) -> None:
        """Take note of another scene that is not to have a scene's place."""
        if known := self.scenes.get(name):
            self.scenes[name] = replace(known, claim=claim)
        self.is_told = False

    def catch_up(self, latest: "State", mine: Collection[str]) -> None:
        """Take over what others changed meanwhile.

        Args:
            latest: what the file says by now.
            mine: names of the scenes of which the file does not know yet.
        """
        ours = {name: it for name, it in self.scenes.items() if name in mine}
        theirs = {name: it for name, it in latest.scenes.items() if name not in mine}
        self.scenes, self.series = {**theirs, **ours}, latest.series
        mine_too = {name: it for name, it in self.forgotten.items() if name in mine}
        self.forgotten = {**latest.forgotten, **mine_too}
        for name in mine:
            forget(self.series, name)
        self.is_told &= latest.is_told

    def retry(self, who: Iterable[str]) -> frozenset[str]:
        """Forget scenes, so that they are looked at and done as new ones.

        Those that are parked are not: their results are there, to be judged anew.

        Args:
            who: their names, their files', or what records call them; `all` for all
                that failed.

        Returns:
            their names.

        Raises:
            UsageError: there is no such scene.
        """
        found = set[str]()
        for name in who:
            hits = [
                key
                for key, entry in self.scenes.items()
                if name in (key, entry.scene, PurePosixPath(entry.scene).name)
                or (name == "all" and entry.state in FAILED)
            ]
            if not hits and name != "all":
                msg = f"retry: {name}: nothing is known of such a scene; see {STATE}"
                raise UsageError(msg)
            found.update(hits)
        for key in found:
            known = self.scenes[key]
            self.forget(key)
            if known.state == "parked" and not known.claim:
                known = replace(known, attempts=0, next=None, given_up=False)
                self.scenes[key] = known
        return frozenset(found)

    def as_bytes(self) -> bytes:
        """Return the file's bytes."""
        return json_bytes(
            {
                "version": _VERSION,
                "night": self.night,
                "began": self.began,
                "run": self.run,
                "seconds": self.seconds,
                "is_told": self.is_told,
                "speed": self.speed.samples,
                "scenes": _plain(self.scenes),
                "forgotten": _plain(
                    {k: it for k, it in self.forgotten.items() if k in self.tonight}
                ),
                "series": self.series,
            }
        )


def _plain(scenes: Mapping[str, Entry]) -> dict[str, Any]:
    return {name: asdict(scenes[name]) for name in sorted(scenes)}


@contextmanager
def hold_state(storage: Storage) -> Iterator[None]:
    """Let nobody else change what nights remember at a target meanwhile.

    Raises:
        BusyError: somebody does, and does not end.
        TilesegError: the target cannot be written.
    """
    end = monotonic() + _PATIENCE_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(
                    hold_file(storage.path / f"{_LOCK}.lock")
                    if isinstance(storage, Disk)
                    else hold(storage.below(_LOCK), _LOCK)
                )
                break
            except BusyError:
                if monotonic() > end:
                    raise
            sleep(_PAUSE_SECONDS)
        yield


def read_state(storage: Storage) -> State:
    """Return what nights remember at a target; nothing before the first.

    Raises:
        OutputError: the file cannot be read, or is of a newer tileseg.
        TilesegError: the store keeps failing.
    """
    where = f"{storage.address}/{STATE}"
    try:
        values = json.loads(storage.read(STATE))
    except (FileNotFoundError, NotADirectoryError):
        return State()
    except (OSError, ValueError, RecursionError) as err:
        raise _broken(where) from err
    if not isinstance(values, dict):
        raise _broken(where)
    if values.get("version") != _VERSION:
        msg = (
            f"{where}: has version {values.get('version')!r}, this tileseg knows "
            f"{_VERSION}; use the tileseg that wrote it"
        )
        raise OutputError(msg)
    try:
        return _parsed(values)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise _broken(where) from err


def _parsed(values: Mapping[str, Any]) -> State:
    samples = [(int(a), float(b), float(c)) for a, b, c in values["speed"]]
    if values["night"]:
        datetime.fromisoformat(values.get("run") or values["began"])
    return State(
        night=values["night"],
        began=values["began"],
        run=values.get("run", ""),
        seconds=float(values["seconds"]),
        is_told=bool(values["is_told"]),
        speed=Speed(tuple(islice(samples, REMEMBERED))),
        scenes=_entries(values["scenes"]),
        forgotten=_entries(values.get("forgotten", {})),
        series=dict(values["series"]),
    )


def _entries(values: Mapping[str, Any]) -> dict[str, Entry]:
    return {
        str(name): Entry(**{**entry, "products": tuple(entry["products"])})
        for name, entry in values.items()
    }


def _broken(where: str) -> OutputError:
    return OutputError(
        f"{where}: cannot be read as a night's state; put it aside, and the next night "
        "looks at every scene again"
    )
