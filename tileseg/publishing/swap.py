"""Directories beside a place, and two of them swapped in one step."""

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange", "sibling", "sync"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sibling(place: Path, role: str) -> Path:
    """Return the hidden directory beside a place that has a role for it."""
    return place.with_name(f".{place.name}.{role}")


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if not rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))
