"""Every product of a plan whose shards are made, in a folder that is not public yet."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tileseg.cards.card import NODATA
from tileseg.grid import Shard
from tileseg.plans.ledger import Files, Ledger, Receipt
from tileseg.plans.moments import Moments
from tileseg.plans.task import Task
from tileseg.publishing.publish import list_outputs
from tileseg.steps.record import Record, count_pixels
from tileseg.stores.storage import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tileseg.masks.encode import Look
    from tileseg.polygons.vectorize import Pieces
    from tileseg.scenes.sketch import Collage, Picture

__all__ = ["build", "present", "warm_up"]

logger = logging.getLogger(__name__)


def warm_up() -> None:
    """Load what `build` needs, on a thread, while the shards are being made."""
    Thread(target=_load, daemon=True).start()


def _load() -> None:
    for name in ("quicklook", "overlay", "stac"):
        import_module(f"tileseg.outputs.{name}")
    import_module("tileseg.steps.report")


def build(
    task: Task,
    ledger: Ledger,
    receipts: dict[Shard, Receipt],
    record: Record,
    folder: Path,
) -> "Collage":
    """Make rasters and polygons in `folder`; return how the scene was seen."""
    from tileseg.masks.encode import sketch_of
    from tileseg.outputs.stitch import stitch
    from tileseg.outputs.verify import verify_layer, verify_mask
    from tileseg.scenes.sketch import Collage

    box, mask = task.geobox, folder / "mask.tif"
    pixels = count_pixels(receipts.values())
    collage, shown = Collage(task.grid), _counted(task, receipts)
    with record.stage("stitch"):
        for product, look in shown.items():
            logger.info("%s: stitching %s.tif", task.job.href, product)
            files = ledger.files(receipts, product)
            if product == "mask":
                files = files.told(lambda at, data: collage.add(at, sketch_of(data)))
            path = folder / f"{product}.tif"
            stitch(files, task.grid, task.scene, look, path)
    with record.stage("verify"):
        verify_mask(mask, box, pixels)
        for product in task.job.layers:
            bands = len(shown[product].bands)
            verify_layer(folder / f"{product}.tif", box, mask, bands)
    if task.job.polygons:
        with record.stage("vectorize"):
            _vectorize(task, ledger, receipts, folder)
    if failures := record.values["failures"]:
        from tileseg.polygons.features import write_failures

        write_failures(failures, task.scene.geobox, folder / "failures.geojson")
    if task.job.incremental:
        from tileseg.steps.incremental import SHARDS, list_shards

        shards = list_shards(ledger.plan, receipts.values())
        write_whole(folder / SHARDS, shards)
    return collage


def present(
    task: Task,
    collage: "Collage",
    receipts: dict[Shard, Receipt],
    record: Record,
    folder: Path,
) -> list[dict[str, Any]]:
    """Make beside them what shows them: quicklook, STAC Item, report.

    Returns:
        What the Item lists, see `list_outputs`: large files are hashed once.
    """
    from tileseg.outputs.overlay import FinishedRasters, overlays
    from tileseg.outputs.quicklook import quicklook
    from tileseg.outputs.stac import item
    from tileseg.steps.report import report

    picture, mask = _picture(task, collage), folder / "mask.tif"
    pixels = count_pixels(receipts.values())
    finished = FinishedRasters.read(task, folder)
    with ThreadPoolExecutor(1) as pool:  # pictures are packed without Python's lock
        coming = pool.submit(overlays, task, finished, picture, receipts.values())
        drawn = quicklook(task, mask, pixels, picture)
        chart = coming.result()
    write_whole(folder / "quicklook.png", drawn)
    shown = _counted(task, receipts)
    listed = list_outputs(folder)
    write_whole(folder / "item.json", item(task, listed, shown))
    record.finish()
    beside = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    page = report(record.told(), chart, task.request["versions"], beside)
    write_whole(folder / "report.html", page)
    return listed


def _counted(task: Task, receipts: Mapping[Shard, Receipt]) -> "dict[str, Look]":
    """Return how rasters present themselves, with what was counted of their values."""
    size, found = task.grid.area.size, task.looks
    pixels = count_pixels(receipts.values())
    known = {item.value: pixels[item.value] for item in task.card.classes}
    count = sum(known.values())
    share = {"count": count, "valid_percent": 100 * count / size}
    found["mask"] = replace(found["mask"], pixels=known, statistics=[share])
    for name in task.job.layers:
        bands = zip(*(item.moments[name] for item in receipts.values()), strict=True)
        sums = [Moments.sum(band).statistics(size) for band in bands]
        found[name] = replace(found[name], statistics=sums)
    return found


def _picture(task: Task, collage: "Collage") -> "Picture | None":
    """Return the scene as its sketches show it; else as its file does, if it can."""
    from tileseg.outputs.glance import try_glance
    from tileseg.scenes.sketch import Sampling, shown

    if (picture := collage.picture()) is not None:
        return picture
    bands, shape = shown(task.scene, task.bands), Sampling(task.grid).shape
    return try_glance(task.scene, bands, task.grid.area, shape)


def _vectorize(
    task: Task, ledger: Ledger, receipts: dict[Shard, Receipt], folder: Path
) -> None:
    """Make the file of polygons in `folder`."""
    from tileseg.polygons.features import write_features
    from tileseg.polygons.join import join
    from tileseg.polygons.table import Meaning

    path = folder / f"polygons.{task.job.polygons}"
    logger.info("%s: joining %s", task.job.href, path.name)
    files = ledger.files(receipts, "polygons")
    rows, eliminated = _rows(files), ""
    if task.job.min_area is not None:
        rows, eliminated = _eliminated(task, files, task.job.min_area)
    meaning = Meaning(
        {item.value: item.name for item in task.card.classes},
        task.scene.geobox,
        has_confidence="confidence" in task.job.layers,
        eliminated=eliminated,
        simplified=task.job.simplify,
        origin=task.origin,
        attributes=task.job.attributes,
        are_fields=bool(task.card.fields),
    )
    areas = join(rows, is_noded=task.job.simplify is not None)
    write_features(areas, meaning, path)


def _rows(files: Files) -> "Iterator[list[Pieces]]":
    """Yield the pieces of each row of shards."""
    from tileseg.polygons.vectorize import Pieces

    found = files.read(sorted(files.shards))
    for _, row in groupby(found, lambda item: item[0].row):
        yield [Pieces.from_bytes(data) for _, data in row]


def _eliminated(
    task: Task, files: Files, hectares: float
) -> "tuple[Iterator[list[Pieces]], str]":
    """Return the same rows without small polygons, and what is said of that.

    Shards are read twice: first for what they border on, then for what they become.
    """
    from tileseg.polygons.borders import Gauge, borders_of
    from tileseg.polygons.eliminate import eliminate, settled
    from tileseg.polygons.simplify import Manner, tolerance_of

    scene = task.scene.geobox
    gauge = Gauge.of(scene, hectares)
    found = eliminate(
        (
            [borders_of(item, gauge.crop(item.window)) for item in row]
            for row in _rows(files)
        ),
        gauge,
    )

    def made(item: "Pieces") -> "Pieces":
        tolerance = tolerance_of(task.job.simplify, scene.crop(item.window))
        left_out = task.card.left_out
        manner = Manner(nodata=(NODATA,), left_out=left_out, tolerance=tolerance)
        return settled(item, found.of(item.window), manner)

    rows = ([made(item) for item in row] for row in _rows(files))
    return rows, found.told(hectares)
