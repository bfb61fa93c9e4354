"""A person switches what is live: looks at versions, releases, rolls back.

The catalog of the series, where there is one, follows, and so does a night under way.
"""

import logging
from pathlib import PurePosixPath
from typing import Any

from tileseg.base.bounds import shares_of
from tileseg.errors import InputError, OutputError, TilesegError
from tileseg.nights.nightly_state import STATE, State, hold_state, read_state
from tileseg.nights.series import COLLECTION, ITEM, update
from tileseg.publishing.bucket import place_at
from tileseg.publishing.history import series_of
from tileseg.publishing.place import PARKED
from tileseg.publishing.versions import Version, name_of
from tileseg.stores.storage import Storage

__all__ = ["describe", "discard", "list_versions", "release", "roll_back"]

logger = logging.getLogger(__name__)


def list_versions(output: str) -> list[Version]:
    """Return what is live, parked and kept at an output, in this order.

    Raises:
        InputError: there is none.
        OutputError: it holds something that no run of ours published.
        TilesegError: it cannot be read.
    """
    place = place_at(output)
    here = [("live", place.published()), (PARKED, place.parked())]
    found = [Version(name_of(it), state, it) for state, it in here if it]
    found += place.kept()
    if not found:
        msg = f"{output}: no version of a result is there"
        raise InputError(msg)
    return found


def describe(version: Version) -> dict[str, Any]:
    """Return what a person wants to know of a version, as JSON has it."""
    record = version.record
    model = record.get("model") or {}
    refused = [it for it in record.get("gates") or [] if it["passed"] is False]
    return {
        "version": version.name,
        "state": version.state,
        "status": record["status"],
        "started": record.get("started"),
        "plan_id": record["plan_id"],
        "model": f"{model.get('name')} {model.get('version')}",
        "shares": shares_of(record),
        "promoted": record.get("promoted"),
        "refused": [f"{it['name']}: wanted {it['wanted']}" for it in refused],
    }


def roll_back(output: str, wanted: str = "") -> dict[str, Any]:
    """Make a kept version live, and return its record; keep the one that was.

    Args:
        output: of a scene.
        wanted: which version; empty for the one that was live last.

    Raises:
        TilesegError: there is no such version, or it cannot be switched.
    """
    with hold_state(series_of(output)[0]):
        record = place_at(output).roll_back(wanted)
        _tell(output, record, is_released=False)
    return record


def release(output: str) -> dict[str, Any]:
    """Make what is parked at an output live, and return its record.

    Raises:
        TilesegError: nothing is, or it cannot be switched.
    """
    with hold_state(series_of(output)[0]):
        parked = place_at(output).parked() or {}
        keep = (parked.get("job") or {}).get("keep", 0)
        record = place_at(output, keep).release()
        _tell(output, record, is_released=True)
    return record


def discard(output: str) -> str:
    """Remove what is parked at an output, and return its version's name.

    Raises:
        TilesegError: nothing is, or it cannot be removed.
    """
    storage, folder = series_of(output)
    with hold_state(storage):
        place = place_at(output)
        if (parked := place.parked()) is None:
            msg = f"{output}: nothing is parked"
            raise OutputError(msg)
        place.discard_parked()
        state = _state(storage)
        if state and state.forget(folder):  # the next night makes it anew
            storage.write(STATE, state.as_bytes())
    return name_of(parked)


def _tell(output: str, record: dict[str, Any], *, is_released: bool) -> None:
    """Have the series' Collection and its nights know which Item is live now."""
    storage, folder = series_of(output)
    paths = (PurePosixPath(item["path"]) for item in record["outputs"])
    item = next((str(path) for path in paths if path.name == ITEM), "")
    if _has_collection(storage):
        name = PurePosixPath(storage.address).name
        update(storage, name, {folder: item} if item else {})
    state = _state(storage)
    if state and state.turn(folder, record, item, is_released=is_released):
        storage.write(STATE, state.as_bytes())


def _state(storage: Storage) -> State | None:
    """Return what nights of a file remember of the series; None if that is broken."""
    try:
        return read_state(storage)
    except TilesegError as err:
        logger.warning("%s", err)
        return None


def _has_collection(storage: Storage) -> bool:
    try:
        storage.read(COLLECTION)
    except OSError:
        return False
    return True
