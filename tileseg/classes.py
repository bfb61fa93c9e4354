"""A class of the mask: its value, its name and its colour."""

from dataclasses import dataclass

__all__ = ["LandClass", "color_of"]

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
