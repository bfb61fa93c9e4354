"""Scenes named by hand, one after the other: what became of each, in one summary."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

from tileseg.base.address import called
from tileseg.base.names import scene_name
from tileseg.base.redact import json_bytes
from tileseg.errors import ExitCode, TilesegError, worst
from tileseg.nights.nightly_entry import FAILED
from tileseg.nights.nightly_state import night_of
from tileseg.nights.nightly_summary import (
    SUMMARY,
    in_lines,
    outcome_of,
    row,
    summary,
    work,
)
from tileseg.nights.series import update
from tileseg.steps.record import Record
from tileseg.stores.objects import open_storage

__all__ = ["Night"]


@dataclass(slots=True)
class Night:
    """What became of each scene."""

    waiting: list[tuple[str, str]]
    """Scenes whose turn has not come, each with where its results go."""
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """Those that had theirs, in order."""
    _began: datetime = field(default_factory=lambda: datetime.now().astimezone())
    _stopped: int = ExitCode.OK
    """The exit code of what ended it, if something did."""
    _bills: list[dict[str, Any]] = field(default_factory=list)
    _items: dict[str, str] = field(default_factory=dict)
    """Folder of a result -> path in it of its STAC Item."""
    _start: float = field(default_factory=perf_counter)
    _seconds: float = 0.0
    """Until the last scene ended: what is told and what is written are the same."""

    def add(self, scene: str, output: str, record: Record) -> None:
        """Take note of how the next scene ended."""
        self.waiting.remove((scene, output))
        self._seconds = perf_counter() - self._start
        known = outcome_of(record)
        if known.item:
            self._items[PurePosixPath(output).name] = known.item
        if known.spent:
            self._bills.append(known.spent)
        if known.state == "waiting" and isinstance(record.error, TilesegError):
            self.stop(record.error)
        self.scenes.append(
            row(
                *(called(scene), scene_name(scene), output, known.state),
                **work(known),
                error=known.error,
                attempts=int(known.state in FAILED),
                night=night_of(self._began),
            )
        )

    def stop(self, error: TilesegError) -> None:
        """Take note of what ended the night, or kept it from being written down."""
        self._stopped = worst((self._stopped, error.exit_code))

    def has(self, output: str) -> bool:
        """Return whether some scene's results went there."""
        return any(item["output"] == output for item in self.scenes)

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values."""
        left = [
            row(called(scene), scene_name(scene), output, "waiting")
            for scene, output in self.waiting
        ]
        return summary(
            self.scenes + left,
            self._bills,
            night=night_of(self._began),
            started=self._began.isoformat(timespec="seconds"),
            seconds=self._seconds,
            stopped=self._stopped,
        )

    def leave(self, output: str) -> None:
        """Write the summary, and a STAC Collection, beside the scenes' results.

        Raises:
            TilesegError: it cannot be written.
        """
        storage = open_storage(output)
        storage.write(SUMMARY, json_bytes(self.summary()))
        update(storage, PurePosixPath(storage.address).name, self._items)

    def __str__(self) -> str:
        """Return a line for each scene that needs a person, and one with the counts."""
        return in_lines(self.summary())
