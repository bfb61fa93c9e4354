"""Who works on what: runs cut into leases, and what is done about a lost worker.

Pure bookkeeping of runs, shards and worker names; knows no Ray and no clock.
"""

from collections import Counter, deque
from collections.abc import Sequence

from tileseg.grid import Grid, Run, Shard
from tileseg.window import Window

__all__ = ["MAX_TRIES", "Leases"]

MAX_TRIES = 3
"""Workers that a shard may cost before it is given up."""

_QUEUED = 3  # leases a worker holds: it reads one, predicts another, waits for none
_SPLIT = 2  # a lease is this part of an even share, so that the ends come together
_UNREPORTED = 4  # shards behind the first missing one that a worker may be at


class Leases:
    """The runs still to be done and who has which of them.

    Leases get smaller as the work gets less (guided self-scheduling: Polychronopoulos
    and Kuck, IEEE Transactions on Computers C-36, 1987): long ones first, since every
    cut of a run is a row of blocks read twice, short ones last, so that nobody waits.
    """

    def __init__(self, grid: Grid, runs: Sequence[Run], workers: int) -> None:
        """Begin with nothing leased; `workers` is how many are expected."""
        self._grid = grid
        self._todo = deque(runs)
        self._todo_size = sum(run.shards.size for run in runs)
        self._workers = workers
        self._missing: dict[str, dict[Shard, Run]] = {}
        self._open: dict[str, Counter[Run]] = {}  # by lease, how many are missing
        self._suspects: deque[Run] = deque()
        self._tries: Counter[Shard] = Counter()
        self.retries = 0

    @property
    def is_done(self) -> bool:
        """Whether every shard was settled or given up."""
        return not (self._todo or self._suspects or any(self._missing.values()))

    @property
    def left(self) -> int:
        """How many shards are neither settled nor given up."""
        in_hand = sum(map(len, self._missing.values()))
        return self._todo_size + len(self._suspects) + in_hand

    @property
    def is_all_out(self) -> bool:
        """Whether nothing is left to take."""
        return not (self._todo or self._suspects)

    def holds(self, worker: str) -> bool:
        """Return whether a worker has leases."""
        return bool(self._missing.get(worker))

    def is_on_trial(self, worker: str) -> bool:
        """Return whether a worker has a shard that a lost one had in hand, alone."""
        return bool(self._tries) and any(
            self._tries[shard] for shard in self._missing.get(worker, {})
        )

    def take(self, worker: str) -> list[Run]:
        """Return what `worker` gets now, in order; often nothing.

        Nobody holds more than an even share of what is left, but for one lease. A shard
        that was in hand when a worker died goes to somebody who has nothing else:
        should it kill again, nobody is charged for its neighbours.
        """
        missing = self._missing.setdefault(worker, {})
        if not missing and not self._todo and self._suspects:
            return [self._lease(worker, self._suspects.popleft())]
        if self.is_on_trial(worker):
            return []
        runs: list[Run] = []
        while self._todo and len(self._open.get(worker, ())) < _QUEUED:
            if missing and len(missing) * self._workers >= self._todo_size:
                break
            runs.append(self._lease(worker, self._cut()))
        return runs

    def settle(self, worker: str, shard: Shard) -> None:
        """Take note that a shard is done, or failed for good."""
        run = self._missing[worker].pop(shard, None)
        if run is not None:
            leases = self._open[worker]
            leases[run] -= 1
            if not leases[run]:
                del leases[run]

    def lose(self, worker: str, *, is_fault: bool = True) -> list[Shard]:
        """Take back what a lost worker had; return the shards to be given up.

        Args:
            worker: who.
            is_fault: whether what it had in hand may be what killed it.
        """
        missing = self._take_back(worker)
        shards = list(missing)
        self.retries += len(shards)
        wide = max((run.shards.width for run in missing.values()), default=0)
        in_hand = shards[: 2 * wide + _UNREPORTED] if is_fault else []
        self._tries.update(in_hand)
        given_up = {shard for shard in in_hand if self._tries[shard] >= MAX_TRIES}
        self._put_back({k: run for k, run in missing.items() if k not in given_up})
        return sorted(given_up)

    def give_back(self, worker: str) -> None:
        """Take back what a worker has and leaves undone, as nobody's fault."""
        self._put_back(self._take_back(worker))

    def _take_back(self, worker: str) -> dict[Shard, Run]:
        self._open.pop(worker, None)
        return self._missing.pop(worker, {})

    def _put_back(self, missing: dict[Shard, Run]) -> None:
        """Lease again what is missing: suspects alone, the rest first, in long runs."""
        suspects = [shard for shard in missing if self._tries[shard]]
        self._suspects.extend(Run(Window(*shard, 1, 1)) for shard in suspects)
        rest = set(missing).difference(suspects)
        whole = self._grid.shape
        for run in reversed(list(dict.fromkeys(missing.values()))):
            kept = self._grid.runs(
                rest.intersection(run), band=whole.width, rows=whole.height
            )
            self._todo.extendleft(reversed(kept))
            self._todo_size += sum(part.shards.size for part in kept)

    def _cut(self) -> Run:
        """Take a lease off the first run: rows of it, or where they are few a part."""
        left = self._todo_size
        box = self._todo.popleft().shards
        share = box.size
        if self._workers > 1:
            share = max(1, left // (_SPLIT * self._workers))
        rows = min(box.height, max(1, share // box.width))
        width = min(box.width, share)
        right = Window(box.row, box.col + width, rows, box.width - width)
        below = Window(box.row + rows, box.col, box.height - rows, box.width)
        rest = [Run(window) for window in (right, below) if window.size]
        self._todo.extendleft(reversed(rest))
        self._todo_size -= rows * width
        return Run(Window(box.row, box.col, rows, width))

    def _lease(self, worker: str, run: Run) -> Run:
        missing = dict.fromkeys(run, run)
        self._missing[worker] |= missing
        self._open.setdefault(worker, Counter())[run] += len(missing)
        return run
