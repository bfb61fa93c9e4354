"""One run at a time: a lock that its owner renews, and that a frozen owner loses.

Advisory: it saves doubled work. Correctness rests on content-addressed shards and on
the switch in `publish.py` and `bucket.py`. Ages are told by the clock of where the
lock is, so no two machines need to agree on the time.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from tileseg.base import owner
from tileseg.errors import BusyError, OutputError, StorageError, TilesegError
from tileseg.stores.objects import Objects
from tileseg.stores.storage import TEMPORARY, Disk, Storage

if TYPE_CHECKING:
    from tileseg.stores.objects import Version

__all__ = ["Hold", "hold", "hold_file"]

_BEAT_SECONDS = 4.0
_STALE_SECONDS = 20.0  # without a beat: some were missed
_SETTLE_SECONDS = 0.5
_NOW = "lock.now"  # an object written to be told the time
_END_SECONDS = 5.0  # to wait for a beat under way
_TRIES = 20  # against others that free or take it between two of our calls


class Hold:
    """A lock that this process took; a thread renews it."""

    def __init__(self, lock: "_Lock") -> None:
        """Begin to renew it."""
        self._lock = lock
        self._mutex = threading.Lock()
        self._is_lost = False
        self._is_over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Refuse to go on with a lock that was seen to be lost.

        Raises:
            BusyError: it was.
        """
        if self._is_lost:
            msg = f"{self._lock}: this run stood still, and another took over"
            raise BusyError(msg)

    def renew(self) -> None:
        """Renew the lock now, and refuse to go on if it is lost.

        Raises:
            BusyError: it is.
            TilesegError: it cannot be renewed.
        """
        with self._mutex:
            if not (self._is_lost or self._is_over.is_set()):
                self._is_lost = not self._lock.renew()
        self.check()

    def end(self) -> None:
        """Renew it no more, and let others have it, at once or when it is stale."""
        self._is_over.set()
        self._beats.join(_END_SECONDS)
        if not self._beats.is_alive():  # one that waits for the store has the lock
            with self._mutex, suppress(TilesegError):
                self._lock.free()

    def _beat(self) -> None:
        while not self._is_over.wait(_BEAT_SECONDS):
            with suppress(TilesegError):  # the store may be back at the next beat
                self.renew()


def hold(work: Storage, request_id: str) -> AbstractContextManager[Hold]:
    """Hold a work directory for this process.

    What goes wrong after the lock was lost is another's doing: a BusyError too.

    Raises:
        BusyError: another process holds it, and shows that it is alive.
        TilesegError: it cannot be written.
    """
    if isinstance(work, Objects):
        return _held(_ObjectLock(work), request_id)
    assert isinstance(work, Disk), "work is on a disk or in an object store"
    return hold_file(work.path / "lock", request_id)


def hold_file(
    path: Path, request_id: str | None = None
) -> AbstractContextManager[Hold]:
    """Hold a local file, which is removed at the end; see `hold`."""
    return _held(_FileLock(path), request_id)


@contextmanager
def _held(lock: "_Lock", request_id: str | None) -> Iterator[Hold]:
    lock.take({**owner.this_process(), "request_id": request_id, "id": uuid4().hex})
    held = Hold(lock)
    try:
        yield held
    except BusyError:
        raise
    except Exception:
        with suppress(OutputError, StorageError):
            held.renew()
        raise
    finally:
        held.end()


class _Lock(Protocol):
    """How a lock is kept in one kind of storage."""

    def take(self, who: dict[str, Any]) -> None:
        """Get it, or raise BusyError naming who has it."""

    def renew(self) -> bool:
        """Show that the owner is alive; False if another has it by now."""

    def free(self) -> None:
        """Let others have it, if nobody took it and that can be done."""


class _FileLock:
    """A file, locked in the kernel: free at once however its owner ends.

    The kernel keeps it for an owner that is frozen, so a stale file is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes]

    def __str__(self) -> str:
        return str(self._path)

    def take(self, who: dict[str, Any]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_TRIES):
                if self._try(json.dumps(who).encode()):
                    return
        except OSError as err:
            msg = f"{self}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err
        raise _busy(self, {})

    def renew(self) -> bool:
        try:
            os.utime(self._file.fileno())
            return self._is_mine(self._file)
        except OSError as err:
            msg = f"{self}: cannot be renewed: {err.strerror}"
            raise OutputError(msg) from err

    def free(self) -> None:
        with suppress(OSError), self._file:  # what stays is stale soon
            if self._is_mine(self._file):
                self._path.unlink(missing_ok=True)

    def _try(self, who: bytes) -> bool:
        """Take the lock if that can be; False if another was at it meanwhile."""
        file: IO[bytes] = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                if not self._is_stale(file):
                    file.seek(0)
                    raise _busy(self, owner.parse(file.read())) from None
            file = self._replaced()
        # The one before may have removed or replaced the file between our calls.
        if not self._is_mine(file):
            file.close()
            return False
        file.truncate(0)
        file.write(who)
        file.flush()
        self._file = file
        return True

    def _is_stale(self, file: IO[bytes]) -> bool:
        """Look twice: who just got the file of a dead one may not have written yet."""
        if self._age(file) > _STALE_SECONDS:
            time.sleep(_SETTLE_SECONDS)
        return self._age(file) > _STALE_SECONDS

    def _age(self, file: IO[bytes]) -> float:
        with _temporary(self._path) as (_path, fresh):
            now = os.fstat(fresh.fileno()).st_mtime
        return now - os.fstat(file.fileno()).st_mtime

    def _replaced(self) -> IO[bytes]:
        """Put another file in the place of the one whose owner is frozen."""
        with _temporary(self._path) as (path, _file):
            file = path.open("a+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            path.replace(self._path)
        return file

    def _is_mine(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Give a new file beside another; it goes, unless it is moved."""
    name = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY}")
    try:
        with name.open("wb") as file:
            yield name, file
    finally:
        name.unlink(missing_ok=True)


class _ObjectLock:
    """An object that is made and renewed by conditional writes."""

    def __init__(self, place: Objects) -> None:
        self._place = place
        self._owner: dict[str, Any] = {}
        self._seen: Version | None = None
        self._is_reached = True

    def __str__(self) -> str:
        return f"{self._place}/lock"

    def take(self, who: dict[str, Any]) -> None:
        self._owner = {**who, "beat": 0}
        for _ in range(_TRIES):
            found = self._place.look("lock")
            if found and not self._is_stale(holder := owner.parse(found[0])):
                raise _busy(self, holder)
            self._seen = self._place.replace("lock", self._text, found and found[1])
            if self._seen is not None:
                return
        raise _busy(self, {})

    def renew(self) -> bool:
        self._is_reached = False
        self._owner["beat"] += 1  # other bytes: a version is told by them
        seen = self._place.replace("lock", self._text, self._seen)
        if seen is None and (found := self._mine()):
            # The beat before was taken, and its answer never came.
            seen = self._place.replace("lock", self._text, found)
        self._seen, self._is_reached = seen or self._seen, True
        return seen is not None

    def free(self) -> None:
        if self._is_reached and self._mine():  # else the end would wait for the store
            self._place.remove("lock", _NOW)  # a killed run may have left it

    def _mine(self) -> "Version | None":
        """Return the version that is there; None if it is another owner's."""
        found = self._place.look("lock")
        if found and owner.parse(found[0]).get("id") == self._owner["id"]:
            return found[1]
        return None

    @property
    def _text(self) -> bytes:
        return json.dumps(self._owner).encode()

    def _is_stale(self, holder: Mapping[str, Any]) -> bool:
        if owner.is_gone(holder):
            return True
        self._place.write(_NOW, b"")
        now, beat = self._place.modified(_NOW), self._place.modified("lock")
        self._place.remove(_NOW)
        return bool(now and beat and (now - beat).total_seconds() > _STALE_SECONDS)


def _busy(lock: _Lock, holder: Mapping[str, Any]) -> BusyError:
    who = owner.name(holder)
    return BusyError(f"{lock}: another run is at it ({who}); wait for it to end")
