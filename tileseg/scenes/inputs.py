"""From where scenes come: what an input names, and what one scene is made of.

Files, patterns, folders, text lists and STAC documents, on a disk or in a store.
"""

import glob
import re
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from tileseg.base.locations import is_remote
from tileseg.base.names import SUFFIXES, is_catalog
from tileseg.errors import InputError, TilesegError
from tileseg.scenes.catalog import scenes_of, stack_of
from tileseg.scenes.layer import Layer, Mosaic, Stack
from tileseg.settings import Job
from tileseg.stores.objects import Objects

__all__ = ["find_many", "find_scenes", "is_listing", "listing", "mosaic_of", "root_of"]

_LIST = ".txt"
_PATTERN = re.compile(r"[*?\[]")


def find_scenes(sources: Iterable[str]) -> tuple[str, ...]:
    """Return the scenes that inputs name, in their order, each once.

    What names one file is not looked at here: whether it is there is said of the scene.
    Of several inputs one that names none stands for itself, and fails as a scene: it
    stops no other.

    Raises:
        InputError: the only one names none, or cannot be read.
        TilesegError: the only one, a STAC document or in a store, cannot be read.
    """
    inputs = tuple(sources)
    found: dict[str, None] = {}
    for source in inputs:
        try:
            named = _some_scenes(source)
        except TilesegError:
            if len(inputs) == 1:
                raise
            named = [source]
        found |= dict.fromkeys(named)
    return tuple(found)


def _some_scenes(source: str) -> list[str]:
    named = _scenes(source)
    if not named:
        msg = f"{source}: names no scene: wanted files that end in .tif or .tiff"
        raise InputError(msg)
    return named


def find_many(source: str) -> tuple[str, ...]:
    """Return the scenes that one input names, perhaps none; any file may be a list.

    Raises:
        InputError: it cannot be read.
        TilesegError: see `find_scenes`.
    """
    found = _read_list(Path(source)) if _is_list(source) else _scenes(source)
    return tuple(dict.fromkeys(found))


def _is_list(source: str) -> bool:
    """Return whether a source, whatever its name, can only be a list."""
    path = Path(source)
    if "://" in source or is_catalog(source) or _is_named(path):
        return False
    try:
        is_pattern = _PATTERN.search(source) and not path.exists()
        return not (path.is_dir() or is_pattern)
    except (OSError, ValueError) as err:
        raise _unreadable(source, err) from err


def _read_list(path: Path) -> list[str]:
    """Return the scenes that the lines of a text file name.

    Paths are relative to the file; empty lines and those with # are left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise _unreadable(path, err) from err
    named = [line.strip() for line in lines]
    named = [name for name in named if name and name[0] != "#"]
    paths = [name if "://" in name else str(path.parent / name) for name in named]
    return [it for name in paths for it in _scenes(name, in_list=True)]


def _unreadable(source: str | Path, err: Exception) -> InputError:
    reason = getattr(err, "strerror", None) or "not a list of paths"
    msg = f"{source}: cannot be read as a folder or list of scenes: {reason}"
    return InputError(msg)


def mosaic_of(job: Job, bands: tuple[str | int, ...]) -> Mosaic:
    """Return what a job's scene is put together from.

    Args:
        job: its inputs, and how they are joined.
        bands: what is wanted of it; of STAC Items only the files that hold these.

    Raises:
        TilesegError: a STAC Item cannot be read, or lacks a band.
    """
    with_scale = job.scale is None
    stacks: list[Stack] = [
        stack_of(source, bands, with_scale=with_scale)
        if is_catalog(source)
        else (Layer(href=source),)
        for source in job.inputs
    ]
    if job.join == "mosaic":
        return tuple(stacks)
    return (tuple(layer for stack in stacks for layer in stack),)


def _scenes(source: str, *, in_list: bool = False) -> list[str]:
    if is_catalog(source):
        try:
            return scenes_of(source)
        except TilesegError:
            if not in_list:
                raise
            return [source]
    if "://" in source:
        return _listed(source) if is_remote(source) else [source]
    path = Path(source)
    if path.suffix.lower() == _LIST and not in_list:
        return _read_list(path)
    try:
        return _local(path, source)
    except (OSError, ValueError) as err:
        if in_list:  # one line in a thousand: a scene that fails, the others do not
            return [source]
        raise _unreadable(source, err) from err


def _local(path: Path, source: str) -> list[str]:
    """Return what a path or pattern on a disk names."""
    if path.is_dir():
        named = sorted(path.iterdir())
    elif _PATTERN.search(source) and not path.exists():
        named = sorted(map(Path, glob.glob(source, recursive=True)))  # noqa: PTH207  (an absolute pattern too)
    else:
        return [source]
    return [
        str(it)
        for it in named
        if _is_named(it) and (it.is_file() or _leads_nowhere(it))
    ]


def _leads_nowhere(path: Path) -> bool:
    """Return whether it is a link to nothing: a scene that fails, not none at all."""
    return path.is_symlink() and not path.exists()


def _listed(source: str) -> list[str]:
    """Return the objects that an address in a store names."""
    return list(listing(source) if is_listing(source) else [source])


def is_listing(source: str) -> bool:
    """Return whether it is a pattern, or a prefix with a slash at its end, of a store.

    `*` and `?` stop at a slash, `**/` is any number of folders.
    """
    is_many = bool(_PATTERN.search(source)) or source.endswith("/")
    return is_remote(source) and is_many


def listing(source: str) -> dict[str, tuple[str, datetime]]:
    """Return the scenes that one of these names: their versions, and when written.

    Raises:
        TilesegError: the store refuses, or keeps failing.
    """
    folder = root_of(source)
    pattern = source[len(folder) + 1 :] or "*"
    objects = Objects(folder)
    items = objects.items()
    names = sorted(it for it in items if _matches(it, pattern))
    kept = [name for name in names if _is_named(Path(name))]
    found: dict[str, tuple[str, datetime]] = {}
    for name in kept:
        item = items[name]
        written = item["last_modified"]
        version = f"{item['size']} {item['e_tag'] or written.isoformat()}"
        found[f"{objects}/{name}"] = version, written
    return found


def root_of(source: str) -> str:
    """Return the folder of all that a pattern or prefix names; of others themselves."""
    wild = _PATTERN.search(source)
    if not (wild or source.endswith("/")):
        return source
    return source[: wild.start() if wild else None].rpartition("/")[0]


def _matches(name: str, pattern: str) -> bool:
    """Return whether the parts of a name are those of a pattern."""
    return _match(name.split("/"), pattern.split("/"))


def _match(names: list[str], patterns: list[str]) -> bool:
    if not (names and patterns):
        return not names and set(patterns) <= {"**"}
    if patterns[0] == "**":
        return _match(names, patterns[1:]) or _match(names[1:], patterns)
    return fnmatchcase(names[0], patterns[0]) and _match(names[1:], patterns[1:])


def _is_named(path: Path) -> bool:
    """Tell a scene from sidecars and files still being copied (`.name`)."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."
