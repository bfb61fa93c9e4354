"""The whole job told once: one scene and a model in, a published mask out."""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING

from tileseg import publish
from tileseg.errors import BusyError, ExitCode, InterruptedRunError, TilesegError
from tileseg.grid import Run, Shard
from tileseg.ledger import Ledger, Plan, Receipt, find_plan, lock, write_whole
from tileseg.record import Record
from tileseg.task import Job, Task, prepare

if TYPE_CHECKING:
    from tileseg.model import Device

__all__ = ["Progress", "run"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with tiles done and tiles in all, every second or so."""


def run(job: Job, progress: Progress = lambda _done, _total: None) -> Record:
    """Do a job; how it ended, an error too, is in the record it returns."""
    record = Record(job.input)
    try:
        _segment(job, record, progress)
    except KeyboardInterrupt:
        record.fail(InterruptedRunError("interrupted; the same command resumes"))
    except TilesegError as err:
        record.fail(err)
    except Exception as err:
        logger.exception("a bug in tileseg; please report it")
        record.fail(err)
    is_ours = not isinstance(record.error, BusyError)  # else another's work directory
    if record.error and is_ours and record.values["plan_id"] and job.work_path.is_dir():
        _leave_word(job.work_path, record)
    return record


def _segment(job: Job, record: Record, progress: Progress) -> None:
    task = prepare(job)
    record.add_task(task)
    held = publish.published(job.output_path)
    if held and publish.is_complete(job.output_path, held, task.request_id):
        logger.info("%s: nothing to do, %s is complete", job.input, job.output_path)
        record.adopt(held)
        return
    publish.check_free(job.output_path, held, task.request_id, overwrite=job.overwrite)
    plan, workers = _resolve(task, record)
    record.add_plan(plan, task, workers)
    if job.dry_run:
        record.close("dry-run", ExitCode.OK)
        return
    ledger = Ledger(job.work_path, plan)
    with lock(job.work_path), publish.staging(job.output_path) as folder:
        # Again, now that nobody else can publish: another run may just have ended.
        held = publish.published(job.output_path)
        publish.check_free(
            job.output_path, held, task.request_id, overwrite=job.overwrite
        )
        task.identity.remember(job.work_path)
        receipts = _process(task, ledger, workers, record, progress)
        task.identity.check_unchanged()
        _build(task, ledger, receipts, record, folder)
    _clean(job, ledger, record)


def _resolve(task: Task, record: Record) -> tuple[Plan, list[str]]:
    """Turn `auto` into what this machine has; return the plan and the devices.

    A plan of the same request that was begun on such hardware goes on as it is.
    """
    from tileseg.model import (
        default_batch,
        load_module,
        resolve_device,
        worker_devices,
    )

    job = task.job
    load_module(job.model_path, task.card)  # a broken model is no plan
    device = resolve_device(job.device, job.precision)
    workers = worker_devices(device, job.workers)
    machine = {"device": device.name, "hardware": device.hardware}
    if begun := find_plan(job.work_path, task.request, machine):
        return begun, workers
    if device.precision != "fp32" and not job.dry_run:
        device = _checked(task, device, record)
    batch = job.batch_size or default_batch(device)
    resolved = {**machine, "precision": device.precision, "batch_size": batch}
    return Plan(task.request, resolved), workers


def _checked(task: Task, device: "Device", record: Record) -> "Device":
    """Return the device with fp32 if its fast numbers are not good enough."""
    from tileseg.precision import ENOUGH, compare

    check = compare(task, device)
    record.values["precision_check"] = asdict(check)
    if check.agreement is None or check.agreement >= ENOUGH:
        return device
    text = "%s: only %.4f of the labels in %s are those of fp32"
    logger.warning(text, task.job.input, check.agreement, device.precision)
    return replace(device, precision="fp32") if task.job.precision == "auto" else device


def _process(
    task: Task, ledger: Ledger, workers: list[str], record: Record, progress: Progress
) -> dict[Shard, Receipt]:
    """Make every shard that is not done yet; return all receipts."""
    from tileseg.engine import Failure, run_local
    from tileseg.model import device_memory_mb
    from tileseg.worker import Recipe

    receipts = ledger.open()
    record.reused = frozenset(receipts)
    shards = list(Run(task.grid.shape))
    todo = [shard for shard in shards if shard not in receipts]
    runs = task.runs(todo, len(workers))
    logger.info("%s: %d shards, %d to do", task.job.input, len(shards), len(todo))
    total = task.grid.tiles.size
    before = total - sum(task.grid.cores(run).size for run in runs)
    threads = 1 if workers[0] == "cpu" else cpu_count() or 1
    recipes = [
        Recipe.of(task, ledger, device=name, read_threads=threads) for name in workers
    ]
    with closing(
        run_local(
            recipes, runs, lambda tiles: progress(min(before + tiles, total), total)
        )
    ) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                if not task.job.allow_partial:
                    raise outcome.error
                record.add_failure(outcome, task.grid)
                continue
            task.identity.check_unchanged()  # else these may be another file's pixels
            ledger.record(outcome)
            receipts[outcome.shard] = outcome
    record.values["memory"]["device_mb"] = device_memory_mb()
    if shards and not receipts:
        raise record.failures[0].error
    return receipts


def _build(
    task: Task,
    ledger: Ledger,
    receipts: dict[Shard, Receipt],
    record: Record,
    folder: Path,
) -> None:
    """Make every product in `folder`, the record last."""
    from tileseg.report import quicklook
    from tileseg.stitch import looks, stitch

    with record.stage("stitch"):
        for product, look in looks(task.card, confidence=task.job.confidence).items():
            logger.info("%s: stitching %s.tif", task.job.input, product)
            files = {
                shard: ledger.folder / receipt.artifacts[product].name
                for shard, receipt in receipts.items()
            }
            path = folder / f"{product}.tif"
            stitch(files, task.grid, task.scene, look, path)
    if task.job.polygons:
        with record.stage("vectorize"):
            _vectorize(task, ledger, receipts, folder)
    picture = quicklook(task.scene, task.bands, folder / "mask.tif", task.card)
    write_whole(folder / "quicklook.png", picture)
    record.add_receipts(receipts, task)
    record.values["outputs"] = publish.list_outputs(folder)
    if record.failures:
        record.close("partial", ExitCode.PARTIAL)
    else:
        record.close("complete", ExitCode.OK)
    write_whole(folder / publish.RECORD, record.as_bytes())


def _vectorize(
    task: Task, ledger: Ledger, receipts: dict[Shard, Receipt], folder: Path
) -> None:
    """Make the file of polygons in `folder`."""
    from tileseg.features import write_features
    from tileseg.vectorize import Pieces, join

    path = folder / f"polygons.{task.job.polygons}"
    logger.info("%s: joining %s", task.job.input, path.name)
    files = {
        shard: ledger.folder / receipt.artifacts["polygons"].name
        for shard, receipt in receipts.items()
    }
    pieces = {
        shard: Pieces.from_bytes(file.read_bytes()) for shard, file in files.items()
    }
    names = {item.value: item.name for item in task.card.classes}
    box = task.scene.geobox
    write_features(join(pieces, box), names, box, path)


def _clean(job: Job, ledger: Ledger, record: Record) -> None:
    """Forget the work that is published; what failed is kept for the next run."""
    (job.work_path / "last-attempt.json").unlink(missing_ok=True)
    if not (job.keep_work or record.failures):
        ledger.remove()


def _leave_word(work: Path, record: Record) -> None:
    """Say in the work directory how a failed attempt ended."""
    try:
        write_whole(work / "last-attempt.json", record.as_bytes())
    except TilesegError as err:
        logger.warning("%s", err)
