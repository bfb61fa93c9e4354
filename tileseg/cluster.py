"""Runs over Ray actors: a worker process for each device, fed with leases of runs.

The only module that knows Ray. Leases go in and outcomes come out; pixels and weights
never pass the object store. Who has which lease is kept in `leases.py`.
"""

import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from tileseg.engine import Crew, Failure, Outcome, Pulse, Usage
from tileseg.errors import LostError, OutputError, TilesegError, UsageError
from tileseg.grid import Run
from tileseg.leases import MAX_TRIES, Leases
from tileseg.memory import peak_rss_mb
from tileseg.model import Device, device_memory_mb, resolve_device
from tileseg.objects import open_storage
from tileseg.precision import Check, compare
from tileseg.scene import Scene
from tileseg.settings import Job
from tileseg.task import Task
from tileseg.worker import Recipe

__all__ = ["RayEngine"]

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0  # between two words about nobody being there yet
_MAX_FALSE_STARTS = 3  # in a row, of one worker that holds no lease yet
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Hello:
    """Where a worker is."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Report:
    """What a worker has to say since it last reported."""

    outcomes: list[Outcome]
    tiles: int
    """Dealt with since `begin`."""
    device_mb: float | None
    rss_mb: float


class _Station:
    """The actor: a crew of one, on the node and device that Ray gave it.

    Its calls are short. Reading, forward and writing overlap on the crew's own threads
    and across leases, so one call at a time is enough.
    """

    def __init__(self) -> None:
        """Wait for work."""
        self._crew: Crew | None = None

    def hello(self) -> _Hello:
        """Say where this is."""
        node = ray.util.get_node_ip_address()
        return _Hello(node, os.getpid())

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what this node has."""
        return resolve_device(job.device, job.precision)

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32."""
        return compare(task, device)

    def rest(self) -> None:
        """Leave the plan, where it is."""
        if self._crew:
            self._crew.close()
        self._crew = None

    def begin(self, recipe: Recipe) -> str | None:
        """Turn to a plan; return why this node cannot take part, if it cannot."""
        self.rest()
        try:
            open_storage(recipe.folder).read("plan.json")
        except OSError as err:
            msg = (
                f"{recipe.folder}: not seen from node {self.hello().node}: --work must "
                "lie on storage that all nodes mount at the same place"
            )
            raise OutputError(msg) from err
        if problem := _other_scene(recipe.scene):
            return problem
        wanted = recipe.device
        kind = wanted.name.partition(":")[0]
        hardware = resolve_device(kind, wanted.precision).hardware
        if hardware != wanted.hardware:
            return f"has {hardware}, the plan is for {wanted.hardware}"
        # Of a CPU, Ray gave this process its share; a GPU's share reads for it.
        threads = 1 if kind == "cpu" else _cpus_per_gpu()
        self._crew = Crew([recipe.on(wanted, read_threads=threads)])
        self._crew.wait_loaded()  # who dies of the network dies without a lease
        return None

    def work(self, runs: list[Run], wait: float) -> _Report | None:
        """Take on more runs; report after `wait` seconds or the next outcome.

        None: this process knows of no plan, since the one that did died between calls.
        """
        if self._crew is None:
            return None
        self._crew.give(runs)
        outcomes = self._crew.collect(wait)
        return _Report(outcomes, self._crew.tiles, device_memory_mb(), peak_rss_mb())


def _other_scene(scene: Scene) -> str | None:
    """Return how what this node sees of a scene is not what the driver described."""
    try:
        size = Path(scene.path).stat().st_size
    except OSError as err:
        return f"does not see {scene.path}: {err.strerror}"
    if size != scene.size:
        return f"sees another {scene.path}, of {size} bytes instead of {scene.size}"
    return None


_Actor = ray.remote(
    max_restarts=-1,  # Ray restarts the process; what it had in hand is ours to repeat
    max_task_retries=0,
    scheduling_strategy="SPREAD",
)(_Station)


class RayEngine:
    """One actor for each device, kept from scene to scene."""

    kind = "ray"

    def __init__(self, job: Job) -> None:
        """Want the job's number of workers on its kind of device; start nothing yet."""
        self._job = job
        self._options: dict[str, Any] = {}
        self._is_our_ray = False
        self.actors: dict[str, Any] = {}
        self._shift: _Shift | None = None

    def resolve(self, job: Job) -> Device:
        """Turn the job's `auto` into what the first worker to come has."""
        device: Device = self._ask("resolve", job)
        return device

    def workers(self, device: Device) -> list[str]:
        """Return torch's device name of each worker."""
        return [device.name] * len(self.actors)

    def compare(self, task: Task, device: Device) -> Check:
        """See how well the device's numbers agree with fp32, on a worker."""
        if task.job.model:  # relative to where the driver runs
            job = replace(task.job, model=str(task.job.model_path.absolute()))
            task = replace(task, job=job)
        check: Check = self._ask("compare", task, device)
        return check

    def outcomes(
        self, recipe: Recipe, runs: Sequence[Run], pulse: Pulse = lambda _tiles: None
    ) -> Generator[Outcome]:
        """Yield one outcome for each shard; see `Engine`.

        A worker that is lost is replaced, and what it had is leased again.

        Raises:
            LostError: no worker is left.
            TilesegError: what no other shard could escape.
        """
        self.start()
        self._shift = _Shift(self, recipe, runs)
        try:
            yield from self._shift.outcomes(pulse)
        finally:
            # Else what is leased would go on beside the next plan, or after the job.
            for actor in self.actors.values():
                actor.rest.remote()

    def usage(self) -> Usage:
        """Return what the workers took for the last plan."""
        return self._shift.usage if self._shift else Usage(workers=0)

    def close(self) -> None:
        """Let the actors go, and Ray if it was started here."""
        for name in list(self.actors):
            self.dismiss(name)
        if self._is_our_ray:
            ray.shutdown()
            self._is_our_ray = False

    def start(self) -> None:
        """Connect, and ask for all workers at once; come back without waiting.

        Those that no node has room for yet are what an autoscaler goes by.
        """
        if self.actors:
            return
        self._is_our_ray = _connect()
        workers, self._options = _demand(self._job, ray.nodes())
        for number in range(workers):
            self.hire(f"worker {number}")
        logger.info("Ray: asked for %d workers, each with %s", workers, self._share())

    def hire(self, name: str) -> None:
        """Ask for a worker."""
        self.actors[name] = _Actor.options(**self._options).remote()

    def dismiss(self, name: str) -> None:
        """Let a worker go for good."""
        ray.kill(self.actors.pop(name))

    def _share(self) -> str:
        gpu = "a GPU and " if self._options["num_gpus"] else ""
        return f"{gpu}{self._options['num_cpus']} CPUs"

    def _ask(self, method: str, *args: object) -> Any:  # noqa: ANN401  (what the method returns)
        """Return what the first worker to be there answers.

        Raises:
            LostError: it killed the process, each time.
        """
        self.start()
        for _ in range(MAX_TRIES):
            there = {
                actor.hello.options(max_task_retries=-1).remote(): actor
                for actor in self.actors.values()
            }
            while not (ready := ray.wait(list(there), timeout=_PATIENCE_SECONDS)[0]):
                logger.info("Ray: waiting for a worker with %s", self._share())
            try:
                ray.get(ready[0])
                with _our_errors():
                    return ray.get(getattr(there[ready[0]], method).remote(*args))
            except RayActorError as err:
                logger.warning("Ray: a worker died: %s", str(err).splitlines()[0])
        msg = f"{MAX_TRIES} workers died before the plan was made; look at Ray's logs"
        raise LostError(msg)


class _Shift:
    """The actors' work on one plan; each has one call out, at any time."""

    def __init__(self, engine: RayEngine, recipe: Recipe, runs: Sequence[Run]) -> None:
        """Call every actor to the plan."""
        self._engine, self._recipe = engine, recipe
        self.usage = Usage(workers=0, retries=0, restarts=0)
        self._leases = Leases(recipe.grid, runs, len(engine.actors))
        self._tiles: Counter[str] = Counter()
        self._took_part: set[str] = set()
        self._false_starts: Counter[str] = Counter()
        self._calls: dict[Any, tuple[str, str]] = {}
        for name in engine.actors:
            self._hello(name)

    def outcomes(self, pulse: Pulse) -> Iterator[Outcome]:
        """Yield one outcome for each shard."""
        while not self._leases.is_done:
            if not self._calls:
                msg = "no worker is left; the same command resumes"
                raise LostError(msg)
            done, _ = ray.wait(
                list(self._calls), timeout=_POLL_SECONDS, fetch_local=False
            )
            # All are called again before anything is yielded, which may take long.
            outcomes = [outcome for ref in done for outcome in self._answer(ref)]
            for outcome in outcomes:
                yield outcome
                pulse(self._tiles.total())
            pulse(self._tiles.total())

    def _answer(self, ref: Any) -> list[Outcome]:  # noqa: ANN401  (Ray's reference)
        """Deal with the answer to a call, and call the worker again."""
        name, method = self._calls.pop(ref)
        try:
            with _our_errors():
                answer = ray.get(ref)
        except RayActorError as err:
            return self._lost(name, method, str(err).splitlines()[0])
        if method == "hello":
            logger.info("%s: process %d on %s", name, answer.pid, answer.node)
            self._call(name, "begin", self._recipe)
            return []
        if method == "begin" and answer:
            logger.warning("%s: not used: it %s", name, answer)
            self._engine.dismiss(name)
            return []
        if method == "work" and answer is None:
            return self._lost(name, method, "its process died between two calls")
        if method == "begin":
            self._false_starts[name] = 0
        outcomes = [] if method == "begin" else self._take_in(name, answer)
        self._call(name, "work", self._leases.take(name), _POLL_SECONDS)
        return outcomes

    def _take_in(self, name: str, report: _Report) -> list[Outcome]:
        """Take note of what a worker did."""
        self.usage = self.usage.with_peaks(report.device_mb, report.rss_mb)
        self._tiles[name] = report.tiles
        if report.outcomes:
            self._took_part.add(name)
            self.usage = replace(self.usage, workers=len(self._took_part))
        for outcome in report.outcomes:
            self._leases.settle(name, outcome.shard)
        return report.outcomes

    def _lost(self, name: str, method: str, reason: str) -> list[Outcome]:
        """Lease again what a worker had; return what is given up."""
        logger.warning("%s: lost: %s", name, reason)
        given_up = self._leases.lose(name)
        self.usage = replace(
            self.usage,
            retries=self._leases.retries,
            restarts=(self.usage.restarts or 0) + 1,
        )
        self._false_starts[name] += method != "work"
        if self._false_starts[name] >= _MAX_FALSE_STARTS:
            self._engine.dismiss(name)
        else:
            if method == "hello":  # it died for good: Ray restarts all others
                self._engine.hire(name)
            self._hello(name)
        text = "shard %s: %d workers died of it"
        return [
            Failure(shard, LostError(text % (shard.name, MAX_TRIES)))
            for shard in given_up
        ]

    def _hello(self, name: str) -> None:
        """Ask a worker whether it is there; answered when it is, however late."""
        call = self._engine.actors[name].hello.options(max_task_retries=-1)
        self._calls[call.remote()] = name, "hello"

    def _call(self, name: str, method: str, *args: object) -> None:
        ref = getattr(self._engine.actors[name], method).remote(*args)
        self._calls[ref] = name, method


def _connect() -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here; return whether we did.

    Ray's own handler of SIGTERM is put aside: ours ends a job resumably.

    Raises:
        UsageError: RAY_ADDRESS is no address of a cluster, or nobody is there.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "")
    _refuse_nobody(address)
    handler = signal.getsignal(signal.SIGTERM)
    # What workers print stays in Ray's own logs: stdout is for our line of JSON.
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not address:
        # Not whatever Ray runs on this machine: it may be anybody's, with other code.
        # And nobody else may reach ours: no dashboard, loopback only.
        quiet |= {"include_dashboard": False, "_node_ip_address": _LOOPBACK}
    try:
        ray.init(address or "local", **quiet)
    except (ConnectionError, ValueError) as err:
        msg = f"RAY_ADDRESS={address}: no Ray cluster answers there, wanted host:port"
        raise UsageError(msg) from err
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return True


def _refuse_nobody(address: str) -> None:
    """Refuse an address `host:port` that does not answer; Ray would wait for ever."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as err:
        msg = f"RAY_ADDRESS={address}: no Ray cluster answers there"
        raise UsageError(msg) from err


def _demand(job: Job, nodes: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Return how many workers there shall be, and what each asks Ray for.

    A GPU each where the cluster has any, else as many CPUs as all of them can have.
    Ray gives torch as many threads.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    cpus = [int(node.get("CPU", 0)) for node in alive]
    on_gpu = job.device == "cuda" or (job.device == "auto" and gpus > 0)
    if on_gpu and not (gpus or job.workers):
        msg = (
            "device cuda: the cluster shows no GPU; say how many to wait for "
            "(--workers), or use --device cpu"
        )
        raise UsageError(msg)
    places = gpus if on_gpu else sum(number > 0 for number in cpus)
    workers = job.workers or max(1, places)
    share = 1
    while not on_gpu and sum(n // (share + 1) for n in cpus) >= workers:
        share += 1
    return workers, {"num_cpus": share, "num_gpus": int(on_gpu)}


def _cpus_per_gpu() -> int:
    """Return how many of this node's CPUs one of its GPUs may keep busy."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)["Resources"]
    return max(1, int(node.get("CPU", 1) // max(1, node.get("GPU", 1))))


@contextmanager
def _our_errors() -> Iterator[None]:
    """Raise the error that an actor raised as if it had been raised here."""
    try:
        yield
    except RayTaskError as err:
        if isinstance(err.cause, TilesegError):
            raise err.cause from None
        raise
