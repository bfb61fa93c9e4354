"""One night of a night's file, from what is found to what is told of it.

Whoever runs it does the scenes: `turns` says which, `add` is told how each ended.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any

from tileseg.base.locations import is_remote
from tileseg.base.redact import json_bytes
from tileseg.engines.staff import check_engine
from tileseg.errors import DeadlineError, ExitCode, TilesegError, worst
from tileseg.nights.nightly_entry import Entry
from tileseg.nights.nightly_file import NightFile
from tileseg.nights.nightly_page import PAGE, page
from tileseg.nights.nightly_plan import Choice, chosen, ordered, span, turns
from tileseg.nights.nightly_source import find
from tileseg.nights.nightly_state import STATE, State, hold_state, night_of, read_state
from tileseg.nights.nightly_summary import (
    SUMMARY,
    in_lines,
    outcome_of,
    row,
    summary,
    work,
)
from tileseg.nights.nightly_table import measured, rows
from tileseg.nights.series import update
from tileseg.plans.preflight import check_writable
from tileseg.plans.task import refuse_vanishing
from tileseg.settings import Job
from tileseg.steps.record import Record
from tileseg.stores.lock import hold
from tileseg.stores.objects import open_storage

__all__ = ["Tonight", "check_target", "hold_night"]

logger = logging.getLogger(__name__)

_LOCK = ".night"
_NO_TIME = "no time left before the deadline"
_SAVE_SECONDS = 10.0  # at most: what a killed night may forget, and then finds done
_SAVE_PAUSE = 20  # times as long as saving took: it may have thousands of scenes


def _now() -> datetime:
    return datetime.now().astimezone()


def check_target(file: NightFile) -> None:
    """Refuse a target that no result could be written to; nothing stays there.

    Raises:
        TilesegError: it cannot, or not for long.
    """
    output = file.target.output
    refuse_vanishing(output=output, work=file.target.workplace)
    if not is_remote(output):
        check_writable(f"[target] output: {output}", Path(output))


@contextmanager
def hold_night(file: NightFile) -> Iterator[None]:
    """Let no other night go to the same output, or work in the same place, meanwhile.

    Raises:
        BusyError: one does already.
        TilesegError: output or work cannot be written.
    """
    check_target(file)
    with ExitStack() as stack:
        for place in (file.target.output, file.target.workplace):
            storage = open_storage(place)
            stack.callback(storage.vacate)
            stack.callback(storage.below(_LOCK).vacate)
            stack.enter_context(hold(storage.below(_LOCK), "night"))
        yield


class Tonight:
    """What is found, what is known of it, and what becomes of it."""

    def __init__(self, file: NightFile, *, retry: Sequence[str] = ()) -> None:
        """Look at source and target; write nothing.

        Args:
            file: what is asked.
            retry: scenes to take as new ones; see `State.retry`.

        Raises:
            TilesegError: one of them cannot be read, or the models cannot be used.
        """
        self.file = file
        self._storage = open_storage(file.target.output)
        self._start, self._save_at = _now(), -inf
        self.state = read_state(self._storage)
        self._unsaved = set(self.state.retry(retry))
        self.state.begin(self._start, file.night.hours)
        self.end = file.night.end(self.state.started)
        """When it is over; None without a deadline."""
        self.choices = chosen(
            file,
            find(file.source, self._start, file.target),
            self.state,
            folders=frozenset(self._storage.folders()),
            work=open_storage(file.target.workplace),
        )
        if any(it.is_due for it in self.choices):
            check_engine(Job(**{**file.job, "input": "scene.tif"}))
        self._follow()
        self.warnings = list(self._warnings())
        """What is odd about this run, and no error."""
        for text in self.warnings:
            logger.warning("%s", text)
        self.stopped: int = ExitCode.OK
        """With which code this run was stopped, if it was, but for the deadline."""
        self._is_over = False  # by itself, not stopped or killed
        self._told_end = self._deadline()

    def _warnings(self) -> Iterator[str]:
        if self.end and self.file.night.hours is None:
            before = self.end - timedelta(days=1)
            if night_of(before) == self.state.night:
                yield (
                    f"the night began after its deadline, {before:%H:%M}: it goes on "
                    f"until the next one, {self._deadline()}"
                )
        if self.state.scenes and not self.choices:
            source, known = self.file.source, len(self.state.scenes)
            where = source.scenes or source.stac
            yield f"{where}: holds no scene, and nights know of {known}; is it mounted?"
        due, left = sum(it.is_due for it in self.choices), self.left()
        if due and left is not None and left <= 0:
            wait = "scene waits" if due == 1 else "scenes wait"
            yield (
                f"nothing was begun, {due} {wait}: the night's deadline, "
                f"{self._deadline()}, was over before this run; the next night goes on"
            )

    def _follow(self) -> None:
        """Take note of scenes that lie elsewhere by now."""
        for found in (it.found for it in self.choices if it.why != "double"):
            if self.state.follow(found.name, found.href, found.mark):
                self._unsaved.add(found.name)

    def left(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return None if self.end is None else (self.end - _now()).total_seconds()

    def plan(self) -> dict[str, Any]:
        """Return what would be done, and why the rest is not, as JSON values."""
        is_known = bool(self.state.speed.samples)
        rate = None if is_known else measured(self.choices)
        schedule = self.file.night
        told = list(rows(self.choices, schedule, self.state, self._start, rate))
        runs = [row for row in told if row["runs"]]
        minutes = [it for row in runs if (it := row["device_minutes"]) is not None]
        return {
            "night": self.state.night,
            "deadline": self._deadline(),
            "counts": dict(Counter(row["why"] for row in told)),
            "tiles": sum(row["tiles"] or 0 for row in runs),
            "bytes": sum(row["bytes"] or 0 for row in runs),
            "device_minutes": None if runs and not minutes else sum(minutes),
            "device_minutes_from": "scenes" if is_known else rate and "tiles",
            "scenes": told,
        }

    def turns(self) -> Iterator[tuple[Choice, Choice | None]]:
        """Yield the scenes to be done, each when its turn has come.

        Beside each stands the next one in the night's order; it may have no turn.
        """
        due = ordered(self.choices, self.file.night)
        after = {it.found.name: following for it, following in pairwise(due)}
        whole, is_begun = span(self.state, self.end), False
        for choice, has_time in turns(due, lambda: self.state.speed, self.left, whole):
            if has_time:
                if self.state.run and not is_begun:
                    self._write()  # who goes on after a kill has these hours, no more
                is_begun = True
                yield choice, after.get(choice.found.name)
        self._is_over = True

    def add(self, choice: Choice, record: Record) -> None:
        """Take note of how a scene ended."""
        name, outcome = choice.found.name, outcome_of(record)
        if outcome.state == "waiting" and isinstance(record.error, TilesegError):
            self.stop(record.error)
        assert choice.known, "what is due has an entry"
        self._unsaved.add(name)  # first: a signal may end this anywhere
        if choice.is_guest and outcome.state in ("kept", "failed"):
            self.state.refuse(name, choice.found.version)
        else:
            self.state.add(name, choice.known, outcome, self.file.night)
        self.save()

    def save(self) -> None:
        """Write what became of scenes, with what others changed, now and then.

        Call it while one is done, too. If it cannot be written, it may be later.
        """
        if self._unsaved and monotonic() > self._save_at:
            self._write()

    def _write(self) -> None:
        begin = monotonic()
        try:
            with hold_state(self._storage):
                self.state.catch_up(read_state(self._storage), self._unsaved)
                self._storage.write(STATE, self.state.as_bytes())
                self._unsaved.clear()
        except TilesegError as err:
            logger.warning("%s", err)
        end = monotonic()
        self._save_at = end + min(_SAVE_SECONDS, _SAVE_PAUSE * (end - begin))

    def stop(self, error: TilesegError) -> None:
        """Take note of why no further scene is begun."""
        if isinstance(error, DeadlineError):
            self._is_over = True
        else:
            self.stopped = worst((self.stopped, error.exit_code))

    def leave(self) -> bool:
        """Write Collection, summary and page, if they do not say all of it yet.

        Returns:
            whether there was anything to say.

        Raises:
            TilesegError: they cannot be written.
        """
        with hold_state(self._storage):
            self.state.catch_up(read_state(self._storage), self._unsaved)
            # Scenes come and go without an attempt: what was told may not be so by now.
            there = self._there()
            if is_news := not (self.state.is_told and self._is_said(there)):
                self.state.run = "" if self._is_over else self.state.run
                spent = (_now() - self._start).total_seconds()
                self.state.seconds += max(0.0, spent)  # a clock may be put back
                self._publish()
                self.state.is_told = True
                self._storage.write(STATE, self.state.as_bytes())
            else:
                self._told_end = there["deadline"]
        return is_news

    def _there(self) -> dict[str, Any]:
        """Return the summary at the target; empty where none can be read."""
        try:
            found = json.loads(self._storage.read(SUMMARY))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_said(self, there: dict[str, Any]) -> bool:
        """Return whether a summary is what would be said now.

        But for the deadline: a run with hours of its own that does nothing has another
        one, and that is no news.
        """
        told = json.loads(json_bytes(self.summary()))
        return {**there, "deadline": None} == {**told, "deadline": None}

    def _publish(self) -> None:
        """Write Collection, summary and page."""
        self._catalog()
        told = self.summary()
        self._storage.write(SUMMARY, json_bytes(told))
        self._storage.write(PAGE, page(told, self._storage, self.state.scenes))

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
        why = _NO_TIME if self._is_over and self.end else None
        return summary(
            [_told(choice, self.state, why) for choice in self.choices],
            self._bills(),
            night=self.state.night,
            started=self.state.began,
            seconds=self.state.seconds,
            deadline=self._told_end,
            stopped=self.stopped,
            warnings=self.warnings,
        )

    def _bills(self) -> Iterator[dict[str, Any]]:
        """Yield what devices took for each scene of tonight, in an order that stays."""
        for _, entry in sorted(self.state.tonight.items()):
            if entry.spent:
                yield entry.spent

    def _deadline(self) -> str | None:
        return None if self.end is None else self.end.isoformat(timespec="seconds")

    def __str__(self) -> str:
        """Return a line for each scene that needs a person, and one with the counts."""
        return in_lines(self.summary())


def _told(choice: Choice, state: State, why: str | None) -> dict[str, Any]:
    """Return what is said of a scene; `why` it waits, if it had no turn."""
    entry, tonight = state.scenes.get(choice.found.name), state.night
    if choice.why == "double" or (entry and choice.is_refused(entry)):
        facts = {"exit_code": int(ExitCode.USAGE), "night": tonight}
        return _row(choice, "failed", error=_refusal(choice, entry), **facts)
    is_tonight = entry is not None and entry.night == tonight
    if entry is None or (choice.is_due and not is_tonight):
        return _row(choice, "waiting", error=why or (entry and entry.error))
    return _row(
        choice,
        _state(entry, is_tonight=is_tonight),
        **(work(entry) if is_tonight else {}),
        error=entry.error,
        attempts=entry.attempts,
        next=entry.next,
        night=entry.night,
    )


def _row(choice: Choice, state: str, **known: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON values)
    found = choice.found
    return row(found.href, found.name, choice.facts["output"], state, **known)


def _refusal(choice: Choice, entry: Entry | None) -> str:
    """Return why a scene is not done that has the name of another one."""
    place = choice.facts["output"]
    if entry and choice.is_refused(entry):
        return (
            f"{place} holds the results of {entry.scene}; name one of the two "
            f"otherwise, or say --retry {choice.found.name} to replace them"
        )
    return f"another scene's results go to {place}"


def _state(entry: Entry, *, is_tonight: bool) -> str:
    if entry.given_up and entry.state != "parked":
        return "given_up"
    if is_tonight or entry.state in ("kept", "parked"):
        return entry.state
    is_live = entry.state in ("done", "released", "unchanged")
    return "unchanged" if is_live else "later"
