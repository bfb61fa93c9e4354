"""What many shards and many workers cost: receipts a second, and 1 to 8 workers.

python -m benchmark.scale   (in jobs/) prints these rows alone.
"""

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import perf_counter, process_time
from typing import Any

import ray

from benchmark.scenes import Kind, make_scene
from benchmark.setting import Setting
from benchmark.simulate import SimulatedRecipe
from benchmark.table import Figures, Row, as_text
from tileseg.base.memory import rss_mb
from tileseg.engines import crew
from tileseg.engines.cluster import RayEngine
from tileseg.engines.crew import Failure, Outcome
from tileseg.engines.engine import LocalEngine, Pulse, Usage
from tileseg.engines.leases import Leases
from tileseg.engines.staff import Staff
from tileseg.engines.worker import Recipe
from tileseg.grid import Grid, Run, Shard
from tileseg.network.device import Device, resolve_device
from tileseg.network.lanes import Threads
from tileseg.plans.ledger import Artifact, Ledger, Plan, Receipt
from tileseg.plans.seams import Seams
from tileseg.plans.task import Task, prepare
from tileseg.settings import Job
from tileseg.steps.execution import carry_out
from tileseg.steps.record import Record
from tileseg.stores.objects import open_storage

__all__ = ["measure"]

_CLASSES = 8  # of a receipt
_NODATA = 255
_RATE = 10.0  # tiles a second of a simulated device: two cores feed eight of them
_SHARD = 192  # pixels
_BATCH = 4  # the tiles of a shard
_EACH = 96  # shards for each worker: as many as in a scene of some 10^9 pixels
_COLUMNS = 16  # shards


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows: receipts with nothing behind them, then simulated devices."""
    side = 49_152 if setting.quick else 196_608
    with TemporaryDirectory() as place:
        scene = make_scene(Kind(height=side, width=side, every=1 << 40), Path(place))
        job = Job(input=str(scene), output=f"{place}/out", trusted=True)
        task = prepare(job)
        yield _receipts("receipts, no workers", task, _Canned(100), 100)
        with _cluster(4), closing(_CannedRay(replace(job, workers=4))) as engine:
            yield _receipts("receipts, 4 workers of Ray", task, engine, 4)
    yield from _workers(setting)


# Receipts


def canned(grid: Grid, shard: Shard) -> Receipt:
    """Return a receipt as large as those of a job with confidence and 8 classes."""
    pixels = grid.pixels(shard).size
    names = ("mask", "confidence")
    files = {
        name: Artifact(f"shards/{shard.name}.{name}", 9, "a" * 64) for name in names
    }
    work = dict.fromkeys(("tiles", "decoded_pixels", "read", "forward", "write"), 1.25)
    return Receipt(
        shard=shard,
        artifacts=files,
        pixels={**dict.fromkeys(range(_CLASSES), 0), 0: pixels, _NODATA: 0},
        masked=0,
        hectares=dict.fromkeys(range(_CLASSES), 1.25),
        seams=Seams(2_700, 135, 9_000, 450),
        work=work,
    )


class _Canned(LocalEngine):
    """An engine whose workers take no time; leases go as they do to Ray's."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._names = [f"worker {number}" for number in range(workers)]

    def workers(self, device: Device) -> list[str]:
        return [device.name] * len(self._names)

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Receipt]:
        leases = Leases(recipe.grid, runs, len(self._names))
        held: dict[str, list[Shard]] = {name: [] for name in self._names}
        while not leases.is_done:
            for name, shards in held.items():
                shards.extend(shard for run in leases.take(name) for shard in run)
                if shards:
                    leases.settle(name, shards[0])
                    yield canned(recipe.grid, shards.pop(0))
                    pulse(0)

    def usage(self) -> Usage:
        return Usage(workers=len(self._names))


class _CannedWorker:
    """In the place of a `Worker`: receipts, and nothing behind them."""

    tiles = 0
    loaded_mb = 0.0

    def __init__(self, recipe: Recipe, _stop: Event, _enough: Event) -> None:
        self._grid = recipe.grid

    def close(self) -> None:
        """Have nothing to let go."""

    def process(self, runs: Iterable[Run]) -> Iterator[Receipt]:
        for run in runs:
            for shard in run:
                yield canned(self._grid, shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CannedRecipe(Recipe):
    """A recipe whose workers make receipts only."""

    def on(self, device: Device, threads: Threads) -> Recipe:
        """Called in the process of the worker, before it is there."""
        vars(crew).update(Worker=_CannedWorker)
        return replace(self, device=device, threads=threads)


class _CannedRay(RayEngine):
    """Ray's engine with such workers."""

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Any]:
        yield from super().outcomes(_as(_CannedRecipe, recipe), runs, pulse)


def _as(kind: type[Recipe], recipe: Recipe, **more: Any) -> Recipe:  # noqa: ANN401  (its fields)
    names = Recipe.__dataclass_fields__
    return kind(**{name: getattr(recipe, name) for name in names}, **more)


def _receipts(
    name: str, task: Task, engine: LocalEngine | RayEngine, workers: int
) -> Row:
    """Measure the driver's own loop, with a ledger on the disk."""

    class Hired(Staff):
        def engine(self, _job: Job) -> Any:  # noqa: ANN401  (an engine)
            return engine

    device = resolve_device("cpu", "fp32")
    plan = Plan(
        task.request,
        {"device": device.name, "hardware": device.hardware,
         "precision": device.precision, "network": device.network, "batch_size": 1},
    )  # fmt: skip
    if isinstance(engine, RayEngine):
        _wait_for(engine)
    record = Record(name)
    record.add_plan(plan, task, engine.kind, engine.workers(device))
    before, start, worked = rss_mb(), perf_counter(), process_time()
    with Hired() as staff:
        ledger, receipts = carry_out(task, plan, staff, record, lambda _n, _total: None)
    seconds, worked = perf_counter() - start, process_time() - worked
    journal = Path(ledger.folder.address) / "receipts.jsonl"
    figures: Figures = {
        "workers": workers,
        "receipts": len(receipts),
        "receipts_s": len(receipts) / seconds,
        "per_cpu_s": len(receipts) / worked,
        "mpx_s": task.grid.area.size / 1e6 / seconds,
        "ledger_bytes": journal.stat().st_size / len(receipts),
        "driver_bytes": (rss_mb() - before) * 1e6 / len(receipts),
    }
    ledger.folder.clear()
    return Row("scale", name, figures, "bytes: of each receipt")


# Workers


def _workers(setting: Setting) -> Iterator[Row]:
    """Yield the rows of 1 to 8 workers on parts of one scene, equally much for each."""
    most = 8
    height = most * _EACH // _COLUMNS * _SHARD
    kind = Kind(height=height, width=_COLUMNS * _SHARD)
    with TemporaryDirectory() as place:
        scene = make_scene(kind, setting.folder / "scenes")
        job = Job(
            input=str(scene), output=f"{place}/out", engine="ray", shard=_SHARD,
            device="cpu", precision="fp32", batch_size=_BATCH, trusted=True,
        )  # fmt: skip
        task = prepare(job)
        alone = 0.0
        for workers in (1, 2, 8):
            with _cluster(workers):
                rate = _simulated(replace(task, job=replace(job, workers=workers)))
            alone = alone or rate
            figures: Figures = {
                "workers": workers,
                "tiles_s": rate * workers,
                "ratio": rate / _RATE,
                "efficiency": rate / alone,
            }
            note = f"devices of {_RATE:g} tiles/s, shards of {_SHARD} px"
            yield Row("scale", f"{workers} workers of Ray", figures, note)


def _simulated(task: Task) -> float:
    """Return tiles a second of each of the job's workers, with simulated devices."""
    workers = task.job.workers or 1
    shards = list(Run(task.grid.shape))[: workers * _EACH]
    with closing(RayEngine(task.job)) as engine:
        _wait_for(engine)
        device = resolve_device("cpu", "fp32")
        resolved = {"batch_size": task.job.batch_size}
        ledger = Ledger(open_storage(task.job.workplace), Plan(task.request, resolved))
        ledger.open()
        recipe = _as(SimulatedRecipe, Recipe.of(task, ledger, device), rate=_RATE)
        start = perf_counter()
        outcomes = engine.outcomes(recipe, task.runs(shards, workers))
        tiles = sum(_made(outcome).work["tiles"] for outcome in outcomes)
        seconds = perf_counter() - start
    ledger.folder.clear()
    return tiles / seconds / workers


def _made(outcome: Outcome) -> Receipt:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


@contextmanager
def _cluster(cpus: int) -> Iterator[None]:
    """Have a Ray of so many CPUs, whatever the machine has: devices are simulated."""
    ray.init(
        "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
        logging_level=logging.WARNING, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _wait_for(engine: RayEngine) -> None:
    """Come back when all workers have loaded their libraries."""
    engine.pool.fill()
    ray.get([engine.pool.hello(name) for name in engine.pool.actors])


if __name__ == "__main__":
    setting = Setting(
        device=resolve_device("cpu"),
        quick=True,
        rounds=1,
        folder=Path("~/.cache/tileseg-bench").expanduser(),
    )
    print(as_text(measure(setting)))
