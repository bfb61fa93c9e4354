"""The whole job beside its own network alone, in one process, turn by turn."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from torch import Tensor

from benchmark import alone, engines
from benchmark.scenes import Kind, make_scene, own_model
from benchmark.setting import Setting
from benchmark.table import Figures, Row, spread
from tileseg.engines.worker import Recipe
from tileseg.job import run
from tileseg.network.model import Network
from tileseg.plans.precision import ENOUGH, compare
from tileseg.plans.task import prepare
from tileseg.settings import Job

__all__ = ["done", "guarded", "job_of", "measure", "own_rate", "watched"]


@dataclass(slots=True)
class Watch:
    """When a network answered."""

    first: float = 0.0
    """At first, by `perf_counter`; 0 before."""
    last: float = 0.0
    """At last; on a GPU when the question was put."""


class Watched:
    """A network that notes when it answers."""

    def __init__(self, network: Network, watch: Watch) -> None:
        """Stand before a network."""
        self._network, self._watch = network, watch

    def __call__(self, tiles: Tensor) -> Tensor:
        """Pass tiles on, and note the time."""
        logits = self._network(tiles)
        if not self._watch.first:
            logits.sum().item()  # waits for a GPU
            self._watch.first = perf_counter()
        self._watch.last = perf_counter()
        return logits

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (the network's)
        """Be the network in all else."""
        return getattr(self._network, name)


@contextmanager
def watched() -> Iterator[Watch]:
    """Let the networks of workers in this process note when they answer."""
    watch, method = Watch(), Recipe.network

    def network(recipe: Recipe) -> Any:  # noqa: ANN401  (as good as a Network)
        return Watched(method(recipe), watch)

    Recipe.network = network  # type: ignore[assignment,method-assign]  # put back below
    try:
        yield watch
    finally:
        Recipe.network = method  # type: ignore[method-assign]


def measure(setting: Setting) -> Iterator[Row]:
    """Yield rows for base widths: on a large scene, and as a process on a small one."""
    folder = setting.folder / "scenes"
    warm = make_scene(Kind(height=256, width=300), folder)
    scenes = {
        side: make_scene(Kind(height=side, width=side), folder)
        for side in (setting.small, setting.large)
    }
    for width in (64,) if setting.is_gpu else (8, 16):
        model = own_model(setting.folder, width)
        one_job(warm, model, setting)  # imports, and what is done only once
        for side, rows in ((setting.large, _rows), (setting.small, _process)):
            settled = guarded(scenes[side], model, setting)
            yield from rows(scenes[side], model, settled, f"width {width}, {side}²")


def _rows(scene: Path, model: Path, setting: Setting, name: str) -> Iterator[Row]:
    """Yield the network alone, and the whole job."""
    rates, jobs, ratios = [], [], []
    for _ in range(setting.rounds):
        before = own_rate(model, setting)
        job = one_job(scene, model, setting)
        after = own_rate(model, setting)
        rates += [before, after]
        ratios.append(float(job["tiles_s"] or 0) / ((before + after) / 2))
        jobs.append(job)
    yield Row(
        "whole",
        f"network alone, {name}",
        {"tiles_s": median(rates), "ratio": 1.0, "spread": spread(rates)},
        "before and after each job, in its fastest way",
    )
    middle = sorted(jobs, key=lambda job: float(job["tiles_s"] or 0))[len(jobs) // 2]
    figures = {**middle, "ratio": median(ratios), "spread": spread(ratios)}
    yield Row("whole", f"whole job, {name}", figures)


def _process(scene: Path, model: Path, setting: Setting, name: str) -> Iterator[Row]:
    """Yield the whole job as a process of its own, with starting Python."""
    before = own_rate(model, setting)
    with TemporaryDirectory() as place:
        took = engines.whole_job(job_of(scene, model, setting, place))
    after = own_rate(model, setting)
    ratio = took["tiles_s"] / ((before + after) / 2)
    yield Row("whole", f"as a process, {name}", {**took, "ratio": ratio})


def guarded(scene: Path, model: Path, setting: Setting) -> Setting:
    """Return the setting in the precision that a job of a scene goes on in.

    The job itself is asked for its default: its own check is in its time.
    """
    if setting.device.precision == "fp32":
        return setting
    with TemporaryDirectory() as place:
        check = compare(prepare(job_of(scene, model, setting, place)), setting.device)
    if check.agreement is None or check.agreement >= ENOUGH:
        return setting
    return replace(setting, device=replace(setting.device, precision="fp32"))


def own_rate(model: Path, setting: Setting) -> float:
    """Return tiles a second of the network alone, as tileseg runs it."""
    seconds = 4 if setting.quick else 8
    return alone.rate_of(model, setting, seconds)


def job_of(scene: Path, model: Path, setting: Setting, place: str) -> Job:
    """Return a job of this machine, with all defaults."""
    return Job(
        input=str(scene),
        model=str(model),
        output=str(Path(place) / "out"),
        device=setting.device.name.partition(":")[0],
        engine="local",
        workers=1,
    )


def one_job(scene: Path, model: Path, setting: Setting) -> Figures:
    """Do a whole job here; return what it took from its call to its end."""
    with TemporaryDirectory() as place:
        return done(job_of(scene, model, setting, place))


def done(job: Job) -> Figures:
    """Do a job in this process; return what it took from its call to its end."""
    with watched() as watch:
        start = perf_counter()
        record = run(job)
        end = perf_counter()
    if record.error:
        raise record.error
    values = record.values
    return {
        "tiles_s": values["counts"]["tiles"] / (end - start),
        "ratio": None,
        "mpx_s": values["pixels"]["total"] / 1e6 / (end - start),
        "seconds": end - start,
        "first_tile_s": watch.first - start,
        "after_last_s": end - watch.last,
        "decoded": values["decode"]["decoded_pixels"] / values["pixels"]["total"],
        "precision": values["engine"]["precision"],
        "checked": values["precision_check"]["agreement"],
    }
