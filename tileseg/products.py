"""Every product of a plan whose shards are made, in a folder that is not public yet."""

import logging
from importlib import import_module
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from tileseg.grid import Shard
from tileseg.ledger import Ledger, Receipt
from tileseg.record import Record, count_pixels
from tileseg.storage import write_whole
from tileseg.task import Task

if TYPE_CHECKING:
    from tileseg.sketch import Collage, Picture

__all__ = ["build", "present", "warm_up"]

logger = logging.getLogger(__name__)


def warm_up() -> None:
    """Load what `build` needs, on a thread, while the shards are being made."""
    Thread(target=_load, daemon=True).start()


def _load() -> None:
    for name in ("quicklook", "overlay", "stac", "report"):
        import_module(f"tileseg.{name}")


def build(
    task: Task,
    ledger: Ledger,
    receipts: dict[Shard, Receipt],
    record: Record,
    folder: Path,
) -> "Collage":
    """Make rasters and polygons in `folder`; return how the scene was seen."""
    from tileseg.encode import looks, sketch_of
    from tileseg.sketch import Collage
    from tileseg.stitch import stitch
    from tileseg.verify import verify_layer, verify_mask

    box, mask = task.geobox, folder / "mask.tif"
    pixels = count_pixels(receipts.values())
    collage = Collage(task.grid)
    with record.stage("stitch"):
        for product, look in looks(task.ensemble, task.job.layers).items():
            logger.info("%s: stitching %s.tif", task.job.href, product)
            files = ledger.files(receipts, product)
            if product == "mask":
                files = files.told(lambda at, data: collage.add(at, sketch_of(data)))
            path = folder / f"{product}.tif"
            stitch(files, task.grid, task.scene, look, path)
    with record.stage("verify"):
        verify_mask(mask, box, pixels)
        for product in task.job.layers:
            verify_layer(folder / f"{product}.tif", box, mask)
    if task.job.polygons:
        with record.stage("vectorize"):
            _vectorize(task, ledger, receipts, folder)
    if failures := record.values["failures"]:
        from tileseg.features import write_failures

        write_failures(failures, task.scene.geobox, folder / "failures.geojson")
    return collage


def present(
    task: Task,
    collage: "Collage",
    receipts: dict[Shard, Receipt],
    record: Record,
    folder: Path,
) -> None:
    """Make beside them what shows them: quicklook, STAC Item, report."""
    from tileseg.overlay import overlays
    from tileseg.quicklook import quicklook
    from tileseg.report import report
    from tileseg.stac import item

    picture, mask = _picture(task, collage), folder / "mask.tif"
    pixels = count_pixels(receipts.values())
    drawn = quicklook(task, mask, pixels, picture)
    write_whole(folder / "quicklook.png", drawn)
    write_whole(folder / "item.json", item(task, folder))
    chart = overlays(task, folder, picture, receipts.values())
    record.finish()
    beside = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    page = report(record.told(), chart, task.request["versions"], beside)
    write_whole(folder / "report.html", page)


def _picture(task: Task, collage: "Collage") -> "Picture | None":
    """Return the scene as its sketches show it; else as its file does, if it can."""
    from tileseg.glance import try_glance
    from tileseg.sketch import Sampling, shown

    if (picture := collage.picture()) is not None:
        return picture
    bands, shape = shown(task.scene, task.bands), Sampling(task.grid).shape
    return try_glance(task.scene, bands, task.grid.area, shape)


def _vectorize(
    task: Task, ledger: Ledger, receipts: dict[Shard, Receipt], folder: Path
) -> None:
    """Make the file of polygons in `folder`."""
    from tileseg.features import Meaning, write_features
    from tileseg.join import join
    from tileseg.vectorize import Pieces

    path = folder / f"polygons.{task.job.polygons}"
    logger.info("%s: joining %s", task.job.href, path.name)
    files = ledger.files(receipts, "polygons")
    found = files.read(sorted(files.shards))
    rows = (
        [Pieces.from_bytes(data) for _, data in row]
        for _, row in groupby(found, lambda item: item[0].row)
    )
    meaning = Meaning(
        {item.value: item.name for item in task.card.classes},
        task.scene.geobox,
        has_confidence="confidence" in task.job.layers,
        simplified=task.job.simplify,
    )
    areas = join(rows, is_noded=task.job.simplify is not None)
    write_features(areas, meaning, path)
