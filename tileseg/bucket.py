"""Outputs in an object store: new objects beside the old ones, then one switch.

The products of a plan are objects of their own, `<output>/<plan_id>/<file>`. They
count once `<output>/run.json` lists them, and that one object is replaced last, only
if it is still the one that was read: a reader follows the old record or the new one.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tileseg import publish
from tileseg.errors import BusyError, OutputError, StorageError, TilesegError
from tileseg.objects import Objects
from tileseg.settings import Job, is_remote

if TYPE_CHECKING:
    from tileseg.objects import Version

__all__ = ["Bucket", "open_place"]

logger = logging.getLogger(__name__)

_HOME = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?")
_PRODUCT = re.compile(rf"{_HOME.pattern}/\w[\w.]*", re.ASCII)


def open_place(job: Job) -> publish.Place:
    """Return where a job's outputs go.

    Raises:
        UsageError: it is in an object store, and obstore is not installed.
        OutputError: the environment does not say how to reach it.
    """
    if is_remote(job.destination):
        if not is_remote(job.workplace):
            return Bucket(job.destination, job.work_path)
        # What a run of this workplace left is known by its name: its lock is held.
        mark = sha256(job.workplace.encode()).hexdigest()[:16]
        return Bucket(job.destination, Path(gettempdir()), f"tileseg.{mark}")
    return publish.Folder(job.output_path)


class Bucket:
    """A prefix of an object store, as the place of one scene's outputs."""

    def __init__(self, output: str, work: Path, name: str = "staging") -> None:
        """Open the prefix `output`.

        Args:
            output: its address.
            work: where to build what is to be uploaded.
            name: how the names of the folders made there begin; they are swept.
        """
        self._objects = Objects(output)
        self._work = work
        self._name = name
        # The version that the last write must still find, and what it lists.
        self._seen: Version | None = None
        self._listed: frozenset[str] = frozenset()

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
            self._seen, self._listed = None, frozenset()
            self._refuse_foreign()
            return None
        data, self._seen = found
        record = self._parse(data)
        self._listed = frozenset(item["path"] for item in record["outputs"])
        return record

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """Return whether `record` answers the request and its objects are there.

        Their digests are taken on trust: nobody but us writes under a plan's id, and
        to compare them would be to download them.
        """
        outputs, size = record["outputs"], self._objects.size
        return (
            record["request_id"] == request_id
            and record["status"] == "complete"
            and any(item["path"].endswith("/mask.tif") for item in outputs)
            and all(size(item["path"]) == item["bytes"] for item in outputs)
        )

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
        self._objects.remove(*filter(_PRODUCT.fullmatch, old - self._listed))

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

    def list_outputs(self, folder: Path, plan_id: str) -> list[dict[str, Any]]:
        """Return path below the prefix, bytes and sha256 of every file of the folder.

        No name is ever used twice: whoever deletes what an old record listed, however
        late, cannot hit what a newer one lists.
        """
        home = f"{plan_id}-{uuid4().hex[:8]}"
        files = publish.list_outputs(folder)
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
        outputs = json.loads(data)["outputs"]
        self._upload(folder, outputs)
        written = self._objects.replace(publish.RECORD, data, self._seen)
        if written is None:
            self._objects.remove(*(item["path"] for item in outputs))
            msg = f"{self}: another run published there meanwhile; run again"
            raise BusyError(msg)
        self._objects.remove(*self._listed)
        self._seen = written
        self._listed = frozenset(item["path"] for item in outputs)
        self._sweep_objects()

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
        if not all(map(_PRODUCT.fullmatch, self._objects.names())):
            msg = (
                f"{self}: holds objects but no run.json of tileseg; "
                "choose another output"
            )
            raise OutputError(msg)

    def _parse(self, data: bytes) -> dict[str, Any]:
        """Return a record of ours; refuse any other, and paths out of the prefix."""
        try:
            record = dict(json.loads(data))
            _ = [record[key] for key in ("request_id", "plan_id", "status")]
            paths = [item["path"] for item in record["outputs"] if item["bytes"] >= 0]
            is_ours = all(_PRODUCT.fullmatch(path) for path in paths)
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            msg = f"{self}: its run.json is none of tileseg; choose another output"
            raise OutputError(msg)
        return record
