"""Outputs in an object store: new objects beside the old ones, then one switch.

The products of a plan are objects of their own, `<output>/<plan_id>/<file>`. They
count once `<output>/run.json` lists them, and that one object is replaced last, only
if it is still the one that was read: a reader follows the old record or the new one.
Kept and parked results are objects likewise, listed by records beside it.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tileseg.base.locations import is_remote
from tileseg.base.redact import json_bytes
from tileseg.errors import BusyError, OutputError, StorageError, TilesegError
from tileseg.publishing import publish
from tileseg.publishing.folder import Folder
from tileseg.publishing.place import PARKED, Listed, Place
from tileseg.publishing.pointers import OURS, PRODUCT, Pointers, parse, paths_of
from tileseg.publishing.versions import Version, choose, promoted, released
from tileseg.settings import Job
from tileseg.stores.objects import Objects

if TYPE_CHECKING:
    from tileseg.stores.objects import Version as Seen

__all__ = ["Bucket", "open_place", "place_at"]

logger = logging.getLogger(__name__)


def open_place(job: Job) -> Place:
    """Return where a job's outputs go.

    Raises:
        UsageError: it is in an object store, and obstore is not installed.
        OutputError: the environment does not say how to reach it.
    """
    if is_remote(job.destination):
        if not is_remote(job.workplace):
            return Bucket(job.destination, job.work_path, keep=job.keep)
        # What a run of this workplace left is known by its name: its lock is held.
        mark = sha256(job.workplace.encode()).hexdigest()[:16]
        temporary = Path(gettempdir())
        return Bucket(job.destination, temporary, f"tileseg.{mark}", keep=job.keep)
    return Folder(job.output_path, job.keep)


def place_at(output: str, keep: int = 0) -> Place:
    """Return the place at an output's path or address, to look and to switch there.

    Raises:
        UsageError: it is in an object store, and obstore is not installed.
        OutputError: the environment does not say how to reach it.
    """
    if is_remote(output):
        return Bucket(output, Path(gettempdir()), keep=keep)
    return Folder(Path(output), keep)


class Bucket:
    """A prefix of an object store, as the place of one scene's outputs."""

    def __init__(
        self, output: str, work: Path, name: str = "staging", *, keep: int = 0
    ) -> None:
        """Open the prefix `output`.

        Args:
            output: its address.
            work: where to build what is to be uploaded.
            name: how the names of the folders made there begin; they are swept.
            keep: versions to keep of those that are replaced.
        """
        self._objects = Objects(output)
        self._pointers = Pointers(self._objects)
        self._work = work
        self._name = name
        self._keep = keep
        # What the last write must still find, and what it lists.
        self._seen: Seen | None = None
        self._live: dict[str, Any] | None = None

    def __str__(self) -> str:
        """Return its address."""
        return str(self._objects)

    def published(self) -> dict[str, Any] | None:
        """Return the record of what the prefix holds; None if nothing is published.

        Remembers the record's version: the one that `staging` may replace.

        Raises:
            OutputError: it holds something that no run of ours published.
            StorageError: the store keeps failing.
        """
        found = self._objects.look(publish.RECORD)
        if found is None:
            self._seen = self._live = None
            self._refuse_foreign()
            return None
        data, self._seen = found
        self._live = self._parse(data)
        return self._live

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """Return whether `record` answers the request and its objects are there.

        Their digests are taken on trust: nobody but us writes under a plan's id, and
        to compare them would be to download them.
        """
        return (
            record["request_id"] == request_id
            and record["status"] == "complete"
            and any(item["path"].endswith("/mask.tif") for item in record["outputs"])
            and self._is_there(record)
        )

    def _is_there(self, record: dict[str, Any]) -> bool:
        size = self._objects.size
        return all(size(item["path"]) == item["bytes"] for item in record["outputs"])

    def parked(self) -> dict[str, Any] | None:
        """See `Place`."""
        return self._pointers.parked()

    def holds_parked(self, record: dict[str, Any]) -> bool:
        """See `Place`; as `is_complete`."""
        return self._is_there(record)

    def kept(self) -> list[Version]:
        """See `Place`."""
        found = self._objects.look(publish.RECORD)
        live = parse(found[0]) if found else None
        return self._pointers.kept(self._objects.names(), live)

    def rolled_back(self) -> frozenset[str]:
        """See `Place`."""
        return self._pointers.rolled_back()

    def release(self, gates: list[Any] | None = None) -> dict[str, Any]:
        """See `Place`."""
        self.published()
        record = self.parked()
        if record is None:
            msg = f"{self}: nothing is parked"
            raise OutputError(msg)
        self._refuse_broken(record)
        values = released(record, gates)
        self._switch(values)
        return values

    def discard_parked(self) -> None:
        """See `Place`; the record first: what it lists is nobody's then."""
        record = self.parked()
        self.published()
        self._pointers.drop_parked()
        self._remove_parked(record)

    def roll_back(self, wanted: str = "") -> dict[str, Any]:
        """See `Place`."""
        live = self.published()
        version = choose(self.kept(), wanted, self)
        self._refuse_broken(version.record)
        values = promoted(version.record, "rollback")
        requests = self.rolled_back() - {version.record["request_id"]}
        if live:
            requests |= {live["request_id"]}
            self._pointers.keep(live)
        self._pointers.remember(requests)
        self._replace(values)
        self._pointers.drop([version.record])
        return values

    def _refuse_broken(self, record: dict[str, Any]) -> None:
        if not self._is_there(record):
            msg = (
                f"{self}: an object of {record['plan_id']} is missing or of another "
                "size; make the result again (tileseg segment --overwrite)"
            )
            raise OutputError(msg)

    def sweep(self) -> None:
        """Remove what killed runs left here, and what they were building."""
        if self._work.is_dir():
            self._sweep_beside(None)
        self._sweep_objects()

    def _sweep_objects(self) -> None:
        """Remove objects that are not listed and cannot be any more.

        What is older than the record is of a run that read the one before, and cannot
        replace this one; what is younger may be another run's, on its way.
        """
        try:
            items = self._objects.items()
        except TilesegError as err:
            logger.warning("%s", err)
            return
        record = items.get(publish.RECORD)
        if not (record and self._seen and record["e_tag"] == self._seen.get("e_tag")):
            return  # by another run
        old = {
            path
            for path, item in items.items()
            if item["last_modified"] < record["last_modified"]
        }
        old -= paths_of(self._live)
        left = set(filter(PRODUCT.fullmatch, old))
        if left and (others := self._others(items)) is not None:
            self._objects.remove(*(left - others))

    def _others(self, names: Iterable[str]) -> frozenset[str] | None:
        """Return what kept and parked records list; None if another just switched.

        It may have been listed before the switch, and its record have gone since.
        """
        try:
            listed = self._pointers.listed(names)
            found = self._objects.look(publish.RECORD)
        except TilesegError as err:
            logger.warning("%s", err)
            return None
        return listed if found and found[1] == self._seen else None

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty local folder; upload and publish it if all goes well.

        Hold the work directory's lock meanwhile.

        Raises:
            OutputError: the work directory or the prefix cannot be written.
            BusyError: another run published there since `published` was called.
            StorageError: the store keeps failing.
        """
        # A name of its own: a run that was frozen may wake up and go on writing.
        folder = self._work / f"{self._name}.{uuid4().hex}"
        try:
            folder.mkdir(parents=True)
        except OSError as err:
            msg = f"{folder}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err
        try:
            self._sweep_beside(folder)
            yield folder
            self._publish(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def list_outputs(
        self, folder: Path, plan_id: str, listed: Listed = ()
    ) -> list[dict[str, Any]]:
        """Return path below the prefix, bytes and sha256 of every file of the folder.

        No name is ever used twice: whoever deletes what an old record listed, however
        late, cannot hit what a newer one lists.
        """
        home = f"{plan_id}-{uuid4().hex[:8]}"
        files = publish.list_outputs(folder, listed)
        return [{**item, "path": f"{home}/{item['path']}"} for item in files]

    def _sweep_beside(self, mine: Path | None) -> None:
        """Remove what killed runs were building; hold the work directory's lock."""
        staging = re.compile(rf"{re.escape(self._name)}\.[0-9a-f]{{32}}")
        for item in self._work.iterdir():
            if staging.fullmatch(item.name) and item != mine:
                shutil.rmtree(item, ignore_errors=True)

    def _publish(self, folder: Path) -> None:
        """Upload the products, then the record, then delete what it replaced."""
        data = (folder / publish.RECORD).read_bytes()
        record = json.loads(data)
        self._upload(folder, record["outputs"])
        if record["status"] == PARKED:
            self._park(data, record)
            return
        try:
            self._switch(record)
        except BusyError:
            self._objects.remove(*paths_of(record))
            raise

    def _park(self, data: bytes, record: dict[str, Any]) -> None:
        """Write a record beside the live one, and delete what it replaced there.

        Raises:
            BusyError: another run published, and may have swept what was uploaded.
        """
        before = self.parked()
        self._pointers.park(data)
        found = self._objects.look(publish.RECORD)
        if (found and found[1]) != self._seen:
            self._pointers.drop_parked()
            self._objects.remove(*paths_of(record))
            raise self._overtaken()
        self._remove_parked(before)

    def _remove_parked(self, record: dict[str, Any] | None) -> None:
        """Delete what is parked no longer, but for what is live, or was since.

        A release that was killed left its record.
        """
        if record:
            kept = (paths_of(item.record) for item in self.kept())
            held = paths_of(self._live).union(*kept)
            self._objects.remove(*(paths_of(record) - held))

    def _switch(self, record: dict[str, Any]) -> None:
        """Make a record live; keep or delete what it replaced, and what is older.

        Raises:
            BusyError: another run published since `published` was called.
        """
        before = self._live
        if before and self._keep:
            self._pointers.keep(before)
        self._replace(record)
        if before and not self._keep:
            self._objects.remove(*paths_of(before))
        self._tidy()
        self._sweep_objects()

    def _replace(self, record: dict[str, Any]) -> None:
        """Replace `run.json`, if it still is the one that was read."""
        data = json_bytes(record)
        written = self._objects.replace(publish.RECORD, data, self._seen)
        if written is None:
            raise self._overtaken()
        self._seen, self._live = written, record

    def _tidy(self) -> None:
        """Forget what is older than a version that just went live."""
        try:
            names = self._objects.names()
            self._pointers.forget(names)
            if self._keep:
                gone = self._pointers.kept(names, self._live)[self._keep :]
                self._pointers.drop(item.record for item in gone)
                self._objects.remove(
                    *(it for old in gone for it in paths_of(old.record))
                )
        except TilesegError as err:
            logger.warning("%s", err)

    def _overtaken(self) -> BusyError:
        return BusyError(f"{self}: another run published there meanwhile; run again")

    def _upload(self, folder: Path, outputs: list[dict[str, Any]]) -> None:
        """Upload files of the folder, and see that they arrived whole."""
        for item in outputs:
            self._objects.write(item["path"], folder / Path(item["path"]).name)
        for item in outputs:
            if (got := self._objects.size(item["path"])) != item["bytes"]:
                msg = f"{self}/{item['path']}: got {got}, wanted {item['bytes']} bytes"
                raise StorageError(f"{msg} after the upload; run again")

    def _refuse_foreign(self) -> None:
        """Refuse a prefix that holds more than what an interrupted upload left."""
        if not all(map(OURS.fullmatch, self._objects.names())):
            msg = (
                f"{self}: holds objects but no run.json of tileseg; "
                "choose another output"
            )
            raise OutputError(msg)

    def _parse(self, data: bytes) -> dict[str, Any]:
        """Return a record of ours; refuse any other, and paths out of the prefix."""
        record = parse(data)
        if record is None:
            msg = f"{self}: its run.json is none of tileseg; choose another output"
            raise OutputError(msg)
        return record
