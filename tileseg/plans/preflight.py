"""Can the places be written, and is there room? Asked before anything is computed.

What is needed is bounded from above: masks as if they did not compress.
"""

import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from tileseg.base.locations import is_remote
from tileseg.errors import OutputError
from tileseg.plans.task import Task

__all__ = ["RESERVE", "check_writable", "preflight", "room"]

RESERVE = 1.1
"""Times what is needed: how much must be free."""

_OVERVIEWS = 4 / 3  # a raster with its overviews, in pixels of the raster
_POLYGON_BYTES = 1  # of a pixel's polygons: roughly, nothing bounds them usefully


@dataclass(frozen=True, slots=True)
class _Need:
    """What one place is asked to hold."""

    place: str
    """The option that names it, and what it says."""
    folder: Path
    """The nearest folder that there is already."""
    bytes: float
    """At most, or so."""


def preflight(task: Task) -> None:
    """Refuse places that cannot be written or hold what is to come.

    Raises:
        OutputError: one cannot be written, or has too little room.
    """
    disks = defaultdict(list)
    for need in _needs(task):
        disks[_device(need.place, need.folder)].append(need)
    for needs in disks.values():
        _check_room(needs)


def check_writable(place: str, path: Path) -> None:
    """Refuse a place that cannot be written, or made.

    Args:
        place: the option that names it, and what it says.
        path: what that is.

    Raises:
        OutputError: it cannot.
    """
    _device(place, _nearest(path))


def _device(place: str, folder: Path) -> int:
    """Return the number of the disk that a folder is on, which can be written."""
    try:
        with TemporaryFile(dir=folder):
            return folder.stat().st_dev
    except OSError as err:
        msg = f"{place}: cannot be written: {err.strerror} ({folder})"
        raise OutputError(msg) from err


def _check_room(needs: list[_Need]) -> None:
    """Compare what is needed with what is free on one disk."""
    needed = round(RESERVE * sum(need.bytes for need in needs))
    room = shutil.disk_usage(needs[0].folder)
    if room.total and room.free < needed:  # some network disks know no sizes
        places = " and ".join({need.place: None for need in needs})
        msg = (
            f"{places}: may need {needed} bytes, {room.free} are free in "
            f"{needs[0].folder}; make room, or choose another disk for one of them"
        )
        raise OutputError(msg)


def _needs(task: Task) -> list[_Need]:
    """Return what each local place is asked to hold."""
    job = task.job
    results, shards = room(
        task.grid.area.size,
        planes=task.planes,
        largest=max(len(look.bands) for look in task.looks.values()),
        polygons=bool(job.polygons),
    )
    has_disk = not is_remote(job.workplace)
    work = f"--work {job.work_path}", job.work_path
    if not is_remote(job.destination):
        output = f"--output {job.output_path}", job.output_path.resolve().parent
    elif has_disk:  # where they are built before they go up
        output = work
    else:
        output = "TMPDIR", Path(gettempdir())
    places = [(*output, results)]
    if has_disk:
        places.append((*work, _share_to_do(task) * shards))
    return [_Need(option, _nearest(path), size) for option, path, size in places]


def room(
    pixels: int, *, planes: int = 1, largest: int = 1, polygons: bool = False
) -> tuple[float, float]:
    """Return how many bytes a scene's results need at most, and its shards.

    Args:
        pixels: of the scene.
        planes: bands of all rasters together.
        largest: bands of the one with most of them.
        polygons: whether there are any.
    """
    features = _POLYGON_BYTES * polygons
    # The products, and beside them the blocks of the one that is being made.
    results = pixels * (_OVERVIEWS * (planes + largest) + features)
    return results, pixels * (_OVERVIEWS * planes + features)


def _share_to_do(task: Task) -> float:
    """Return the share of the shards that no earlier attempt can have made."""
    folders = task.job.work_path.glob("*/shards")
    done = max((len(list(item.glob("*[0-9].tif"))) for item in folders), default=0)
    return max(0.0, 1 - done / task.grid.shape.size)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest of its parents that there is."""
    # os.path: what may not be looked into is not there, and its parent is tried.
    parents = (path, *path.absolute().parents)
    return next(item for item in parents if os.path.exists(item))  # noqa: PTH110
