"""Runs over workers: the contract of an engine, and the one of this process's threads.

Knows shards and receipts, no pixels.
"""

import gc
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from tileseg.errors import (
    InputError,
    LostError,
    PreemptedError,
    TileError,
    TilesegError,
)
from tileseg.grid import Run, Shard
from tileseg.ledger import Receipt
from tileseg.model import (
    Device,
    device_memory_mb,
    resolve_device,
    worker_devices,
)
from tileseg.precision import Check, compare
from tileseg.settings import Job
from tileseg.task import Task
from tileseg.watch import Watch
from tileseg.window import Window
from tileseg.worker import Recipe, Worker

__all__ = ["Crew", "Engine", "Failure", "LocalEngine", "Outcome", "Usage"]

logger = logging.getLogger(__name__)

_PULSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """What is left of a shard that could not be made, tried alone."""

    shard: Shard
    """Which one."""
    error: TilesegError
    """Why."""


Outcome = Receipt | Failure
Pulse = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the workers took for a plan, and what befell them."""

    workers: int
    """How many took part."""
    hardware: tuple[str, ...] | None = None
    """Of each of them; None for what the plan says."""
    retries: int | None = None
    """Shards handed out again after a worker was lost; None where none can be."""
    restarts: int | None = None
    """Workers that were lost and replaced; None where none can be."""
    device_mb: float | None = None
    """Most memory that torch held on a GPU since it was started; None without one."""
    rss_mb: float = 0
    """Most memory of a worker process in its life; 0 where workers are part of this."""

    def with_peaks(self, device_mb: float | None, rss_mb: float) -> "Usage":
        """Return the same with these peaks, where they are higher."""
        if device_mb is not None:
            device_mb = max(device_mb, self.device_mb or 0)
        return replace(self, device_mb=device_mb, rss_mb=max(rss_mb, self.rss_mb))


class Engine(Protocol):
    """Whoever carries out runs; begins when first asked, and outlives one scene."""

    kind: str
    """`local` or `ray`."""
    is_stuck: bool
    """Whether threads of this process are at work that may never end."""

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what the workers have."""

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker there is to be."""

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32, where the device is."""

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse
    ) -> Generator[Outcome]:
        """Yield one outcome for each shard of the runs, in the order they end.

        A run that fails is cut until the shard at fault is alone; the others are made.

        Args:
            recipe: the plan's; each worker's device and threads are the engine's.
            runs: what to do.
            pulse: called every second or so with the tiles dealt with so far.

        Raises:
            TilesegError: what no other shard could escape (a full disk, say).
        """

    def wind_down(self) -> None:
        """Begin no more shards: `outcomes` ends when those in hand are done."""

    def usage(self) -> Usage:
        """Return what the workers took for the last runs."""

    def close(self) -> None:
        """Let the workers go."""


class LocalEngine:
    """Threads in this process, one for each device."""

    kind = "local"
    is_stuck = False

    def __init__(self, workers: int | None = None, patience: float = 60) -> None:
        """Want so many workers; None for one per GPU, or one on the CPU.

        Without progress for `patience` seconds they are given up.
        """
        self._workers = workers
        self._patience = patience
        self._crew: Crew | None = None

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what this machine has."""
        return resolve_device(job.device, job.precision)

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker."""
        return worker_devices(device, self._workers)

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32."""
        return compare(task, device)

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Outcome]:
        """Yield one outcome for each shard; see `Engine`.

        Raises:
            LostError: the workers are stuck.
        """
        threads = 1 if recipe.device.name == "cpu" else os.cpu_count() or 1
        names = self.workers(recipe.device)
        self._crew = crew = Crew(
            [
                recipe.on(replace(recipe.device, name=name), read_threads=threads)
                for name in names
            ]
        )
        watch, done = Watch(self._patience), 0
        try:
            crew.give(runs)
            crew.finish()
            while crew.is_at_work:
                pulse(crew.tiles)
                outcomes = crew.collect(_PULSE_SECONDS)
                done += len(outcomes)
                watch.see("crew", (crew.tiles, done), monotonic())
                if stuck := watch.stuck(monotonic()):
                    self.is_stuck = True
                    msg = f"no progress for {stuck['crew']:.0f} s: a disk or the device"
                    raise LostError(f"{msg} does not answer; the same command resumes")
                for outcome in outcomes:
                    yield outcome
                    pulse(crew.tiles)
        finally:
            self.is_stuck |= not crew.close(0 if self.is_stuck else self._patience)

    def wind_down(self) -> None:
        """Begin no more shards."""
        if self._crew:
            self._crew.wind_down()

    def usage(self) -> Usage:
        """Return what the workers took; they are part of this process."""
        size = self._crew.size if self._crew else 0
        return Usage(workers=size, device_mb=device_memory_mb())

    def close(self) -> None:
        """Do nothing: the threads ended with their runs."""


class Crew:
    """Workers on threads of this process, and the runs they still have to take."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        """Begin; one worker for each recipe, all of the same plan."""
        gc.collect()  # a failed crew may hold most of a device's memory, in cycles
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._todo: deque[Run] = deque()
        self._change = threading.Condition()
        self._no_more = False
        self._workers: list[Worker] = []
        self._ended = 0
        self._error: BaseException | None = None
        self._loaded = threading.Semaphore(0)
        self._results: queue.SimpleQueue[Outcome | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(
                target=self._serve, args=(recipe,), name=f"worker-{n}", daemon=True
            )  # daemon: a Ray worker that is let go does not wait for them
            for n, recipe in enumerate(recipes)
        ]
        for thread in self._threads:
            thread.start()

    def wait_loaded(self) -> None:
        """Come back when every worker has its network, or could not have it."""
        for _ in self._threads:
            self._loaded.acquire()

    @property
    def size(self) -> int:
        """How many workers."""
        return len(self._threads)

    @property
    def tiles(self) -> int:
        """Tiles forwarded or skipped so far."""
        return sum(worker.tiles for worker in self._workers)

    @property
    def is_at_work(self) -> bool:
        """Whether there may be more to collect."""
        return self._ended < len(self._threads)

    def give(self, runs: Iterable[Run]) -> None:
        """Add runs to what is to be taken."""
        with self._change:
            self._todo.extend(runs)
            self._change.notify_all()

    def wind_down(self) -> None:
        """Take nothing more; let the workers end with the row of shards in hand."""
        self._enough.set()
        with self._change:
            self._todo.clear()
        self.finish()

    def finish(self) -> None:
        """Let the workers end when nothing is left to take."""
        with self._change:
            self._no_more = True
            self._change.notify_all()

    def collect(self, wait: float) -> list[Outcome]:
        """Return the outcomes there are; wait at most so many seconds for one.

        Raises:
            BaseException: what ended a worker.
        """
        outcomes: list[Outcome] = []
        while not self._error:
            try:
                item = self._results.get(timeout=0 if outcomes else wait)
            except queue.Empty:
                return outcomes
            if isinstance(item, BaseException):
                self._error = item
            elif item is None:
                self._ended += 1
                if not self.is_at_work:
                    return outcomes
            else:
                outcomes.append(item)
        if outcomes:
            return outcomes  # what was done before it comes first
        raise self._error

    def close(self, wait: float = 60) -> bool:
        """Stop the workers where they are; return whether they ended in `wait` s."""
        self._stop.set()
        self.finish()
        deadline = monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self, recipe: Recipe) -> None:
        """Work until nothing is left to take."""
        try:
            try:
                worker = Worker(recipe, self._stop, self._enough)
            finally:
                self._loaded.release()
            self._workers.append(worker)
            while self._has_more():
                self._work(worker)
        except PreemptedError:
            logger.debug("worker stopped")
        except BaseException as err:  # noqa: BLE001  (raised again in `collect`)
            self._results.put(err)
        self._results.put(None)

    def _has_more(self) -> bool:
        """Wait for a run to take; False when there will be none."""
        with self._change:
            self._change.wait_for(lambda: self._todo or self._no_more)
            is_over = self._stop.is_set() or self._enough.is_set()
            return bool(self._todo) and not is_over

    def _work(self, worker: Worker) -> None:
        taken: list[Run] = []
        done: set[Shard] = set()
        try:
            for receipt in worker.process(self._take(taken)):
                done.add(receipt.shard)
                self._results.put(receipt)
        except (InputError, TileError) as err:
            self._give_back(taken, done, err)

    def _take(self, taken: list[Run]) -> Iterator[Run]:
        """Yield runs off the list, remembering them in `taken`."""
        while not (self._stop.is_set() or self._enough.is_set()):
            try:
                taken.append(self._todo.popleft())
            except IndexError:
                return
            yield taken[-1]

    def _give_back(
        self, taken: list[Run], done: set[Shard], error: InputError | TileError
    ) -> None:
        """Put back what was taken and not done, the run at fault cut smaller.

        Stages fail in order, so the first run with shards missing is at fault.
        """
        left = [run for run in taken if not done.issuperset(run)]
        faulty, innocent = left[0], left[1:]
        missing = [shard for shard in faulty if shard not in done]
        if len(list(faulty)) == 1:
            self._results.put(Failure(missing[0], error))
            pieces = []
        else:
            logger.warning("%s; trying its shards one by one", error)
            pieces = [
                *_singles(missing, missing[0].row),
                *_below(faulty, missing[0].row),
            ]
        self._todo.extendleft(reversed([*pieces, *innocent]))


def _singles(shards: list[Shard], row: int) -> Iterator[Run]:
    """Yield a run for each of the shards in one row."""
    for shard in shards:
        if shard.row == row:
            yield Run(Window(*shard, 1, 1))


def _below(run: Run, row: int) -> Iterator[Run]:
    """Yield what of the run lies below a shard row."""
    box = run.shards
    if row + 1 < box.row_stop:
        yield Run(Window(row + 1, box.col, box.row_stop - row - 1, box.width))
