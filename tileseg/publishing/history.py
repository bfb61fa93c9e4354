"""What was published before in a series: the classes' shares of its newest results."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tileseg.base.bounds import Gates, Shares, shares_of
from tileseg.base.locations import BESIDE, is_remote
from tileseg.errors import TilesegError
from tileseg.publishing.place import Place
from tileseg.publishing.versions import RECORD
from tileseg.stores.objects import open_storage
from tileseg.stores.storage import Storage

__all__ = ["series_of", "shares_before"]

_AT_ONCE = 16  # records that are read


def series_of(output: str) -> tuple[Storage, str]:
    """Return the storage of the series that an output is in, and its folder there."""
    if is_remote(output):
        parent, _, name = output.rstrip("/").rpartition("/")
        return open_storage(parent), name
    path = Path(output).absolute()
    return open_storage(str(path.parent)), path.name


def shares_before(
    output: str, place: Place, gates: Gates, classes: Iterable[str]
) -> list[Shares]:
    """Return the shares of the newest results of a series, its kept versions too.

    Those that have holes, are parked, or have other classes say nothing.

    Args:
        output: where one of its results goes.
        place: the same.
        gates: how many are asked for, if any.
        classes: their names.
    """
    if not gates.needs_history:
        return []
    series, _ = series_of(output)
    names = [it for it in series.folders() if not it.startswith(".")]
    names = [it for it in names if not it.endswith(BESIDE)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        records = list(pool.map(lambda name: _read(series, f"{name}/{RECORD}"), names))
    records += [version.record for version in place.kept()]
    whole = [it for it in records if it and it.get("status") == "complete"]
    whole.sort(key=lambda it: str(it.get("started")), reverse=True)
    found: list[Shares]
    found = [shares for it in whole if (shares := shares_of(it)) is not None]
    return [it for it in found if it.keys() == set(classes)][: gates.history]


def _read(series: Storage, name: str) -> dict[str, Any] | None:
    """Return a record; None where there is none."""
    try:
        record = json.loads(series.read(name))
    except (OSError, ValueError, TilesegError):
        return None
    return record if isinstance(record, dict) else None
