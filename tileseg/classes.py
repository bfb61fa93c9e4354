"""A class of the mask: its value, its name, its colour, and its names elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass

from tileseg.errors import UsageError

__all__ = ["LandClass", "color_of", "renaming"]

_COLORS = (
    "2b7bba", "1b7837", "a6d96a", "d8b365", "d7301f", "7b3294", "fdae61", "01665e",
    "c51b7d", "8c6d31", "636363", "fee08b",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LandClass:
    """One class of the mask."""

    value: int
    """Mask value, 0 to 254."""
    name: str
    """What a legend says."""
    color: str
    """RRGGBB in hexadecimal."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, each 0 to 255."""
        red, green, blue = bytes.fromhex(self.color)
        return red, green, blue


def color_of(value: int) -> str:
    """Return RRGGBB of a class whose colour nobody names: one of twelve."""
    return _COLORS[value % len(_COLORS)]


def renaming(texts: Iterable[str]) -> dict[str, str]:
    """Return what each `VALUE=CLASS` says: a value or name elsewhere -> the class.

    Raises:
        UsageError: one is no such text.
    """
    found = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals:
            msg = f"--rename {text}: wanted VALUE=CLASS, as --rename 3=water"
            raise UsageError(msg)
        found[old.strip()] = new.strip()
    return found
