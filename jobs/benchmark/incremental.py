"""A scene that came again with 2 % of it changed, beside making all of it."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any

import rasterio
from rasterio.windows import Window

from benchmark.scenes import Kind, make_scene, own_model
from benchmark.setting import Setting
from benchmark.table import Row
from tileseg.engines.staff import Staff
from tileseg.job import run
from tileseg.publishing.publish import file_sha256
from tileseg.settings import Job

__all__ = ["measure"]

_WIDTH = 8  # of the network: shares are those of any
_SIDE, _QUICK = 10_240, 4_096
_CHANGED = 0.02  # of the scene, in one place


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for the first run, for the next one, and for all of it once more."""
    side = setting.side or (_QUICK if setting.quick else _SIDE)
    scene = make_scene(Kind(height=side, width=side), setting.folder / "scenes")
    model = own_model(setting.folder, _WIDTH)
    with TemporaryDirectory() as place, Staff() as staff:
        mine = Path(copy(scene, place))

        def job(name: str, scene: Path = mine) -> dict[str, Any]:
            done = run(
                Job(
                    input=str(scene),
                    model=str(model),
                    output=f"{place}/{name}",
                    device=setting.device.name,
                    incremental=True,
                    trusted=True,
                ),
                staff=staff,
            )
            if done.error:
                raise done.error
            return done.values

        small = Kind(height=256, width=300)
        job("warm", make_scene(small, setting.folder / "scenes"))  # loads all libraries
        first = job("first")
        _change(mine, side)
        again, whole = job("first"), job("whole")
        masks = {file_sha256(Path(place, it, "mask.tif")) for it in ("first", "whole")}
    device = whole["seconds"]["forward"]
    for name, values in (("first", first), ("came again", again), ("whole", whole)):
        seconds = values["seconds"]
        figures = {
            "seconds": seconds["total"],
            "forward_s": seconds["forward"],
            "of_whole": seconds["forward"] / device,
            "compare_s": seconds["compare"],
            "tiles": float(values["counts"]["tiles"]),
            "shards_kept": float(values["counts"]["shards_unchanged"]),
        }
        note = "masks differ" if len(masks) > 1 else ""
        yield Row("incremental", f"{side:,}², {name}", figures, note)


def _change(path: Path, side: int) -> None:
    """Change a square of the scene, in place."""
    wide = round(side * _CHANGED**0.5)
    at = Window(side // 3, side // 3, wide, wide)
    with rasterio.open(path, "r+") as dataset:
        dataset.write(dataset.read(window=at) // 2 + 1, window=at)
