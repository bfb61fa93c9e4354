"""What a night would do: as JSON values, and as a table that a person reads."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tileseg.errors import TilesegError
from tileseg.nights.nightly_entry import Speed
from tileseg.nights.nightly_file import Schedule
from tileseg.nights.nightly_plan import Choice, Cost, ordered, span, turns
from tileseg.nights.nightly_state import State
from tileseg.settings import Job

__all__ = ["measured", "rows", "table"]

logger = logging.getLogger(__name__)

_WHY = {
    "new": "new",
    "begun": "begun before",
    "again": "failed before",
    "judged": "parked at a gate: judged again, computes nothing",
    "changed": "the scene changed, or was only touched",
    "options": "options, model or version changed",
    "gone": "its results are gone",
    "no time": "no time before the deadline",
    "unchanged": "unchanged",
    "kept": "keeps the result of another plan: overwrite is off, or it was rolled back",
    "later": "failed",
    "parked": "parked at a gate: tileseg release, or --retry",
    "given_up": "given up; --retry takes it again",
    "double": "another scene has its name",
}
_MOST = 200  # rows


def measured(choices: Iterable[Choice]) -> float | None:
    """Return how many tiles a second a device here does, by a few of one scene.

    Args:
        choices: the scenes; the first one that can be opened is looked at.

    Returns:
        None where nothing is to be computed, or somebody else's devices are to.
    """
    due = (choice for choice in choices if choice.is_due)
    choice = next((it for it in due if it.cost and it.cost.tiles), None)
    if choice is None or Job(**choice.facts).engine_kind != "local":
        return None
    from tileseg.steps.check import tile_rate

    try:
        return tile_rate(choice.open())
    except TilesegError as err:
        logger.warning("%s", err)
        return None


def rows(
    choices: Sequence[Choice],
    night: Schedule,
    state: State,
    now: datetime,
    rate: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what a night would do with each scene, in its order, as JSON values.

    Args:
        choices: all scenes.
        night: the schedule.
        state: what is known.
        now: when it would go on.
        rate: tiles a second of a device, where no former scene says how long.
    """
    end, spent = night.end(state.started), 0.0

    def left() -> float | None:
        return None if end is None else (end - now).total_seconds() - spent

    due = ordered(choices, night)
    for choice, has_time in turns(due, lambda: state.speed, left, span(state, end)):
        row = _row(choice, state, rate)
        if has_time:
            spent += row["seconds"] or 0
        yield row if has_time else {**row, "runs": False, "why": "no time"}
    yield from (_row(choice, state) for choice in choices if not choice.is_due)


def _row(choice: Choice, state: State, rate: float | None = None) -> dict[str, Any]:
    cost, flaw = (choice.cost, choice.flaw) if choice.is_due else (None, None)
    device = _device_seconds(cost, state.speed, rate) if cost else None
    return {
        "scene": choice.found.href,
        "output": choice.facts["output"],
        "runs": choice.is_due,
        "why": choice.why,
        "tiles": cost and cost.tiles,
        "bytes": cost and cost.bytes,
        "seconds": cost and state.speed.seconds(cost.tiles),
        "device_minutes": None if device is None else device / 60,
        "next": choice.known.next if choice.known and not choice.is_due else None,
        "error": flaw or (choice.known.error if choice.known else None),
    }


def _device_seconds(cost: Cost, speed: Speed, rate: float | None) -> float | None:
    if not cost.tiles:
        return 0.0
    known = speed.device_seconds(cost.tiles)
    return cost.tiles / rate if known is None and rate else known


def table(plan: Mapping[str, Any]) -> str:
    """Return a plan as lines."""
    rows = plan["scenes"][:_MOST]
    head = ["", "scene", "tiles", "MB", "minutes", "why"]
    cells = [head, *map(_cells, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(5)]
    lines = ["  ".join([*_aligned(row, widths), row[5]]).rstrip() for row in cells]
    if left := len(plan["scenes"]) - len(rows):
        lines.append(f"and {left} more")
    runs = sum(row["runs"] for row in plan["scenes"])
    minutes = _number(plan["device_minutes"], "{:,.1f}")
    source = " by a few tiles" if plan["device_minutes_from"] == "tiles" else ""
    until = f", deadline {plan['deadline']}" if plan["deadline"] else ""
    lines.append(
        f"night of {plan['night']}{until}: {runs} of {len(plan['scenes'])} scenes, "
        f"{plan['tiles']:,} tiles, {plan['bytes'] / 1e6:,.1f} MB to read, "
        f"{minutes} device minutes{source}"
    )
    return "\n".join(lines)


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    mark, scene, *numbers = (
        cell.ljust(width) if at < 2 else cell.rjust(width)  # noqa: PLR2004
        for at, (cell, width) in enumerate(zip(row, widths, strict=False))
    )
    return [mark, scene, *numbers]


def _cells(row: Mapping[str, Any]) -> list[str]:
    why = _WHY[row["why"]]
    if row["next"]:
        why = f"{why}; next try {row['next']}"
    if row["runs"] and row["tiles"] is None:
        why = f"{why}; will fail: {row['error']}"
    unknown = "?" if row["runs"] else ""
    return [
        "run" if row["runs"] else "-",
        row["scene"],
        _number(row["tiles"], "{:,}", unknown),
        _number(row["bytes"] and row["bytes"] / 1e6, "{:,.1f}", unknown),
        _number(row["device_minutes"], "{:,.1f}", unknown),
        why,
    ]


def _number(value: float | None, form: str, unknown: str = "?") -> str:
    return unknown if value is None else form.format(value)
