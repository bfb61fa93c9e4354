"""Many scenes in a night: each new one is segmented, a bad one stops no other."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

from tileseg.errors import ExitCode, OtherPlanError, worst
from tileseg.objects import open_storage
from tileseg.publish import PARKED
from tileseg.record import Record
from tileseg.redact import json_bytes
from tileseg.series import ITEM, update

__all__ = ["SUMMARY", "Night"]

SUMMARY = "night.json"
_STATES = ("done", "unchanged", "kept", "partial", "parked", "failed", "waiting")


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
    _items: dict[str, str] = field(default_factory=dict)
    """Folder of a result -> path in it of its STAC Item."""
    _start: float = field(default_factory=perf_counter)

    def add(self, scene: str, output: str, record: Record) -> None:
        """Take note of how the next scene ended."""
        values = record.values
        state = "done" if record.is_news else "unchanged"
        if isinstance(record.error, OtherPlanError):
            state = "kept"  # of an older version or other options; no work of tonight
        elif values["status"] in ("interrupted", "dry-run"):
            state = "waiting"
        elif values["status"] == PARKED:
            state = "parked"  # at a gate; what was live there still is
        elif values["exit_code"] != ExitCode.OK:
            state = "partial" if values["exit_code"] == ExitCode.PARTIAL else "failed"
        paths = [PurePosixPath(item["path"]) for item in values["outputs"]]
        found = [str(path) for path in paths if path.name == ITEM]
        if found and state != "parked":
            self._items[PurePosixPath(output).name] = found[0]
        self.waiting.remove(scene)  # a record found there may spell it differently
        self.scenes.append(
            {
                "scene": scene,
                "output": output,
                "state": state,
                "exit_code": values["exit_code"],
                "error": values["error"],
                "seconds": values["seconds"]["total"] if record.is_news else None,
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
        counts = self.summary()["counts"]
        lines = [
            f"{item['state']}: {item['scene']}: {item['error'] or item['output']}"
            for item in self.scenes
            if item["state"] in ("partial", "parked", "failed")
        ]
        told = ", ".join(f"{counts[state]} {state}" for state in _STATES)
        return "\n".join([*lines, f"{counts['scenes']} scenes: {told}"])
