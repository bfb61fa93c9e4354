"""Shard files -> one raster on the scene's own grid, a valid COG."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tileseg.card import CONFIDENCE_STEPS, Card
from tileseg.encode import Look, create, write_cog
from tileseg.errors import OutputError
from tileseg.gdal import GDAL_ERRORS, gdal_env, open_bytes
from tileseg.grid import Grid, Shard
from tileseg.scene import Scene

__all__ = ["looks", "stitch"]


def looks(card: Card, *, confidence: bool) -> dict[str, Look]:
    """Return each product and how it presents itself."""
    names = {f"CLASS_{item.value}": item.name for item in card.classes}
    origin = {"MODEL": f"{card.name} {card.version}", "MODEL_SHA256": card.sha256}
    mask = Look(
        description="class",
        overviews="MODE",
        tags={**names, **origin},
        colors={item.value: item.rgb for item in card.classes},
    )
    layer = Look(
        description="probability of the class",
        overviews="NEAREST",
        tags=origin,
        scale=1 / CONFIDENCE_STEPS,
    )
    return {"mask": mask, "confidence": layer} if confidence else {"mask": mask}


def stitch(
    shards: Iterable[tuple[Shard, bytes]],
    grid: Grid,
    scene: Scene,
    look: Look,
    path: Path,
) -> None:
    """Write all shards into one COG at `path`; memory does not grow with the scene.

    Args:
        shards: every shard there is, and its file; where one is missing stays nodata.
        grid: the scene's grid.
        scene: where it lies; the raster is what of it the grid's area is.
        look: what the raster says about its values.
        path: the file to make.

    Raises:
        OutputError: the disk is full.
    """
    whole = path.with_suffix(".whole.tif")
    try:
        with gdal_env():
            box, tie = scene.geobox.crop(grid.area), scene.tie
            with create(whole, box, look, point=scene.point, tie=tie) as dataset:
                for shard, data in shards:
                    _place(dataset, grid, shard, data)
            write_cog(whole, path, look, width=box.width)
    except GDAL_ERRORS as err:
        msg = f"{path}: cannot be written: {err}"
        raise OutputError(msg) from err
    finally:
        whole.unlink(missing_ok=True)


def _place(dataset: Any, grid: Grid, shard: Shard, data: bytes) -> None:  # noqa: ANN401  (rasterio is untyped)
    with open_bytes(data) as source:
        window = grid.pixels(shard).relative_to(grid.area)
        dataset.write(source.read(1), 1, window=window.slices)
