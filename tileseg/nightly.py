"""Many scenes in a night: each new one is segmented, a bad one stops no other."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

from tileseg.cost import in_words, total
from tileseg.errors import ExitCode, OtherPlanError, worst
from tileseg.objects import open_storage
from tileseg.publish import PARKED
from tileseg.record import Record
from tileseg.redact import json_bytes
from tileseg.series import ITEM, update

__all__ = ["SUMMARY", "Night", "item_of", "state_of"]

SUMMARY = "night.json"
_STATES = ("done", "unchanged", "kept", "partial", "parked", "failed", "waiting")


def state_of(record: Record) -> str:
    """Return in one word how a scene ended."""
    code = record.values["exit_code"]
    if isinstance(record.error, OtherPlanError):
        return "kept"  # of an older version or other options; no work of tonight
    if record.values["status"] in ("interrupted", "dry-run"):
        return "waiting"
    if record.values["status"] == PARKED:
        return PARKED  # at a gate; what was live there still is
    if code == ExitCode.OK:
        return "done" if record.is_news else "unchanged"
    return "partial" if code == ExitCode.PARTIAL else "failed"


def item_of(record: Record) -> str:
    """Return the path of a scene's STAC Item below its results; empty without one.

    Not of one that is parked: it is not the one that is live.
    """
    if record.values["status"] == PARKED:
        return ""
    paths = (PurePosixPath(item["path"]) for item in record.values["outputs"])
    return next((str(path) for path in paths if path.name == ITEM), "")


@dataclass(slots=True)
class Night:
    """What became of each scene."""

    waiting: list[str]
    """Scenes whose turn has not come."""
    scenes: list[dict[str, Any]] = field(default_factory=list)
    """Those that had theirs, in order."""
    started: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )
    _bills: list[dict[str, Any]] = field(default_factory=list)
    _items: dict[str, str] = field(default_factory=dict)
    """Folder of a result -> path in it of its STAC Item."""
    _start: float = field(default_factory=perf_counter)

    def add(self, scene: str, output: str, record: Record) -> None:
        """Take note of how the next scene ended."""
        values = record.values
        if found := item_of(record):
            self._items[PurePosixPath(output).name] = found
        if record.is_made:
            self._bills.append(values["spent"])
        self.waiting.remove(scene)  # a record found there may spell it differently
        self.scenes.append(
            {
                "scene": scene,
                "output": output,
                "state": state_of(record),
                "exit_code": values["exit_code"],
                "error": values["error"],
                "seconds": values["seconds"]["total"] if record.is_made else None,
            }
        )

    def has(self, output: str) -> bool:
        """Return whether some scene's results went there."""
        return any(item["output"] == output for item in self.scenes)

    @property
    def exit_code(self) -> int:
        """The exit code that speaks for all."""
        return worst(
            item["exit_code"] for item in self.scenes if item["state"] != "kept"
        )

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values."""
        states = Counter(item["state"] for item in self.scenes)
        states["waiting"] += len(self.waiting)
        left = [{"scene": name, "state": "waiting"} for name in self.waiting]
        return {
            "started": self.started,
            "seconds": perf_counter() - self._start,
            "exit_code": self.exit_code,
            "counts": {
                "scenes": states.total(),
                **{state: states[state] for state in _STATES},
            },
            "spent": total(self._bills),
            "scenes": self.scenes + left,
        }

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
        summary = self.summary()
        counts, costs = summary["counts"], in_words(summary["spent"])
        lines = [
            f"{item['state']}: {item['scene']}: {item['error'] or item['output']}"
            for item in self.scenes
            if item["state"] in ("partial", "parked", "failed")
        ]
        states = ", ".join(f"{counts[state]} {state}" for state in _STATES)
        end = f"; {costs}" if costs else ""
        return "\n".join([*lines, f"{counts['scenes']} scenes: {states}{end}"])
