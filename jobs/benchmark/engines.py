"""The engines by themselves, with a simulated device or disk, and a late web server."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.parse import urlsplit

from benchmark import alone
from benchmark.scenes import Kind, make_scene
from benchmark.setting import Setting
from benchmark.simulate import SimulatedRecipe
from benchmark.table import Row, spread
from tileseg.engines.crew import Failure, Outcome
from tileseg.engines.engine import Engine
from tileseg.engines.resolve import resolve
from tileseg.engines.staff import Staff
from tileseg.engines.worker import Recipe
from tileseg.grid import Run
from tileseg.plans.ledger import Ledger, Receipt, forget
from tileseg.plans.task import Task, prepare
from tileseg.settings import Job
from tileseg.stores.storage import Disk

__all__ = ["Case", "measure", "measure_case"]

JOBS = Path(__file__).parents[1]
SEGMENT = JOBS / "segment.py"
SERVER = JOBS.parent / "tests" / "web.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine, and what is simulated."""

    engine: str = "local"
    """`local` or `ray`."""
    size: tuple[int, int] = (3_300, 4_700)
    """Height and width of the scene."""
    workers: int = 1
    """How many."""
    model: str = ""
    """Model folder; empty for tileseg's own."""
    rate: float | None = None
    """Tiles a second of a simulated device; None for the real network."""
    storage: float = 0.0
    """See `SimulatedRecipe`."""
    in_turn: bool = False
    """See `SimulatedRecipe`."""
    latency: float | None = None
    """Seconds by which a web server with the scene is late; None for the disk alone."""

    @property
    def name(self) -> str:
        """What it is, in a line."""
        parts = [f"{self.engine}, {self.size[0]} × {self.size[1]}"]
        if self.workers > 1:
            parts.append(f"{self.workers} workers")
        if self.rate:
            parts.append(f"device of {self.rate:g} tiles/s")
        if self.storage:
            parts.append(f"disk {self.storage:g}")
        if self.in_turn:
            parts.append("in turn")
        return ", ".join(parts)


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the cases that tell what an engine costs."""
    small, tall = (2_200, 3_300), (6_600, 4_700)
    cases = [
        Case(engine="ray", rate=25.0, size=small if setting.quick else (3_300, 4_700)),
        Case(engine="local", rate=60.0, size=small, storage=0.4),
        Case(engine="local", rate=60.0, size=small, storage=0.4, in_turn=True),
    ]
    if not setting.quick:
        cases += [
            Case(engine="ray", rate=25.0, size=tall, workers=2),
            Case(latency=0.03, size=(1_500, 2_000)),
        ]
    for case in cases:
        yield from measure_case(case, replace(setting, rounds=1))


def measure_case(case: Case, setting: Setting) -> Iterator[Row]:
    """Yield the rows of a case: its engine and, with a real network, whole jobs."""
    scene = make_scene(
        Kind(height=case.size[0], width=case.size[1]), setting.folder / "scenes"
    )
    with TemporaryDirectory() as place, ExitStack() as stack:
        job = Job(
            input=str(scene),
            model=case.model,
            output=str(Path(place) / "out"),
            device=setting.device.name.partition(":")[0],
            workers=case.workers,
            engine=case.engine,
        )
        served = ""
        if case.latency is not None:
            server = stack.enter_context(web_server(scene.parent, case.latency))
            served = f"{server}/{scene.name}"
        yield from _rounds(case, job, served, setting)


def _rounds(case: Case, job: Job, served: str, setting: Setting) -> Iterator[Row]:
    """Measure all that the case has in turns; yield the medians."""
    found: dict[str, list[dict[str, float]]] = {}
    task = prepare(job)
    for _ in range(setting.rounds):
        rate = case.rate or alone.rate_of(job.model_path, setting, 3)
        figures = _engine(case, task, setting)
        figures["ratio"] = figures["tiles_s"] / rate
        found.setdefault(f"engine {case.name}", []).append(figures)
        if case.rate:
            continue
        # The workers are gone: the whole job needs the processors for its own.
        near = whole_job(job)
        near["ratio"] = near["tiles_s"] / rate
        found.setdefault(f"process {case.name}", []).append(near)
        if served:
            far = whole_job(job, served)
            far["of_local"] = far["mpx_s"] / near["mpx_s"]
            name = f"process {case.name}, web, {case.latency} s late"
            found.setdefault(name, []).append(far)
    for name, rounds in found.items():
        medians = {key: median(item[key] for item in rounds) for key in rounds[0]}
        far_apart = spread(item["tiles_s"] for item in rounds)
        yield Row("simulate", name, {**medians, "spread": far_apart})


def _engine(case: Case, task: Task, setting: Setting) -> dict[str, float]:
    """Time an engine from being given the scene to its last receipt.

    Its workers are there already; `resumed` is what it takes to find all shards done,
    as a share of what making them took.
    """
    folder = Path(task.job.output).with_name("work")
    with Staff() as staff:
        engine = staff.engine(task.job)
        # Waits for a worker, and settles what is not to be measured here.
        plan = resolve(_unchecked(task), engine)
        ledger = Ledger(Disk(folder), plan)
        ledger.open()
        recipe = Recipe.of(task, ledger, setting.device)
        if case.rate:
            recipe = SimulatedRecipe.like(
                recipe, rate=case.rate, storage=case.storage, in_turn=case.in_turn
            )
        seconds, receipts = _timed(engine, recipe, task, setting)
        workers = len(engine.workers(setting.device))
    for receipt in receipts:
        ledger.record(receipt)
    ledger.flush()
    start = perf_counter()
    assert len(ledger.open()) == len(receipts), "all is there"
    resume = perf_counter() - start
    forget(Disk(folder), plan.plan_id)
    tiles = sum(receipt.work["tiles"] for receipt in receipts)
    return {"tiles_s": tiles / seconds / workers, "resumed": resume / seconds}


def _unchecked(task: Task) -> Task:
    """Return the task without the check of its precision, which is no engine's work."""
    return replace(task, job=replace(task.job, dry_run=True))


def _timed(
    engine: Engine, recipe: Recipe, task: Task, setting: Setting
) -> tuple[float, list[Receipt]]:
    """Return the seconds to the last receipt, and all of them."""
    workers = len(engine.workers(setting.device))
    runs = task.runs(list(Run(task.grid.shape)), workers)
    start = perf_counter()
    with closing(engine.outcomes(recipe, runs, lambda _tiles: None)) as outcomes:
        receipts = [_made(outcome) for outcome in outcomes]
    return perf_counter() - start, receipts


def _made(outcome: Outcome) -> Receipt:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def whole_job(job: Job, source: str = "") -> dict[str, float]:
    """Run `jobs/segment.py` in a process of its own; say what its JSON says."""
    options = {
        "--input": source or job.input,
        "--host": urlsplit(source).netloc or "localhost",
        "--output": job.output,
        "--engine": job.engine,
        "--workers": job.workers,
        "--model": job.model_path,
        "--device": job.device,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(SEGMENT), *words, "-q"]
    start = perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603  (our own program)
    seconds = perf_counter() - start
    shutil.rmtree(job.output)  # else the next one has nothing to do
    values = json.loads(out)
    return {
        "tiles_s": values["counts"]["tiles"] / seconds / values["engine"]["workers"],
        "mpx_s": values["pixels"]["total"] / 1e6 / seconds,
        "decoded": values["decode"]["decoded_pixels"] / values["pixels"]["total"],
        "peak_rss_mb": values["memory"]["peak_rss_mb"],
    }


@contextmanager
def web_server(folder: Path, latency: float) -> Iterator[str]:
    """Serve a folder on loopback, every answer `latency` seconds late."""
    with TemporaryDirectory() as place:
        (Path(place) / "settings.json").write_text(json.dumps({"latency": latency}))
        command = [sys.executable, str(SERVER), str(folder), place]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  (our own program)
            assert process.stdout, "it is a pipe"
            try:
                yield process.stdout.readline().strip()
            finally:
                process.kill()
