"""Boxes of longitude and latitude on a round Earth; pure.

West, south, east, north in degrees; west > east across the antimeridian.
"""

from collections.abc import Sequence

__all__ = ["TURN", "between", "hull", "is_bbox"]

TURN = 360.0
"""Degrees."""

_DIGITS = 9  # of a degree: less than a millimetre, and more than sums lose


def between(west: float, east: float) -> tuple[float, float]:
    """Return two longitudes, the second counted on from the first, within half a turn.

    The whole Earth is -180 to 180; nothing else begins at 180 or ends at -180.
    """
    if east - west >= TURN:
        return -TURN / 2, TURN / 2
    return _wrapped(west), -_wrapped(-east)


def hull(boxes: Sequence[Sequence[float]]) -> list[float]:
    """Return the least box that holds all of some."""
    spans = sorted((west, east + TURN * (west > east)) for west, _, east, _ in boxes)
    reached, gaps = max(east for _, east in spans) - TURN, []
    for west, east in spans:
        gaps.append((west - reached, reached, west))
        reached = max(reached, east)
    width, end, begin = max(gaps)  # of what is in none, the widest is left out
    west, east = between(begin, end + TURN) if width > 0 else between(0, TURN)
    sides = west, min(it[1] for it in boxes), east, max(it[3] for it in boxes)
    return [round(side, _DIGITS) for side in sides]


def is_bbox(box: tuple[float, float, float, float]) -> bool:
    """Return whether it is west, south, east and north of something on the Earth."""
    west, south, east, north = box
    is_wide = west != east and all(abs(x) <= TURN / 2 for x in (west, east))
    return is_wide and -TURN / 4 <= south < north <= TURN / 4


def _wrapped(longitude: float) -> float:
    """Return a longitude from -180 (it too) to 180."""
    return (longitude + TURN / 2) % TURN - TURN / 2
