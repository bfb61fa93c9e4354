"""Read, forward and write overlapped, for one device: runs in, receipts out."""

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

from tileseg.base.address import is_address
from tileseg.base.locations import is_remote
from tileseg.base.memory import rss_mb
from tileseg.base.overlap import Ahead, behind
from tileseg.cards.card import Card
from tileseg.cards.ensemble import Ensemble
from tileseg.engines.maker import Maker
from tileseg.engines.shelf import cut
from tileseg.grid import Grid, Run, Shard, Strip
from tileseg.network import averaging
from tileseg.network.blend import Blend
from tileseg.network.bus import Ring
from tileseg.network.device import Device
from tileseg.network.lanes import ALONE, Threads
from tileseg.network.model import Network
from tileseg.network.picture import LabelRows
from tileseg.network.predict import Predictor, Scaling
from tileseg.plans.ledger import Ledger, Receipt
from tileseg.plans.task import Task
from tileseg.scenes.identity import Identities
from tileseg.scenes.prints import Prints
from tileseg.scenes.reader import Reader
from tileseg.scenes.region import Stencil
from tileseg.scenes.scene import Band, Scene
from tileseg.scenes.sketch import Sketch
from tileseg.stores import remote
from tileseg.stores.objects import GIVE_UP_SECONDS, open_storage

__all__ = ["Recipe", "Worker"]

T = TypeVar("T")

_STRIPS_AHEAD = 1  # read ahead of the network
_STRIPS = 1 + _STRIPS_AHEAD  # in memory, with the one in hand
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
    ensemble: Ensemble
    device: Device
    scaling: Scaling
    blend: str
    batch: int
    layers: tuple[str, ...]
    """What is made of each pixel beside its class."""
    polygons: bool
    simplify: float | None
    """Metres that their borders are simplified by."""
    eliminates: bool
    """Whether small ones are merged when all are there; then these are as traced."""
    folder: str
    """The plan's directory, wherever it is."""
    prints: bool = False
    """Whether receipts are to say what was seen, see `Prints`."""
    hosts: tuple[str, ...] = ()
    """Those that may be read from, wherever they are."""
    threads: Threads = ALONE
    """What it may use of its machine."""

    @classmethod
    def of(cls, task: Task, ledger: Ledger, device: Device) -> "Recipe":
        """Say how a worker takes part in a task."""
        return cls(
            scene=task.scene,
            identity=task.identity,
            bands=task.bands,
            grid=task.grid,
            outline=task.region.outline if task.region else None,
            ensemble=task.ensemble,
            device=device,
            scaling=Scaling(*task.gains()),
            blend=task.job.blend,
            batch=ledger.plan.resolved["batch_size"],
            layers=task.job.layers,
            polygons=bool(task.job.polygons),
            simplify=task.job.simplify,
            eliminates=task.job.min_area is not None,
            folder=ledger.folder.address,
            prints=task.job.incremental,
            hosts=task.job.hosts,
        )

    @property
    def card(self) -> Card:
        """What the products' values mean."""
        return self.ensemble.card

    def patience(self, seconds: float) -> float:
        """Return how long it may take without progress, if one forward may `seconds`.

        Before it can say why: what it reads or writes may be silent for long, too.
        """
        return seconds * self.ensemble.forwards + self.store_seconds

    @property
    def store_seconds(self) -> float:
        """How long what it reads or writes may be silent before that says why."""
        paths = [file.path for file in self.scene.files]
        # Twice: the last try may begin just before the first failure is so old.
        reads = 2 * remote.GIVE_UP_SECONDS if any(map(is_address, paths)) else 0
        return reads + (GIVE_UP_SECONDS if is_remote(self.folder) else 0)

    def on(self, device: Device, threads: Threads) -> "Recipe":
        """Return the recipe for a worker on a device of its own."""
        return replace(self, device=device, threads=threads)

    def maker(self) -> Maker:
        """Return what makes shards' files of labels."""
        return Maker(
            grid=self.grid,
            geobox=self.scene.geobox,
            ensemble=self.ensemble,
            polygons=self.polygons,
            simplify=self.simplify,
            eliminates=self.eliminates,
            folder=open_storage(self.folder),
            outline=self.outline,
        )

    @property
    def shares(self) -> Blend:
        """How neighbouring tiles share pixels."""
        return Blend(self.grid.stride, self.grid.halo, self.blend)

    def network(self) -> Network:
        """Return the networks of the ensemble, which answer as one."""
        return averaging.at_hand(self.ensemble, self.device, self.shares.trim)


class Worker:
    """One network on one device, one handle on the scene."""

    def __init__(
        self,
        recipe: Recipe,
        stop: threading.Event,
        enough: threading.Event | None = None,
    ) -> None:
        """Load the network; work until `stop`, or the row of shards after `enough`."""
        start = perf_counter()
        self._recipe = recipe
        self._enough = enough or threading.Event()
        grid = recipe.grid
        self._blend = recipe.shares
        self._predictor = Predictor(
            recipe.network(),
            grid,
            self._blend,
            recipe.scaling,
            batch=recipe.batch,
            stop=stop,
            threads=recipe.threads,
        )
        self._reader = Reader(
            recipe.scene,
            recipe.bands,
            grid,
            threads=recipe.threads.read,
            empty=Ring(self._predictor.bus.buffer, _STRIPS),
        )
        self._sketch = Sketch(grid, recipe.scene, recipe.bands)
        self._prints = Prints(grid, ring=self._blend.ring) if recipe.prints else None
        self._stencil = Stencil(recipe.outline) if recipe.outline else None
        self._maker = recipe.maker()
        self.loaded_mb = rss_mb()
        """What this process held when the network was loaded."""
        self._seconds = dict.fromkeys(("read", "wait", "hold", "write"), 0.0)
        self._seconds["load"] = perf_counter() - start
        self._lock = threading.Lock()  # of what those that write count
        self._reported: dict[str, float] = {}

    @property
    def tiles(self) -> int:
        """Tiles forwarded or skipped so far."""
        return self._predictor.tiles + self._predictor.tiles_skipped

    def close(self) -> None:
        """Let its threads go; of no more use then."""
        self._predictor.close()

    def process(self, runs: Iterable[Run]) -> Iterator[Receipt]:
        """Yield a receipt for each shard of the runs, in their order.

        Reading is one strip ahead of the network and writing behind it, across the
        borders of runs. When a stage fails, the receipts of what came before it are
        yielded first.
        """
        shards = self._shards(runs)
        yield from behind(self._finish, shards, ahead=_WRITES_AHEAD, threads=_WRITERS)

    def _shards(self, runs: Iterable[Run]) -> Generator[tuple[Shard, LabelRows] | None]:
        """Yield the labels and layers of each shard; None now and then between."""
        with closing(Ahead(self._strips(runs), _STRIPS_AHEAD)) as ahead:
            stream = self._timed(ahead, "wait")
            for run, first in stream:
                rows = self._predictor.rows(
                    run,
                    self._rest(run, first, stream),
                    layers=self._recipe.layers,
                )
                for made in cut(self._recipe.grid, run, rows):
                    start = perf_counter()
                    yield made
                    # Long only if the writer is behind by all that it may be.
                    self._seconds["hold"] += perf_counter() - start
                    is_last = made and made[0].col + 1 == run.shards.col_stop
                    if is_last and self._enough.is_set():
                        return

    def _strips(self, runs: Iterable[Run]) -> Generator[tuple[Run, Strip]]:
        """Yield the strips of each run, with the run."""
        for run in runs:
            strips = self._reader.strips(run, ring=self._blend.ring)
            for strip in self._timed(strips, "read"):
                self._sketch.add(run, strip)
                if self._prints:
                    self._prints.add(run, strip)
                yield run, self._asked(strip)

    def _rest(
        self, run: Run, strip: Strip, stream: Iterator[tuple[Run, Strip]]
    ) -> Iterator[Strip]:
        """Yield a run's strips, of which one is here.

        The next run is not touched: one that cannot be read must not be taken for
        this one's fault.
        """
        stop = self._recipe.grid.cores(run, ring=self._blend.ring).row_stop
        yield strip
        while strip.tiles.row_stop < stop:
            _, strip = next(stream)
            yield strip

    def _asked(self, strip: Strip) -> Strip:
        """Return a strip that knows which of its pixels are asked for."""
        if self._stencil is None:
            return strip
        grid = self._recipe.grid
        seen = strip.tiles.scale(grid.stride).pad(grid.halo)
        inside = self._stencil.inside(seen)
        masked = None if strip.masked is None else strip.masked & inside
        return replace(strip, inside=inside, masked=masked)

    def _timed(self, items: Iterator[T], stage: str) -> Iterator[T]:
        """Pass items through, and count the seconds until they are there."""
        while True:
            start = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._seconds[stage] += perf_counter() - start
            yield item

    def _finish(self, item: tuple[Shard, LabelRows]) -> Receipt:
        """Write a shard's files and return its receipt."""
        start = perf_counter()
        shard, rows = item
        receipt = self._maker.make(
            shard,
            rows,
            masked=0 if rows.masked is None else int(rows.masked.sum()),
            sketch=self._sketch.take(shard),
            seen=self._prints.take(shard) if self._prints else "",
        )
        with self._lock:
            self._seconds["write"] += (perf_counter() - start) / _WRITERS
            return replace(receipt, work=self._since_last())

    def _since_last(self) -> dict[str, float]:
        """Return what was counted since the last receipt."""
        total: dict[str, float] = {
            "tiles": self._predictor.tiles,
            "tiles_skipped": self._predictor.tiles_skipped,
            "decoded_pixels": self._reader.decoded_pixels,
            "requests": self._reader.traffic.requests,
            "read_retries": self._reader.traffic.retries,
            "bytes_fetched": self._reader.traffic.bytes,
            "forward": self._predictor.seconds,
            **self._seconds,
        }
        since = {key: n - self._reported.get(key, 0) for key, n in total.items()}
        self._reported = total
        return since
