"""The whole job told once: one scene and a model in, a published mask out."""

import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tileseg.base.locations import is_remote
from tileseg.engines.resolve import device_of, resolve
from tileseg.engines.staff import Staff
from tileseg.errors import (
    BusyError,
    ExitCode,
    InterruptedRunError,
    ParkedError,
    RolledBackError,
    StorageError,
    TilesegError,
)
from tileseg.plans.fit import doubts
from tileseg.plans.ledger import Plan, forget, plans
from tileseg.plans.preflight import preflight
from tileseg.plans.task import Task, prepare
from tileseg.publishing import publish
from tileseg.publishing.bucket import open_place
from tileseg.publishing.place import Place
from tileseg.settings import Job
from tileseg.steps.execution import Progress, carry_out
from tileseg.steps.inspection import inspect, inspect_again
from tileseg.steps.products import build, present
from tileseg.steps.record import Record
from tileseg.stores.lock import Hold, hold
from tileseg.stores.objects import open_storage
from tileseg.stores.storage import write_whole

__all__ = ["run"]

logger = logging.getLogger(__name__)

_LAST_ATTEMPT = "last-attempt.json"


def run(
    job: Job,
    progress: Progress = lambda _done, _total: None,
    staff: Staff | None = None,
) -> Record:
    """Do a job; how it ended, an error too, is in the record it returns.

    Args:
        job: what to do.
        progress: told how far it is.
        staff: who does it; without it an engine is hired for this job alone.
    """
    record = Record(job.href)
    record.values["job"] = job.given()
    with ExitStack() as stack:
        staff = staff or stack.enter_context(Staff())
        record.is_shared = staff.is_shared
        _end_well(job, record, progress, staff)
    return record


def _end_well(job: Job, record: Record, progress: Progress, staff: Staff) -> None:
    """Do a job; turn what ends it into a word in the record and the work directory."""
    try:
        staff.stop.obey(0)
        _segment(job, record, progress, staff)
    except KeyboardInterrupt:  # Ray raises one of its own in the place of ours
        plain = InterruptedRunError("interrupted; the same command resumes")
        record.fail(staff.stop.error or plain)
    except TilesegError as err:
        record.fail(err)
    except Exception as err:
        logger.exception("a bug in tileseg; please report it")
        record.fail(err)
    is_ours = not isinstance(record.error, BusyError)  # else another's work directory
    is_ours &= not isinstance(record.error, ParkedError)  # which is done
    if record.error and is_ours and record.values["plan_id"]:
        _leave_word(job, record)


def _segment(job: Job, record: Record, progress: Progress, staff: Staff) -> None:
    place, work = open_place(job), open_storage(job.workplace)
    staff.ahead.begin(job.inputs[0], job.workplace)  # hashed while it is looked at
    task = prepare(job, staff.ahead)
    record.add_task(task)
    if _adopt_answer(place, task, record):
        return
    if job.dry_run:
        _plan(task, staff, record)
        record.close("dry-run", ExitCode.OK)
        return
    preflight(task)
    _look(task, record)
    try:
        # Before workers are waited for: who has the lock has the workers too, perhaps.
        with ExitStack() as stack:
            stack.callback(work.vacate)  # if nothing was begun there
            lock = stack.enter_context(hold(work, task.request_id))
            _make(task, lock, progress, staff, record)
    except BusyError:
        held = place.published()
        if not (held and place.is_complete(held, task.request_id)):
            raise
        _adopt(held, place, job, record)  # another run was faster


def _adopt_answer(place: Place, task: Task, record: Record) -> bool:
    """Adopt what is asked for, if it is there, published or parked; say whether.

    Raises:
        TilesegError: something else is there that may not be replaced.
    """
    held = place.published()
    if held and place.is_complete(held, task.request_id):
        _adopt(held, place, task.job, record)
        return True
    _check_free(place, held, task)
    return _adopt_parked(held, place, task, record)


def _make(
    task: Task, lock: Hold, progress: Progress, staff: Staff, record: Record
) -> None:
    """Make the products of a task whose lock is held, and publish them."""
    place = open_place(task.job)  # knows nothing yet: much may have happened since
    plan = _plan(task, staff, record)
    with place.staging() as folder:
        # Again, now that nobody else can publish: another may just have ended.
        held = place.published()
        _check_free(place, held, task)
        task.identity.remember(open_storage(task.job.workplace))
        staff.look_ahead()
        watched = _while(lock, progress)
        ledger, receipts = carry_out(task, plan, staff, record, watched, held=held)
        task.identity.check_unchanged()
        collage = build(task, ledger, receipts, record, folder)
        inspect(task, place, held, record, lambda it: staff.ask(it, ledger.plan))
        listed = present(task, collage, receipts, record, folder)
        _close(place, record, folder, listed)
        lock.renew()
    _clean(task.job, ledger.plan.plan_id, is_whole=not record.failures)
    logger.info("%s: %s", task.job.href, record.values["verdict"]["advice"])


def _look(task: Task, record: Record) -> None:
    """Say what a person should know of the scene's values; see that gates have all."""
    texts, record.values["drift"] = doubts(task)
    for text in texts:
        logger.warning("%s: %s", task.job.href, text)
        record.add_warning(text)
    if path := task.job.gates.canary:
        from tileseg.plans.canary import read_canary

        read_canary(path).check(task.ensemble, path)  # before, not after the work


def _check_free(place: Place, held: dict[str, Any] | None, task: Task) -> None:
    job, request = task.job, task.request_id
    is_meant = job.overwrite and job.again
    if held and not is_meant and request in place.rolled_back():
        msg = (
            f"{place}: the result of this very plan was rolled back: tileseg versions "
            f"{place} lists it, tileseg rollback {place} --to it puts it back, "
            "tileseg segment --overwrite makes it again"
        )
        raise RolledBackError(msg)
    is_same_scene = (held or {}).get("scene", {}).get("href") == job.href
    overwrite = job.overwrite or (job.incremental and is_same_scene)
    publish.check_free(place, held, request, href=job.href, overwrite=overwrite)


def _plan(task: Task, staff: Staff, record: Record) -> Plan:
    """Turn what is asked for into a plan, with the workers at hand."""
    with record.stage("plan"):
        engine = staff.engine(task.job)
        plan = resolve(task, engine)
    record.add_plan(plan, task, engine.kind, engine.workers(device_of(plan)))
    return plan


def _adopt(held: dict[str, Any], place: Place, job: Job, record: Record) -> None:
    """Do nothing: what is published answers the request."""
    logger.info("%s: nothing to do, %s is complete", job.href, place)
    record.adopt(held)
    if job.dry_run:
        return
    work = open_storage(job.workplace)
    if not work.folders():
        place.sweep()
        return
    with suppress(BusyError), hold(work, held["request_id"]):  # another may be at it
        place.sweep()
        _clean(job, held["plan_id"], is_whole=True)


def _adopt_parked(
    held: dict[str, Any] | None, place: Place, task: Task, record: Record
) -> bool:
    """Return whether the result is there, parked; put it live if it may be by now.

    One with holes is not: what failed may be made now.
    """
    parked = place.parked()
    if not parked or parked["request_id"] != task.request_id or parked.get("failures"):
        return False
    if not place.holds_parked(parked):
        return False
    values, may_go = inspect_again(task, place, held, parked)
    if may_go and not task.job.dry_run:
        values = place.release(values["gates"])
        logger.info("%s: parked before, passes the gates now", task.job.href)
    record.adopt(values)
    record.is_news = may_go and not task.job.dry_run
    return True


def _while(lock: Hold, progress: Progress) -> Progress:
    """Return `progress`, stopping a run that lost its lock while it stood still."""

    def checked(done: int, total: int) -> None:
        lock.check()
        progress(done, total)

    return checked


def _close(
    place: Place, record: Record, folder: Path, listed: list[dict[str, Any]]
) -> None:
    """Write the record of what is in `folder`, where it is to be published."""
    plan_id = record.values["plan_id"]
    record.values["outputs"] = place.list_outputs(folder, plan_id, listed)
    record.finish()
    write_whole(folder / publish.RECORD, record.as_bytes())


def _clean(job: Job, plan_id: str, *, is_whole: bool) -> None:
    """Forget the work that is published; what failed is kept for the next run."""
    work = open_storage(job.workplace)
    work.remove(_LAST_ATTEMPT)
    if is_whole and not job.keep_work:
        forget(work, plan_id)
        for begun in plans(work):  # for this output, and never finished
            if begun.output == job.destination:
                forget(work, begun.plan_id)


def _leave_word(job: Job, record: Record) -> None:
    """Say in the work directory, if it was begun, how a failed attempt ended."""
    is_dead = is_remote(job.workplace) and isinstance(record.error, StorageError)
    if is_dead or not (is_remote(job.workplace) or job.work_path.is_dir()):
        return
    try:
        open_storage(job.workplace).write(_LAST_ATTEMPT, record.as_bytes())
    except TilesegError as err:
        logger.warning("%s", err)
