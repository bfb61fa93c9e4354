"""A training by processes that Ray Train starts, and starts again if one is lost.

Weights meet through torch.distributed. The driver only waits: the first process leaves
on a board how far it is and what it has to say, and reads there whether to stop.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray
from ray import PlacementGroupID
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
)
from ray.train.torch import TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from tileseg.base.environment import scrub
from tileseg.base.stopping import Stop, StopSignal
from tileseg.engines.actor import NONCE, check_folder
from tileseg.engines.pool import LOSSES, connect, demand
from tileseg.errors import LostError, TilesegError, UsageError, last_line
from tileseg.stores.storage import Disk
from tileseg.training.team import Team
from tileseg.training.train_loop import Listener
from tileseg.training.train_settings import Training

__all__ = ["Member", "train_on_ray"]

logger = logging.getLogger(__name__)

Member = Callable[[Team, Stop, Listener], None]
"""What each process does, all from its beginning, however often."""

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 30.0  # for the step in hand and a checkpoint, after a signal
_WAIT_SECONDS = 1800  # for as many workers as are wanted
_NO_RETRIES: dict[str, Any] = {"controller_failure_limit": 0}  # not in Ray's stubs
_TRIES = 3  # without a step between them
# Ray's class for it is not public, so it is known by its name: where Ray renames it, to
# wait in vain counts as a lost worker and is tried again, instead of an import failing.
_NOBODY_CAME = "WorkerGroupStartupTimeoutError"


class Board:
    """An actor: word from the first process to the driver, and back."""

    def __init__(self) -> None:
        """Nobody said anything yet."""
        self._word = Word()
        self._wish: TilesegError | None = None

    def report(self, word: "Word") -> TilesegError | None:
        """Take what the first process has to say; return why to stop, if it shall."""
        self._word = Word(word.done, word.total, self._word.lines + word.lines)
        return self._wish

    def read(self, wish: TilesegError | None) -> "Word":
        """Take the driver's wish; return what there is to know since it last asked."""
        word, self._wish = self._word, wish
        self._word = Word(word.done, word.total)
        return word


@dataclass(slots=True)
class Word:
    """What the first process says."""

    done: int = 0
    """Tiles seen."""
    total: int = 0
    """All tiles."""
    lines: list[tuple[int, str]] = field(default_factory=list)
    """Levels and texts of log records."""


_Board: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)


def train_on_ray(
    member: Member, training: Training, stop: Stop, told: Listener
) -> None:
    """Have a team of Ray's processes do it, and begin again when one is lost.

    Args:
        member: what each of them does; is sent to where they run.
        training: says how many, on what, and where unfinished work lies.
        stop: the wish to end.
        told: is told the tiles seen, and all tiles.

    Raises:
        StopSignal: it was asked to end.
        UsageError: this machine, or the cluster, has too little.
        LostError: workers did not come, or were lost again and again.
        TilesegError: what a worker raised.
    """
    _set_up()
    is_our_ray = connect()
    try:
        run = _Run(member, training, stop, told)
        with stop.patient():
            run.until_done()
    finally:
        if is_our_ray:
            ray.shutdown()


class _Run:
    """The driver's side."""

    def __init__(
        self, member: Member, training: Training, stop: Stop, told: Listener
    ) -> None:
        most, _ = demand(training.device, training.workers)
        # Each has at least one tile of a batch.
        team = min(most, training.batch_size)
        self._workers, share = demand(training.device, team)
        self._share = {"CPU": share["num_cpus"], "GPU": share["num_gpus"]}
        _check_room(self._workers, self._share)
        nonce = uuid4().hex
        Disk(training.work).write(NONCE, nonce.encode())
        self._board: Any = _Board.remote()
        self._others = _groups()
        self._folder = str(training.work)
        self._facts = {
            "member": member, "board": self._board, "nonce": nonce,
            "folder": self._folder,
        }  # fmt: skip
        self._stop, self._told, self._done = stop, told, 0
        logger.info("Ray: a team of %d, each with %s", self._workers, self._share)

    def until_done(self) -> None:
        """See `train_on_ray`."""
        fails = 0
        while True:
            before = self._done
            try:
                self._attend(self._begin())
            except TrainingFailedError as err:
                _free(_groups() - self._others)
                self._stop.obey(0)
                logger.debug("Ray Train: %s", err)
                said = last_line(self._loss(err))
                fails = 1 if self._done > before else fails + 1
                if fails == _TRIES:
                    msg = f"{_TRIES} times a worker was lost before any step: {said}"
                    raise LostError(msg) from err
                logger.warning("Ray: a worker was lost, all begin again: %s", said)
            except LOSSES as err:
                self._stop.obey(0)
                msg = f"Ray Train: {last_line(err)}; the same command resumes"
                raise LostError(msg) from err
            else:
                return

    def _begin(self) -> Future[Any]:
        """Let Ray Train run on a thread, where it leaves our signals alone."""
        trainer = TorchTrainer(
            _work,
            train_loop_config=self._facts,
            scaling_config=ScalingConfig(
                num_workers=self._workers,
                use_gpu=self._share["GPU"] > 0,
                resources_per_worker=self._share,
            ),
            run_config=RunConfig(
                name="ray",  # a folder in the work, with nothing in it that we need
                storage_path=self._folder,
                failure_config=FailureConfig(**_NO_RETRIES),
            ),
        )
        ended: Future[Any] = Future()

        def fit() -> None:
            try:
                ended.set_result(trainer.fit())
            except BaseException as err:  # noqa: BLE001  (raised again in _attend)
                ended.set_exception(err)

        threading.Thread(target=fit, name="ray train", daemon=True).start()
        return ended

    def _attend(self, ended: Future[Any]) -> None:
        """Pass on what is said, and a wish to stop, until it is over."""
        while True:
            is_over = bool(wait([ended], _POLL_SECONDS).done)
            word: Word = ray.get(self._board.read.remote(self._stop.error))
            for level, line in word.lines:
                logger.log(level, "%s", line)
            if word.total:
                self._done = word.done
                self._told(word.done, word.total)
            if is_over:
                ended.result()
                return
            self._stop.obey(_GRACE_SECONDS)

    def _loss(self, error: TrainingFailedError) -> Exception:
        """Return how a worker was lost, at work or while it started.

        Raises:
            LostError: not as many came as are wanted.
            TilesegError: what a worker raised.
        """
        causes = _causes(error)
        for cause in causes:
            if isinstance(cause, TilesegError):
                raise cause from None
            if type(cause).__name__ == _NOBODY_CAME:
                msg = (
                    f"no {self._workers} workers with {self._share} came in "
                    f"{_WAIT_SECONDS} s; the same command resumes"
                )
                raise LostError(msg) from error
        return causes[0]


def _groups() -> set[str]:
    """Return the ids of the groups of places that this driver has."""
    job = ray.get_runtime_context().get_job_id()  # which ends the id of what it made
    table = placement_group_table().items()
    return {
        key for key, facts in table if key.endswith(job) and facts["state"] != "REMOVED"
    }


def _free(groups: set[str]) -> None:
    """Give places back.

    Ray Train keeps those of a team of which one died when all were there but none had
    begun (seen with 2.60), and the next team would wait for them in vain.
    """
    for key in groups:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))


def _causes(error: TrainingFailedError) -> list[Exception]:
    """Return what befell the workers, or Ray Train before all of them worked."""
    if isinstance(error, WorkerGroupError):
        return [*error.worker_failures.values(), error]
    return [getattr(error, "controller_failure", error)]


def _set_up() -> None:
    """Say to Ray Train what only the environment can."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_WAIT_SECONDS)
    if sys.platform == "linux" and not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # as our Ray: loopback only


def _check_room(workers: int, share: dict[str, int]) -> None:
    """Refuse a team that the Ray of this machine will never have room for.

    Raises:
        UsageError: it is too large.
    """
    if os.environ.get("RAY_ADDRESS"):
        return  # nodes may come
    here = ray.cluster_resources()
    for name, count in share.items():
        if workers * count > here.get(name, 0):
            msg = f"workers: got {workers}, here is {name} for {here.get(name, 0):.0f}"
            raise UsageError(msg)


def _work(facts: dict[str, Any]) -> None:
    """Take part, as one process of the team.

    Raises:
        TilesegError: what went wrong, or why it was asked to stop.
    """
    scrub()
    check_folder(facts["folder"], facts["nonce"], "--to")
    context = get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    member: Member = facts["member"]
    if team.rank > 0:
        member(team, Stop(), lambda _done, _total: None)
        return
    with _at(facts["board"]) as (stop, told):
        try:
            member(team, stop, told)
        except StopSignal as signal:
            raise signal.error from None


class _Lines(logging.Handler):
    """Keeps what is logged, until somebody takes it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        taken, self._lines = self._lines, []
        return taken


@contextmanager
def _at(board: Any) -> Iterator[tuple[Stop, Listener]]:  # noqa: ANN401  (Ray's handle)
    """Leave word at the board now and then; give the wish to stop that comes back."""
    stop, lines, is_over = Stop(), _Lines(), threading.Event()
    seen = 0, 0
    ours = logging.getLogger("tileseg")
    ours.setLevel(logging.INFO)
    ours.addHandler(lines)

    def told(done: int, total: int) -> None:
        nonlocal seen
        seen = done, total

    def report() -> None:
        wish: TilesegError | None = ray.get(
            board.report.remote(Word(*seen, lines.take()))
        )
        if wish is not None:
            with suppress(StopSignal):  # for the thread that trains, which looks at it
                stop.ask(wish)

    def repeat() -> None:
        while not is_over.wait(_POLL_SECONDS):
            report()

    thread = threading.Thread(target=repeat, name="board", daemon=True)
    thread.start()
    try:
        yield stop, told
    finally:
        is_over.set()
        thread.join()
        report()
        ours.removeHandler(lines)
