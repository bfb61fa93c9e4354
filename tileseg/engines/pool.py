"""The workers that Ray gives: connecting to it, asking for them, letting them go.

Knows what a worker asks Ray for and when it came; nothing of plans.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from time import monotonic
from typing import Any

import ray
from ray import exceptions
from ray.exceptions import RayActorError, RayError, RayTaskError

from tileseg.engines.actor import Station
from tileseg.errors import NobodyError, PreemptedError, TilesegError, UsageError
from tileseg.settings import Job

__all__ = [
    "LOSSES",
    "Patience",
    "Pool",
    "connect",
    "demand",
    "draining_nodes",
    "our_errors",
    "why_lost",
]

LOSSES = (
    RayActorError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
)
"""What Ray raises where a worker is gone or does not answer."""

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 1.0
_SAY_SECONDS = 30.0  # between two words about nobody being there yet

_Actor = ray.remote(
    max_restarts=-1,  # Ray restarts the process; what it had in hand is ours to repeat
    max_task_retries=0,
    scheduling_strategy="SPREAD",
)(Station)


class Pool:
    """One actor for each device, by name, kept from scene to scene."""

    def __init__(self, job: Job) -> None:
        """Want the job's number of workers on its kind of device; start nothing yet."""
        self.job = job
        self.wanted = 0
        self.actors: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        self._is_our_ray = False

    def fill(self) -> None:
        """Connect, and ask for all workers at once; come back without waiting.

        Those that no node has room for yet are what an autoscaler goes by. Later, ask
        again for those that were let go.
        """
        if not self.wanted:
            self._is_our_ray = connect()
            self.wanted, self._options = demand(self.job.device, self.job.workers)
            logger.info(
                "Ray: asked for %d workers, each with %s", self.wanted, self.share
            )
        for number in range(self.wanted):
            if (name := f"worker {number}") not in self.actors:
                self.hire(name)

    def hire(self, name: str) -> None:
        """Ask for a worker."""
        self.actors[name] = _Actor.options(**self._options).remote()

    def dismiss(self, name: str) -> None:
        """Let a worker go for good."""
        with suppress(RayError):  # the cluster may be gone before it
            ray.kill(self.actors.pop(name))

    def first(self) -> str:
        """Return the name of the first actor to be there.

        One that is gone for good is replaced, once.

        Raises:
            NobodyError: none came.
        """
        self.fill()
        calls = {self.hello(name): name for name in self.actors}
        replaced: set[str] = set()
        patience = Patience(self)
        while True:
            ready, _ = ray.wait(list(calls), timeout=_POLL_SECONDS)
            if not ready:
                patience.check()
                continue
            name = calls.pop(ready[0])
            if name in replaced or _has_answered(ready[0]):
                return name
            replaced.add(name)
            self.dismiss(name)
            self.hire(name)
            calls[self.hello(name)] = name

    def hello(self, name: str) -> Any:  # noqa: ANN401  (Ray's reference)
        """Ask a worker whether it is there; answered when it is, however late."""
        return self.actors[name].hello.options(max_task_retries=-1).remote()

    def close(self) -> None:
        """Let all go, and Ray if it was started here."""
        for name in list(self.actors):
            self.dismiss(name)
        if self._is_our_ray:
            ray.shutdown()
            self._is_our_ray = False

    @property
    def share(self) -> str:
        """What each worker asks Ray for, in words."""
        gpu = "a GPU and " if self._options["num_gpus"] else ""
        return f"{gpu}{self._options['num_cpus']} CPUs"


class Patience:
    """The wait for a worker: said now and then, and not for ever."""

    def __init__(self, pool: Pool) -> None:
        """Begin to wait."""
        self._pool = pool
        self._since = self._said = monotonic()

    def renew(self) -> None:
        """Take note that somebody is there."""
        self._since = self._said = monotonic()

    def check(self) -> None:
        """Take note that nobody is.

        Raises:
            NobodyError: it has been too long.
        """
        now, limit = monotonic(), self._pool.job.wait
        if now - self._since > limit:
            msg = (
                f"no worker with {self._pool.share} came in {limit:.0f} s; the same "
                "command resumes"
            )
            raise NobodyError(msg)
        if now - self._said > _SAY_SECONDS:
            self._said = now
            logger.info("Ray: waiting for a worker with %s", self._pool.share)


def connect() -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here; return whether we did.

    Ray's own handler of SIGTERM is put aside: ours ends a job resumably.

    Raises:
        UsageError: RAY_ADDRESS is no address of a cluster, or nobody is there.
        PreemptedError: SIGTERM came meanwhile.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "")
    _refuse_nobody(address)
    # What workers print stays in Ray's own logs: stdout is for our line of JSON.
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if not address:
        # Not whatever Ray runs on this machine: it may be anybody's, with other code.
        # And nobody else may reach ours: no dashboard, loopback only.
        quiet |= {"include_dashboard": False, "_node_ip_address": _LOOPBACK}
    try:
        with _own_sigterm(), nullcontext() if address else _on_loopback():
            ray.init(address or "local", **quiet)
    except (ConnectionError, ValueError) as err:
        msg = f"RAY_ADDRESS={address}: no Ray cluster answers there, wanted host:port"
        raise UsageError(msg) from err
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put Ray's handler of SIGTERM aside, and hear of one that came meanwhile.

    That handler raises SystemExit, which Python drops where it comes in a callback, as
    those of a fork are. The descriptor that Python writes all signals to hears of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    heard, told = socket.socketpair()
    with heard, told:
        heard.settimeout(0)
        told.settimeout(0)
        before = signal.set_wakeup_fd(told.fileno())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            signal.set_wakeup_fd(before)
            with suppress(BlockingIOError):
                if signal.SIGTERM in heard.recv(4096):
                    msg = "SIGTERM: stopped while Ray started; the same command resumes"
                    raise PreemptedError(msg)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray listen on loopback, as it does on macOS.

    Else it listens on every address, and replaces a loopback address that it is given
    by one that others can reach. Its processes go by the variable, this one, which has
    loaded Ray already, by the constant.
    """
    constants = ray._private.ray_constants  # noqa: SLF001  (no public way)
    name, before = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        if said is None:
            del os.environ[name]
        else:
            os.environ[name] = said


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


def demand(device: str, workers: int | None) -> tuple[int, dict[str, int]]:
    """Return how many workers there shall be, and what each asks Ray for.

    A GPU each where the cluster has any, else as many CPUs as all of them can have.
    Ray gives torch as many threads.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    cpus = [int(node.get("CPU", 0)) for node in alive]
    on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
    if on_gpu and not (gpus or workers):
        msg = (
            "device cuda: the cluster shows no GPU; say how many to wait for "
            "(--workers), or use --device cpu"
        )
        raise UsageError(msg)
    places = gpus if on_gpu else sum(number > 0 for number in cpus)
    workers = workers or max(1, places)
    share = 1
    while not on_gpu and sum(n // (share + 1) for n in cpus) >= workers:
        share += 1
    return workers, {"num_cpus": share, "num_gpus": int(on_gpu)}


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to go: spot instances, scaling down."""
    try:  # Ray has no public way to ask; without an answer they are lost as any node
        return set(ray._private.state.state.get_draining_nodes())  # noqa: SLF001
    except Exception:
        logger.debug("Ray does not say which nodes are draining", exc_info=True)
        return set()


@contextmanager
def our_errors() -> Iterator[None]:
    """Raise the error that an actor raised as if it had been raised here."""
    try:
        yield
    except RayTaskError as err:
        if isinstance(err.cause, TilesegError):
            raise err.cause from None
        raise


def _has_answered(ref: Any) -> bool:  # noqa: ANN401  (Ray's reference)
    """Return whether a call that is over was answered, not lost with its worker."""
    try:
        ray.get(ref)
    except LOSSES:
        return False
    return True


def why_lost(error: Exception) -> str:
    """Return in a line why a worker is lost: Ray says it last of one that is dead."""
    lines = str(error).splitlines()
    return lines[-1 if isinstance(error, exceptions.ActorDiedError) else 0]
