"""Rows of figures: how they are gathered, printed, and kept.

Knows no part of the benchmark; a part is a function that yields rows.
"""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import median
from time import perf_counter
from typing import Any

__all__ = ["Figure", "Figures", "Row", "as_markdown", "as_text", "interleave", "spread"]

Figure = float | str | None
Figures = dict[str, Figure]

_WIDTH = 12  # of a column of figures
_LARGE = 1_000  # from here on without decimals
_KEEP = "spread"  # the column that stands last


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: something that was measured, in some ways."""

    part: str
    """Which part of the benchmark: `alone`, `stages`, `whole`, `peers` ..."""
    name: str
    """What was measured; no two rows of a part have one name."""
    figures: Figures = field(default_factory=dict)
    """Name of the figure, its unit in it (`tiles_s`, `mpx_s`, `rss_mb`), to its value;
    None where it could not be had."""
    note: str = ""
    """What one must know to read it: simulated, sparse, why it is missing."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def spread(values: Iterable[float]) -> float | None:
    """Return how far values lie apart, as a share of their median; None for one."""
    numbers = list(values)
    if len(numbers) < 2 or not (middle := median(numbers)):  # noqa: PLR2004
        return None
    return (max(numbers) - min(numbers)) / middle


def interleave(
    timed: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Call each function once a round, so that a busy machine is unfair to none.

    Args:
        timed: name to a function that returns what it measured.
        rounds: how often each is called.

    Returns:
        name to what was measured, round by round.
    """
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, function in timed.items():
            gc.collect()  # what others left is not this one's to clear
            found[name].append(function())
    return found


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


def as_text(rows: Iterable[Row]) -> str:
    """Return the table for a terminal, part by part."""
    return "\n\n".join(_part_text(part, list(group)) for part, group in _parts(rows))


def as_markdown(rows: Iterable[Row]) -> str:
    """Return the tables of all parts, without headings of their own."""
    return "\n".join(_part_markdown(list(group)) for _, group in _parts(rows))


def _parts(rows: Iterable[Row]) -> Iterable[tuple[str, Iterable[Row]]]:
    return groupby(rows, key=lambda row: row.part)


def columns(rows: Iterable[Row]) -> list[str]:
    """Return the names of all figures, as they come; the spread last."""
    names = dict.fromkeys(key for row in rows for key in row.figures)
    return sorted(names, key=lambda name: name == _KEEP)


def shown(value: Figure) -> str:
    """Return a figure as it is printed: three or four digits of a number."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.3g}"


def _part_text(part: str, rows: list[Row]) -> str:
    keys = columns(rows)
    first = max(len(row.name) for row in rows) + 1
    widths = [max(len(key) + 1, _WIDTH) for key in keys]
    lines = [
        part.ljust(first) + "".join(map(str.rjust, keys, widths)),
        *(_line(row, keys, widths, first) for row in rows),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _line(row: Row, keys: list[str], widths: list[int], first: int) -> str:
    cells = [shown(row.figures[key]) if key in row.figures else "" for key in keys]
    note = f"  {row.note}" if row.note else ""
    return row.name.ljust(first) + "".join(map(str.rjust, cells, widths)) + note


def _part_markdown(rows: list[Row]) -> str:
    keys = columns(rows)
    has_notes = any(row.note for row in rows)
    head = ["", *keys, *([""] if has_notes else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [shown(row.figures[key]) if key in row.figures else "" for key in keys]
        lines.append([row.name, *cells, *([row.note] if has_notes else [])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
