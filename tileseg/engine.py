"""Runs over workers: threads in this process. Knows shards and receipts, no pixels."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from tileseg.errors import InputError, PreemptedError, TileError
from tileseg.grid import Run, Shard
from tileseg.ledger import Receipt
from tileseg.window import Window
from tileseg.worker import Recipe, Worker

__all__ = ["Failure", "Outcome", "run_local"]

logger = logging.getLogger(__name__)

_PULSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """What is left of a shard that could not be made, tried alone."""

    shard: Shard
    """Which one."""
    error: InputError | TileError
    """Why."""


Outcome = Receipt | Failure


def run_local(
    recipes: Sequence[Recipe],
    runs: Sequence[Run],
    pulse: Callable[[int], None] = lambda _tiles: None,
) -> Generator[Outcome]:
    """Yield one outcome for each shard of the runs, in the order they end.

    A run that fails is cut until the shard at fault is alone; the others are made.

    Args:
        recipes: one worker each, all of the same plan.
        runs: what to do.
        pulse: called every second or so with the tiles dealt with so far.

    Raises:
        TilesegError: what no other shard could escape (a full disk, say).
    """
    crew = _Crew(runs)
    threads = [
        threading.Thread(target=crew.serve, args=(recipe,), name=f"worker-{n}")
        for n, recipe in enumerate(recipes)
    ]
    for thread in threads:
        thread.start()
    try:
        yield from crew.outcomes(len(threads), pulse)
    finally:
        crew.stop.set()
        for thread in threads:
            thread.join()


class _Crew:
    """The runs still to be taken, and the outcomes so far."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.stop = threading.Event()
        self._todo = deque(runs)
        self._workers: list[Worker] = []
        self._results: queue.SimpleQueue[Outcome | BaseException | None] = (
            queue.SimpleQueue()
        )

    def outcomes(self, workers: int, pulse: Callable[[int], None]) -> Iterator[Outcome]:
        """Yield what the workers put, until the last of them is done."""
        while workers:
            pulse(sum(worker.tiles for worker in self._workers))
            try:
                item = self._results.get(timeout=_PULSE_SECONDS)
            except queue.Empty:
                continue
            if item is None:
                workers -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    def serve(self, recipe: Recipe) -> None:
        """Work until nothing is left to take."""
        try:
            worker = Worker(recipe, self.stop)
            self._workers.append(worker)
            while self._todo and not self.stop.is_set():
                self._work(worker)
        except PreemptedError:
            logger.debug("worker stopped")
        except BaseException as err:  # noqa: BLE001  (raised again in the driver)
            self._results.put(err)
        self._results.put(None)

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
        while not self.stop.is_set():
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
