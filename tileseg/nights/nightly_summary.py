"""`night.json`: what is said of a night and of each of its scenes. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tileseg.base.redact import redact
from tileseg.errors import ExitCode, NobodyError, OtherPlanError, worst
from tileseg.nights.nightly_entry import Entry, Outcome
from tileseg.nights.series import ITEM
from tileseg.plans.cost import in_words, total
from tileseg.publishing.place import PARKED
from tileseg.steps.record import Record

__all__ = [
    "LOUD",
    "STATES",
    "SUMMARY",
    "in_line",
    "in_lines",
    "outcome_of",
    "row",
    "summary",
    "work",
]

SUMMARY = "night.json"

STATES = (
    "done",
    "released",
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

`parked`: its result, at a gate; `released`: it went live after all, by a person or as
gates let it pass. `later`: it failed before, and is not tried yet; `given_up`: nor will
it be until it changes, or somebody says so.
"""

_SUMS = ("tiles", "bytes", "device_minutes", "worker_minutes")
"""Of the rows of tonight."""

LOUD = ("partial", "failed", "parked", "given_up")
"""Those that need a person."""


def row(scene: str, name: str, output: str, state: str, **known: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON values)
    """Return what is said of a scene: null where nothing is known.

    Args:
        scene: what records call it.
        name: of its results.
        output: where they go.
        state: one of `STATES`.
        known: other fields.
    """
    return {
        "scene": scene,
        "name": name,
        "output": output,
        "state": state,
        "exit_code": None,
        "error": None,
        "seconds": None,
        "tiles": None,
        "bytes": None,
        "device_minutes": None,
        "worker_minutes": None,
        "attempts": 0,
        "next": None,
        "night": None,
        **known,
    }


def work(known: Outcome | Entry) -> dict[str, Any]:
    """Return the fields of a row that say what was done; null where nothing was.

    Args:
        known: how the last attempt ended, and what all of tonight took.
    """
    seconds, is_made = known.seconds, known.seconds is not None
    device = known.spent and known.spent["device_seconds"]
    return {
        "exit_code": known.exit_code,
        "seconds": seconds,
        "tiles": known.tiles if is_made else None,
        "bytes": known.size if is_made else None,
        "device_minutes": device and device / 60,
        "worker_minutes": seconds and seconds * known.workers / 60,
    }


def summary(  # noqa: PLR0913  (what a night is)
    scenes: list[dict[str, Any]],
    bills: Iterable[Mapping[str, Any]],
    *,
    night: str,
    started: str,
    seconds: float,
    deadline: str | None = None,
    stopped: int = ExitCode.OK,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all of it.

    Args:
        scenes: each as `row` has it.
        bills: what devices took for those of this night.
        night: the date on which it fell.
        started: when, RFC 3339.
        seconds: that it took.
        deadline: when it was to end; None without one.
        stopped: the exit code of what ended it before.
        warnings: what is odd about it, and no error.
    """
    states = Counter(it["state"] for it in scenes)
    tonight = [it for it in scenes if it["night"] == night]
    return {
        "night": night,
        "started": started,
        "seconds": seconds,
        "deadline": deadline,
        "exit_code": worst([stopped, *map(_code, tonight)]),
        "counts": {
            "scenes": states.total(),
            **{state: states[state] for state in STATES},
        },
        **{key: sum(it[key] or 0 for it in tonight) for key in _SUMS},
        "spent": total(bills),
        "warnings": list(warnings),
        "scenes": scenes,
    }


def in_lines(night: Mapping[str, Any]) -> str:
    """Return a line for each scene that needs a person, and one with the counts.

    Of warnings the log told when they came up.
    """
    lines = [f"{it['state']}: {_told(it)}" for it in night["scenes"] if _is_loud(it)]
    return "\n".join([*lines, in_line(night)])


def in_line(night: Mapping[str, Any]) -> str:
    """Return how many scenes there are of each state, and what devices took."""
    counts = dict(night["counts"])
    scenes, costs = counts.pop("scenes"), in_words(night["spent"])
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    last = f"{scenes} scene{'' if scenes == 1 else 's'}: {told}" if told else "no scene"
    return f"{last}; {costs}" if costs else last


def _is_loud(told: Mapping[str, Any]) -> bool:
    return told["state"] in LOUD


def _told(told: Mapping[str, Any]) -> str:
    """Return which scene and what went wrong; most errors begin with the scene."""
    scene, error = told["scene"], told["error"] or told["output"]
    return error if error.startswith(scene) else f"{scene}: {error}"


def _code(told: Mapping[str, Any]) -> int:
    """Return what a scene says to the night's exit code."""
    return 0 if told["state"] in ("kept", "waiting") else told["exit_code"] or 0


def outcome_of(record: Record) -> Outcome:
    """Return how an attempt at a scene ended."""
    values = record.values
    counts, outputs = values["counts"], values["outputs"]
    spent = values["spent"] if record.is_made else None
    if spent and spent["device_seconds"] is None:
        spent = None  # it ended before any shard
    return Outcome(
        state=_state(record),
        exit_code=values["exit_code"],
        error=values["error"] and redact(values["error"]),
        seconds=values["seconds"]["total"] if spent else None,
        workers=values["engine"]["workers"] or 1,
        tiles=spent["tiles"] if spent else None,
        is_whole=not (counts["shards_reused"] or counts["shards_unchanged"]),
        spent=spent,
        size=sum(item["bytes"] for item in outputs),
        item=_item(record),
        products=tuple(str(item["path"]) for item in outputs),
        request=values["request_id"] or "",
    )


def _state(record: Record) -> str:
    """Return in one word how a scene ended."""
    code = record.values["exit_code"]
    if isinstance(record.error, OtherPlanError):
        return "kept"  # of an older version or other options; no work of tonight
    is_stopped = record.values["status"] in ("interrupted", "dry-run")
    if is_stopped or isinstance(record.error, NobodyError):
        return "waiting"
    if record.values["status"] == PARKED:
        return PARKED  # at a gate; what was live there still is
    if code == ExitCode.OK:
        if not record.is_news:
            return "unchanged"
        return "done" if record.is_made else "released"
    return "partial" if code == ExitCode.PARTIAL else "failed"


def _item(record: Record) -> str:
    """Return the path of a scene's STAC Item below its results; empty without one.

    Not of one that is parked: it is not the one that is live.
    """
    if record.values["status"] == PARKED:
        return ""
    paths = (PurePosixPath(item["path"]) for item in record.values["outputs"])
    return next((str(path) for path in paths if path.name == ITEM), "")
