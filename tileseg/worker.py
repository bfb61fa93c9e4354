"""Read, forward and write overlapped, for one device: runs in, receipts out."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tileseg import remote
from tileseg.address import is_address
from tileseg.area import row_hectares
from tileseg.blend import Blend
from tileseg.card import NODATA, Card
from tileseg.encode import block_side, looks, shard_bytes
from tileseg.gdal import gdal_env
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run, Shard, Strip
from tileseg.identity import Identities
from tileseg.ledger import Artifact, Ledger, Receipt
from tileseg.memory import trim_heap
from tileseg.model import Device, Network, load
from tileseg.objects import GIVE_UP_SECONDS, open_storage
from tileseg.overlap import Ahead, behind
from tileseg.picture import LabelRows
from tileseg.predict import Predictor, Scaling
from tileseg.reader import Reader
from tileseg.region import Stencil
from tileseg.scene import Band, Scene
from tileseg.settings import default_model, is_remote
from tileseg.sketch import Sketch
from tileseg.task import Task
from tileseg.vectorize import polygonise

__all__ = ["Recipe", "Worker"]

T = TypeVar("T")

_STRIPS_AHEAD = 1  # read ahead of the network: with the one in hand, two in memory
_WRITES_AHEAD = 4  # shards waiting to be written
# One keeps up with a CPU; a GPU's labels come faster than one core encodes them.
_WRITERS = max(1, min(_WRITES_AHEAD, (os.cpu_count() or 1) // 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All a worker needs; plain values, so that it travels to where the worker is."""

    scene: Scene
    identity: Identities
    """Of the scene's files."""
    bands: tuple[Band, ...]
    grid: Grid
    outline: bytes | None
    """What of the grid's area is asked for, see `Region`; None for all."""
    model: str
    """Model folder; empty for the model that comes with tileseg, wherever that is."""
    card: Card
    device: Device
    scaling: Scaling
    blend: str
    batch: int
    confidence: bool
    polygons: bool
    folder: str
    """The plan's directory, wherever it is."""
    hosts: tuple[str, ...] = ()
    """Those that may be read from, wherever they are."""
    read_threads: int = 1
    """GDAL's decoding threads."""

    @classmethod
    def of(cls, task: Task, ledger: Ledger, device: Device) -> "Recipe":
        """Say how a worker takes part in a task."""
        return cls(
            scene=task.scene,
            identity=task.identity,
            bands=task.bands,
            grid=task.grid,
            outline=task.region.outline if task.region else None,
            model=task.job.model and str(task.job.model_path.absolute()),
            card=task.card,
            device=device,
            scaling=Scaling(*task.gains()),
            blend=task.job.blend,
            batch=ledger.plan.resolved["batch_size"],
            confidence=task.job.confidence,
            polygons=bool(task.job.polygons),
            folder=ledger.folder.address,
            hosts=task.job.hosts,
        )

    @property
    def store_seconds(self) -> float:
        """How long what it reads or writes may be silent before that says why."""
        paths = [file.path for file in self.scene.files]
        # Twice: the last try may begin just before the first failure is so old.
        reads = 2 * remote.GIVE_UP_SECONDS if any(map(is_address, paths)) else 0
        return reads + (GIVE_UP_SECONDS if is_remote(self.folder) else 0)

    def on(self, device: Device, *, read_threads: int) -> "Recipe":
        """Return the recipe for a worker on a device of its own."""
        return replace(self, device=device, read_threads=read_threads)

    def network(self) -> Network:
        """Load the network."""
        folder = Path(self.model) if self.model else default_model()
        return load(folder, self.card, self.device)


class Worker:
    """One network on one device, one handle on the scene."""

    def __init__(
        self,
        recipe: Recipe,
        stop: threading.Event,
        enough: threading.Event | None = None,
    ) -> None:
        """Load the network; work until `stop`, or the row of shards after `enough`."""
        self._recipe = recipe
        self._enough = enough or threading.Event()
        self._folder = open_storage(recipe.folder)
        grid = recipe.grid
        self._blend = Blend(grid.stride, grid.halo, recipe.blend)
        self._reader = Reader(
            recipe.scene, recipe.bands, grid, threads=recipe.read_threads
        )
        self._predictor = Predictor(
            recipe.network(),
            grid,
            self._blend,
            recipe.scaling,
            batch=recipe.batch,
            stop=stop,
        )
        self._sketch = Sketch(grid, recipe.scene, recipe.bands)
        self._stencil = Stencil(recipe.outline) if recipe.outline else None
        self._lock = threading.Lock()  # of what follows, for those that write
        self._wait = self._write = 0.0
        self._reported: dict[str, float] = {}

    @property
    def tiles(self) -> int:
        """Tiles forwarded or skipped so far."""
        return self._predictor.tiles + self._predictor.tiles_skipped

    def process(self, runs: Iterable[Run]) -> Iterator[Receipt]:
        """Yield a receipt for each shard of the runs, in their order.

        Reading is one strip ahead of the network and writing behind it, across the
        borders of runs. When a stage fails, the receipts of what came before it are
        yielded first.
        """
        shards = self._shards(runs)
        yield from behind(self._finish, shards, ahead=_WRITES_AHEAD, threads=_WRITERS)

    def _shards(self, runs: Iterable[Run]) -> Generator[tuple[Shard, LabelRows]]:
        """Yield the labels and confidence of each shard."""
        with closing(Ahead(self._strips(runs), _STRIPS_AHEAD)) as ahead:
            stream = self._waited(ahead)
            for run in stream:
                assert isinstance(run, Run), "a run comes before its strips"
                strips = cast("Iterator[Strip]", iter(stream.__next__, None))
                rows = self._predictor.rows(
                    run, strips, confidence=self._recipe.confidence
                )
                for shard, labels in _cut(self._recipe.grid, run, rows):
                    yield shard, labels
                    is_last = shard.col + 1 == run.shards.col_stop
                    if is_last and self._enough.is_set():
                        return

    def _strips(self, runs: Iterable[Run]) -> Generator[Run | Strip | None]:
        """Yield each run, its strips, then None.

        None ends a run before the next one is touched: a next one that cannot be
        read must not be taken for this one's fault.
        """
        for run in runs:
            yield run
            for strip in self._reader.strips(run, ring=self._blend.ring):
                self._sketch.add(run, strip)
                yield self._asked(strip)
            yield None

    def _asked(self, strip: Strip) -> Strip:
        """Return a strip that knows which of its pixels are asked for."""
        if self._stencil is None:
            return strip
        grid = self._recipe.grid
        seen = strip.tiles.scale(grid.stride).pad(grid.halo)
        inside = self._stencil.inside(seen)
        masked = None if strip.masked is None else strip.masked & inside
        return replace(strip, inside=inside, masked=masked)

    def _waited(self, items: Iterator[T]) -> Iterator[T]:
        """Pass items through, and count the seconds spent waiting for them."""
        while True:
            start = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._wait += perf_counter() - start
            yield item

    def _finish(self, item: tuple[Shard, LabelRows]) -> Receipt:
        """Write a shard's files and return its receipt."""
        start = perf_counter()
        shard, rows = item
        window = self._recipe.grid.pixels(shard)
        box = self._recipe.scene.geobox.crop(window)
        layers = {"mask": rows.labels, "confidence": rows.confidence}
        artifacts = {
            product: self._write_layer(shard, product, pixels, box)
            for product, pixels in layers.items()
            if pixels is not None
        }
        if self._recipe.polygons:
            artifacts["polygons"] = self._write_pieces(shard, rows, box)
        pixels, hectares = _tally(rows.labels, box, len(self._recipe.card.classes))
        outside = 0
        if self._stencil:
            outside = int((~self._stencil.inside(window)).sum())
        with self._lock:
            self._write += perf_counter() - start
            work = self._since_last()
        return Receipt(
            shard=shard,
            artifacts=artifacts,
            pixels=pixels,
            masked=0 if rows.masked is None else int(rows.masked.sum()),
            hectares=hectares,
            outside=outside,
            work=work,
        )

    def _write_layer(
        self, shard: Shard, product: str, pixels: NDArray[np.uint8], box: GeoBox
    ) -> Artifact:
        suffix = "" if product == "mask" else f".{product}"
        look = looks(self._recipe.card, confidence=True)[product]
        with gdal_env():
            data = shard_bytes(
                pixels,
                box,
                overviews=look.overviews,
                block=block_side(self._recipe.grid.shard),
                sketch=self._sketch.take(shard) if product == "mask" else b"",
            )
        return self._write_artifact(f"shards/{shard.name}{suffix}.tif", data)

    def _write_pieces(self, shard: Shard, rows: LabelRows, box: GeoBox) -> Artifact:
        card, window = self._recipe.card, self._recipe.grid.pixels(shard)
        # Of one class and its background only the class is a thing on the ground.
        left_out = (NODATA, 0) if card.outputs == 1 else (NODATA,)
        with gdal_env():
            pieces = polygonise(
                rows.labels, rows.confidence, box, window, left_out=left_out
            )
        return self._write_artifact(
            f"shards/{shard.name}.polygons.npz", pieces.to_bytes()
        )

    def _write_artifact(self, name: str, data: bytes) -> Artifact:
        self._folder.write(name, data)
        return Artifact(name, len(data), hashlib.sha256(data).hexdigest())

    def _since_last(self) -> dict[str, float]:
        """Return what was counted since the last receipt."""
        total: dict[str, float] = {
            "tiles": self._predictor.tiles,
            "tiles_skipped": self._predictor.tiles_skipped,
            "decoded_pixels": self._reader.decoded_pixels,
            "requests": self._reader.traffic.requests,
            "read_retries": self._reader.traffic.retries,
            "bytes_fetched": self._reader.traffic.bytes,
            "read": self._reader.seconds,
            "wait": self._wait,
            "forward": self._predictor.seconds,
            "write": self._write,
        }
        since = {key: n - self._reported.get(key, 0) for key, n in total.items()}
        self._reported = total
        return since


def _tally(
    labels: NDArray[np.uint8], box: GeoBox, classes: int
) -> tuple[dict[int, int], dict[int, float] | None]:
    """Return pixels by mask value (nodata too) and hectares by class value."""
    counts = np.stack([np.bincount(row, minlength=NODATA + 1) for row in labels])
    area = row_hectares(box)
    values = (*range(classes), NODATA)
    pixels = {value: int(counts[:, value].sum()) for value in values}
    if area is None:
        return pixels, None
    return pixels, {value: float(area @ counts[:, value]) for value in range(classes)}


def _cut(
    grid: Grid, run: Run, rows: Iterable[LabelRows]
) -> Iterator[tuple[Shard, LabelRows]]:
    """Gather a run's rows into shards, each as soon as its last row is there."""
    held: list[LabelRows] = []
    todo = deque(run)
    for item in rows:
        held.append(item)
        while todo and (height := grid.pixels(todo[0]).height) <= _height(held):
            for _ in range(run.shards.width):
                shard = todo.popleft()
                columns = grid.pixels(shard).relative_to(grid.pixels(run)).slices[1]
                yield shard, _part(held, slice(height), columns)
            below = _height(held) - height  # all of it came with the last item
            last = slice(len(held[-1].labels) - below, None)
            held = [_part(held[-1:], last, slice(None))]
            trim_heap()


def _height(rows: list[LabelRows]) -> int:
    return sum(len(item.labels) for item in rows)


def _part(held: list[LabelRows], rows: slice, columns: slice) -> LabelRows:
    """Return a rectangle of what is held, in memory of its own."""
    layers = [item.confidence for item in held if item.confidence is not None]
    masked = [item.masked.view(np.uint8) for item in held if item.masked is not None]
    return LabelRows(
        _stacked([item.labels for item in held], rows, columns),
        _stacked(layers, rows, columns) if layers else None,
        _stacked(masked, rows, columns).view(np.bool_) if masked else None,
    )


def _stacked(
    layers: list[NDArray[np.uint8]], rows: slice, columns: slice
) -> NDArray[np.uint8]:
    return np.concatenate([layer[:, columns] for layer in layers])[rows].copy()
