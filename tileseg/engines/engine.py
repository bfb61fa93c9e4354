"""Runs over workers: the contract of an engine, and the one of this process's threads.

Knows shards and receipts, no pixels.
"""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from tileseg.base.watch import Watch
from tileseg.cards.ensemble import Ensemble
from tileseg.engines.crew import Crew, Outcome
from tileseg.engines.worker import Recipe
from tileseg.errors import (
    DeviceFaultError,
    LostError,
)
from tileseg.grid import Run
from tileseg.network.averaging import let_go
from tileseg.network.device import (
    Device,
    device_memory_mb,
    gpu_uuids,
    resolve_device,
    worker_devices,
)
from tileseg.network.energy import EnergyMeter
from tileseg.network.lanes import CORES, share
from tileseg.plans.canary import Canary, agree
from tileseg.plans.precision import Check, compare, settle
from tileseg.plans.task import Task
from tileseg.settings import Job

__all__ = ["Engine", "LocalEngine", "Pulse", "Usage"]

logger = logging.getLogger(__name__)

_PULSE_SECONDS = 1.0


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
    above_mb: float | None = None
    """Most of it above what it held when its network was loaded; likewise None."""
    loaded_mb: float | None = None
    """What this process held then; None where workers have processes of their own."""
    joules: float | None = None
    """What the devices took, as their own counters say; None where they do not."""

    def with_peaks(
        self, device_mb: float | None, rss_mb: float, above_mb: float
    ) -> "Usage":
        """Return the same with these peaks, where they are higher."""
        if device_mb is not None:
            device_mb = max(device_mb, self.device_mb or 0)
        return replace(
            self,
            device_mb=device_mb,
            rss_mb=max(rss_mb, self.rss_mb),
            above_mb=max(above_mb, self.above_mb or 0),
        )


class Engine(Protocol):
    """Whoever carries out runs; begins when first asked, and outlives one scene."""

    kind: str
    """`local` or `ray`."""
    is_broken: bool
    """Whether this process is of no more use: a thread is stuck, a device failed."""

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what the workers have."""

    def settle(self, task: Task, device: Device) -> Device:
        """Return the device with the fastest way to run the network that is right."""

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker there is to be."""

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32, where the device is."""

    def agree(self, canary: Canary, ensemble: Ensemble, device: Device) -> float:
        """Return the share of golden labels that the device gives again."""

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
    is_broken = False

    def __init__(self, workers: int | None = None, patience: float = 60) -> None:
        """Want so many workers; None for one per GPU, or one on the CPU.

        Without progress for `patience` seconds they are given up.
        """
        self._workers = workers
        self._patience = patience
        self._crew: Crew | None = None
        self._crew_size = 0
        self._loaded_mb: float | None = None
        self._joules: float | None = None

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what this machine has."""
        return resolve_device(job.device, job.precision)

    def settle(self, task: Task, device: Device) -> Device:
        """Return the device with the fastest way to run the network that is right."""
        return settle(task, device, len(set(self.workers(device))))

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker."""
        return worker_devices(device, self._workers)

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32."""
        return compare(task, device)

    def agree(self, canary: Canary, ensemble: Ensemble, device: Device) -> float:
        """Return the share of golden labels that the device gives again."""
        return agree(canary, ensemble, device)

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Outcome]:
        """Yield one outcome for each shard; see `Engine`.

        Raises:
            LostError: the workers are stuck.
        """
        names = self.workers(recipe.device)
        is_cpu = recipe.device.name == "cpu"
        cores = CORES if is_cpu else len(os.sched_getaffinity(0))
        threads = share(recipe.device.name, cores, len(names))
        self._crew = crew = Crew(
            [recipe.on(replace(recipe.device, name=name), threads) for name in names]
        )
        self._crew_size = len(names)
        energy = EnergyMeter(gpu_uuids(names))
        watch, done = Watch(recipe.patience(self._patience)), 0
        try:
            crew.give(runs)
            crew.finish()
            while crew.is_at_work:
                pulse(crew.tiles)
                outcomes = crew.collect(_PULSE_SECONDS)
                done += len(outcomes)
                watch.see("crew", (crew.tiles, done), monotonic())
                if stuck := watch.stuck(monotonic()):
                    self.is_broken = True
                    msg = f"no progress for {stuck['crew']:.0f} s: a disk or the device"
                    raise LostError(f"{msg} does not answer; the same command resumes")
                for outcome in outcomes:
                    yield outcome
                    pulse(crew.tiles)
        except DeviceFaultError:
            self.is_broken = True
            raise
        finally:
            self._loaded_mb, self._joules = crew.loaded_mb, energy.joules()
            self.is_broken |= not crew.close(0 if self.is_broken else self._patience)
            self._crew = None  # it may hold most of a device's memory

    def wind_down(self) -> None:
        """Begin no more shards."""
        if self._crew:
            self._crew.wind_down()

    def usage(self) -> Usage:
        """Return what the workers took; they are part of this process."""
        return Usage(
            workers=self._crew_size,
            device_mb=device_memory_mb(),
            loaded_mb=self._loaded_mb,
            joules=self._joules,
        )

    def close(self) -> None:
        """Let the networks go; the threads ended with their runs."""
        let_go()
