"""The same place of whole files in an object store; the only owner of obstore.

Credentials and endpoint are the environment's (`AWS_...`), and no message repeats what
the store's library says, since that may quote them.
"""

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from tileseg.base.journal import Entries, Journal
from tileseg.base.locations import is_remote
from tileseg.errors import (
    InputError,
    OutputError,
    RefusedError,
    StorageError,
    TilesegError,
    UsageError,
)
from tileseg.stores.source import Later, Part
from tileseg.stores.source import Version as FileVersion
from tileseg.stores.storage import Disk, Storage

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode, PutResult, UpdateVersion
    from obstore.store import ObjectStore, RetryConfig

    Version = UpdateVersion
    """Which of an object's contents one read or wrote."""

__all__ = ["GIVE_UP_SECONDS", "ObjectFile", "Objects", "open_storage"]

logger = logging.getLogger(__name__)

GIVE_UP_SECONDS = 300
"""At most, from the first failure of a request to the error that says so."""

_RETRY_SECONDS = 60  # the library repeats a request so long, and we what it does not
_WAIT_SECONDS = 0.2  # before the first repetition of ours, then twice as long
_PART_BYTES = 5 << 20  # the least that S3 takes: one must pass in 30 s
_MOST_PARTS = 5000  # S3 takes 10,000
_PARTS_AT_ONCE = 4
_LATER = {408, 425, 429}  # the client errors that say: not now
_AGAIN = {"RequestTimeout", "NoSuchUpload"}  # and those that say: from the start
_STATUS = re.compile(r"status code: (\d{3})")
_REASON = re.compile(r"<Code>(\w{1,60})</Code>")

_Answer = TypeVar("_Answer")


def open_storage(address: str) -> Storage:
    """Return the storage at a local path, or at an address in an object store.

    Raises:
        UsageError: it is in an object store, and obstore is not installed.
        OutputError: the environment does not say how to reach it.
    """
    return Objects(address) if is_remote(address) else Disk(Path(address))


class Objects:
    """A prefix of an object store."""

    def __init__(self, address: str) -> None:
        """Open the prefix; ask the store for nothing."""
        self.address = address.rstrip("/")
        self._store = _open(self.address)

    def __str__(self) -> str:
        """Return its address."""
        return self.address

    def below(self, name: str) -> "Objects":
        """See `Storage`."""
        return Objects(f"{self.address}/{name}")

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        found = self.look(name)
        if found is None:
            msg = f"{self}/{name}"
            raise FileNotFoundError(msg)
        return found[0]

    def look(self, name: str) -> "tuple[bytes, Version] | None":
        """Return an object's bytes and version; None if it is not there."""
        import obstore

        def get() -> "tuple[bytes, Version] | None":
            try:
                answer = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            return bytes(answer.bytes()), _version(answer.meta)

        return self._ask(f"{name} cannot be read", get)

    def size(self, name: str) -> int | None:
        """Return an object's size; None if it is not there."""
        meta = self._head(name)
        return meta and meta["size"]

    def modified(self, name: str) -> datetime | None:
        """Return when an object was written, by the store's clock; None without one."""
        meta = self._head(name)
        return meta and meta["last_modified"]

    def write(self, name: str, data: Path | bytes) -> None:
        """Upload an object, of a file's bytes too; see `Storage`.

        Raises:
            OutputError: the store refuses it.
            StorageError: the store keeps failing.
        """
        self._ask(
            f"{name} cannot be written", lambda: self._put(name, data, "overwrite")
        )

    def replace(
        self, name: str, data: bytes, seen: "Version | None"
    ) -> "Version | None":
        """Write an object if it still is the one that was seen; None if it is not.

        Args:
            name: the object's.
            data: its new bytes; no other process may ever write the same.
            seen: the version that must still be there; None for no object.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> "Version | None":
            try:
                return self._put(name, data, "create" if seen is None else seen)
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError:
                if seen is None:
                    raise  # no bucket
                return None

        failure = None
        try:
            if written := self._ask(f"{name} cannot be written", put):
                return written
        except StorageError as err:
            failure = err
        # The first try may have been taken, and its answer lost.
        found = self.look(name)
        if found and found[0] == data:
            return found[1]
        if failure:
            raise failure
        return None

    def remove(self, *names: str) -> None:
        """See `Storage`; several at once."""
        import obstore

        if names:
            try:
                self._ask(
                    "old objects cannot be deleted",
                    lambda: obstore.delete(self._store, sorted(names)),
                )
            except (OutputError, StorageError) as err:
                logger.warning("%s", err)

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return list(self.items())

    def items(self) -> "dict[str, ObjectMeta]":
        """Return all objects by their names: size, e_tag, last_modified."""
        import obstore

        return self._ask(
            "cannot be listed",
            lambda: {
                item["path"]: item
                for some in obstore.list(self._store)
                for item in some
            },
        )

    def folders(self) -> list[str]:
        """See `Storage`."""
        import obstore

        found = self._ask(
            "cannot be listed", lambda: obstore.list_with_delimiter(self._store)
        )
        return sorted(found["common_prefixes"])

    def clear(self) -> None:
        """See `Storage`."""
        with suppress(TilesegError):
            self.remove(*self.names())

    def sweep(self) -> None:
        """Do nothing: an upload that was killed is no object."""

    def vacate(self) -> None:
        """Do nothing: a prefix without objects is none."""

    def journal(self, name: str) -> Journal:
        """Return the one whose entries are the objects below `name`."""
        return Entries(self.below(name))

    def _head(self, name: str) -> "ObjectMeta | None":
        import obstore

        def head() -> "ObjectMeta | None":
            try:
                return obstore.head(self._store, name)
            except FileNotFoundError:
                return None

        return self._ask(f"{name} cannot be read", head)

    def _put(self, name: str, data: Path | bytes, mode: "PutMode") -> "Version":
        import obstore

        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        answer = obstore.put(
            self._store,
            name,
            data,
            mode=mode,
            chunk_size=max(_PART_BYTES, size // _MOST_PARTS),
            max_concurrency=_PARTS_AT_ONCE,
        )
        return _version(answer)

    def _ask(self, what: str, request: Callable[[], _Answer]) -> _Answer:
        """Return a request's answer; repeat it where the library does not.

        The library repeats no conditional write and no deletion that got no answer, and
        nothing whose answer broke off. All of ours may be repeated: `replace` looks
        whether its first try was the one that was taken.

        Raises:
            OutputError: the store refuses.
            StorageError: it keeps failing.
        """
        from obstore.exceptions import BaseError

        wait, end = _WAIT_SECONDS, 0.0
        while True:
            try:
                return request()
            except (BaseError, FileNotFoundError) as err:
                error = _explain(f"{self}: {what}", err)
            end = end or time.monotonic() + _RETRY_SECONDS
            if not isinstance(error, StorageError) or time.monotonic() + wait > end:
                raise error
            time.sleep(wait)
            wait *= 2


class ObjectFile:
    """One object, read by ranges."""

    def __init__(self, address: str) -> None:
        """Open its prefix; ask the store for nothing.

        Raises:
            UsageError: obstore is not installed.
            OutputError: the environment does not say how to reach it.
        """
        self._address = address
        prefix, _, self._name = address.rpartition("/")
        self._store = _open(prefix, tries_again=False)

    def get(
        self, start: int, stop: int, seen: FileVersion | None, _wait: float
    ) -> Part:
        """See `Source`; how long it may take is for the environment to say."""
        import obstore
        from obstore.exceptions import BaseError

        options: GetOptions = {"range": (start, stop)}
        if seen and seen.tag:
            options["if_match"] = seen.tag
        try:
            answer = obstore.get(self._store, self._name, options=options)
            data, meta = bytes(answer.bytes()), answer.meta
        except (BaseError, FileNotFoundError) as err:
            raise _why_not(self._address, err) from None
        if answer.range != (start, min(stop, meta["size"])):
            msg = f"{self._address}: the store gives other bytes than it is asked for"
            raise InputError(msg)
        if len(data) != answer.range[1] - start:
            msg = "the answer broke off"
            raise Later(msg)
        return Part(data, FileVersion(meta["size"], meta["e_tag"]))

    def renew(self) -> None:
        """Do nothing: the library drops a connection that failed."""


def _why_not(address: str, error: Exception) -> TilesegError | Later:
    """Return what the library's error for a range means."""
    from obstore.exceptions import (
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    found = _STATUS.search(str(error))
    status = int(found[1]) if found else 0
    if isinstance(error, FileNotFoundError):
        return InputError(f"{address}: there is no such object")
    if isinstance(error, PreconditionError):
        return InputError(f"{address}: changed while it was being read; run again")
    denied = PermissionDeniedError, UnauthenticatedError
    if isinstance(error, denied) or status in (401, 403):
        msg = f"{address}: the store refuses it; look at the credentials and rights"
        return RefusedError(msg)
    if status == 416:  # noqa: PLR2004  (out of range)
        return InputError(f"{address}: is empty, or became shorter while it was read")
    if 400 <= status < 500 and status not in _LATER:  # noqa: PLR2004
        return InputError(f"{address}: the store does not give it ({status})")
    return Later(f"{status or 'no answer'}", is_throttled=status in (429, 503))


def _open(address: str, *, tries_again: bool = True) -> "ObjectStore":
    if find_spec("obstore") is None:
        msg = f"{address}: obstore is not installed; pip install 'tileseg[remote]'"
        raise UsageError(msg)
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    retry: RetryConfig = {
        "max_retries": 1000 if tries_again else 0,  # more than the time allows
        "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=_WAIT_SECONDS),
            "max_backoff": timedelta(seconds=10),
            "base": 3,  # the pauses are random: with 2 they would not grow
        },
    }
    scheme, _, rest = address.partition("://")
    url = f"{scheme}://{quote(rest)}"  # a scene may be named as no URL can be
    try:
        # No options of the HTTP client: they would displace the environment's.
        return from_url(url, retry_config=retry)
    except (BaseError, ValueError):
        msg = f"{address}: cannot be opened; look at the address and the environment"
        raise OutputError(msg) from None


def _version(meta: "ObjectMeta | PutResult") -> "Version":
    """Return the condition that an object is still this one."""
    known: Version = {}  # without None, which the library refuses
    if (e_tag := meta["e_tag"]) is not None:
        known["e_tag"] = e_tag
    if (version := meta["version"]) is not None:
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
