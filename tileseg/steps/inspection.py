"""A finished result at the gates: what was measured, was before, and is golden."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tileseg.base.bounds import Gate, failed, judge
from tileseg.plans.task import Task
from tileseg.publishing.history import shares_before
from tileseg.publishing.place import Place
from tileseg.steps.record import Record

__all__ = ["inspect", "inspect_again"]

Ask = Callable[[Task], float]
"""Returns the share of golden labels that the workers give again."""


def inspect(
    task: Task, place: Place, held: dict[str, Any] | None, record: Record, ask: Ask
) -> None:
    """Judge a result that is made and verified, before it goes anywhere.

    Args:
        task: what was asked for.
        place: where it is to go.
        held: the record of what is live there; None for nothing.
        record: the result's, told what was found.
        ask: called if there are golden tiles.
    """
    share = ask(task) if task.job.gates.canary else None
    record.add_gates(_judge(task, place, held, record.values, share), place)


def inspect_again(
    task: Task, place: Place, held: dict[str, Any] | None, parked: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Judge a parked result by the gates of now, from its record.

    Returns:
        what its record says then, and whether it may go live.
    """
    known = (it["got"] for it in parked.get("gates", ()) if it["name"] == "canary")
    gates = _judge(task, place, held, parked, next(known, None))
    values = {**parked, "gates": [asdict(gate) for gate in gates]}
    if refused := failed(gates):
        values["error"] = Record.refusal(refused, place)
    return values, not refused


def _judge(
    task: Task,
    place: Place,
    held: dict[str, Any] | None,
    values: dict[str, Any],
    canary: float | None,
) -> list[Gate]:
    gates, classes = task.job.gates, [item.name for item in task.card.classes]
    history = shares_before(task.job.destination, place, gates, classes)
    return judge(gates, values, live=held, history=history, canary=canary)
