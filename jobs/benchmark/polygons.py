"""A whole mask to a file of polygons: tileseg, and rasterio's shapes with pyogrio.

Each in processes of its own, from the start of Python to the closed file. Run as a
program, the module is the latter.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import numpy as np
import pyarrow.parquet
import pyogrio
import rasterio
from rasterio.features import shapes
from rasterio.windows import Window
from shapely import to_wkb
from shapely.geometry import shape

from benchmark.scenes import land_cover
from benchmark.setting import Setting
from benchmark.table import Figures, Row, interleave, spread

__all__ = ["measure", "rows_of"]

ROOT = Path(__file__).parents[2]
_OURS = "tileseg, {} workers, .{}"
_PEER = "rasterio.features.shapes and pyogrio, .gpkg"
_HIGH = 5_000  # rows of a mask that are made at once
_POLL_SECONDS = 0.1
_METRES = 10.0  # side of a pixel
_SINGLES = 0.005  # with it 20,000 squared have more than 2 million polygons


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for each size, way and format."""
    sides = (2_048, 4_096) if setting.quick else (5_000, 10_000, 20_000)
    for side in sides:
        with TemporaryDirectory() as place:
            yield from rows_of(side, setting.rounds, Path(place))


def rows_of(side: int, rounds: int, place: Path) -> Iterator[Row]:
    """Yield a row for each way and format, of one size."""
    mask = place / "mask.tif"
    _make(mask, side)
    cores = len(os.sched_getaffinity(0))
    lines = {
        _OURS.format(workers, suffix): (
            ["-m", "tileseg.cli", "polygonize", mask, "--workers", workers, "--output"],
            place / f"{workers}.{suffix}",
        )
        for workers, suffix in ((cores, "gpkg"), (cores, "parquet"), (1, "gpkg"))
    }
    lines[_PEER] = ["-m", "benchmark.polygons", mask], place / "peer.gpkg"
    peaks = dict.fromkeys(lines, 0.0)

    def run(name: str) -> float:
        words, path = lines[name]
        path.unlink(missing_ok=True)
        start = perf_counter()
        peaks[name] = max(peaks[name], _peak_mb([*words, path]))
        return perf_counter() - start

    calls: dict[str, Callable[[], float]] = {name: partial(run, name) for name in lines}
    found = interleave(calls, rounds)
    theirs = median(found[_PEER])
    for name, (_, path) in lines.items():
        seconds = median(found[name])
        figures: Figures = {
            "mpx_s": side**2 / 1e6 / seconds,
            "times": theirs / seconds,
            "polygons": _count(path),
            "peak_mb": peaks[name],
            "spread": spread(found[name]),
        }
        yield Row("polygons", f"{side:,}², {name}", figures)


def _count(path: Path) -> float:
    """Return the number of a file's features."""
    if path.suffix == ".parquet":
        return float(pyarrow.parquet.read_metadata(path).num_rows)
    return float(pyogrio.read_info(path)["features"])


def _make(path: Path, side: int) -> None:
    """Write a mask as land cover looks: patches and single pixels."""
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8",
        "nodata": 255, "crs": "EPSG:32633", "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "deflate",
        "transform": rasterio.Affine(_METRES, 0, 5e5, 0, -_METRES, 5.6e6),
    }  # fmt: skip
    strip = land_cover(min(_HIGH, side), side, singles=_SINGLES)
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, side, _HIGH):
            rows = np.roll(strip, row // _HIGH * 997, axis=1)[: side - row]
            dataset.write(rows, 1, window=Window(0, row, side, len(rows)))


def _peak_mb(words: Iterable[object]) -> float:
    """Run a program of this Python; return the most that it and its workers held.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "jobs")))
    line, peak = [sys.executable, *map(str, words)], 0.0
    with subprocess.Popen(  # noqa: S603  (our own programs)
        line, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_held_mb, _family(process.pid))))
            sleep(_POLL_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return peak


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that it started, as long as they are there."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except OSError:
        return
    for child in children.split():
        yield from _family(int(child))


def _held_mb(pid: int) -> float:
    """Return what a process holds now, shared pages by their share; 0 if it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0.0
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024 / 1e6 if rollup else 0.0


def _by_gdal(mask: str, output: str) -> None:
    """Trace a whole mask by GDAL, and write all of it at once."""
    geometries, values = [], []
    with rasterio.open(mask) as dataset:
        for polygon, value in shapes(
            rasterio.band(dataset, 1), transform=dataset.transform
        ):
            geometries.append(to_wkb(shape(polygon)))
            values.append(value)
        crs = dataset.crs.to_string()
    keep = np.array(values) != 255  # noqa: PLR2004  (nodata)
    pyogrio.raw.write(
        output,
        geometry=np.array(geometries, object)[keep],
        field_data=[np.array(values, np.int32)[keep]],
        fields=["class"],
        geometry_type="Polygon",
        crs=crs,
    )


if __name__ == "__main__":
    _by_gdal(*sys.argv[1:])
