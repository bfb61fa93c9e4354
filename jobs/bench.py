"""Measure speed and memory: the network alone, the engines, the whole job.

python jobs/bench.py                           the land-cover model on this machine
python jobs/bench.py --engine local --engine ray
python jobs/bench.py --simulate 300            a device that takes 300 tiles a second
python jobs/bench.py --simulate 300 --storage 0.5 [--in-turn]
                                               and a slow disk; without any overlap
python jobs/bench.py --latency 0.03            the scene also from a web server

Every figure is the median over rounds in which all of them take turns, so that a busy
machine is unfair to none. `ratio` is tiles a second over those of the network alone,
`resumed` what it takes to find all shards done, as a share of what making them took,
`of_local` the rate of the whole job from the web, over that from the disk.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import Tensor

from tileseg import worker
from tileseg.cli import one_line_errors
from tileseg.crew import Failure, Outcome
from tileseg.engine import Engine, LocalEngine
from tileseg.grid import Run
from tileseg.job import Staff
from tileseg.ledger import Ledger, Plan, Receipt, forget
from tileseg.model import Device, Network, default_batch, load_module
from tileseg.model import load as load_network
from tileseg.reader import Reader
from tileseg.settings import Job
from tileseg.storage import Disk
from tileseg.task import Task, prepare
from tileseg.worker import Recipe, Worker

BLOCK = 512
SEGMENT = Path(__file__).with_name("segment.py")
SERVER = Path(__file__).parents[1] / "tests" / "web.py"


class SimulatedNetwork(Network):
    """A device of known speed: its answers take time, but nobody's processor.

    It answers with the first bands of its input, so that labels depend on the pixels.
    """

    def __init__(self, network: Network, rate: float) -> None:
        """Take the place of a network, at `rate` tiles a second."""
        self.card, self.device = network.card, network.device
        self._rate = rate
        self._free = threading.Lock()

    def __call__(self, tiles_NBTT: Tensor) -> Tensor:  # noqa: N803  (shape suffix)
        """Return logits, (N, outputs, tile, tile), when the time is up."""
        bands = torch.arange(self.card.outputs) % tiles_NBTT.shape[1]
        with self._free:  # one batch at a time, whoever asks
            ready = time.perf_counter() + len(tiles_NBTT) / self._rate
            logits = tiles_NBTT[:, bands]
            time.sleep(max(0.0, ready - time.perf_counter()))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRecipe(Recipe):
    """A recipe whose workers have a simulated device."""

    rate: float
    """Tiles a second."""
    storage: float = 0.0
    """Share of that time that reading the same tiles takes, and writing them."""
    in_turn: bool = False
    """Whether reading, forward and writing wait for each other."""

    def network(self) -> Network:
        """Load the network, and put the simulated one in its place.

        Called in the process of the worker, whose disk becomes as slow as asked for.
        """
        if self.storage and not hasattr(Reader._read, "__wrapped__"):  # noqa: SLF001
            delay = self.storage / self.rate / self.grid.stride**2
            slow_down(Reader, "_read", lambda _file, window, *_: window.size * delay)
            slow_down(Worker, "_finish", lambda item: item[1].labels.size * delay)
        if self.in_turn:
            vars(worker).update(Ahead=in_turn, behind=one_by_one)
        return SimulatedNetwork(Recipe.network(self), self.rate)


def slow_down(kind: type, name: str, seconds: Callable[..., float]) -> None:
    """Let a method take longer, as it would on a slow disk; no processor is used."""
    method = getattr(kind, name)

    @wraps(method)
    def slow(self: object, *args: object) -> object:
        time.sleep(seconds(*args))
        return method(self, *args)

    setattr(kind, name, slow)


def in_turn(items: Generator[Any], _ahead: int) -> Generator[Any]:
    """Return items that are made when they are asked for, not ahead."""
    return items


def one_by_one(
    function: Callable[[Any], Any], items: Generator[Any], *, ahead: int
) -> Iterator[Any]:
    """Yield function(item) in order, each before the next item is made."""
    del ahead
    yield from map(function, items)


def make_scene(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Write correlated noise as 3 bands of uint16 reflectance, block by block."""
    random = np.random.default_rng(seed)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": height,
        "width": width,
        "dtype": "uint16",
        "nodata": 0,
        "crs": "EPSG:32631",
        "transform": Affine(10, 0, 500_000, 0, -10, 4_600_000),
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "predictor": 2,
        "num_threads": "all_cpus",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.descriptions = ("blue", "green", "red")
        dataset.scales = (1e-4,) * 3
        for row in range(0, height, BLOCK):
            for col in range(0, width, BLOCK):
                shape = min(BLOCK, height - row), min(BLOCK, width - col)
                fields = random.integers(300, 3_000, (3, BLOCK // 32, BLOCK // 32))
                pixels = fields.repeat(32, axis=1).repeat(32, axis=2)
                pixels += random.integers(0, 200, pixels.shape)
                part = pixels[:, : shape[0], : shape[1]].astype(np.uint16)
                dataset.write(part, window=Window(col, row, *shape[::-1]))
    return path


def network_alone(task: Task, device: Device, batch: int, seconds: float) -> float:
    """Return tiles a second of the network on one batch, over and over."""
    network = load_network(task.job.model_path, task.card, device)
    side = task.card.tile
    tiles = torch.randn(batch, len(task.card.bands), side, side, device=device.name)
    network(tiles)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        network(tiles).sum().item()  # waits for a GPU
        done += batch
    return done / elapsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One scene and model, measured in several ways."""

    task: Task
    device: Device
    rate: float | None
    """Of the simulated device; None for the real network."""
    storage: float = 0.0
    in_turn: bool = False
    """See `SimulatedRecipe`."""
    served: str = ""
    """The scene's address on a web server, for whole jobs from there too."""

    @property
    def batch(self) -> int:
        """Tiles in one forward."""
        return self.task.job.batch_size or default_batch(self.device, self.task.card)

    def engine(self, engine: Engine, folder: Path) -> dict[str, float]:
        """Time an engine from being given the scene to its last receipt."""
        resolved = {
            "device": self.device.name,
            "hardware": self.device.hardware,
            "precision": self.device.precision,
            "batch_size": self.batch,
        }
        ledger = Ledger(Disk(folder), Plan(self.task.request, resolved))
        ledger.open()
        recipe = Recipe.of(self.task, ledger, self.device)
        if self.rate:
            recipe = self._simulated(recipe)
        workers = engine.workers(self.device)
        runs = self.task.runs(list(Run(self.task.grid.shape)), len(workers))
        start = time.perf_counter()
        with closing(engine.outcomes(recipe, runs, lambda _tiles: None)) as outcomes:
            receipts = list(map(_made, outcomes))
        seconds = time.perf_counter() - start
        tiles = sum(receipt.work["tiles"] for receipt in receipts)
        for receipt in receipts:
            ledger.record(receipt)
        ledger.flush()
        start = time.perf_counter()
        assert len(ledger.open()) == len(receipts), "all is there"
        resume = time.perf_counter() - start
        forget(Disk(folder), ledger.plan.plan_id)
        return {"tiles_s": tiles / seconds / len(workers), "resumed": resume / seconds}

    def _simulated(self, recipe: Recipe) -> Recipe:
        assert self.rate, "there is a simulated device"
        names = Recipe.__dataclass_fields__
        facts = {name: getattr(recipe, name) for name in names}
        return SimulatedRecipe(
            **facts, rate=self.rate, storage=self.storage, in_turn=self.in_turn
        )

    def whole_job(
        self, engine: str, folder: Path, source: str = ""
    ) -> dict[str, float]:
        """Run `jobs/segment.py` in a process of its own; say what its JSON says."""
        job = self.task.job
        options = {
            "--input": source or job.input,
            "--host": urlsplit(source).netloc or "localhost",
            "--output": folder / "out",
            "--engine": engine,
            "--workers": job.workers,
            "--model": job.model_path,
            "--device": job.device,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, str(SEGMENT), *words, "-q"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603  (our own program)
        shutil.rmtree(folder / "out")  # else the next one has nothing to do
        values = json.loads(out)
        return {
            "tiles_s": values["rates"]["tiles_s"] / values["engine"]["workers"],
            "mpx_s": values["rates"]["mpx_s"],
            "peak_rss_mb": values["memory"]["peak_rss_mb"],
            "decoded": values["decode"]["decoded_pixels"]
            / values["decode"]["source_pixels"],
        }


def _made(outcome: Outcome) -> Receipt:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def measure(bench: Bench, engines: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return every figure of every row, the medians over the rounds."""
    rows: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory() as place:
        for _ in range(rounds):
            for name, figures in _round(bench, engines, Path(place)):
                rows.setdefault(name, []).append(figures)
    medians = {
        name: {key: median(item[key] for item in items) for key in items[0]}
        for name, items in rows.items()
    }
    alone = medians["network alone"]["tiles_s"]
    return {
        name: {**figures, "ratio": figures["tiles_s"] / alone}
        for name, figures in medians.items()
    }


def _round(
    bench: Bench, engines: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    with ThreadPoolExecutor(1) as pool:  # as an engine's worker, off the main thread
        args = bench.task, bench.device, bench.batch, 5
        rate = bench.rate or pool.submit(network_alone, *args).result()
    yield "network alone", {"tiles_s": rate}
    for name in engines:
        with Staff() as staff:
            engine = staff.engine(replace(bench.task.job, engine=name))
            engine.resolve(bench.task.job)  # waits for a worker
            yield f"engine {name}", bench.engine(engine, folder)
        # The workers are gone: the whole job needs the processors for its own.
        if not bench.rate:
            figures = bench.whole_job(name, folder)
            yield f"job {name}", figures
            if bench.served:
                fetched = bench.whole_job(name, folder, bench.served)
                share = fetched["mpx_s"] / figures["mpx_s"]
                yield f"job {name}, web", {**fetched, "of_local": share}


@contextmanager
def web_server(folder: Path, latency: float) -> Iterator[str]:
    """Serve a folder on loopback, every answer `latency` seconds late."""
    with TemporaryDirectory() as place:
        (Path(place) / "settings.json").write_text(json.dumps({"latency": latency}))
        command = [sys.executable, str(SERVER), str(folder), place]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  (our own program)
            assert process.stdout, "it is a pipe"
            yield process.stdout.readline().strip()
            process.kill()


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Print the figures, tiles a second for one worker."""
    keys = [
        "tiles_s",
        "ratio",
        "mpx_s",
        "decoded",
        "peak_rss_mb",
        "resumed",
        "of_local",
    ]
    click.echo(f"{'':<16}" + "".join(f"{key:>13}" for key in keys))
    for name, figures in rows.items():
        cells = [
            f"{figures[key]:>13.4g}" if key in figures else " " * 13 for key in keys
        ]
        click.echo(f"{name:<16}" + "".join(cells))


@click.command()
@click.option("--engine", "engines", multiple=True, default=("local",),
              type=click.Choice(["local", "ray"]), show_default=True)  # fmt: skip
@click.option("--size", type=(int, int), default=(3_300, 4_700), show_default=True,
              help="Height and width of the scene, in pixels.")  # fmt: skip
@click.option("--model", default="", help="Model folder.")
@click.option("--device", default="auto", show_default=True)
@click.option("--workers", type=int, default=1, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--simulate", type=float, metavar="RATE",
              help="Tiles a second of a simulated device.")  # fmt: skip
@click.option("--storage", default=0.0, metavar="SHARE",
              help="Of the device's time that reading takes, and writing.")  # fmt: skip
@click.option("--in-turn", is_flag=True,
              help="Let reading, forward and writing wait in turn.")  # fmt: skip
@click.option("--latency", type=float, metavar="SECONDS",
              help="Also from a web server that answers so late.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, no table.")
def main(**options: Any) -> None:  # noqa: ANN401  (what is said above)
    """Measure, on a scene made for it, and print medians."""
    with one_line_errors(), TemporaryDirectory() as place, ExitStack() as stack:
        job = Job(
            input=str(make_scene(Path(place) / "scene.tif", *options["size"])),
            model=options["model"],
            output=str(Path(place) / "out"),
            device=options["device"],
            workers=options["workers"],
        )
        task = prepare(job)
        load_module(job.model_path, task.card)
        device = LocalEngine().resolve(job)
        bench = Bench(
            task=task,
            device=device,
            rate=options["simulate"],
            storage=options["storage"],
            in_turn=options["in_turn"],
        )
        if options["latency"] is not None:
            server = web_server(Path(place), options["latency"])
            bench = replace(bench, served=f"{stack.enter_context(server)}/scene.tif")
        rows = measure(bench, options["engines"], options["rounds"])
    click.echo(json.dumps(rows)) if options["as_json"] else print_table(rows)


if __name__ == "__main__":
    main()
