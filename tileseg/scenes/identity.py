"""What a scene's bytes are: the part of a plan that says which input it is for."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from tileseg.base.address import is_address, shown
from tileseg.base.names import is_catalog
from tileseg.errors import InputError, TilesegError
from tileseg.stores.objects import open_storage
from tileseg.stores.remote import fetcher
from tileseg.stores.storage import Storage

__all__ = ["Ahead", "Identities", "Identity", "identify", "look", "unknown"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECORD = "inputs.json"
_CHUNK = 8 << 20  # bytes between two looks at whether to go on


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's content, and how to see cheaply that it is still the same."""

    path: str
    """Absolute, or an address's handle."""
    size: int
    """In bytes."""
    stamp: tuple[int, int, int] = (0, 0, 0)
    """Inode, modification and change time in ns; never part of a plan."""
    sha256: str | None = None
    """Of all its bytes; None where a server says of which version they are."""
    etag: str | None = None
    """What the server calls that version: an etag, or when it was last modified."""

    def facts(self) -> dict[str, Any]:
        """Return what a plan says of it."""
        if self.etag is None:
            return {"size": self.size, "sha256": self.sha256}
        return {"address": shown(self.path), "size": self.size, "etag": self.etag}

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was touched since it was identified.

        A remote one is asked nothing: whoever reads it sees in every answer that it is
        of the version that this process looked at last.

        Raises:
            InputError: it was.
        """
        if is_address(self.path):
            version = fetcher(self.path).version
            is_same = self.size == version.size and self.etag == version.tag
        else:
            try:
                is_same = _stat(self.path) == (self.size, self.stamp)
            except OSError:
                is_same = False
        if not is_same:
            msg = f"{shown(self.path)}: changed while it was being read; run again"
            raise InputError(msg)


@dataclass(frozen=True, slots=True)
class Identities:
    """All files of a scene, in its order."""

    files: tuple[Identity, ...]

    @property
    def size(self) -> int:
        """Of all together, in bytes."""
        return sum(file.size for file in self.files)

    def facts(self) -> list[dict[str, Any]]:
        """Return the part of a plan that they are."""
        return [file.facts() for file in self.files]

    def remember(self, work: Storage) -> None:
        """Leave the digests in the work directory, for the next run to reuse."""
        # Of remote ones nobody could trust a digest.
        local = [file for file in self.files if not is_address(file.path)]
        record = [asdict(file) for file in local]
        work.write(_RECORD, json.dumps(record).encode())

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was touched since it was identified.

        Raises:
            InputError: one was.
        """
        for file in self.files:
            file.check_unchanged()


class Ahead:
    """The digest of a file, taken by a thread before it is needed.

    One file's, in memory only. Nobody waits for the thread but who needs that digest.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        """Hash nothing yet, and nothing more once it `is_over`."""
        self._is_over = is_over
        self._path = ""
        self._found: dict[str, Identity] = {}
        self._thread = Thread()

    def begin(self, source: str, work: str) -> None:
        """Begin with what a job names, if it is a local file that is not known there.

        In the place of the one before, if that was another.
        """
        path = str(Path(source).absolute())
        if path == self._path:
            return
        self.close()
        if is_address(source) or is_catalog(source):
            return
        self._path, self._found = path, {}
        facts = self._path, work, self._found
        self._thread = Thread(target=self._hash, args=facts, name="ahead", daemon=True)
        self._thread.start()

    def recall(self, path: str) -> Identity | None:
        """Return what a file was, when it is known; None if nobody began with it."""
        if path != self._path:
            return None
        self._thread.join()
        return self._found.get(path)

    def close(self) -> None:
        """Forget the file; the thread ends by itself, at its next chunk."""
        self._path, self._found = "", {}

    def _hash(self, path: str, work: str, found: dict[str, Identity]) -> None:
        with suppress(OSError, ValueError, TilesegError):  # its own turn will tell
            if not (Path(path).is_file() and unknown([path], open_storage(work))):
                return
            before = _stat(path)
            sha256 = _sha256(path, lambda: found is not self._found or self._is_over())
            if sha256 and _stat(path) == before:
                found[path] = Identity(path, *before, sha256)


def identify(
    paths: Iterable[str], work: Storage, ahead: Ahead | None = None
) -> Identities:
    """Return files' identities, hashing only those that neither of two did.

    The last run, whose record is in `work`, and who began `ahead`.

    Raises:
        InputError: one cannot be read.
    """
    known = _recall(work)
    pairs = [(path, ahead and ahead.recall(path)) for path in paths]
    return Identities(tuple(look(path, it or known.get(path)) for path, it in pairs))


def unknown(paths: Iterable[str], work: Storage) -> list[str]:
    """Return the files that the last run of this work directory did not read.

    Remote ones always: nobody could trust what it remembered of them.
    """
    known = _recall(work)
    return [path for path in paths if not _is_known(path, known.get(path))]


def _is_known(path: str, known: Identity | None) -> bool:
    try:
        return known is not None and (known.size, known.stamp) == _stat(path)
    except OSError:
        return False


def look(path: str, known: Identity | None) -> Identity:
    """Return a file's identity, hashing it only if it was touched since `known`.

    A remote file is hashed only if its server names no version of it.

    Raises:
        InputError: it cannot be read.
        TilesegError: it is remote, and its server refuses or keeps failing.
    """
    if is_address(path):
        source = fetcher(path)
        version = source.look()
        sha256 = None if version.tag else source.sha256()
        return Identity(path, version.size, sha256=sha256, etag=version.tag)
    try:
        size, stamp = _stat(path)
        if known and (known.path, known.size, known.stamp) == (path, size, stamp):
            return known
        sha256 = _sha256(path)
    except OSError as err:
        msg = f"{path}: cannot be read: {err.strerror}"
        raise InputError(msg) from err
    return Identity(path, size, stamp, sha256)


def _sha256(path: str, is_over: Callable[[], bool] = lambda: False) -> str | None:
    """Return the digest of all its bytes; None where it was over before."""
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with Path(path).open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            if is_over():
                return None
            sha256.update(buffer[:size])
    return sha256.hexdigest()


def _stat(path: str) -> tuple[int, tuple[int, int, int]]:
    stat = Path(path).stat()
    return stat.st_size, (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)


def _recall(work: Storage) -> Mapping[str, Identity]:
    """Return what the last run knew, by path; nothing where its record is broken."""
    try:
        values = json.loads(work.read(_RECORD))
        known = [Identity(**{**v, "stamp": tuple(v["stamp"])}) for v in values]
        is_good = _SHA256.fullmatch
        return {item.path: item for item in known if is_good(item.sha256 or "")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
