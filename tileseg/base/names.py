"""Names of files and directories that come from outside: made harmless.

A scene's file name or a catalog's id becomes the name of a directory. Whatever it says,
that is one plain name, below the place it was meant for.
"""

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote

__all__ = [
    "SUFFIXES",
    "is_api_item",
    "is_catalog",
    "parts_of",
    "scene_name",
    "slug",
    "stem",
]

SUFFIXES = (".tif", ".tiff")
"""How a GeoTIFF's name ends, in any case."""

# What a STAC document is called, and perhaps which of its Items is meant.
_DOCUMENT = re.compile(r"([^?]+\.(?:geo)?json)(?:#(.+))?", re.IGNORECASE)
_API = re.compile(r"https?://[^?#]+/collections/[^/?#]+/items/[^/?#]+/?")

_LONGEST = 200  # bytes: with what we put round a name, below what file systems take
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_UNPLAIN = frozenset("/\\%#?")  # the last two end a path in an address
_UNSEEN = ("C", "Zl", "Zp")  # control, direction, unassigned; ends of lines


def slug(text: str) -> str:
    """Return `text` as the name of one file or directory.

    Most names stay as they are. Separators, control characters and those that turn the
    direction of writing become `_`, as do names that mean something to a system. What
    had to be cut short ends with a digest of the whole, so that it stays distinct.
    """
    plain = "".join("_" if _is_odd(letter) else letter for letter in text)
    plain = re.sub(r"^\.{2,}|[.\s]+$", "_", plain) or "_"
    if _DEVICES.fullmatch(plain):
        plain = f"_{plain}"
    data = plain.encode()
    if len(data) <= _LONGEST:
        return plain
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{data[: _LONGEST - 17].decode(errors='ignore')}-{digest}"


def stem(href: str) -> str:
    """Return the name of a scene's results: its file's, without suffix.

    Of an Item of a STAC API its id, all of it.
    """
    path = re.split("[?#]", href)[0] if "://" in href else href
    if is_api_item(path):
        return slug(unquote(PurePosixPath(path).name))
    return slug(PurePosixPath(path).stem)


def is_api_item(source: str) -> bool:
    """Return whether an address is that of an Item of a STAC API."""
    return bool(_API.fullmatch(source))


def is_catalog(source: str) -> bool:
    """Return whether an input is named like a STAC document, or an Item in one."""
    plain = source.partition("?")[0] if "://" in source else source
    return bool(_DOCUMENT.fullmatch(plain) or is_api_item(plain))


def parts_of(source: str) -> tuple[str, str | None]:
    """Return a STAC document and which of its Items, None for the only one."""
    found = _DOCUMENT.fullmatch(source)
    return (found[1], found[2]) if found else (source, None)


def scene_name(source: str) -> str:
    """Return the name of a scene's results: its file's stem, or its STAC Item's id."""
    _, item = parts_of(source)
    return slug(item) if item else stem(source)


def _is_odd(letter: str) -> bool:
    """Return whether a letter is none that a name should hold."""
    return letter in _UNPLAIN or unicodedata.category(letter).startswith(_UNSEEN)
