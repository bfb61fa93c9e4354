"""One plan's work on Ray's workers: who is asked what, and what is made of the answer.

Each worker has one call out at any time. Who has which lease is kept in `leases.py`,
who is stuck is told by `watch.py`, and what runs on the nodes is `actor.py`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any
from uuid import uuid4

import ray

from tileseg.base.watch import Watch
from tileseg.engines.actor import NONCE, Hello, Report
from tileseg.engines.crew import Failure, Outcome
from tileseg.engines.engine import Pulse, Usage
from tileseg.engines.leases import MAX_TRIES, Leases
from tileseg.engines.meters import DriverMeters
from tileseg.engines.pool import (
    LOSSES,
    Patience,
    Pool,
    draining_nodes,
    our_errors,
    why_lost,
)
from tileseg.engines.worker import Recipe
from tileseg.errors import DeviceFaultError, LostError, TilesegError, UsageError
from tileseg.grid import Run
from tileseg.plans.task import versions
from tileseg.stores.objects import open_storage

__all__ = ["Shift"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_DRAIN_SECONDS = 5.0  # between two looks for nodes that are about to go
_IDLE_SECONDS = 30.0  # after which a worker that nothing is left for is let go
_HASH_BYTES_S = 50e6  # a slow node's, which looks at all of a copied scene's bytes
_MAX_FAILS = 3  # in a row, of one worker, that are no shard's doing


@dataclass(slots=True)
class _Seat:
    """What is known of one worker on this plan."""

    node: str = ""
    hardware: str = ""
    pid: int = 0
    fails: int = 0
    """Losses in a row, without a shard made in between, that are no shard's doing."""
    is_there: bool = False
    """Whether it answered since it was last lost."""
    is_leaving: bool = False
    """Whether it gets nothing more, since its node is about to go."""
    idle_since: float | None = None


class Shift:
    """The workers of a pool at one plan."""

    def __init__(self, pool: Pool, recipe: Recipe, runs: Sequence[Run]) -> None:
        """Call every worker to the plan."""
        self._pool, self._recipe = pool, recipe
        self.is_winding_down = False
        self.usage = Usage(workers=0, retries=0, restarts=0)
        self._leases = Leases(recipe.grid, runs, len(pool.actors))
        self._watch = Watch(recipe.patience(pool.job.patience))
        self._patience = Patience(pool)
        self._meters = DriverMeters()
        self._looked = 0.0
        self._tiles: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._joules: dict[tuple[str, int], float] = {}
        self._was_thinned = False
        self._took_part: dict[str, str] = {}
        self._refusal: TilesegError | None = None
        self._calls: dict[Any, tuple[str, str]] = {}
        self._nonce = uuid4().hex
        open_storage(recipe.folder).write(NONCE, self._nonce.encode())
        self._versions = versions(polygons=recipe.polygons)
        self._seats: dict[str, _Seat] = {}
        self._fill()

    def outcomes(self, pulse: Pulse) -> Iterator[Outcome]:
        """Yield one outcome for each shard."""
        while self._has_more():
            ready, _ = ray.wait(
                list(self._calls), timeout=_POLL_SECONDS, fetch_local=False
            )
            # All are called again before anything is yielded, which may take long.
            outcomes = [outcome for ref in ready for outcome in self._answer(ref)]
            outcomes += self._look_after()
            for outcome in outcomes:
                yield outcome
                pulse(self._tiles.total())
            pulse(self._tiles.total())

    def _has_more(self) -> bool:
        """Return whether there is anything to wait for.

        Raises:
            LostError: there are shards, and nobody is left to make them.
            TilesegError: why nobody could take part.
        """
        if self._leases.is_done:
            return False
        if self.is_winding_down:
            return any(self._leases.holds(name) for name in self._seats)
        if not self._seats and self._was_thinned:
            self._was_thinned = False
            self._fill()  # those that were let go as idle may be wanted again
        if not self._seats:
            nobody = LostError("no worker is left; the same command resumes")
            raise self._refusal or nobody
        return True

    def _answer(self, ref: Any) -> list[Outcome]:  # noqa: ANN401  (Ray's reference)
        """Deal with the answer to a call, and call the worker again."""
        name, method = self._calls.pop(ref)
        try:
            with our_errors():
                answer = ray.get(ref)
        except (*LOSSES, DeviceFaultError) as err:
            # Ray restarts a process; but not an actor that is gone for good, and a
            # device that failed has made its process useless.
            is_dead = method == "hello" or isinstance(err, DeviceFaultError)
            return self._lost(name, err, is_dead=is_dead)
        except TilesegError as err:
            if method != "begin":
                raise
            self._refuse(name, err)
            return []
        self._patience.renew()
        outcomes: list[Outcome] = []
        if method == "hello":
            self._welcome(name, answer)
        elif method == "begin":
            self._seats[name].hardware = answer
            self._go_on(name)
        elif answer is None:
            died = LostError("its process died between two calls")
            outcomes = self._lost(name, died)
        else:
            outcomes = self._take_in(name, answer)
        return outcomes

    def _welcome(self, name: str, hello: Hello) -> None:
        """Call a worker that is there to the plan."""
        seat = self._seats[name]
        seat.node, seat.pid, seat.is_there = hello.node, hello.pid, True
        logger.info("%s: process %d on %s", name, hello.pid, hello.address)
        for package, wanted in self._versions.items():
            if (got := hello.versions.get(package)) != wanted:
                msg = f"has {package} {got}, the driver has {wanted}: install the same"
                self._refuse(name, UsageError(f"{hello.address}: {msg}"))
                return
        is_mixed = self._pool.job.mixed_devices
        self._call(name, "begin", self._recipe, self._nonce, is_mixed=is_mixed)
        reading = self._recipe.identity.size / _HASH_BYTES_S
        self._watch.see(name, "begin", monotonic() + reading)

    def _refuse(self, name: str, error: TilesegError) -> None:
        """Do without a worker that cannot take part."""
        logger.warning("%s: not used: %s", name, error)
        self._refusal = error
        self._let_go(name)

    def _take_in(self, name: str, report: Report) -> list[Outcome]:
        """Take note of what a worker did, and see what it does next."""
        self._tiles[name] = report.tiles
        self.usage = self.usage.with_peaks(
            report.device_mb, report.rss_mb, report.above_mb
        )
        if report.joules is not None:
            self._joules[name, self._seats[name].pid] = report.joules
            self.usage = replace(self.usage, joules=sum(self._joules.values()))
        if report.outcomes:
            self._seats[name].fails = 0
            self._took_part[name] = self._seats[name].hardware
            hardware = tuple(self._took_part.values())
            self.usage = replace(self.usage, workers=len(hardware), hardware=hardware)
        for outcome in report.outcomes:
            self._leases.settle(name, outcome.shard)
        self._meters.left(self._leases.left)
        # An outcome is a sign of its own: behind the last tile shards are written.
        self._done[name] += len(report.outcomes)
        self._watch.see(name, (report.tiles, self._done[name]), monotonic())
        if not report.is_idle:
            self._go_on(name)
        elif self.is_winding_down:
            self._let_go(name)
        else:
            self._replace(name)
        return report.outcomes

    def _go_on(self, name: str) -> None:
        """Give a worker what there is for it, and ask what it did."""
        seat = self._seats[name]
        is_last = self.is_winding_down or seat.is_leaving
        runs = [] if is_last else self._leases.take(name)
        if self._leases.holds(name):
            seat.idle_since = None
        else:
            self._watch.forget(name)  # nothing is expected of it
            seat.idle_since = seat.idle_since or monotonic()
        self._call(name, "work", runs, _POLL_SECONDS, is_last=is_last)

    def _lost(
        self, name: str, error: Exception, *, is_dead: bool = False
    ) -> list[Outcome]:
        """Lease again what a worker had; return what is given up.

        Args:
            name: whose process is gone, or of no use.
            error: why.
            is_dead: whether it takes a new actor, not only Ray's new process.
        """
        logger.warning("%s: lost: %s", name, why_lost(error))
        seat = self._seats[name]
        is_device = isinstance(error, DeviceFaultError)
        is_shards_doing = self._leases.is_on_trial(name) and not is_device
        fails = seat.fails + (not is_shards_doing)
        # It is nobody's fault if a node is taken away.
        is_fault = not (getattr(error, "preempted", False) or seat.is_leaving)
        given_up = self._leases.lose(name, is_fault=is_fault)
        self._meters.restart()
        self.usage = replace(
            self.usage,
            retries=self._leases.retries,
            restarts=(self.usage.restarts or 0) + 1,
        )
        self._watch.forget(name)
        if fails >= _MAX_FAILS:
            if isinstance(error, DeviceFaultError):
                self._refusal = error
            self._let_go(name)
        elif is_dead:
            self._replace(name)
            self._seats[name].fails = fails
        else:
            self._seats[name] = _Seat(fails=fails)
            self._hello(name)
        return [Failure(shard, _why_given_up(shard.name, error)) for shard in given_up]

    def _look_after(self) -> list[Outcome]:
        """See to those who are stuck, about to go, or of no more use."""
        now = monotonic()
        outcomes: list[Outcome] = []
        for name, seconds in self._watch.stuck(now).items():
            self._drop_call(name)
            stuck = LostError(f"no progress for {seconds:.0f} s")
            outcomes += self._lost(name, stuck, is_dead=True)
        if not any(seat.is_there for seat in self._seats.values()):
            self._patience.check()
        if now - self._looked > _DRAIN_SECONDS:
            self._looked = now
            self._spare(draining_nodes())
        if self._leases.is_all_out:
            self._thin_out(now)
        return outcomes

    def _spare(self, nodes: set[str]) -> None:
        """Give nothing more to the workers of these nodes."""
        for name, seat in self._seats.items():
            if seat.node in nodes and seat.is_there and not seat.is_leaving:
                logger.warning("%s: its node is about to go", name)
                seat.is_leaving = True

    def _thin_out(self, now: float) -> None:
        """Let go whom nothing is left for, so that their nodes can go too."""
        for name, seat in list(self._seats.items()):
            is_idle = seat.idle_since and now - seat.idle_since > _IDLE_SECONDS
            if is_idle or not seat.is_there:
                logger.info("%s: nothing is left for it", name)
                self._was_thinned = True
                self._drop_call(name)
                self._let_go(name)

    def _fill(self) -> None:
        """Call every worker that the pool has, or gets now, to the plan."""
        self._pool.fill()
        for name in self._pool.actors:
            self._seats[name] = _Seat()
            self._hello(name)

    def _replace(self, name: str) -> None:
        """Have another worker in the place of one, wherever Ray finds room."""
        self._let_go(name)
        self._pool.hire(name)
        self._seats[name] = _Seat()
        self._hello(name)

    def _let_go(self, name: str) -> None:
        self._watch.forget(name)
        self._leases.give_back(name)
        del self._seats[name]
        self._pool.dismiss(name)

    def _drop_call(self, name: str) -> None:
        """Forget a worker's call: its answer is of no interest any more."""
        self._calls = {ref: c for ref, c in self._calls.items() if c[0] != name}

    def _hello(self, name: str) -> None:
        self._calls[self._pool.hello(name)] = name, "hello"

    def _call(self, name: str, method: str, *args: object, **named: object) -> None:
        ref = getattr(self._pool.actors[name], method).remote(*args, **named)
        self._calls[ref] = name, method


def _why_given_up(shard: str, error: Exception) -> TilesegError:
    """Return why a shard is given up whose last worker was lost of `error`."""
    if isinstance(error, DeviceFaultError):
        return error
    return LostError(f"shard {shard}: {MAX_TRIES} workers died of it")
