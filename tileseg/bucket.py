"""Outputs in an object store: new objects beside the old ones, then one switch.

The products of a plan are objects of their own, `<output>/<plan_id>/<file>`. They
count once `<output>/run.json` lists them, and that one object is replaced last, only
if it is still the one that was read: a reader follows the old record or the new one.
Credentials and endpoint are the environment's (`AWS_...`), and no message repeats what
the store's library says, since that may quote them.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from tileseg import publish
from tileseg.errors import (
    BusyError,
    OutputError,
    StorageError,
    TilesegError,
    UsageError,
)
from tileseg.ledger import write_whole
from tileseg.settings import Job, is_remote

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, UpdateVersion
    from obstore.store import ObjectStore, RetryConfig

__all__ = ["Bucket", "leave", "open_place"]

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60  # the library repeats a request so long, and we what it does not
_WAIT_SECONDS = 0.2  # before the first repetition of ours, then twice as long
_PART_BYTES = 5 << 20  # the least that S3 takes: one must pass in 30 s
_MOST_PARTS = 5000  # S3 takes 10,000
_PARTS_AT_ONCE = 4
_LATER = {408, 425, 429}  # the client errors that say: not now
_AGAIN = {"RequestTimeout", "NoSuchUpload"}  # and those that say: from the start
_HOME = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?")
_PRODUCT = re.compile(rf"{_HOME.pattern}/\w[\w.]*", re.ASCII)
_STATUS = re.compile(r"status code: (\d{3})")
_REASON = re.compile(r"<Code>(\w{1,60})</Code>")

_Answer = TypeVar("_Answer")


def open_place(job: Job) -> publish.Place:
    """Return where a job's outputs go.

    Raises:
        UsageError: it is in an object store, and obstore is not installed.
        OutputError: the environment does not say how to reach it.
    """
    if is_remote(job.destination):
        return Bucket(job.destination, job.work_path)
    return publish.Folder(job.output_path)


def leave(output: str, name: str, data: bytes) -> None:
    """Write one more file beside the outputs, whole, whatever was there.

    Raises:
        TilesegError: it cannot be written.
    """
    if is_remote(output):
        Bucket(output, Path()).put(name, data)
    else:
        write_whole(Path(output) / name, data)


class Bucket:
    """A prefix of an object store, as the place of one scene's outputs."""

    def __init__(self, output: str, work: Path) -> None:
        """Open the prefix `output`; what is to be uploaded is built in `work`."""
        self._output = output.rstrip("/")
        self._work = work
        self._store = _open(self._output)
        # The version that the last write must still find, and what it lists.
        self._seen: PutMode = "create"
        self._listed: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return its address."""
        return self._output

    def published(self) -> dict[str, Any] | None:
        """Return the record of what the prefix holds; None if nothing is published.

        Remembers the record's version: the one that `staging` may replace.

        Raises:
            OutputError: it holds something that no run of ours published.
            StorageError: the store keeps failing.
        """
        found = self._read()
        if found is None:
            self._seen, self._listed = "create", frozenset()
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
        outputs = record["outputs"]
        return (
            record["request_id"] == request_id
            and record["status"] == "complete"
            and any(item["path"].endswith("/mask.tif") for item in outputs)
            and all(self._size(item["path"]) == item["bytes"] for item in outputs)
        )

    def tidy(self) -> None:
        """Delete what a killed run left: what is not listed and cannot be any more.

        What is older than the record is of a run that read the one before, and cannot
        replace this one. What is younger may be another run's, on its way.
        """
        try:
            items = self._items()
        except (OutputError, StorageError) as err:
            logger.warning("%s", err)
            return
        record = items.get(publish.RECORD)
        seen = self._seen if isinstance(self._seen, dict) else {}
        if record is None or record["e_tag"] != seen.get("e_tag"):
            return  # by another run
        self._forget(
            frozenset(
                path
                for path, item in items.items()
                if item["last_modified"] < record["last_modified"]
                and _PRODUCT.fullmatch(path)
            ).difference(self._listed)
        )

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty local folder; upload and publish it if all goes well.

        Hold the work directory's lock meanwhile.

        Raises:
            OutputError: the work directory or the prefix cannot be written.
            BusyError: another run published there since `published` was called.
            StorageError: the store keeps failing.
        """
        folder = self._work / "staging"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as err:
            msg = f"{folder}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err
        try:
            yield folder
            self._publish(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def list_outputs(
        self, folder: Path, plan_id: str, *, is_whole: bool
    ) -> list[dict[str, Any]]:
        """Return path below the prefix, bytes and sha256 of every file of the folder.

        A plan's complete outputs are always the same, its outputs with holes are not:
        these get a home of their own, so that no listed object ever changes.
        """
        files = publish.list_outputs(folder)
        home = plan_id
        if not is_whole:
            home += f"-{sha256(json.dumps(files).encode()).hexdigest()[:8]}"
        return [{**item, "path": f"{home}/{item['path']}"} for item in files]

    def put(self, path: str, file: Path | bytes, mode: "PutMode" = "overwrite") -> None:
        """Upload an object; it appears whole or not at all.

        Raises:
            OutputError: the store refuses it.
            StorageError: the store keeps failing.
        """
        import obstore

        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        self._ask(
            f"{path} cannot be written",
            lambda: obstore.put(
                self._store,
                path,
                file,
                mode=mode,
                chunk_size=max(_PART_BYTES, size // _MOST_PARTS),
                max_concurrency=_PARTS_AT_ONCE,
            ),
        )

    def _publish(self, folder: Path) -> None:
        """Upload the products, then the record, then delete what it replaced."""
        data = (folder / publish.RECORD).read_bytes()
        paths = [item["path"] for item in json.loads(data)["outputs"]]
        for path in paths:
            self.put(path, folder / Path(path).name)
        self._switch(data)
        self._forget(self._listed.difference(paths))

    def _switch(self, data: bytes) -> None:
        """Replace the record by a new one, if it is still the one that was read."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self.put(publish.RECORD, data, self._seen)
        except (AlreadyExistsError, PreconditionError):
            # A retry also gets here if the answer to the first try was lost.
            found = self._read()
            if found and found[0] == data:
                return
            msg = f"{self}: another run published there meanwhile; run again"
            raise BusyError(msg) from None

    def _forget(self, paths: frozenset[str]) -> None:
        """Delete what no record lists any more; what cannot be deleted stays."""
        import obstore

        if paths:
            try:
                self._ask(
                    "old objects cannot be deleted",
                    lambda: obstore.delete(self._store, sorted(paths)),
                )
            except (OutputError, StorageError) as err:
                logger.warning("%s", err)

    def _read(self) -> "tuple[bytes, PutMode] | None":
        """Return the record's bytes and version; None if there is none."""
        import obstore

        def get() -> "tuple[bytes, PutMode] | None":
            try:
                answer = obstore.get(self._store, publish.RECORD)
            except FileNotFoundError:
                return None
            data = bytes(answer.bytes())
            return data, _version(answer.meta["e_tag"], answer.meta["version"])

        return self._ask(f"{publish.RECORD} cannot be read", get)

    def _size(self, path: str) -> int | None:
        """Return an object's size; None if it is not there."""
        import obstore

        def head() -> int | None:
            try:
                return obstore.head(self._store, path)["size"]
            except FileNotFoundError:
                return None

        return self._ask(f"{path} cannot be read", head)

    def _items(self) -> "dict[str, ObjectMeta]":
        """Return all objects of the prefix by their paths."""
        import obstore

        return self._ask(
            "cannot be listed",
            lambda: {
                item["path"]: item
                for chunk in obstore.list(self._store)
                for item in chunk
            },
        )

    def _refuse_foreign(self) -> None:
        """Refuse a prefix that holds more than what an interrupted upload left."""
        if not all(_PRODUCT.fullmatch(path) for path in self._items()):
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

    def _ask(self, what: str, request: Callable[[], _Answer]) -> _Answer:
        """Return a request's answer; repeat it where the library does not.

        It repeats what cannot have happened and what may happen twice. It does not
        repeat a conditional write or a deletion without an answer, and no answer that
        broke off: all of ours may be repeated, the first a caller looks into.
        Lost conditions pass: they are no errors of the store.

        Raises:
            OutputError: the store refuses.
            StorageError: it keeps failing.
        """
        from obstore import exceptions

        wait, end = _WAIT_SECONDS, 0.0
        while True:
            try:
                return request()
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise
            except (exceptions.BaseError, FileNotFoundError) as err:
                error = _explain(f"{self}: {what}", err)
            end = end or time.monotonic() + _RETRY_SECONDS
            if not isinstance(error, StorageError) or time.monotonic() + wait > end:
                raise error
            time.sleep(wait)
            wait *= 2


def _open(output: str) -> "ObjectStore":
    if find_spec("obstore") is None:
        msg = f"{output}: obstore is not installed; pip install 'tileseg[remote]'"
        raise UsageError(msg)
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    retry: RetryConfig = {
        "max_retries": 1000,  # more than the time allows
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=_WAIT_SECONDS),
            "max_backoff": timedelta(seconds=10),
            "base": 3,  # the pauses are random: with 2 they would not grow
        },
    }
    scheme, _, rest = output.partition("://")
    url = f"{scheme}://{quote(rest)}"  # a scene may be named as no URL can be
    try:
        # No options of the HTTP client: they would displace the environment's.
        return from_url(url, retry_config=retry)
    except (BaseError, ValueError):
        msg = f"{output}: cannot be opened; look at the address and the environment"
        raise OutputError(msg) from None


def _version(e_tag: str | None, version: str | None) -> "UpdateVersion":
    """Return the condition that an object is still this one."""
    known: UpdateVersion = {}  # without None, which the library refuses
    if e_tag is not None:
        known["e_tag"] = e_tag
    if version is not None:
        known["version"] = version
    return known


def _explain(what: str, error: Exception) -> TilesegError:
    """Return our error for the library's: its status and its code, no more."""
    status = _STATUS.search(text := str(error))
    reason = _REASON.search(text)
    said = " ".join(found[1] for found in (status, reason) if found)
    is_final = (
        400 <= int(status[1]) < 500 and int(status[1]) not in _LATER  # noqa: PLR2004
        if status
        else isinstance(error, FileNotFoundError)
    )
    if is_final and not (reason and reason[1] in _AGAIN):
        hint = "look at the address, the credentials and their rights"
        return OutputError(f"{what} ({said or 'not found'}); {hint}")
    return StorageError(f"{what} ({said or 'no answer'}); run again later")
