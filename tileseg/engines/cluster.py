"""Runs over Ray actors: a worker process for each device, fed with leases of runs.

Leases go out and outcomes come in; pixels and weights never pass the object store.
"""

import logging
from collections.abc import Generator, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from tileseg.cards.ensemble import Ensemble
from tileseg.engines.crew import Outcome
from tileseg.engines.engine import Pulse, Usage
from tileseg.engines.leases import MAX_TRIES
from tileseg.engines.pool import LOSSES, Pool, our_errors, why_lost
from tileseg.engines.shift import Shift
from tileseg.engines.worker import Recipe
from tileseg.errors import DeviceFaultError, LostError
from tileseg.grid import Run
from tileseg.network.device import Device
from tileseg.plans.canary import Canary
from tileseg.plans.precision import Check
from tileseg.plans.task import Task
from tileseg.settings import Job

__all__ = ["RayEngine"]

logger = logging.getLogger(__name__)

_ASK_TIMES = 10  # the patience: libraries are loaded first, and the network


class RayEngine:
    """The engine of `Engine`'s contract whose workers Ray provides."""

    kind = "ray"
    is_broken = False

    def __init__(self, job: Job) -> None:
        """Want the job's number of workers on its kind of device; start nothing yet."""
        self.pool = Pool(job)
        self._shift: Shift | None = None

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what the first worker to come has."""
        device: Device = self._ask("resolve", job)
        return device

    def settle(self, task: Task, device: Device) -> Device:
        """Return the device with the way to run the network that a worker found."""
        among = max(1, self.pool.wanted)  # 0 before a first question
        settled: Device = self._ask("settle", task, device, among)
        return settled

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker."""
        return [device.name] * self.pool.wanted

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32, on a worker."""
        forwards = task.ensemble.forwards
        check: Check = self._ask("compare", task, device, forwards=forwards)
        return check

    def agree(self, canary: Canary, ensemble: Ensemble, device: Device) -> float:
        """Return the share of golden labels that a worker's device gives again."""
        forwards = ensemble.forwards
        share: float = self._ask("agree", canary, ensemble, device, forwards=forwards)
        return share

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Outcome]:
        """Yield one outcome for each shard; see `Engine`.

        A worker that is lost is replaced, and what it had is leased again.

        Raises:
            LostError: no worker is left, or none came.
            TilesegError: what no other shard could escape.
        """
        self.pool.fill()
        self._shift = Shift(self.pool, recipe, runs)
        try:
            yield from self._shift.outcomes(pulse)
        finally:
            # Else what is leased would go on beside the next plan, or after the job.
            for actor in self.pool.actors.values():
                actor.rest.remote()

    def wind_down(self) -> None:
        """Begin no more shards."""
        if self._shift:
            self._shift.is_winding_down = True

    def usage(self) -> Usage:
        """Return what the workers took for the last plan."""
        return self._shift.usage if self._shift else Usage(workers=0)

    def close(self) -> None:
        """Let the workers go, and Ray if it was started here."""
        self.pool.close()

    def _ask(self, method: str, *args: object, forwards: int = 1) -> Any:  # noqa: ANN401  (what the method returns)
        """Return what the first worker to be there answers.

        Args:
            method: what is asked.
            args: of what.
            forwards: how often a tile is forwarded; it has so many times as long.

        Raises:
            LostError: it killed the process, or hung, each time; or nobody came.
            DeviceFaultError: the last one's device failed.
        """
        patience = _ASK_TIMES * self.pool.job.patience * forwards
        for _ in range(MAX_TRIES):
            name = self.pool.first()
            call = getattr(self.pool.actors[name], method).remote(*args)
            try:
                with our_errors():
                    return ray.get(call, timeout=patience)
            except (*LOSSES, DeviceFaultError, GetTimeoutError) as err:
                reason = why_lost(err)
                logger.warning("Ray: %s does not answer: %s", name, reason)
                if not isinstance(err, ActorUnavailableError):  # Ray restarts those
                    self.pool.dismiss(name)
                error: Exception = err
        if isinstance(error, DeviceFaultError):
            raise error
        msg = f"{MAX_TRIES} workers were lost before the plan was made: {reason}"
        raise LostError(msg)
