"""Versions of a result that were live: kept whole, and put back whole, on a disk.

`<output>.versions/<started>-<plan id>/` each; an object store has them in `bucket.py`.
Under a wrong name, as a kill may leave one, a version is what its record says it is.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tileseg.base.locations import KEPT_END
from tileseg.base.redact import json_bytes
from tileseg.errors import OutputError
from tileseg.publishing import swap
from tileseg.stores.storage import write_whole

__all__ = [
    "RECORD",
    "ROLLED_BACK",
    "Version",
    "choose",
    "discard",
    "find",
    "forget_rollback",
    "kept",
    "name_of",
    "promoted",
    "put_back",
    "recover",
    "released",
    "replace",
    "request_ids",
    "rolled_back",
]

RECORD = "run.json"

ROLLED_BACK = "rolled-back.json"
"""Beside the kept versions: the plans that were live and were taken back."""

_NEXT, _SWAP = "next", "swap"
_KEYS = ("request_id", "plan_id", "status", "outputs")


@dataclass(frozen=True, slots=True)
class Version:
    """A result, wherever it is kept."""

    name: str
    """When it was started and its plan's id; what `--to` wants."""
    state: str
    """`live`, `kept` or `parked`."""
    record: dict[str, Any]
    """Its `run.json`."""


def name_of(record: Mapping[str, Any]) -> str:
    """Return the name of a version, harmless whatever its record says."""
    started = re.sub(r"\W", "", str(record.get("started") or "unknown")[:19])
    return re.sub(r"[^\w-]", "_", f"{started}-{record['plan_id']}")[:80]


def promoted(record: Mapping[str, Any], how: str) -> dict[str, Any]:
    """Return the record of a version that a person makes live, by what and when.

    It is another one each time: who waits for an older state to be still there must
    not take the same version, put back, for it.
    """
    is_whole = not record.get("failures")
    values = {**record, "status": "complete" if is_whole else "partial"}
    values |= {"exit_code": 0 if is_whole else 10, "error": None}
    return {**values, "promoted": {"by": how, "at": datetime.now(UTC).isoformat()}}


def released(record: Mapping[str, Any], gates: list[Any] | None) -> dict[str, Any]:
    """Return the record of a parked version that goes live.

    Args:
        record: the parked one's.
        gates: what was found at other gates, which let it pass; None: a person did.
    """
    if gates is None:
        return promoted(record, "release")
    return {**promoted(record, "gates"), "gates": gates}


def choose(found: list[Version], wanted: str, output: object) -> Version:
    """Return the version that a name, or the beginning of one, means; else the newest.

    Args:
        found: those that are kept, the one that was live last first.
        wanted: the name, or an id of a plan; empty for the first.
        output: of what, for messages.

    Raises:
        OutputError: there is no such version, or several.
    """
    hits = [it for it in found if it.name.startswith(wanted) or _is_plan(it, wanted)]
    if not hits or (wanted and len(hits) > 1):
        names = ", ".join(item.name for item in found) or "none"
        got = f"{wanted}: " if wanted else ""
        many = "several versions" if hits else "no such version is"
        msg = f"{output}: {got}{many} kept; wanted one of: {names}"
        raise OutputError(msg)
    return hits[0]


def _is_plan(version: Version, wanted: str) -> bool:
    return bool(wanted) and str(version.record["plan_id"]).startswith(wanted)


def _home(place: Path) -> Path:
    return place.with_name(place.name + KEPT_END)


def find(place: Path) -> dict[Path, Version]:
    """Return the kept versions and where each is, the one that was live last first."""
    try:
        folders = [item for item in _home(place).iterdir() if item.is_dir()]
    except OSError:
        return {}
    folders.sort(key=lambda item: (item.stat().st_mtime_ns, item.name), reverse=True)
    read = {item: _read(item) for item in folders}
    return {
        item: Version(name_of(record), "kept", record)
        for item, record in read.items()
        if record
    }


def kept(place: Path) -> list[Version]:
    """Return the kept versions, the one that was live last first."""
    return list(find(place).values())


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the record of a version; None where there is none of ours."""
    try:
        record = dict(json.loads((folder / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return record if all(key in record for key in _KEYS) else None


def replace(folder: Path, place: Path, *, keep: int) -> None:
    """Move a version to a place in one step, and the one that was there to the kept.

    Hold the place's lock. A kill leaves the old version there or the new one, and
    `recover` what is to be kept.

    Args:
        folder: the new version, on the disk.
        place: where one is.
        keep: how many to keep; 1 or more.

    Raises:
        OSError: that cannot be done.
    """
    before = _read(place)
    assert before is not None, "there is a version to be kept"
    # Named after what it is to hold: whether it does says whether the swap was made.
    aside = swap.sibling(place, f"{_NEXT}.{name_of(before)}")
    discard(aside, place)
    folder.rename(aside)
    if not swap.exchange(aside, place):
        old = swap.sibling(place, _SWAP)
        place.rename(old)
        aside.rename(place)
        aside = old
    _file(aside, place)
    for item in list(find(place))[keep:]:
        discard(item, place)


def put_back(place: Path, version: Version) -> None:
    """Make a kept version live in one step, and keep the one that was; hold the lock.

    Raises:
        OSError: that cannot be done.
    """
    folder = next(
        item for item, known in find(place).items() if known.name == version.name
    )
    before = _read(place)
    if before is not None:
        _remember(place, before)
    forget_rollback(place, version.record)
    write_whole(folder / RECORD, json_bytes(promoted(version.record, "rollback")))
    if not place.exists():
        folder.rename(place)
    elif swap.exchange(folder, place):
        _file(folder, place)
    else:
        old = swap.sibling(place, _SWAP)
        place.rename(old)
        folder.rename(place)
        _file(old, place)
    swap.sync(place.parent)


def _file(folder: Path, place: Path) -> None:
    """Put a version that is no longer live where it is kept, by its own name."""
    record, home = _read(folder), _home(place)
    if record is None:  # the place was empty
        discard(folder, place)
        return
    home.mkdir(exist_ok=True)
    os.utime(folder)  # which of them was live last is told by this
    target = home / name_of(record)
    if target != folder:
        discard(target, place)
        folder.rename(target)
    swap.sync(home)


def recover(place: Path) -> None:
    """Finish what a kill cut in two; hold the place's lock."""
    old = swap.sibling(place, _SWAP)
    if old.exists() and not place.exists():
        old.rename(place)
    elif old.exists():
        _file(old, place)
    begin = f".{place.name}.{_NEXT}."
    for item in place.parent.iterdir():
        if not item.name.startswith(begin):
            continue
        record = _read(item)
        if record and name_of(record) == item.name.removeprefix(begin):
            _file(item, place)
        else:
            discard(item, place)  # it never was live
    for item, version in find(place).items():
        if item.name != version.name:
            _file(item, place)


def is_cut(place: Path) -> bool:
    """Return whether `recover` has something to do beside a place."""
    names = f".{place.name}.{_NEXT}.", f".{place.name}.{_SWAP}"
    return any(item.name.startswith(names) for item in place.parent.iterdir())


def discard(folder: Path, place: Path) -> None:
    """Remove a directory so that a kill leaves nothing that looks like a version."""
    if folder.exists():
        # By the name of what killed runs leave, which is swept.
        gone = swap.sibling(place, f"staging.{uuid4().hex}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def rolled_back(place: Path) -> frozenset[str]:
    """Return the ids of requests whose results were live and were taken back."""
    try:
        return request_ids((_home(place) / ROLLED_BACK).read_bytes())
    except OSError:
        return frozenset()


def request_ids(data: bytes) -> frozenset[str]:
    """Return what `ROLLED_BACK` says; nothing of what is no such file."""
    try:
        return frozenset(map(str, json.loads(data)["requests"]))
    except (ValueError, KeyError, TypeError):
        return frozenset()


def _remember(place: Path, record: Mapping[str, Any]) -> None:
    known = rolled_back(place) | {str(record["request_id"])}
    _write(place, known)


def forget_rollback(place: Path, record: Mapping[str, Any] | None = None) -> None:
    """Remember no longer that a plan was taken back; without a record of any."""
    known = rolled_back(place)
    rest = known - {str(record["request_id"])} if record else frozenset()
    if known != rest:
        _write(place, rest)


def _write(place: Path, requests: frozenset[str]) -> None:
    path = _home(place) / ROLLED_BACK
    if requests:
        write_whole(path, json_bytes({"requests": sorted(requests)}))
    else:
        path.unlink(missing_ok=True)
