"""One night of a night's file, from what is found to what is told of it.

Whoever runs it does the scenes: `turns` says which, `add` is told how each ended.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import inf
from pathlib import PurePosixPath
from time import monotonic
from typing import Any

from tileseg.cost import in_words, total
from tileseg.errors import DeadlineError, ExitCode, TilesegError, worst
from tileseg.lock import hold
from tileseg.nightly import SUMMARY, item_of, state_of
from tileseg.nightly_events import Event, Listener
from tileseg.nightly_file import NightFile
from tileseg.nightly_page import PAGE, page
from tileseg.nightly_plan import Choice, chosen, ordered, rows, span, turns
from tileseg.nightly_source import find
from tileseg.nightly_state import STATE, Entry, Outcome, read_state
from tileseg.objects import open_storage
from tileseg.record import Record
from tileseg.redact import json_bytes, redact
from tileseg.series import update
from tileseg.task import refuse_vanishing

__all__ = ["STATES", "Tonight", "hold_night"]

logger = logging.getLogger(__name__)

STATES = (
    "done",
    "unchanged",
    "kept",
    "partial",
    "failed",
    "parked",
    "given_up",
    "later",
    "waiting",
)
"""What a scene is after a night.

`parked`: its result, at a gate. `later`: it failed before, and is not tried yet;
`given_up`: nor will it be until it changes, or somebody says so.
"""

_LOCK = ".night"
_SAVE_SECONDS = 10.0  # at most: what a killed night may forget, and then finds done
_SAVE_PAUSE = 20  # times as long as saving took: it may have thousands of scenes
Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now().astimezone()


@contextmanager
def hold_night(file: NightFile) -> Iterator[None]:
    """Let no other night go to the same target meanwhile.

    Raises:
        BusyError: one does already.
        TilesegError: the work place cannot be written.
    """
    refuse_vanishing(output=file.target.output, work=file.target.workplace)
    work = open_storage(file.target.workplace)
    try:
        with hold(work.below(_LOCK), "night"):
            yield
    finally:
        work.below(_LOCK).vacate()
        work.vacate()


class Tonight:
    """What is found, what is known of it, and what becomes of it."""

    def __init__(
        self,
        file: NightFile,
        *,
        retry: Sequence[str] = (),
        listeners: Sequence[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        """Look at source and target; write nothing.

        Args:
            file: what is asked.
            retry: scenes to take as new ones; see `State.retry`.
            listeners: who is told of events.
            clock: the time; None for the system's.

        Raises:
            TilesegError: one of them cannot be read, or the models cannot be used.
        """
        self.file, self._clock, self._listeners = file, clock or _now, listeners
        self._storage = open_storage(file.target.output)
        self._start, self._save_at = self._clock(), -inf
        self.state = read_state(self._storage)
        self.state.retry(retry)
        self.state.begin(self._start)
        self.end = file.night.end(self.state.started)
        """When it is over; None without a deadline."""
        self.choices = chosen(
            file,
            find(file.source, self._start),
            self.state,
            tonight=self.state.night,
            folders=frozenset(self._storage.folders()),
        )
        self.stopped: int = ExitCode.OK
        """With which code this run was stopped, if it was, but for the deadline."""

    def left(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return None if self.end is None else (self.end - self._clock()).total_seconds()

    def plan(self) -> dict[str, Any]:
        """Return what would be done, and why the rest is not, as JSON values."""
        told = list(rows(self.choices, self.file.night, self.state, self._start))
        runs = [row for row in told if row["runs"]]
        minutes = [row["device_minutes"] for row in runs]
        return {
            "night": self.state.night,
            "deadline": self._deadline(),
            "counts": dict(Counter(row["why"] for row in told)),
            "tiles": sum(row["tiles"] or 0 for row in runs),
            "bytes": sum(row["bytes"] or 0 for row in runs),
            "device_minutes": None if None in minutes else sum(minutes),
            "scenes": told,
        }

    def turns(self) -> Iterator[Choice]:
        """Yield the scenes to be done, each when its turn has come."""
        facts = {"scenes": len(self.choices), "deadline": self._deadline()}
        self._tell("night_begun", None, facts)
        due = ordered(self.choices, self.file.night)
        whole = span(self.state, self.end)
        for choice, has_time in turns(due, lambda: self.state.speed, self.left, whole):
            name = choice.found.name
            self._tell("scene_begun" if has_time else "scene_waits", name, {})
            if has_time:
                yield choice

    def add(self, choice: Choice, record: Record) -> None:
        """Take note of how a scene ended, now and then at the target too.

        Raises:
            TilesegError: it cannot be written.
        """
        name, outcome = choice.found.name, _outcome(record)
        if outcome.state == "waiting" and isinstance(record.error, TilesegError):
            self.stop(record.error)
        assert choice.known, "what is due has an entry"
        entry = self.state.add(name, choice.known, outcome, self.file.night)
        if (begin := monotonic()) > self._save_at:
            self._storage.write(STATE, self.state.as_bytes())
            end = monotonic()
            self._save_at = end + min(_SAVE_SECONDS, _SAVE_PAUSE * (end - begin))
        self._tell("scene_ended", name, self._row(choice))
        if entry.given_up:
            self._tell("scene_given_up", name, self._row(choice))

    def stop(self, error: TilesegError) -> None:
        """Take note of why no further scene is begun."""
        if not isinstance(error, DeadlineError):
            self.stopped = error.exit_code

    def leave(self) -> bool:
        """Write Collection, summary and page, if they do not say all of it yet.

        Returns:
            whether there was anything to say.

        Raises:
            TilesegError: they cannot be written.
        """
        is_news = not self.state.is_told
        if is_news:
            self.state.seconds += (self._clock() - self._start).total_seconds()
            scenes = self.state.scenes
            self._catalog()
            summary = self.summary()
            self._storage.write(SUMMARY, json_bytes(summary))
            self._storage.write(PAGE, page(summary, self._storage, scenes))
            self.state.is_told = True
            self._storage.write(STATE, self.state.as_bytes())
        self._tell("night_ended", None, self.summary())
        return is_news

    def _catalog(self) -> None:
        """Bring the Collection up to date."""
        fresh, former = dict[str, str](), dict[str, str]()
        for name, entry in self.state.scenes.items():
            if entry.item:
                is_fresh = entry.night == self.state.night
                (fresh if is_fresh else former)[name] = entry.item
        title = PurePosixPath(self._storage.address).name
        update(self._storage, title, fresh, self.state.series, former)

    def summary(self) -> dict[str, Any]:
        """Return `night.json`: the whole night, whatever run of it did it."""
        told = [self._row(choice) for choice in self.choices]
        states = Counter(row["state"] for row in told)
        tonight = [row for row in told if row["night"] == self.state.night]
        done = [row for row in tonight if row["seconds"] is not None]
        return {
            "night": self.state.night,
            "started": self.state.began,
            "seconds": self.state.seconds,
            "deadline": self._deadline(),
            "exit_code": worst([self.stopped, *map(_code, tonight)]),
            "counts": {
                "scenes": states.total(),
                **{state: states[state] for state in STATES},
            },
            "tiles": sum(row["tiles"] or 0 for row in done),
            "bytes": sum(row["bytes"] or 0 for row in done),
            "device_minutes": sum(row["device_minutes"] or 0 for row in done),
            "spent": total(self._bills()),
            "scenes": told,
        }

    def _bills(self) -> Iterator[dict[str, Any]]:
        """Yield what devices took for each scene of tonight."""
        for entry in self.state.scenes.values():
            if entry.night == self.state.night and entry.spent:
                yield entry.spent

    def _deadline(self) -> str | None:
        return None if self.end is None else self.end.isoformat(timespec="seconds")

    def _row(self, choice: Choice) -> dict[str, Any]:
        """Return what is said of a scene."""
        entry = self.state.scenes.get(choice.found.name)
        if choice.why == "double":
            return self._double(choice)
        if entry is None or (entry.night != self.state.night and choice.is_due):
            row = _blank(choice, "waiting")
            return {**row, "error": entry and entry.error}
        is_tonight = entry.night == self.state.night
        device = (entry.seconds or 0) * entry.workers / 60
        row = {
            **_blank(choice, _state(entry, is_tonight=is_tonight)),
            "error": entry.error,
            "attempts": entry.attempts,
            "next": entry.next,
            "night": entry.night,
        }
        if is_tonight:
            row |= {
                "exit_code": entry.exit_code,
                "seconds": entry.seconds,
                "tiles": entry.tiles,
                "bytes": entry.size,
                "device_minutes": None if entry.seconds is None else device,
            }
        return row

    def _double(self, choice: Choice) -> dict[str, Any]:
        text = f"another scene's results go to {choice.facts['output']}"
        told = {"error": text, "exit_code": int(ExitCode.USAGE)}
        return {**_blank(choice, "failed"), **told, "night": self.state.night}

    def _tell(self, kind: str, scene: str | None, facts: dict[str, Any]) -> None:
        event = Event(kind, self._clock(), scene, facts)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # whoever watches must not end what is watched
                logger.warning("%s: a listener failed", kind, exc_info=True)

    def __str__(self) -> str:
        """Return a line for each scene that needs a person, and one with the counts."""
        summary = self.summary()
        lines = [
            f"{row['state']}: {_told(row)}"
            for row in summary["scenes"]
            if row["state"] in ("partial", "failed", "parked", "given_up")
        ]
        counts = summary["counts"]
        told = ", ".join(f"{counts[it]} {it}" for it in STATES if counts[it])
        last = f"{counts['scenes']} scenes: {told}" if told else "no scene"
        costs = in_words(summary["spent"])
        return "\n".join([*lines, f"{last}; {costs}" if costs else last])


def _told(row: dict[str, Any]) -> str:
    """Return which scene and what went wrong; most errors begin with the scene."""
    scene, error = row["scene"], row["error"] or row["output"]
    return error if error.startswith(scene) else f"{scene}: {error}"


def _blank(choice: Choice, state: str) -> dict[str, Any]:
    return {
        "scene": choice.found.href,
        "name": choice.found.name,
        "output": choice.facts["output"],
        "state": state,
        "exit_code": None,
        "error": None,
        "seconds": None,
        "tiles": None,
        "bytes": None,
        "device_minutes": None,
        "attempts": 0,
        "next": None,
        "night": None,
    }


def _state(entry: Entry, *, is_tonight: bool) -> str:
    if entry.given_up and entry.state != "parked":
        return "given_up"
    if is_tonight or entry.state in ("kept", "parked"):
        return entry.state
    return "unchanged" if entry.state in ("done", "unchanged") else "later"


def _code(row: dict[str, Any]) -> int:
    """Return what a scene says to the night's exit code."""
    return 0 if row["state"] in ("kept", "waiting") else row["exit_code"] or 0


def _outcome(record: Record) -> Outcome:
    values, state = record.values, state_of(record)
    counts, outputs = values["counts"], values["outputs"]
    return Outcome(
        state=state,
        exit_code=values["exit_code"],
        error=values["error"] and redact(values["error"]),
        seconds=values["seconds"]["total"] if record.is_made else None,
        workers=values["engine"]["workers"] or 1,
        tiles=counts["tiles"],
        is_whole=not (counts["shards_reused"] or counts["shards_unchanged"]),
        spent=values["spent"] if record.is_made else None,
        size=sum(item["bytes"] for item in outputs),
        item=item_of(record),
        products=tuple(str(item["path"]) for item in outputs),
    )
