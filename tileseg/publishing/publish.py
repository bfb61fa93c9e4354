"""Outputs appear whole: built in a sibling directory, moved into place at once.

What a gate refused goes to `<output>.parked`, whole too, and the place stays as it is.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tileseg.base.locations import PARKED_END
from tileseg.errors import BusyError, OtherPlanError, OutputError
from tileseg.publishing import swap, versions
from tileseg.publishing.place import PARKED, Listed, Place
from tileseg.publishing.versions import RECORD
from tileseg.stores.lock import Hold, hold_file

__all__ = [
    "RECORD",
    "check_free",
    "check_new",
    "clear_up",
    "explained",
    "file_sha256",
    "is_complete",
    "is_intact",
    "list_outputs",
    "parked_home",
    "published",
    "refuse_broken",
    "staging",
    "staging_file",
    "sweep",
]


def published(output: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Return the record of what the output directory holds; None if it is empty.

    Args:
        output: the directory.
        name: of the record's file.

    Raises:
        OutputError: it holds something that no run of ours published.
    """
    if not output.exists():  # a crash left it there
        asides = [swap.sibling(output.resolve(), role) for role in ("old", "swap")]
        found = next((item for item in asides if item.exists()), None)
        if found is None:
            return None
        output = found
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
        and is_intact(output, record)
    )


def is_intact(output: Path, record: Mapping[str, Any]) -> bool:
    """Return whether all files that a record lists are there, with their digests."""
    return all(
        (output / item["path"]).is_file()
        and file_sha256(output / item["path"]) == item["sha256"]
        for item in record["outputs"]
    )


def refuse_broken(output: Path, record: Mapping[str, Any]) -> None:
    """Refuse a version of which a file is not the one that its record lists.

    Raises:
        OutputError: so it is.
    """
    is_flat = all(Path(it["path"]).name == it["path"] for it in record["outputs"])
    if not (is_flat and is_intact(output, record)):
        msg = (
            f"{output}: a file is missing or is not the one that its {RECORD} lists; "
            "make the result again (tileseg segment --overwrite)"
        )
        raise OutputError(msg)


def parked_home(place: Path) -> Path:
    """Return where a result that a gate keeps from going live is parked."""
    return place.with_name(place.name + PARKED_END)


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


def list_outputs(folder: Path, listed: Listed = ()) -> list[dict[str, Any]]:
    """Return path, bytes and sha256 of every file of the folder, by name.

    Args:
        folder: with the files.
        listed: the same of some of them, unchanged since; these are not read again.
    """
    known = {item["path"]: dict(item) for item in listed}
    return [
        known.get(item.name)
        or {
            "path": item.name,
            "bytes": item.stat().st_size,
            "sha256": file_sha256(item),
        }
        for item in sorted(folder.iterdir())
    ]


@contextmanager
def staging(output: Path, name: str = RECORD, *, keep: int = 0) -> Iterator[Path]:
    """Give an empty sibling of `output`; put it in `output`'s place if all goes well.

    With a record whose status is `PARKED` it goes to `<output>.parked` instead.

    One run at a time builds for a place, whatever its work directory. On an error
    what was built vanishes, with the parents made for it.

    Args:
        output: the place.
        name: of the file with the record that `published` reads there.
        keep: how many versions to keep of those that are replaced.

    Raises:
        BusyError: another run builds for that place, or published there meanwhile.
        OutputError: the place cannot be written.
    """
    place = output.resolve()  # a link keeps pointing to where it does
    with _workshop(output, place, clear_up) as (folder, held):
        before = published(place, name)
        yield folder
        now = published(place, name)  # refuses what somebody put there meanwhile
        if now != before:
            msg = f"{output}: another run published there meanwhile; run again"
            raise BusyError(msg)
        held.renew()
        with explained(output):
            _put(folder, place, name, keep=keep if before else 0)


@contextmanager
def _workshop(
    output: Path, place: Path, clear: Callable[[Path], None]
) -> Iterator[tuple[Path, Hold]]:
    """Give an empty sibling of a place to who alone builds for it; neither stays.

    On an error parents that were made for it do not stay either.

    Args:
        output: what messages call the place.
        place: its path.
        clear: what removes what killed runs left there.
    """
    # A name of its own: a run that was frozen may wake up and go on writing.
    folder = swap.sibling(place, f"staging.{uuid4().hex}")
    missing = [parent for parent in place.parents if not parent.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        with explained(output, "written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_file(swap.sibling(place, "lock")))
            clear(place)
            folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder, held


@contextmanager
def explained(output: Path, what: str = "published") -> Iterator[None]:
    """Say which place cannot be `published` or `written`, and why.

    Raises:
        OutputError: it cannot.
    """
    try:
        yield
    except OSError as err:
        msg = f"{output}: cannot be {what}: {err.strerror or err}"
        raise OutputError(msg) from err


def _put(folder: Path, place: Path, name: str, *, keep: int) -> None:
    """Put a version where its record says: live, or parked."""
    if name != RECORD or not (folder / name).is_file():  # no result of a job
        _replace(folder, place)
        return
    home = parked_home(place)
    if json.loads((folder / name).read_bytes())["status"] == PARKED:
        published(home)  # refuses what is not ours
        _replace(folder, home)
        return
    _replace(folder, place, keep=keep)
    versions.discard(home, place)  # what is parked is older than this
    versions.forget_rollback(place)


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
    with _workshop(output, place, _remove_leftovers) as (folder, held):
        yield folder / place.name
        held.renew()
        with explained(output, "written"):
            swap.sync(folder / place.name)
            (folder / place.name).replace(place)
            swap.sync(place.parent)


def recover(output: Path) -> None:
    """Finish or undo a publication that a crash cut in two."""
    place = output.resolve()
    old = swap.sibling(place, "old")
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def sweep(output: Path) -> None:
    """Remove what killed runs left beside a published version.

    Nothing is touched where nothing is left, or where another run is publishing.
    """
    place = output.resolve()
    left = any(
        item.exists() for item in (*_leftovers(place), swap.sibling(place, "lock"))
    )
    if left or versions.is_cut(place):
        with suppress(BusyError, OSError), hold_file(swap.sibling(place, "lock")):
            clear_up(place)


def clear_up(place: Path) -> None:
    """Finish or undo what crashes cut in two; remove what they left. Hold the lock."""
    recover(place)
    recover(parked_home(place))
    versions.recover(place)
    _remove_leftovers(place)


def _remove_leftovers(place: Path) -> None:
    for item in _leftovers(place):
        shutil.rmtree(item, ignore_errors=True)


def _leftovers(place: Path) -> list[Path]:
    """Return what killed runs were building for the place, or had moved aside."""
    names = "|".join(map(re.escape, (place.name, parked_home(place).name)))
    mine = re.compile(rf"\.({names})\.(staging\.[0-9a-f]{{32}}|old)")
    return [item for item in place.parent.iterdir() if mine.fullmatch(item.name)]


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _replace(folder: Path, place: Path, *, keep: int = 0) -> None:
    """Move `folder` to `place`, whole; what was there goes, or to those that are kept.

    Args:
        folder: the new version.
        place: where it goes.
        keep: how many to keep; 0 where there is nothing to be kept.
    """
    for item in folder.iterdir():
        swap.sync(item)
    swap.sync(folder)
    if not place.exists():
        folder.rename(place)
    elif keep:
        versions.replace(folder, place, keep=keep)
    elif not swap.exchange(folder, place):
        old = swap.sibling(place, "old")
        place.rename(old)
        folder.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    swap.sync(place.parent)
