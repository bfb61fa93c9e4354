"""The records beside `run.json` in an object store: of versions kept and parked.

Each lists objects that stay where they are: what goes live, or goes aside, is a record.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from tileseg.base.redact import json_bytes
from tileseg.errors import OutputError
from tileseg.publishing.versions import ROLLED_BACK, Version, name_of, request_ids
from tileseg.stores.objects import Objects

__all__ = ["OURS", "PARKED", "PRODUCT", "Pointers", "parse", "paths_of"]

PARKED = "parked.json"

PRODUCT = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?/\w[\w.]*", re.ASCII)
"""What a product is called below the prefix."""

_KEPT = re.compile(r"versions/[\w-]{1,100}\.json", re.ASCII)
_MARKER = f"versions/{ROLLED_BACK}"
_REPLACED = "replaced"

OURS = re.compile(rf"{PRODUCT.pattern}|{re.escape(PARKED)}|{_KEPT.pattern}", re.ASCII)
"""What there may be of ours in a prefix without a result."""


def parse(data: bytes) -> dict[str, Any] | None:
    """Return a record of ours; None for any other, and for paths out of the prefix."""
    try:
        record = dict(json.loads(data))
        _ = [record[key] for key in ("request_id", "plan_id", "status")]
        paths = [item["path"] for item in record["outputs"] if item["bytes"] >= 0]
        return record if all(map(PRODUCT.fullmatch, paths)) else None
    except (ValueError, KeyError, TypeError):
        return None


def paths_of(record: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the objects that a record lists."""
    return (
        frozenset(item["path"] for item in record["outputs"]) if record else frozenset()
    )


class Pointers:
    """Those of one prefix."""

    def __init__(self, objects: Objects) -> None:
        """Ask the store for nothing."""
        self._objects = objects

    def parked(self) -> dict[str, Any] | None:
        """Return the record of what is parked; None where nothing is.

        Raises:
            OutputError: it is none of ours.
        """
        found = self._objects.look(PARKED)
        record = parse(found[0]) if found else None
        if found and record is None:
            msg = f"{self._objects}: its {PARKED} is none of tileseg; look at it"
            raise OutputError(msg)
        return record

    def park(self, data: bytes) -> None:
        """Write the record of what is parked."""
        self._objects.write(PARKED, data)

    def kept(
        self, names: Collection[str], live: Mapping[str, Any] | None
    ) -> list[Version]:
        """Return the kept versions, the one that was live last first.

        Args:
            names: of all objects of the prefix: what lacks any is no version.
            live: the record of what is live, which a killed run may have left here too.
        """
        records = filter(None, map(self._read, filter(_KEPT.fullmatch, names)))
        found = [it for it in records if paths_of(it) <= set(names)]
        found = [it for it in found if paths_of(it) != paths_of(live)]
        found.sort(key=lambda it: (str(it.get(_REPLACED)), name_of(it)), reverse=True)
        return [
            Version(
                name_of(it), "kept", {k: v for k, v in it.items() if k != _REPLACED}
            )
            for it in found
        ]

    def _read(self, name: str) -> dict[str, Any] | None:
        found = self._objects.look(name)
        return parse(found[0]) if found and name != _MARKER else None

    def keep(self, record: Mapping[str, Any]) -> None:
        """Write the record of a version that is about to be replaced."""
        now = datetime.now(UTC).isoformat()
        data = json_bytes({**record, _REPLACED: now})
        self._objects.write(_name(record), data)

    def drop(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Remove the records of versions, not what they list."""
        self._objects.remove(*map(_name, records))

    def drop_parked(self) -> None:
        """Remove the record of what is parked, not what it lists."""
        self._objects.remove(PARKED)

    def listed(self, names: Iterable[str]) -> frozenset[str] | None:
        """Return what kept and parked records list; None where one just went.

        Args:
            names: of all objects of the prefix.
        """
        found: set[str] = set()
        for name in names:
            if name == PARKED or (_KEPT.fullmatch(name) and name != _MARKER):
                read = self._objects.look(name)
                if read is None:
                    return None
                found |= paths_of(parse(read[0]))
        return frozenset(found)

    def rolled_back(self) -> frozenset[str]:
        """Return the ids of requests whose results were live and were taken back."""
        found = self._objects.look(_MARKER)
        return request_ids(found[0]) if found else frozenset()

    def remember(self, requests: frozenset[str]) -> None:
        """Write which requests' results were taken back."""
        self._objects.write(_MARKER, json_bytes({"requests": sorted(requests)}))

    def forget(self, names: Collection[str]) -> None:
        """Remember none of them, and nothing as parked.

        Args:
            names: of all objects of the prefix.
        """
        self._objects.remove(*{PARKED, _MARKER}.intersection(names))


def _name(record: Mapping[str, Any]) -> str:
    return f"versions/{name_of(record)}.json"
