"""A place of whole, named files, and the one that is a folder on a disk.

What unfinished work needs of storage, and no more. Names are relative, with slashes.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from tileseg.base.journal import Journal, Lines
from tileseg.errors import OutputError

__all__ = ["TEMPORARY", "Disk", "Storage", "write_whole"]

TEMPORARY = ".tileseg.tmp"
"""Ends names that only a killed run leaves behind."""


class Storage(Protocol):
    """Whole, named files: each is there with all its bytes, or is not there."""

    @property
    def address(self) -> str:
        """Where it is, for any process on any node that reaches it."""

    def below(self, name: str) -> "Storage":
        """Return the storage of the files whose names begin with `name`/."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            OSError: it is not there, or the disk cannot give it.
            TilesegError: the store refuses, or keeps failing.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, whatever was there.

        Raises:
            TilesegError: it cannot be written.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be."""

    def folders(self) -> list[str]:
        """Return what stands before the first slash of the names, sorted."""

    def clear(self) -> None:
        """Remove every file, if that can be done."""

    def sweep(self) -> None:
        """Remove what killed writers left beside the files."""

    def vacate(self) -> None:
        """Remove the place itself, if it is empty."""

    def journal(self, name: str) -> Journal:
        """Return the journal of that name."""


class Disk:
    """A local folder, or one on a mount that nodes share; need not be there yet."""

    def __init__(self, path: Path) -> None:
        """Name the folder; touch nothing."""
        self.path = path

    def __str__(self) -> str:
        """Return its path."""
        return str(self.path)

    @property
    def address(self) -> str:
        """Its absolute path."""
        return str(self.path.absolute())

    def below(self, name: str) -> "Disk":
        """See `Storage`."""
        return Disk(self.path / name)

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        write_whole(self.path / name, data)

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with suppress(OSError):
            (self.path / name).unlink()

    def folders(self) -> list[str]:
        """See `Storage`."""
        try:
            return sorted(item.name for item in self.path.iterdir() if item.is_dir())
        except OSError:
            return []

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def vacate(self) -> None:
        """See `Storage`."""
        with suppress(OSError):
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what killed writers left in the folder itself."""
        for stale in self.path.glob(f"*{TEMPORARY}"):
            with suppress(OSError):
                stale.unlink()

    def journal(self, name: str) -> Journal:
        """Return the one in `<name>.jsonl`."""
        return Lines(self.path / f"{name}.jsonl")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a crash."""
    # Not the pid: two nodes may have the same, and a worker given up may still write.
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # never through a link that lies in wait
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        msg = f"{path}: cannot be written ({len(data)} bytes): {err.strerror}"
        raise OutputError(msg) from err
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
