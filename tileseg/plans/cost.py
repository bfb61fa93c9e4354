"""What devices took: seconds, energy, money. Pure; null where nobody knows."""

from collections.abc import Iterable, Mapping
from typing import Any

from tileseg.settings import Job

__all__ = ["amount", "bill", "in_words", "total"]

_JOULES = 3.6e6  # in a kWh
_HOUR = 3600  # seconds


def bill(
    device_seconds: float, joules: float | None, job: Job
) -> dict[str, float | str | None]:
    """Return what devices took for a job.

    Args:
        device_seconds: how long each was held, added up.
        joules: by their own counters; None where there are none.
        job: says what a device takes and costs, or does not.
    """
    kwh, source = None, None
    if joules is not None:
        kwh, source = joules / _JOULES, "nvml"
    elif job.watts is not None:
        kwh, source = job.watts * device_seconds / _JOULES, "watts"
    return {
        "device_seconds": device_seconds,
        "kwh": kwh,
        "kwh_from": source,
        "cost": None if job.price is None else job.price * device_seconds / _HOUR,
    }


def total(bills: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the sum of several; null what none of them says."""
    held = list(bills)
    sums: dict[str, float | None] = {}
    for key in ("device_seconds", "kwh", "cost"):
        known = [item[key] for item in held if item[key] is not None]
        sums[key] = sum(known) if known else None
    return sums


def in_words(sums: Mapping[str, float | None]) -> str:
    """Return what is known of several, as a person reads it; empty for nothing."""
    parts = []
    if (seconds := sums["device_seconds"]) is not None:
        parts.append(f"{amount(seconds / 60, 1)} device minutes")
    if (kwh := sums["kwh"]) is not None:
        parts.append(f"{amount(kwh, 3)} kWh")
    if (cost := sums["cost"]) is not None:
        parts.append(f"cost {amount(cost, 2)}")
    return ", ".join(parts)


def amount(value: float, places: int) -> str:
    """Return a number with so many decimals; what is not zero is not told as zero."""
    least = 10**-places
    is_small = 0 < value < least
    return f"<{least:.{places}f}" if is_small else f"{value:,.{places}f}"
