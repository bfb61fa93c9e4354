"""Outputs appear whole: built in a sibling directory, moved into place at once."""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from tileseg.errors import BusyError, OtherPlanError, OutputError
from tileseg.lock import hold_file

__all__ = [
    "Folder",
    "Place",
    "check_free",
    "check_new",
    "file_sha256",
    "is_complete",
    "list_outputs",
    "published",
    "staging",
    "staging_file",
    "sweep",
]

RECORD = "run.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Place(Protocol):
    """Where the outputs of one scene go, and what a job does there."""

    def published(self) -> dict[str, Any] | None:
        """Return the record of what is there; None if it is empty."""

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """Return whether `record` answers the request and its files are intact."""

    def sweep(self) -> None:
        """Remove what killed runs left of versions that are not the published one."""

    def staging(self) -> AbstractContextManager[Path]:
        """Give an empty local folder; publish it if all goes well."""

    def list_outputs(self, folder: Path, plan_id: str) -> list[dict[str, Any]]:
        """Return path, bytes and sha256 of every file of the folder, once published."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A local directory as the place of one scene's outputs."""

    path: Path

    def __str__(self) -> str:
        """Return its path."""
        return str(self.path)

    def published(self) -> dict[str, Any] | None:
        """See `published` below."""
        return published(self.path)

    def is_complete(self, record: dict[str, Any], request_id: str) -> bool:
        """See `is_complete` below."""
        return is_complete(self.path, record, request_id)

    def sweep(self) -> None:
        """See `sweep` below."""
        sweep(self.path)

    def staging(self) -> AbstractContextManager[Path]:
        """See `staging` below."""
        return staging(self.path)

    def list_outputs(self, folder: Path, plan_id: str) -> list[dict[str, Any]]:
        """See `list_outputs` below; every plan's files have the same names."""
        del plan_id
        return list_outputs(folder)


def published(output: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Return the record of what the output directory holds; None if it is empty.

    Args:
        output: the directory.
        name: of the record's file.

    Raises:
        OutputError: it holds something that no run of ours published.
    """
    if not output.exists():
        output = _sibling(output.resolve(), "old")  # a crash left it there
    if not output.exists():
        return None
    try:
        present = {item.name for item in output.iterdir()}
    except OSError as err:
        msg = f"{output}: not a readable directory: {err.strerror}"
        raise OutputError(msg) from err
    if not present:
        return None
    try:
        record = dict(json.loads((output / name).read_text(encoding="utf-8")))
        ours = {name, *(item["path"] for item in record["outputs"])}
        _ = [record[key] for key in ("request_id", "plan_id", "status")]
    except (OSError, ValueError, KeyError, TypeError) as err:
        msg = f"{output}: holds files but no {name} of tileseg; choose another output"
        raise OutputError(msg) from err
    # A viewer's notes on one of our files (statistics, say) go when the file goes.
    ours |= {f"{item}.aux.xml" for item in ours}
    if foreign := sorted(present - ours):
        msg = f"{output}: holds files that its {name} does not list: {foreign[0]}"
        raise OutputError(msg)
    return record


def is_complete(
    output: Path,
    record: dict[str, Any] | None,
    request_id: str,
    product: str = "mask.tif",
) -> bool:
    """Return whether `record` answers the request and its files are intact.

    Without `product` among them nothing is complete.
    """
    return (
        record is not None
        and record["request_id"] == request_id
        and record["status"] == "complete"
        and any(item["path"] == product for item in record["outputs"])
        and all(
            (output / item["path"]).is_file()
            and file_sha256(output / item["path"]) == item["sha256"]
            for item in record["outputs"]
        )
    )


def check_free(
    output: Place | Path,
    record: dict[str, Any] | None,
    request_id: str,
    *,
    href: str = "",
    overwrite: bool,
) -> None:
    """Refuse to replace another plan's result unasked.

    One with holes may be replaced by any of the same scene (`href`): of the mended
    file, say, whose bytes make it another plan.

    Raises:
        OtherPlanError: there is one, and no `overwrite`.
    """
    if overwrite or record is None or record["request_id"] == request_id:
        return
    if record["status"] != "complete" and record.get("scene", {}).get("href") == href:
        return
    msg = (
        f"{output}: holds the result of another plan ({record['plan_id']}); "
        "use --overwrite or another --output"
    )
    raise OtherPlanError(msg)


def file_sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_outputs(folder: Path) -> list[dict[str, Any]]:
    """Return path, bytes and sha256 of every file of the folder, by name."""
    return [
        {"path": item.name, "bytes": item.stat().st_size, "sha256": file_sha256(item)}
        for item in sorted(folder.iterdir())
    ]


@contextmanager
def staging(output: Path, name: str = RECORD) -> Iterator[Path]:
    """Give an empty sibling of `output`; put it in `output`'s place if all goes well.

    One run at a time builds for a place, whatever its work directory. On an error
    what was built vanishes, with the parents made for it.

    Args:
        output: the place.
        name: of the file with the record that `published` reads there.

    Raises:
        BusyError: another run builds for that place, or published there meanwhile.
        OutputError: the place cannot be written.
    """
    place = output.resolve()  # a link keeps pointing to where it does
    # A name of its own: a run that was frozen may wake up and go on writing.
    folder = _sibling(place, f"staging.{uuid4().hex}")
    missing = [parent for parent in place.parents if not parent.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_file(_sibling(place, "lock")))
            _sweep(place)
            folder.mkdir()
        except OSError as err:
            msg = f"{output}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        before = published(place, name)
        yield folder
        if (
            published(place, name) != before
        ):  # refuses what somebody put there meanwhile
            msg = f"{output}: another run published there meanwhile; run again"
            raise BusyError(msg)
        held.renew()
        try:
            _replace(folder, place)
        except OSError as err:
            msg = f"{output}: cannot be published: {err.strerror}"
            raise OutputError(msg) from err


def check_new(output: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, or what is none.

    Raises:
        OtherPlanError: there is one, and no `overwrite`.
        OutputError: there is a folder.
    """
    if output.is_dir():
        msg = f"{output}: cannot be written: is a directory"
        raise OutputError(msg)
    if output.exists() and not overwrite:
        msg = f"{output}: is there already; --overwrite replaces it"
        raise OtherPlanError(msg)


@contextmanager
def staging_file(output: Path) -> Iterator[Path]:
    """Give a path for a file that appears at `output` whole, if all goes well.

    Folders that lack are made, and go on an error if they are empty. What killed ones
    left there is removed; one at a time makes a file of that name.

    Raises:
        BusyError: somebody else makes it.
        OutputError: the place cannot be written.
    """
    place = output.absolute()
    missing = [parent for parent in place.parents if not parent.exists()]
    folder = _sibling(place, f"staging.{uuid4().hex}")
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_file(_sibling(place, "lock")))
            for item in _leftovers(place):
                shutil.rmtree(item, ignore_errors=True)
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        except OSError as err:
            msg = f"{output}: cannot be written: {err.strerror or err}"
            raise OutputError(msg) from err
        yield folder / place.name
        held.renew()
        try:
            _sync(folder / place.name)
            (folder / place.name).replace(place)
            _sync(place.parent)
        except OSError as err:
            msg = f"{output}: cannot be written: {err.strerror or err}"
            raise OutputError(msg) from err


def recover(output: Path) -> None:
    """Finish or undo a publication that a crash cut in two."""
    place = output.resolve()
    old = _sibling(place, "old")
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def sweep(output: Path) -> None:
    """Remove what killed runs left beside a published version.

    Nothing is touched where nothing is left, or where another run is publishing.
    """
    place = output.resolve()
    if any(item.exists() for item in (*_leftovers(place), _sibling(place, "lock"))):
        with suppress(BusyError, OSError), hold_file(_sibling(place, "lock")):
            _sweep(place)


def _sweep(place: Path) -> None:
    """Finish or undo what crashes cut in two; remove what they left. Hold the lock."""
    recover(place)
    for item in _leftovers(place):
        shutil.rmtree(item, ignore_errors=True)


def _leftovers(place: Path) -> list[Path]:
    """Return what killed runs were building for the place, or had moved aside."""
    mine = re.compile(rf"\.{re.escape(place.name)}\.(staging\.[0-9a-f]{{32}}|old)")
    return [item for item in place.parent.iterdir() if mine.fullmatch(item.name)]


def _sibling(place: Path, role: str) -> Path:
    return place.with_name(f".{place.name}.{role}")


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _replace(folder: Path, place: Path) -> None:
    """Move `folder` to `place`, whole; what was there goes."""
    for item in folder.iterdir():
        _sync(item)
    _sync(folder)
    if not place.exists():
        folder.rename(place)
    elif not _exchange(folder, place):
        old = _sibling(place, "old")
        place.rename(old)
        folder.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    _sync(place.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
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
