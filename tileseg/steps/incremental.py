"""A scene that came again: shards that look as they did are taken from what is there.

Each published result lists, in `shards.json`, a digest of what the network saw of each
shard. Where a new version of the scene shows the same, and nothing else that decides a
pixel differs, its labels are read from the published rasters: no network is asked.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.locations import is_remote
from tileseg.base.memory import trim_heap
from tileseg.base.overlap import side_by_side
from tileseg.base.redact import json_bytes
from tileseg.engines.maker import Maker
from tileseg.errors import TilesegError
from tileseg.grid import Run, Shard
from tileseg.network.blend import Blend
from tileseg.network.picture import LabelRows
from tileseg.plans.ledger import Plan, Receipt, digest
from tileseg.plans.task import Task
from tileseg.publishing.publish import file_sha256
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, open_dataset
from tileseg.scenes.prints import Prints
from tileseg.scenes.reader import Reader
from tileseg.scenes.sketch import Sketch
from tileseg.stores.objects import open_storage
from tileseg.stores.storage import Storage
from tileseg.window import Window

__all__ = ["SHARDS", "Before", "find", "list_shards", "unchanged"]

logger = logging.getLogger(__name__)

SHARDS = "shards.json"

_TRIED = 8  # shards that are looked at before all are
_ROWS = 4  # of shards that are read at a stretch: a stop waits for no more
_SHARE = 2  # of a worker's width: `overlap._SIDE_BY_SIDE` / `budget._STRIPS`, 8 / 4
_ELSE = {"input", "products", "columns", "simplify", "min_area"}
"""What of a request decides no label: the scene's bytes, and what is made of labels."""


@dataclass(frozen=True, slots=True)
class Before:
    """What is published of a scene whose pixels alone may differ by now."""

    shards: Mapping[Shard, tuple[str, int]]
    """What the network saw of each, and how many pixels only a mask made invalid."""
    rasters: Mapping[str, str]
    """Product to its path or address."""


def list_shards(plan: Plan, receipts: Iterable[Receipt]) -> bytes:
    """Return what `find` reads, as the bytes of a file."""
    shards = [[*item.shard, item.seen, item.masked] for item in receipts]
    return json_bytes({"recipe": _recipe(plan), "shards": sorted(shards)})


def _recipe(plan: Plan) -> str:
    """Return the id of all that decides a label, but for the scene's own pixels."""
    request = {key: it for key, it in plan.request.items() if key not in _ELSE}
    return digest([request, plan.resolved])


def find(task: Task, plan: Plan, held: Mapping[str, Any] | None) -> Before | None:
    """Return what is published, if shards of it may be of use to a plan.

    Args:
        task: what the plan is of.
        plan: what is to be done.
        held: the record of what is published.
    """
    place = task.job.destination
    listed = (held or {}).get("outputs", ())
    outputs = {PurePosixPath(item["path"]).name: item for item in listed}
    names = [f"{product}.tif" for product in ("mask", *task.job.layers)]
    if not {SHARDS, *names} <= outputs.keys():
        return None
    try:
        facts = json.loads(_read(open_storage(place), outputs[SHARDS]))
        if facts["recipe"] != _recipe(plan):
            logger.info("%s: was made in another way; all is computed", place)
            return None
        shards = {
            Shard(row, col): (str(seen), int(masked))
            for row, col, seen, masked in facts["shards"]
        }
        rasters = {
            name.removesuffix(".tif"): _published(place, outputs[name])
            for name in names
        }
    except (OSError, ValueError, KeyError, TypeError, TilesegError) as err:
        text = "%s: of no use to --incremental, all is computed: %s"
        logger.warning(text, place, err)
        return None
    return Before(shards, rasters)


def _read(storage: Storage, listed: Mapping[str, Any]) -> bytes:
    """Return a published file.

    Raises:
        ValueError: it is not what was published.
    """
    data = storage.read(listed["path"])
    _check(listed, hashlib.sha256(data).hexdigest())
    return data


def _published(place: str, listed: Mapping[str, Any]) -> str:
    """Return the path or address of a published raster.

    Raises:
        OSError, ValueError: it is gone, or is not what was published.
    """
    path = f"{place.rstrip('/')}/{listed['path']}"
    if not is_remote(place):  # of a store's objects digests are taken on trust
        _check(listed, file_sha256(Path(path)))
    return path


def _check(listed: Mapping[str, Any], sha256: str) -> None:
    if sha256 != listed["sha256"]:
        msg = f"{listed['path']}: not what was published"
        raise ValueError(msg)


def unchanged(
    task: Task, maker: Maker, before: Before, done: Iterable[Shard]
) -> Iterator[Receipt]:
    """Make the files of shards that look as before; yield their receipts.

    The scene is read, once and side by side; if none of the first few shards looks as
    before, no more of it is. A shard that cannot be read is left to the workers.

    Args:
        task: the job.
        maker: makes the files.
        before: what is published.
        done: shards that need not be looked at.
    """
    todo = sorted(set(before.shards) - set(done))
    some = todo[:: max(1, len(todo) // _TRIED)]
    known = _Known(task, maker, before)
    found = list(known.receipts(some))
    yield from found
    if found:
        yield from known.receipts(sorted(set(todo) - set(some)))


@dataclass(frozen=True, slots=True)
class _Known:
    """A scene beside what was made of it before."""

    task: Task
    maker: Maker
    before: Before

    def receipts(self, shards: list[Shard]) -> Iterator[Receipt]:
        """Yield a receipt for each shard that looks as it did."""
        widths = (run.shards.width for run in self.task.runs(shards, 1))
        band = max(1, max(widths, default=1) // _SHARE)
        runs = self.task.grid.runs(shards, band=band, rows=_ROWS)
        for receipts in side_by_side(self._compare, runs):
            yield from receipts
            trim_heap()  # else strips stay in it, and what workers hold seems less

    def _compare(self, run: Run) -> list[Receipt]:
        """Return the receipts of a run's shards that look as they did."""
        task = self.task
        ring = Blend(task.grid.stride, task.grid.halo, task.job.blend).ring
        prints = Prints(task.grid, ring=ring)
        sketch = Sketch(task.grid, task.scene, task.bands)
        reader = Reader(task.scene, task.bands, task.grid)
        try:
            for strip in reader.strips(run, ring=ring):
                prints.add(run, strip)
                sketch.add(run, strip)
            same = [it for it in run if prints.take(it) == self.before.shards[it][0]]
            made = [self._make(shard, sketch.take(shard)) for shard in same]
        except (TilesegError, *GDAL_ERRORS) as err:
            logger.warning("%s: %s; left to the network", task.job.href, err)
            return []
        if made:
            work = {"decoded_pixels": reader.decoded_pixels}
            made[0] = replace(made[0], work=work)
        return made

    def _make(self, shard: Shard, sketch: bytes) -> Receipt:
        """Make a shard's files of what is published."""
        grid = self.task.grid
        window = grid.pixels(shard).relative_to(grid.area)
        rasters = self.before.rasters
        layers = {name: _pixels(path, window) for name, path in rasters.items()}
        seen, masked = self.before.shards[shard]
        rows = LabelRows(layers.pop("mask"), layers)
        return self.maker.make(shard, rows, masked=masked, sketch=sketch, seen=seen)


def _pixels(path: str, window: Window) -> NDArray[np.uint8]:
    """Return a window of a raster of ours, without an axis of bands if it has one."""
    with gdal_env(), open_dataset(path) as dataset:
        bands = 1 if dataset.count == 1 else None
        pixels: NDArray[np.uint8] = dataset.read(bands, window=window.slices)
    return pixels
