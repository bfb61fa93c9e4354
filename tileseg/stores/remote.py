"""Remote files that read like local ones: fetched by ranges, again where that fails.

GDAL never asks the network: what it reads comes through a `RemoteFile` from here, so
none of its settings, and nothing that a file names, can lead anywhere else.
"""

import hashlib
import logging
import random
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import Self

from tileseg.base.address import STORES, netloc, shown, split
from tileseg.errors import InputError, StorageError, TilesegError
from tileseg.stores.gate import Gate
from tileseg.stores.source import Later, Source, Traffic, Version

__all__ = [
    "GIVE_UP_SECONDS",
    "Fetcher",
    "RemoteFile",
    "fetcher",
    "lend",
    "memory_bytes",
]

logger = logging.getLogger(__name__)

GIVE_UP_SECONDS = 60.0
"""At most, from the first failure of a read to the error that says so."""

_STALL_SECONDS = 20.0  # without a byte
_WAIT_SECONDS = 0.2  # before the first repetition, then twice as long
_LONGEST_WAIT = 10.0
_BLOCK_BYTES = 1 << 20
_BLOCKS = 32  # held by one reader, of all its files
_FEWEST_BLOCKS = 3  # of one file: that in use, and two on their way
_AHEAD = 8  # of them on their way
_HEAD_BYTES = 16  # that a look brings: what a file begins as


def memory_bytes(files: int) -> int:
    """Return what a reader with so many remote files open may hold of them."""
    blocks = max(_BLOCKS, _FEWEST_BLOCKS * files) + _AHEAD
    return blocks * _BLOCK_BYTES if files else 0


class Fetcher:
    """One remote file's bytes, whatever befalls its server for a while."""

    def __init__(self, handle: str, source: Source, gate: Gate) -> None:
        """Ask nothing yet."""
        self.handle = handle
        self._source, self._gate = source, gate
        self._version: Version | None = None
        self.head = b""
        """Its first bytes, as the last look saw them."""

    @property
    def version(self) -> Version:
        """What it was when it was last looked at, or is now."""
        return self._version or self.look()

    def look(self) -> Version:
        """Find out what it is now; every read from now on must be of this version."""
        self._version = None
        self.head = self.read(0, _HEAD_BYTES)
        return self.version

    def sha256(self) -> str:
        """Return the digest of all its bytes, read in order."""
        digest = hashlib.sha256()
        with RemoteFile(self) as file:
            while data := file.read(_BLOCK_BYTES):
                digest.update(data)
        if file.error:
            raise file.error
        return digest.hexdigest()

    def read(
        self,
        start: int,
        stop: int,
        traffic: Traffic | None = None,
        closed: Event | None = None,
    ) -> bytes:
        """Return bytes start..stop - 1, fewer at the file's end.

        Args:
            start: the first byte.
            stop: the one after the last.
            traffic: where to count.
            closed: set when the bytes are not wanted any more.

        Raises:
            StorageError: the server kept failing.
            TilesegError: see `Source.get`.
        """
        traffic, closed = traffic or Traffic(), closed or Event()
        begin, tries, wait = time.monotonic(), 0, _WAIT_SECONDS
        while True:
            tries += 1
            try:
                return self._try(start, stop, traffic, closed, is_again=tries > 1)
            except Later as err:
                since = max(begin, self._gate.served) if err.is_throttled else begin
                silent, reason = time.monotonic() - since, str(err)
                if silent + wait > GIVE_UP_SECONDS or closed.is_set():
                    msg = (
                        f"{shown(self.handle)}: bytes {start} to {stop - 1} cannot be "
                        f"read ({reason}; tried {tries} times); run again later"
                    )
                    raise StorageError(msg) from None
                where = shown(self.handle), start, stop - 1
                logger.debug("%s: bytes %d to %d: %s; again", *where, reason)
                if err.is_throttled:
                    continue  # the gate says how soon
            self._source.renew()
            closed.wait(random.uniform(0.5, 1) * wait)  # noqa: S311  (no secret)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _try(
        self, start: int, stop: int, traffic: Traffic, closed: Event, *, is_again: bool
    ) -> bytes:
        with self._gate.turn(closed) as began:
            if closed.is_set():
                msg = "not wanted any more"
                raise Later(msg)
            traffic.add(requests=1, retries=is_again)
            try:
                part = self._source.get(start, stop, self._version, _STALL_SECONDS)
            except Later as err:
                if err.is_throttled:
                    self._gate.press(began, err.pause)
                raise
            self._gate.ease()
        traffic.add(size=len(part.data))
        if part.version != (self._version or part.version):
            msg = f"{shown(self.handle)}: changed while it was being read; run again"
            raise InputError(msg)
        self._version = part.version
        return part.data


_lent: dict[str, Source] = {}


def lend(handle: str, source: Source) -> None:
    """Let this process, which may ask no server, read a remote file some other way."""
    _lent[handle] = source


@cache
def fetcher(handle: str) -> Fetcher:
    """Return this process's way to a remote file.

    Raises:
        TilesegError: there is none.
    """
    if handle in _lent:
        return Fetcher(handle, _lent[handle], Gate())
    parts = split(handle)
    assert parts, "it is no path"
    if parts.scheme in STORES:
        from tileseg.stores.objects import ObjectFile

        return Fetcher(handle, ObjectFile(handle), _gate(parts.scheme, parts.netloc, 0))
    from tileseg.stores.web import WebFile

    return Fetcher(handle, WebFile(handle), _gate(parts.scheme, *netloc(parts)))


@cache
def _gate(_scheme: str, _host: str, _port: int) -> Gate:
    return Gate()


class RemoteFile:
    """A remote file as Python knows files; read by one thread at a time.

    It fetches whole blocks, and the next ones before they are asked for where reading
    goes on from block to block. It never raises where it is read, since GDAL would
    not pass that on: it ends short, and `error` says why.
    """

    def __init__(self, source: Fetcher, traffic: Traffic | None = None) -> None:
        """Fetch nothing yet."""
        self.error: BaseException | None = None
        self._source, self._traffic = source, traffic or Traffic()
        self.size = source.version.size
        self._at = 0
        self._closed = Event()
        self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="fetch")
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._passed: set[int] = set()
        self._streaks: OrderedDict[int, int] = OrderedDict()
        self._traffic.add(files=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is held and on its way."""
        if not self._closed.is_set():
            self._traffic.add(files=-1)
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go there; `whence` as Python has it."""
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end, or where `error` came up."""
        start = self._at
        stop = self.size if size < 0 else min(start + size, self.size)
        if self.error or start >= stop:
            return b""
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        pieces = []
        try:
            for number in range(first, last + 1):
                offset = number * _BLOCK_BYTES
                data = self._block(number, last - number)
                pieces.append(data[max(0, start - offset) : stop - offset])
        except TilesegError as err:
            self.error = err
            return b""
        except Exception as err:  # noqa: BLE001  (a bug, which GDAL would swallow)
            self.error = TilesegError(f"{shown(self._source.handle)}: {err!r}")
            return b""
        except BaseException as err:  # noqa: BLE001  (a wish to end: it waits likewise)
            self.error = err
            return b""
        self._at = stop
        return b"".join(pieces)

    def _block(self, number: int, wanted: int) -> bytes:
        """Return a block; see that the next ones are on their way.

        Args:
            number: which.
            wanted: how many behind it are wanted in any case.
        """
        ahead = min(_AHEAD, max(wanted, self._likely(number)))
        block = self._fetch(number)
        self._passed.discard(number)  # reading came back to it
        last = (self.size - 1) // _BLOCK_BYTES
        for later in range(number + 1, min(number + ahead, last) + 1):
            if later not in self._blocks and not self._make_room():
                break  # what is on its way is wanted too
            self._fetch(later)
        return block.result()

    def _likely(self, number: int) -> int:
        """Return how many blocks behind this one will be wanted, by those before."""
        if number not in self._streaks:
            self._passed.add(number - 1)
            self._streaks[number] = self._streaks.pop(number - 1, 0) + 1
            while len(self._streaks) > _BLOCKS:
                self._streaks.popitem(last=False)
        streak = self._streaks[number]
        return min(_AHEAD, 1 << (streak - 1)) if streak > 1 else 0

    def _fetch(self, number: int) -> Future[bytes]:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        if not self._make_room() and self._blocks:
            self._drop(next(iter(self._blocks)))
        start = number * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self.size)
        block = self._pool.submit(
            self._source.read, start, stop, self._traffic, self._closed
        )
        self._blocks[number] = block
        return block

    def _make_room(self) -> bool:
        """Drop the oldest blocks that reading has left; return whether there is room.

        Files that are read side by side share what their reader may hold.
        """
        places = max(_FEWEST_BLOCKS, _BLOCKS // max(1, self._traffic.files))
        left = [number for number in self._blocks if number in self._passed]
        for number in left[: max(0, len(self._blocks) + 1 - places)]:
            self._drop(number)
        return len(self._blocks) < places

    def _drop(self, number: int) -> None:
        self._blocks.pop(number).cancel()
        self._passed.discard(number)
