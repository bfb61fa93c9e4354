"""What `auto` becomes: from what is asked and what the workers have to a plan."""

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tileseg.errors import DeviceMemoryError, UsageError
from tileseg.plans.ledger import Plan, find_plan
from tileseg.plans.task import Task
from tileseg.settings import Job
from tileseg.stores.objects import open_storage

if TYPE_CHECKING:
    from tileseg.engines.engine import Engine
    from tileseg.network.device import Device

__all__ = ["device_of", "halved", "resolve"]

logger = logging.getLogger(__name__)


def resolve(task: Task, engine: "Engine") -> Plan:
    """Turn `auto` into what the workers have.

    A plan of the same request that was begun on such hardware goes on as it is.
    """
    from tileseg.network.device import default_batch
    from tileseg.network.model import check_weights

    job = _in_numbers(task)
    for path, card in zip(task.ensemble.paths, task.ensemble.cards, strict=True):
        check_weights(path, card)  # before workers are waited for
    device = engine.resolve(job)
    machine = {"device": device.name, "hardware": device.hardware}
    if begun := find_plan(open_storage(job.workplace), task.request, machine):
        return begun
    device = engine.settle(task, device)
    check: dict[str, Any] = {}
    if device.precision != "fp32" and not job.dry_run:
        device, check = _checked(task, device, engine)
    batch = default_batch(device, task.ensemble, task.grid.tiles.size)
    resolved = {
        **machine,
        "precision": device.precision,
        "network": device.network,
        "batch_size": job.batch_size or batch,
    }
    return Plan(task.request, resolved, check, job.destination)


def _in_numbers(task: Task) -> Job:
    """Return the job in fp32, if one of its networks knows nothing else.

    Raises:
        UsageError: it is asked for in others.
    """
    job = task.job
    fixed = (it for it in task.ensemble.cards if it.architecture.is_fp32_only)
    card = next(fixed, None)
    if card is None:
        return job
    if job.precision not in ("auto", "fp32"):
        msg = (
            f"--precision {job.precision}: {card.name} is an archive of kind "
            f"{card.architecture.kind}, which computes as it was saved; leave it out"
        )
        raise UsageError(msg)
    return replace(job, precision="fp32")


def device_of(plan: Plan) -> "Device":
    """Return where a plan is carried out."""
    from tileseg.network.device import Device

    resolved = plan.resolved
    where = resolved["device"], resolved["hardware"], resolved["precision"]
    return Device(*where, resolved["network"])


def _checked(
    task: Task, device: "Device", engine: "Engine"
) -> tuple["Device", dict[str, Any]]:
    """Return the device, with fp32 if its fast numbers are not good enough, and why."""
    from tileseg.plans.precision import ENOUGH

    check, is_auto = engine.compare(task, device), task.job.precision == "auto"
    doubt = ""
    if check.agreement is None and is_auto:
        doubt = f"no valid pixel was found to compare {device.precision} with fp32 by"
    elif check.agreement is not None and check.agreement < ENOUGH:
        share = f"{check.agreement:.4f}"
        doubt = f"only {share} of the labels in {device.precision} are those of fp32"
    if doubt:
        logger.warning("%s: %s", task.job.href, doubt)
        if is_auto:
            logger.warning("%s: going on in fp32", task.job.href)
            device = engine.settle(task, replace(device, precision="fp32"))
    return device, asdict(check)


def halved(plan: Plan, error: DeviceMemoryError) -> Plan:
    """Return the plan with half the batch."""
    batch = plan.resolved["batch_size"]
    if batch == 1:
        msg = (
            f"{error}, even for one tile at a time; free the device's memory, or use "
            "another --device or a smaller model"
        )
        raise DeviceMemoryError(msg) from error
    # Its text: whoever keeps the log shall not keep the error, and with it the tensors.
    logger.warning("%s; going on with %d tiles in a batch", str(error), batch // 2)
    return replace(plan, resolved={**plan.resolved, "batch_size": batch // 2})
