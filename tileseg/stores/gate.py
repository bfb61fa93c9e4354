"""How much one server is asked at once, so that it can go on answering."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from threading import Condition, Event

__all__ = ["Gate"]

_LONGEST_PAUSE = 30.0  # of those that servers ask for
_PLACES = 8  # requests to one server at once, of all its files
_FREE_RATE = 100.0  # requests a second of a server that is not held back
_LOWEST_RATE = 0.2


class Gate:
    """How many requests one server gets at once, and how many a second.

    A server that has too many gets half as many from then on; with every answer it
    gives they become a little more again.
    """

    def __init__(self) -> None:
        """Begin with all places, and as fast as it answers."""
        self._change = Condition()
        self._limit = float(_PLACES)
        self._rate = inf
        self._active = 0
        self._next = self._pressed = 0.0
        self.served = 0.0
        """When the server last gave what it was asked for."""

    @contextmanager
    def turn(self, closed: Event) -> Iterator[float]:
        """Wait for one's turn; yield when it began."""
        with self._change:
            while self._active >= int(self._limit) and not closed.is_set():
                self._change.wait(0.5)
            self._active += 1
            start = max(self._next, time.monotonic())
            self._next = start + random.uniform(0.5, 1.5) / self._rate  # noqa: S311
        try:
            closed.wait(max(0.0, start - time.monotonic()))
            yield time.monotonic()
        finally:
            with self._change:
                self._active -= 1
                self._change.notify()

    def ease(self) -> None:
        """Take note that a request was answered."""
        with self._change:
            self.served = time.monotonic()
            self._limit = min(_PLACES, self._limit + 1 / self._limit)
            more = self._rate * 1.1 + 0.2
            self._rate = more if more < _FREE_RATE else inf
            self._change.notify()

    def press(self, began: float, pause: float) -> None:
        """Take note that there were too many.

        Args:
            began: when the request did; of those made at once, one counts.
            pause: seconds that the server asks for.
        """
        with self._change:
            now = time.monotonic()
            self._next = max(self._next, now + min(pause, _LONGEST_PAUSE))
            if began < self._pressed:
                return
            self._pressed = now
            self._limit = max(1.0, self._limit / 2)
            self._rate = max(_LOWEST_RATE, min(self._rate, _FREE_RATE) / 2)
