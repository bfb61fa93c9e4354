"""Stages that overlap: made ahead of a reader, done behind a maker, or side by side."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

__all__ = ["Ahead", "behind", "side_by_side"]

T = TypeVar("T")
U = TypeVar("U")

_SIDE_BY_SIDE = 8


class Ahead(Iterator[T]):
    """An iterator whose next items a thread makes meanwhile.

    At most `ahead` items are made, or being made, that nobody took yet.
    """

    def __init__(self, items: Generator[T], ahead: int) -> None:
        """Begin at once; `close` ends the thread."""
        self._items = items
        self._room = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._make, name="read", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        item = self._ready.get()
        self._room.release()
        if isinstance(item, BaseException):
            self._ready.put(item)  # an iterator that ended stays so
            raise item
        return item[0]

    def close(self) -> None:
        """End the thread, and with it the items' maker."""
        self._closed = True
        self._room.release()
        self._thread.join()

    def _make(self) -> None:
        try:
            with closing(self._items):  # here: GDAL's settings belong to this thread
                while self._room.acquire() and not self._closed:
                    self._ready.put((next(self._items),))
        except BaseException as err:  # noqa: BLE001  (raised again in __next__)
            self._ready.put(err)


def behind(
    function: Callable[[T], U],
    items: Generator[T | None],
    *,
    ahead: int,
    threads: int = 1,
) -> Iterator[U]:
    """Yield function(item) in order, computed behind the items' maker by some threads.

    The maker yields None where an item takes long: what is done by then is yielded. If
    the items end in an error, the results of those before it come first.
    """
    pending: deque[Future[U]] = deque()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="write") as pool,
        closing(items),
    ):
        failure: BaseException | None = None
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as err:  # noqa: BLE001  (raised below)
                failure = err
                break
            if item is not None:
                pending.append(pool.submit(function, item))
            while len(pending) > ahead or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure


def side_by_side(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield function(item) in order, computed by some threads, a few items ahead."""
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > _SIDE_BY_SIDE:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
