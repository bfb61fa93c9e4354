"""What can go wrong, named by who must act, and the exit code each one means.

Nothing here knows how an error came about; messages say what, where, got, wanted
and what to do, in one line.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "BusyError",
    "DeadlineError",
    "DeviceFaultError",
    "DeviceMemoryError",
    "ExitCode",
    "InputError",
    "InterruptedRunError",
    "LostError",
    "ModelError",
    "NobodyError",
    "OtherPlanError",
    "OutputError",
    "ParkedError",
    "PreemptedError",
    "RefusedError",
    "RolledBackError",
    "StorageError",
    "TileError",
    "TilesegError",
    "UsageError",
    "first_line",
    "last_line",
    "worst",
]


class ExitCode(IntEnum):
    """The process exit codes; people script against them."""

    OK = 0
    BUG = 1
    USAGE = 2
    REFUSED = 3
    INPUT = 4
    OUTPUT = 5
    STORAGE = 6
    MODEL = 7
    BUSY = 8
    PARTIAL = 10
    SHARDS = 12
    PREEMPTED = 75
    INTERRUPTED = 130


_LONGEST = 300  # letters of what a library says
_RANK = (130, 75, 1, 7, 3, 4, 2, 5, 8, 6, 12, 10, 0)


def worst(codes: Iterable[int]) -> int:
    """Return the exit code that speaks for several scenes; 0 for none."""
    return min(codes, key=_RANK.index, default=0)


class TilesegError(Exception):
    """Anything tileseg reports without a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class UsageError(TilesegError):
    """The call is wrong, or the scene lacks what the card needs (bands, scale)."""

    exit_code = ExitCode.USAGE


class RefusedError(TilesegError):
    """Policy says no: not a GeoTIFF, hostile, or an unsafe model file."""

    exit_code = ExitCode.REFUSED


class ParkedError(RefusedError):
    """A gate keeps a finished result from going live; it is parked beside the place."""


class InputError(TilesegError):
    """The input is missing or cannot be read."""

    exit_code = ExitCode.INPUT


class OutputError(TilesegError):
    """The output or the work directory cannot be written."""

    exit_code = ExitCode.OUTPUT


class StorageError(TilesegError):
    """The object store kept failing; trying again later may help."""

    exit_code = ExitCode.STORAGE


class ModelError(TilesegError):
    """The card, the weights or the device is at fault."""

    exit_code = ExitCode.MODEL


class DeviceFaultError(ModelError):
    """The device failed in a way that leaves it unusable to this process."""


class DeviceMemoryError(ModelError):
    """The device's memory does not hold the network and one batch."""


class TileError(ModelError):
    """The network's answer for one tile is unusable; other tiles may be fine."""


class LostError(TilesegError):
    """A shard cost too many workers, or there are none left."""

    exit_code = ExitCode.SHARDS


class NobodyError(LostError):
    """No worker came at all: no scene's fault, and no other scene can do better."""


class BusyError(TilesegError):
    """Another run is at it, or another complete plan is in the output."""

    exit_code = ExitCode.BUSY


class OtherPlanError(BusyError):
    """The output holds a complete result of another plan, and nobody said overwrite."""


class RolledBackError(OtherPlanError):
    """The result was live and a person took it back; nobody said overwrite."""


class PreemptedError(TilesegError):
    """SIGTERM came; the job resumes where it stopped."""

    exit_code = ExitCode.PREEMPTED


class DeadlineError(PreemptedError):
    """The night is over; the next one goes on where it stopped."""


class InterruptedRunError(TilesegError):
    """SIGINT came; the job resumes where it stopped."""

    exit_code = ExitCode.INTERRUPTED


def first_line(error: Exception) -> str:
    """Return what a library's error says, short."""
    return _lines(error)[0].strip()[:_LONGEST]


def last_line(error: Exception) -> str:
    """Return the end of what a library's error says, short."""
    return _lines(error)[-1].strip()[:_LONGEST]


def _lines(error: Exception) -> list[str]:
    """Return the lines of its text; of none what it is."""
    return str(error).strip().splitlines() or [repr(error)]
