"""What a night would do, as a table that a person reads. Pure."""

from collections.abc import Mapping
from typing import Any

__all__ = ["table"]

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
