"""What a scene's bytes are: the part of a plan that says which input it is for."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from tileseg.errors import InputError
from tileseg.storage import Storage

__all__ = ["Identity", "identify", "is_known", "look"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECORD = "inputs.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """A local file's content, and how to see cheaply that it is still the same."""

    path: str
    """Absolute."""
    size: int
    """In bytes."""
    stamp: tuple[int, int, int]
    """Inode, modification and change time in ns; never part of a plan."""
    sha256: str
    """Of all its bytes."""

    def remember(self, work: Storage) -> None:
        """Leave the digest in the work directory, for the next run to reuse."""
        work.write(_RECORD, json.dumps(asdict(self)).encode())

    def check_unchanged(self) -> None:
        """Refuse to go on with a file that was touched since it was identified.

        Raises:
            InputError: it was.
        """
        try:
            is_same = _stat(self.path) == (self.size, self.stamp)
        except OSError:
            is_same = False
        if not is_same:
            msg = f"{self.path}: changed while it was being read; run again"
            raise InputError(msg)


def identify(path: str, work: Storage) -> Identity:
    """Return a file's identity, hashing it only if the last run did not.

    Raises:
        InputError: it cannot be read.
    """
    return look(path, _recall(work))


def is_known(path: str, work: Storage) -> bool:
    """Return whether the last run of this work directory read the very same file."""
    known = _recall(work)
    try:
        return known is not None and (known.path, known.size, known.stamp) == (
            path,
            *_stat(path),
        )
    except OSError:
        return False


def look(path: str, known: Identity | None) -> Identity:
    """Return a file's identity, hashing it only if it was touched since `known`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        size, stamp = _stat(path)
        if known and (known.path, known.size, known.stamp) == (path, size, stamp):
            return known
        with Path(path).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        msg = f"{path}: cannot be read: {err.strerror}"
        raise InputError(msg) from err
    return Identity(path, size, stamp, sha256)


def _stat(path: str) -> tuple[int, tuple[int, int, int]]:
    stat = Path(path).stat()
    return stat.st_size, (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)


def _recall(work: Storage) -> Identity | None:
    try:
        value = json.loads(work.read(_RECORD))
        known = Identity(**{**value, "stamp": tuple(value["stamp"])})
        return known if _SHA256.fullmatch(known.sha256) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
