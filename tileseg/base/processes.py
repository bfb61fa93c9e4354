"""Work on rows of items by processes side by side; what comes of it keeps its order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from tileseg.errors import LostError

__all__ = ["Spread", "side_by_side"]

Spread = Callable[[Callable[[Any], Any], Iterator[list[Any]]], Iterator[list[Any]]]
"""Makes something of each item of rows, in their order."""


@contextmanager
def side_by_side(workers: int) -> Iterator[Spread]:
    """Yield what makes something of each item of rows, by so many processes."""
    if workers == 1:
        yield lambda make, rows: ([make(item) for item in row] for row in rows)
        return
    with ExitStack() as stack:
        # Not forked: GDAL and pyarrow have threads, which would be lost half-way.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _serve)
        stack.callback(pool.shutdown, cancel_futures=True)
        yield partial(_made, pool, workers)


def _serve() -> None:
    """Leave signals to the process that started this one, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it comes to all
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = parent_process()
    assert parent, "somebody started this process"
    parent.join()
    os._exit(1)


def _made(
    pool: ProcessPoolExecutor,
    ahead: int,
    make: Callable[[Any], Any],
    rows: Iterator[list[Any]],
) -> Iterator[list[Any]]:
    """Yield what is made of each row; the next one is being made meanwhile."""
    pending: deque[list[Future[Any]]] = deque()
    try:
        for row in rows:
            pending.append([pool.submit(make, item) for item in row])
            while sum(map(len, list(pending)[1:])) >= 2 * ahead:
                yield [item.result() for item in pending.popleft()]
        while pending:
            yield [item.result() for item in pending.popleft()]
    except BrokenProcessPool as err:
        msg = "a worker was killed, maybe for want of memory: use fewer --workers"
        raise LostError(msg) from err
