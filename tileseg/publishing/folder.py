"""A local directory as the place of one scene's outputs."""

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tileseg.base.redact import json_bytes
from tileseg.errors import OutputError
from tileseg.publishing import publish, swap, versions
from tileseg.publishing.place import Listed
from tileseg.publishing.versions import RECORD, Version
from tileseg.stores.lock import hold_file
from tileseg.stores.storage import write_whole

__all__ = ["Folder"]


@dataclass(frozen=True, slots=True)
class Folder:
    """A local directory as the place of one scene's outputs."""

    path: Path
    keep: int = 0
    """Versions to keep of those that are replaced."""

    def __str__(self) -> str:
        """Return its path."""
        return str(self.path)

    def published(self) -> dict[str, Any] | None:
        """See `published` of publish.py."""
        return publish.published(self.path)

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """See `is_complete` of publish.py."""
        return publish.is_complete(self.path, record, request_id)

    def sweep(self) -> None:
        """See `sweep` of publish.py."""
        publish.sweep(self.path)

    def staging(self) -> AbstractContextManager[Path]:
        """See `staging` of publish.py."""
        return publish.staging(self.path, keep=self.keep)

    def list_outputs(
        self, folder: Path, plan_id: str, listed: Listed = ()
    ) -> list[dict[str, Any]]:
        """See `list_outputs` of publish.py; every plan's files have the same names."""
        del plan_id
        return publish.list_outputs(folder, listed)

    def parked(self) -> dict[str, Any] | None:
        """See `Place`."""
        return publish.published(publish.parked_home(self.path.resolve()))

    def holds_parked(self, record: dict[str, Any]) -> bool:
        """See `Place`."""
        return publish.is_intact(publish.parked_home(self.path.resolve()), record)

    def kept(self) -> list[Version]:
        """See `Place`."""
        return versions.kept(self.path.resolve())

    def rolled_back(self) -> frozenset[str]:
        """See `Place`."""
        return versions.rolled_back(self.path.resolve())

    def release(self, gates: list[Any] | None = None) -> dict[str, Any]:
        """See `Place`; the files are linked, so a kill leaves them parked."""
        source = publish.parked_home(self.path.resolve())
        record = self.parked()
        if record is None:
            msg = f"{self}: nothing is parked"
            raise OutputError(msg)
        publish.refuse_broken(source, record)
        values = versions.released(record, gates)
        with self.staging() as folder:
            for item in record["outputs"]:
                _link(source / item["path"], folder / item["path"])
            write_whole(folder / RECORD, json_bytes(values))
        return values

    def discard_parked(self) -> None:
        """See `Place`."""
        place = self.path.resolve()
        with publish.explained(self.path), hold_file(swap.sibling(place, "lock")):
            versions.discard(publish.parked_home(place), place)

    def roll_back(self, wanted: str = "") -> dict[str, Any]:
        """See `Place`."""
        place = self.path.resolve()
        publish.published(place)  # else there may be files of others
        lock = swap.sibling(place, "lock")
        with publish.explained(self.path), hold_file(lock) as held:
            publish.clear_up(place)
            found = versions.find(place)
            version = versions.choose(list(found.values()), wanted, self)
            folder = next(item for item, known in found.items() if known is version)
            publish.refuse_broken(folder, version.record)
            held.renew()
            versions.put_back(place, version)
        return publish.published(place) or {}


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where that cannot be."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
