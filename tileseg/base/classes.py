"""A class of the mask: its value, its name, its colour, and its names elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass

from tileseg.errors import UsageError

__all__ = ["LandClass", "color_of", "renaming", "values_of"]

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


def values_of(names: Iterable[str], classes: Iterable[LandClass]) -> tuple[int, ...]:
    """Return the values of classes, by their names.

    Raises:
        ValueError: there is no such class; in words that go on after "it".
    """
    values = {item.name: item.value for item in classes}
    for name in (names := tuple(names)):
        if name not in values:
            known = ", ".join(values)
            msg = f"has no class {name!r} that could be called a field; it has {known}"
            raise ValueError(msg)
    return tuple(values[name] for name in names)


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
