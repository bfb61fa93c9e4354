"""Workers on threads of one process, and the runs they still have to take.

A run that fails is cut until the shard at fault is alone; the others are made.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

from tileseg.engines.worker import Recipe, Worker
from tileseg.errors import InputError, PreemptedError, TileError, TilesegError
from tileseg.grid import Run, Shard
from tileseg.plans.ledger import Receipt
from tileseg.window import Window

__all__ = ["Crew", "Failure", "Outcome"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is left of a shard that could not be made, tried alone."""

    shard: Shard
    """Which one."""
    error: TilesegError
    """Why."""


Outcome = Receipt | Failure


class Crew:
    """Workers on threads of this process, and the runs they still have to take."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        """Begin; one worker for each recipe, all of the same plan."""
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._todo: deque[Run] = deque()
        self._change = threading.Condition()
        self._no_more = False
        self._workers: list[Worker] = []
        self._ended = 0
        self._error: BaseException | None = None
        self._loaded = threading.Semaphore(0)
        self._load_error: BaseException | None = None
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
        """Come back when every worker has its network.

        Raises:
            BaseException: why one could not have it.
        """
        for _ in self._threads:
            self._loaded.acquire()
        if self._load_error:
            raise self._load_error

    @property
    def tiles(self) -> int:
        """Tiles forwarded or skipped so far."""
        return sum(worker.tiles for worker in self._workers)

    @property
    def loaded_mb(self) -> float | None:
        """What this process held when a first network was loaded; None before that."""
        return min((worker.loaded_mb for worker in self._workers), default=None)

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
            except BaseException as err:
                self._load_error = err
                raise
            finally:
                self._loaded.release()
            self._workers.append(worker)
            with closing(worker):
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
            # Without the frames of the run, which hold batches and pictures.
            self._results.put(Failure(missing[0], error.with_traceback(None)))
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
