"""How a machine's cores are shared out, and forwards side by side on them.

Two forwards on half of the cores each, rather than one on all of them: within a
forward threads wait for each other after every layer, and where one of them has lost
its core to reading or writing, all of them do.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

from tileseg.base.memory import keep_heap

__all__ = ["ALONE", "CORES", "LANES", "Lanes", "Threads", "share"]

P = ParamSpec("P")
R = TypeVar("R")

CORES = torch.get_num_threads()
"""Cores that this process may keep busy; OMP_NUM_THREADS and Ray set it."""

LANES = 2
"""Forwards side by side; more would only take memory: each holds a batch's activations.
"""


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads a worker has for what it does at the same time."""

    read: int = 1
    """GDAL's, which decode."""
    lanes: int = 0
    """Forwards side by side; 0: one, by the thread that asks for it."""
    lane: int = 1
    """torch's, for each of these."""


ALONE = Threads()
"""What computes where it is asked, and reads with one thread."""


def share(device: str, cores: int, workers: int) -> Threads:
    """Return what each of the workers on a machine gets of its cores.

    On a CPU the network needs them all, and one thread reads faster than any network
    there computes; beside a GPU nothing but reading needs them.

    Args:
        device: torch's name.
        cores: of the machine, or what of it is ours.
        workers: that share them.
    """
    own = max(1, cores // workers)
    if device != "cpu":
        return Threads(read=own)
    lanes = min(LANES, own)
    return Threads(lanes=lanes, lane=own // lanes)


class Lanes:
    """Calls carried out side by side, each on threads of its own.

    Where there are lanes, the thread that asks has one of torch's for its own tensors.
    """

    def __init__(self, threads: Threads) -> None:
        """Begin; without lanes, calls are carried out where they are made."""
        self.count = threads.lanes
        self._pool: ThreadPoolExecutor | None = None
        if threads.lanes:
            keep_heap()
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(
                threads.lanes,
                thread_name_prefix="forward",
                initializer=torch.set_num_threads,
                initargs=(threads.lane,),
            )

    @property
    def ahead(self) -> int:
        """How many calls to have under way, so that no lane waits for the next."""
        return self.count + 1 if self.count else 0

    def close(self) -> None:
        """Let the threads go when what is under way is done."""
        if self._pool:
            self._pool.shutdown()

    def submit(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        """Carry out a call, now or soon."""
        if self._pool:
            return self._pool.submit(function, *args, **kwargs)
        future: Future[R] = Future()
        future.set_result(function(*args, **kwargs))
        return future
