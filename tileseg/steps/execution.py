"""A plan carried out: every shard made, or taken from where it was made before."""

import gc
import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

from tileseg.engines.resolve import device_of, halved
from tileseg.engines.staff import Staff
from tileseg.errors import DeviceMemoryError
from tileseg.grid import Run, Shard
from tileseg.plans.ledger import Ledger, Plan, Receipt
from tileseg.plans.task import Task
from tileseg.steps.products import warm_up
from tileseg.steps.record import Record
from tileseg.stores.objects import open_storage

if TYPE_CHECKING:
    from tileseg.engines.crew import Outcome

__all__ = ["Progress", "carry_out"]

logger = logging.getLogger(__name__)

_ENOUGH_BAD = 20  # failed shards after which one that may not have any gives up

Progress = Callable[[int, int], None]
"""Called with tiles done and tiles in all, every second or so."""


def carry_out(  # noqa: PLR0913  (a job's five, and what it may begin with)
    task: Task,
    plan: Plan,
    staff: Staff,
    record: Record,
    progress: Progress,
    *,
    held: dict[str, Any] | None = None,
) -> tuple[Ledger, dict[Shard, Receipt]]:
    """Make every shard, with smaller batches where the device's memory demands it.

    Args:
        task: the job.
        plan: what is done.
        staff: who does it.
        record: told of it.
        progress: likewise, while it goes on.
        held: the record of what is published, for a job that is `incremental`.
    """
    while True:
        ledger = Ledger(open_storage(task.job.workplace), plan)
        work = _Work(task, ledger, staff, record)
        try:
            return ledger, work.finish(work.begin(held), progress)
        except DeviceMemoryError as err:
            plan = halved(plan, err)
        # Not within `except`: the error's frames hold what filled the memory, and what
        # is left of the crew does, in cycles.
        gc.collect()
        engine = staff.engine(task.job)
        record.add_plan(plan, task, engine.kind, engine.workers(device_of(plan)))


@dataclass(frozen=True, slots=True)
class _Work:
    """One plan's work."""

    task: Task
    ledger: Ledger
    staff: Staff
    record: Record

    def begin(self, held: dict[str, Any] | None) -> dict[Shard, Receipt]:
        """Return receipts of the shards that need no network."""
        task, ledger, record = self.task, self.ledger, self.record
        receipts = ledger.open()
        record.reused, record.distrusted = frozenset(receipts), ledger.distrusted
        if not (held and task.job.incremental):
            return receipts
        from tileseg.engines.worker import Recipe
        from tileseg.steps.incremental import find, unchanged

        before = find(task, ledger.plan, held)
        if before is None:
            return receipts
        maker = Recipe.of(task, ledger, device_of(ledger.plan)).maker()
        with record.stage("compare"):
            for receipt in unchanged(task, maker, before, frozenset(receipts)):
                self._keep(receipt, receipts)
        record.unchanged = frozenset(receipts) - record.reused
        logger.info("%s: %d shards as before", task.job.href, len(record.unchanged))
        return receipts

    def finish(
        self, receipts: dict[Shard, Receipt], progress: Progress
    ) -> dict[Shard, Receipt]:
        """Make every shard without a receipt; return all receipts."""
        task, record, stop = self.task, self.record, self.staff.stop
        allow_partial = task.job.allow_partial
        shards = list(Run(task.grid.shape))
        todo = [shard for shard in shards if shard not in receipts]
        logger.info("%s: %d shards, %d to do", task.job.href, len(shards), len(todo))
        outcomes = self._outcomes(todo, progress) if todo else _nothing()
        try:
            with record.stage("work"), stop.patient(), closing(outcomes):
                for outcome in outcomes:
                    self._take(outcome, receipts)
                    if len(record.failures) >= _ENOUGH_BAD and not allow_partial:
                        break
        finally:
            if todo:
                record.add_usage(self.staff.engine(task.job).usage())
            record.add_receipts(receipts, task)
            self.ledger.flush()
        if record.failures and not (allow_partial and receipts):
            raise record.failures[0].error
        return receipts

    def _outcomes(self, todo: list[Shard], progress: Progress) -> "Generator[Outcome]":
        """Have the workers make shards."""
        from tileseg.engines.worker import Recipe

        task, stop = self.task, self.staff.stop
        engine, device = self.staff.engine(task.job), device_of(self.ledger.plan)
        runs = task.runs(todo, len(engine.workers(device)))
        total = task.grid.tiles.size
        before = total - sum(task.grid.cores(run).size for run in runs)

        def pulse(tiles: int) -> None:
            progress(min(before + tiles, total), total)
            if stop.obey(task.job.grace_seconds):
                engine.wind_down()

        warm_up()
        return engine.outcomes(Recipe.of(task, self.ledger, device), runs, pulse)

    def _take(self, outcome: "Outcome", receipts: dict[Shard, Receipt]) -> None:
        """Note what became of a shard."""
        if isinstance(outcome, Receipt):
            self._keep(outcome, receipts)
            _log_shard(logging.DEBUG, outcome.shard, "done")
        else:
            _log_shard(logging.WARNING, outcome.shard, f"given up: {outcome.error}")
            self.record.add_failure(outcome, self.task.grid)

    def _keep(self, receipt: Receipt, receipts: dict[Shard, Receipt]) -> None:
        self.task.identity.check_unchanged()  # else another file's pixels
        self.ledger.record(receipt)
        receipts[receipt.shard] = receipt


def _log_shard(level: int, shard: Shard, text: str) -> None:
    """Log what became of a shard."""
    logger.log(level, "shard %s: %s", shard.name, text, extra={"shard": shard.name})


def _nothing() -> Generator[Never]:
    """Yield no outcome, and need no worker for it."""
    yield from ()
