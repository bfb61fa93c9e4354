"""`night.html`: a night as one page that needs nothing else. Opens no raster."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tileseg.base.locations import is_remote
from tileseg.errors import TilesegError
from tileseg.nights.nightly_entry import Entry
from tileseg.outputs.overlay import thumbnail
from tileseg.outputs.page import page_of
from tileseg.plans.cost import amount
from tileseg.publishing.place import PARKED
from tileseg.publishing.publish import parked_home
from tileseg.stores.storage import Storage

__all__ = ["PAGE", "page"]

PAGE = "night.html"

_MOST = 1000  # scenes that the page has
_MOST_PICTURES = 100
_SIDE = 240  # pixels of a picture
_RANK = ("failed", "given_up", "parked", "partial", "waiting", "later",
         "released", "done", "kept", "unchanged")  # fmt: skip
"""What a person wants to see first."""
_SHOWN = (PARKED, "partial", "released", "done")


def page(
    summary: Mapping[str, Any], storage: Storage, scenes: Mapping[str, Entry]
) -> bytes:
    """Return the page.

    Args:
        summary: `night.json`.
        storage: where the results are.
        scenes: what is known of each, by name.
    """
    rows = sorted(summary["scenes"], key=lambda row: _RANK.index(row["state"]))
    pictures = _pictures(rows[:_MOST], storage, scenes)
    shown = [
        {
            **row,
            "report": _report(row["name"], scenes, storage),
            "picture": pictures.get(row["name"]),
        }
        if _has_results(row, scenes)
        else {**row, "report": None, "picture": None}
        for row in rows[:_MOST]
    ]
    return page_of(
        "night.html",
        "night.css",
        night=summary,
        amount=amount,
        rows=shown,
        left_out=len(rows) - len(shown),
        has_pictures=bool(pictures),
        has_series=any(entry.item for entry in scenes.values()),
    )


def _has_results(row: Mapping[str, Any], scenes: Mapping[str, Entry]) -> bool:
    """Return whether it is, of several scenes of one name, that of the results."""
    known = scenes.get(row["name"])
    return known is not None and known.scene == row["scene"]


def _pictures(
    rows: list[dict[str, Any]], storage: Storage, scenes: Mapping[str, Entry]
) -> dict[str, str]:
    """Return small quicklooks of what is new or parked, by name."""
    shown = [row["name"] for row in rows if row["state"] in _SHOWN]
    return dict(_thumbnails(shown[:_MOST_PICTURES], storage, scenes))


def _thumbnails(
    names: list[str], storage: Storage, scenes: Mapping[str, Entry]
) -> Iterator[tuple[str, str]]:
    for name in names:
        if path := _path(scenes[name], "quicklook.png"):
            home = _home(name, scenes[name], storage)
            with suppress(TilesegError, OSError):  # a picture less is no harm
                if found := thumbnail(storage.read(f"{home}/{path}"), _SIDE):
                    yield name, found


def _report(name: str, scenes: Mapping[str, Entry], storage: Storage) -> str | None:
    """Return a link to what a person is to look at: what is parked, if that is."""
    path = _path(scenes[name], "report.html")
    if path is None:
        return None
    return f"./{quote(_home(name, scenes[name], storage))}/{quote(path)}"


def _home(name: str, entry: Entry, storage: Storage) -> str:
    """Return the folder of the products that are known of a scene."""
    is_aside = entry.state == PARKED and not is_remote(storage.address)
    return parked_home(Path(name)).name if is_aside else name


def _path(entry: Entry, file: str) -> str | None:
    """Return where a product is in its scene's folder."""
    found = (path for path in entry.products if path.rpartition("/")[2] == file)
    return next(found, None)
