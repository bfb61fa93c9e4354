"""What is done, entry by entry: lines of one file on a disk, objects in a store.

In no order, and an entry is there whole or is junk: whoever reads them judges.
"""

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import monotonic
from typing import Protocol
from uuid import uuid4

from tileseg.base.overlap import side_by_side
from tileseg.errors import OutputError

__all__ = ["Entries", "Journal", "Lines"]

_AT_ONCE = 4
_SYNC_PAUSE = 9  # times as long as the last sync took
_AHEAD = 8  # added, and not yet known to be in the store: what a kill may cost


class Journal(Protocol):
    """Entries that outlive the process, in no order."""

    def entries(self) -> Iterable[bytes]:
        """Yield what was added, by earlier processes too; a torn entry may be junk.

        Raises:
            TilesegError: they cannot be read.
        """

    def add(self, entry: bytes) -> None:
        """Add an entry.

        Raises:
            TilesegError: this one, or one before it, cannot be written.
        """

    def flush(self) -> None:
        """Come back when all that was added would outlive a crash.

        Raises:
            TilesegError: it cannot be written; what was not yet begun is given up.
        """


class Lines:
    """A journal that is one file, appended line by line.

    A line outlives the process at once, and a crash of the machine from the next sync
    on. Syncs take a tenth of the time at most: where entries come faster than the disk
    syncs, one is for many.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; touch nothing."""
        self._path = path
        self._next_sync = 0.0
        self._is_synced = True

    def entries(self) -> Iterable[bytes]:
        """See `Journal`."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as err:
            msg = f"{self._path}: cannot be read: {err.strerror}"
            raise OutputError(msg) from err
        if data and not data.endswith(b"\n"):
            self._append(b"\n")  # so that the next entry begins a line of its own
        return data.split(b"\n")

    def add(self, entry: bytes) -> None:
        """See `Journal`."""
        self._append(entry + b"\n")

    def flush(self) -> None:
        """See `Journal`."""
        if not self._is_synced:
            self._next_sync = 0.0
            self._append(b"")

    def _append(self, data: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(data)
                file.flush()
                self._is_synced = (start := monotonic()) >= self._next_sync
                if self._is_synced:
                    os.fsync(file.fileno())
                    now = monotonic()
                    self._next_sync = now + _SYNC_PAUSE * (now - start)
        except OSError as err:
            msg = f"{self._path}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err


class _Place(Protocol):
    """Where the entries are, one object each."""

    def names(self) -> list[str]:
        """Return the names of all objects."""

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""

    def write(self, name: str, data: bytes) -> None:
        """Put an object."""


class Entries:
    """A journal of objects, put by a few threads behind whoever adds them."""

    def __init__(self, place: _Place) -> None:
        """Name the place; ask the store for nothing."""
        self._place = place
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def entries(self) -> Iterable[bytes]:
        """See `Journal`."""
        return side_by_side(self._place.read, self._place.names())

    def add(self, entry: bytes) -> None:
        """See `Journal`."""
        pending = self._pending
        while len(pending) >= _AHEAD or (pending and pending[0].done()):
            if pending[0].exception():
                self.flush()  # raises it
            pending.popleft()
        self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE)
        pending.append(
            self._pool.submit(self._place.write, f"{uuid4().hex}.json", entry)
        )

    def flush(self) -> None:
        """See `Journal`."""
        pool, self._pool = self._pool, None
        pending, self._pending = self._pending, deque()
        done, _ = wait(pending, return_when=FIRST_EXCEPTION)
        if pool:
            # Each would be tried again for a minute, and then for another one.
            pool.shutdown(cancel_futures=True)
        for put in done:
            put.result()
