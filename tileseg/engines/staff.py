"""Who does the work of jobs: an engine, hired when it is needed, shared by all."""

from contextlib import suppress
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tileseg.base.stopping import Stop
from tileseg.engines.resolve import device_of
from tileseg.errors import TilesegError, UsageError
from tileseg.plans.ledger import Plan
from tileseg.plans.task import Task
from tileseg.scenes.identity import Ahead
from tileseg.settings import Job

if TYPE_CHECKING:
    from tileseg.engines.engine import Engine

__all__ = ["Staff", "check_engine"]


class Staff:
    """The engine that jobs share; hired when the first of them needs one.

    Late, so that a job with nothing to do starts neither torch nor Ray.
    """

    def __init__(self, stop: Stop | None = None, *, is_shared: bool = False) -> None:
        """Hire nobody yet; work until somebody asks to `stop`."""
        self.stop = stop or Stop()
        self.is_shared = is_shared
        """Whether there are several jobs to do."""
        self.following: dict[str, Any] | None = None
        """Fields of the job after the one in hand; None where nobody knows of one."""
        self.ahead = Ahead(lambda: self.stop.error is not None)
        """What of a scene is known before it is needed."""
        self._engine: Engine | None = None
        self._shares: dict[object, float] = {}

    def engine(self, job: Job) -> "Engine":
        """Return the engine; the first job's options say which."""
        if self._engine is None:
            self._engine = _hire(job)
        return self._engine

    def look_ahead(self) -> None:
        """Have the next job's file hashed, now that workers read this one's."""
        facts, self.following = self.following, None
        if facts:
            with suppress(TilesegError):  # its own turn will tell
                job = Job(**facts)
                self.ahead.begin(job.inputs[0], job.workplace)

    def ask(self, task: Task, plan: Plan) -> float:
        """Return the share of golden labels given again; each device is asked once."""
        from tileseg.plans.canary import read_canary

        canary, device = read_canary(task.job.gates.canary), device_of(plan)
        ensemble = task.ensemble
        canary.check(ensemble, task.job.gates.canary)
        key = canary.sha256, device
        if key not in self._shares:
            self._shares[key] = self.engine(task.job).agree(canary, ensemble, device)
        return self._shares[key]

    def __enter__(self) -> Self:
        """Hire nobody yet."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Let the workers go."""
        self.ahead.close()
        if self._engine:
            self._engine.close()

    @property
    def is_broken(self) -> bool:
        """Whether this process is of no more use."""
        return self._engine is not None and self._engine.is_broken


def check_engine(job: Job) -> None:
    """Refuse an engine or a device that is not here, whatever the scene.

    Raises:
        UsageError: it is not.
        ModelError: a GPU cannot be used.
    """
    if job.engine_kind == "ray" and find_spec("ray") is None:
        msg = "engine ray: Ray is not installed; pip install 'tileseg[ray]'"
        raise UsageError(msg)
    if job.engine_kind == "local" and job.device == "cuda":
        from tileseg.network.device import resolve_device

        resolve_device(job.device)


def _hire(job: Job) -> "Engine":
    check_engine(job)
    if job.engine_kind == "local":
        from tileseg.engines.engine import LocalEngine

        return LocalEngine(job.workers, job.patience)
    from tileseg.engines.cluster import RayEngine

    return RayEngine(job)
