"""What runs on a node of a Ray cluster: a worker, and what it proves before it works.

Pixels and weights never pass Ray: leases come in, receipts go out.
"""

import gc
import os
from dataclasses import dataclass, replace
from uuid import uuid4

import ray

from tileseg.base.address import allow, shown
from tileseg.base.environment import scrub
from tileseg.base.memory import peak_rss_mb
from tileseg.cards.ensemble import Ensemble
from tileseg.engines.crew import Crew, Outcome
from tileseg.engines.meters import WorkerMeters
from tileseg.engines.worker import Recipe
from tileseg.errors import InputError, ModelError, OutputError
from tileseg.grid import Run
from tileseg.network.device import Device, device_memory_mb, gpu_uuids, resolve_device
from tileseg.network.energy import EnergyMeter
from tileseg.network.lanes import CORES, share
from tileseg.plans.canary import Canary, agree
from tileseg.plans.precision import Check, compare, settle
from tileseg.plans.task import Task, versions
from tileseg.scenes.identity import Identities, look
from tileseg.settings import Job
from tileseg.stores.objects import open_storage

__all__ = ["NONCE", "Hello", "Report", "Station", "check_folder"]

NONCE = "driver"
"""The file in the plan's directory by which a worker knows its driver's."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Where a worker is, and what it runs."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's IP address."""
    pid: int
    """Of its process, on the node."""
    versions: dict[str, str]
    """What decides the pixels, by package."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has to say since it last reported."""

    outcomes: list[Outcome]
    """Shards that are done or failed."""
    tiles: int
    """Dealt with since `begin`."""
    is_idle: bool
    """Whether it ended for good, as it was told to."""
    device_mb: float | None
    """Most memory on its GPU so far."""
    rss_mb: float
    """Most memory of its process so far."""
    above_mb: float
    """How much of it is above what it held when its network was loaded."""
    joules: float | None
    """What its GPU took since `begin`; None where nobody says."""


class Station:
    """The actor: a crew of one, on the node and device that Ray gave it.

    Its calls are short. Reading, forward and writing overlap on the crew's own threads
    and across leases, so one call at a time is enough.
    """

    def __init__(self) -> None:
        """Wait for work."""
        scrub()
        self._crew: Crew | None = None
        self._meters = WorkerMeters()
        self._energy = EnergyMeter(())

    def hello(self) -> Hello:
        """Say where this is, and what it runs."""
        node = ray.get_runtime_context().get_node_id()
        address = ray.util.get_node_ip_address()
        return Hello(node, address, os.getpid(), versions(polygons=True))

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what this node has."""
        return resolve_device(job.device, job.precision)

    def settle(self, task: Task, device: Device, among: int) -> Device:
        """Return the device with the fastest way to run the network that is right."""
        return settle(task, device, among)

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32."""
        allow(task.job.hosts)
        return compare(task, device)

    def agree(self, canary: Canary, ensemble: Ensemble, device: Device) -> float:
        """Return the share of golden labels that the device gives again."""
        return agree(canary, ensemble, device)

    def rest(self) -> None:
        """Leave the plan, where it is."""
        if self._crew:
            self._crew.close()
            self._crew = None
            gc.collect()  # one that failed may hold most of a device, in cycles

    def begin(self, recipe: Recipe, nonce: str, *, is_mixed: bool) -> str:
        """Turn to a plan; return the hardware that it is done with here.

        Args:
            recipe: how to take part.
            nonce: what the driver just wrote into the plan's directory.
            is_mixed: whether hardware other than the plan's may take part.

        Raises:
            TilesegError: why this node cannot.
        """
        self.rest()
        allow(recipe.hosts)
        check_folder(recipe.folder, nonce)
        _check_scene(recipe.identity)
        wanted = recipe.device
        kind = wanted.name.partition(":")[0]
        hardware = resolve_device(kind, wanted.precision).hardware
        if hardware != wanted.hardware and not is_mixed:
            msg = (
                f"has {hardware}, the plan is for {wanted.hardware}: their last bits "
                "differ (mixed_devices = true in a job file lets it take part)"
            )
            raise ModelError(msg)
        # Of a CPU, Ray gave this process its share; a GPU's share reads for it.
        cores = CORES if kind == "cpu" else _cpus_per_gpu()
        here = replace(wanted, hardware=hardware)
        self._energy = EnergyMeter(gpu_uuids([here.name]))
        self._crew = Crew([recipe.on(here, share(kind, cores, 1))])
        self._crew.wait_loaded()  # who dies of the network dies without a lease
        return hardware

    def work(self, runs: list[Run], wait: float, *, is_last: bool) -> Report | None:
        """Take on more runs; report after `wait` seconds or the next outcome.

        None: this process knows of no plan, since the one that did died between calls.

        Args:
            runs: what to do besides what it has.
            wait: how long to wait for an outcome, in seconds.
            is_last: leave what is not begun, and end.

        Raises:
            TilesegError: what no other shard could escape.
        """
        if self._crew is None:
            return None
        if is_last:
            self._crew.wind_down()
        self._crew.give(runs)
        outcomes = self._crew.collect(wait)
        self._meters.count(outcomes)
        peak = peak_rss_mb()
        return Report(
            outcomes,
            self._crew.tiles,
            not self._crew.is_at_work,
            device_memory_mb(),
            peak,
            max(0.0, peak - (self._crew.loaded_mb or 0)),
            self._energy.joules(),
        )


def check_folder(folder: str, nonce: str, option: str = "--work") -> None:
    """Refuse a node that does not see, or cannot write, the driver's work directory."""
    place = open_storage(folder)
    try:
        seen = place.read(NONCE)
    except OSError:
        seen = b""
    if seen != nonce.encode():
        msg = (
            f"{folder}: is not the driver's directory here: {option} must lie on "
            "storage that all nodes mount at the same place"
        )
        raise OutputError(msg)
    probe = f"{NONCE}.{uuid4().hex}"
    place.write(probe, b"")
    place.remove(probe)


def _check_scene(scene: Identities) -> None:
    """Refuse a node that sees another scene than the driver does.

    It may be a copy: with another inode or other times, its bytes are looked at.
    """
    for file in scene.files:
        if look(file.path, file).facts() != file.facts():
            msg = f"{shown(file.path)}: is another file here than where the driver runs"
            raise InputError(msg)


def _cpus_per_gpu() -> int:
    """Return how many of this node's CPUs one of its GPUs may keep busy."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)["Resources"]
    return max(1, int(node.get("CPU", 1) // max(1, node.get("GPU", 1))))
