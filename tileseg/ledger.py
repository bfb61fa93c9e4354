"""The durable record of a plan: what is to be done, what is done, may it be reused.

Everything lives in `<work>/<plan_id>/`: `plan.json`, `receipts.jsonl` (appended and
fsynced) and `shards/`. Knows nothing of pixels.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tileseg.errors import BusyError, OutputError
from tileseg.grid import Shard

__all__ = [
    "Artifact",
    "Ledger",
    "Plan",
    "Receipt",
    "digest",
    "find_plan",
    "lock",
    "write_whole",
]

_ID_DIGITS = 32
_TEMPORARY = ".tileseg.tmp"  # ends names that only a killed run leaves behind


def digest(value: Any) -> str:  # noqa: ANN401  (anything that JSON can say)
    """Return the id of a JSON value: sha256 of its canonical text, 32 digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that can change a pixel; plain JSON values."""

    request: Mapping[str, Any]
    """Input identity, model, versions, options and products as given."""
    resolved: Mapping[str, Any]
    """What `auto` became: device, precision, batch."""
    precision_check: Mapping[str, Any] = field(default_factory=dict)
    """What was measured before deciding on the precision; no part of the id."""

    @property
    def request_id(self) -> str:
        """The id of what was asked for."""
        return digest(self.request)

    @property
    def plan_id(self) -> str:
        """The id of what is done; names the work directory."""
        return digest([self.request, self.resolved])


@dataclass(frozen=True, slots=True)
class Artifact:
    """A shard file."""

    name: str
    """Relative to the plan's directory."""
    bytes: int
    """Its size."""
    sha256: str
    """Its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker returns for a finished shard."""

    shard: Shard
    """Which one."""
    artifacts: Mapping[str, Artifact]
    """Product (`mask`, `confidence`, `polygons`) to file."""
    pixels: Mapping[int, int]
    """Mask value to number of pixels, nodata too."""
    hectares: Mapping[int, float] | None
    """Class value to area; None where the CRS knows no metres."""
    work: Mapping[str, float]
    """Tiles, seconds by stage and pixels decoded since the worker's last receipt."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Receipt":
        """Rebuild what `to_json` gave."""
        hectares = value["hectares"]
        return cls(
            shard=Shard(*value["shard"]),
            artifacts={k: Artifact(**item) for k, item in value["artifacts"].items()},
            pixels={int(k): int(n) for k, n in value["pixels"].items()},
            hectares=hectares and {int(k): float(x) for k, x in hectares.items()},
            work=dict(value["work"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a crash."""
    # Not the pid: two nodes may have the same, and a worker given up may still write.
    temporary = path.with_name(f"{path.name}.{uuid4().hex}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        msg = f"{path}: cannot be written ({len(data)} bytes): {err.strerror}"
        raise OutputError(msg) from err
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def find_plan(
    work: Path, request: Mapping[str, Any], machine: Mapping[str, Any]
) -> Plan | None:
    """Return a plan begun for this request and hardware, if the work directory has one.

    Of several the one with the smallest batch: the device's memory was too small for
    the others.

    Args:
        work: the work directory.
        request: what is asked for.
        machine: the part of `resolved` that this machine decides.
    """
    wanted = digest(request)
    begun = [
        plan
        for plan in _plans(work)
        if plan.request_id == wanted and machine.items() <= plan.resolved.items()
    ]
    return min(begun, key=lambda plan: plan.resolved["batch_size"], default=None)


def _plans(work: Path) -> Iterator[Plan]:
    """Yield the plans begun in a work directory."""
    for path in sorted(work.glob("*/plan.json")):
        try:
            plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
            is_plan = plan.request_id and plan.resolved["batch_size"] > 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if is_plan:
            yield plan


class Ledger:
    """One plan's directory."""

    def __init__(self, work: Path, plan: Plan) -> None:
        """Name the place; touch nothing."""
        self.plan = plan
        self.folder = work / plan.plan_id
        self._journal = self.folder / "receipts.jsonl"

    def open(self) -> dict[Shard, Receipt]:
        """Make the directory and return the shards whose files verify."""
        write_whole(
            self.folder / "plan.json",
            json.dumps(asdict(self.plan), indent=1).encode(),
        )
        self._remove_given_up()
        for stale in (
            *self.folder.glob(f"**/*{_TEMPORARY}"),
            *self.folder.parent.glob(f"*{_TEMPORARY}"),
        ):
            stale.unlink(missing_ok=True)
        return {
            receipt.shard: receipt
            for receipt in self._receipts()
            if all(self._verifies(item) for item in receipt.artifacts.values())
        }

    def _remove_given_up(self) -> None:
        """Forget the plans that are this one but for a batch that was too large."""
        work, mine = self.folder.parent, self.plan.resolved
        for plan in _plans(work):
            batch = plan.resolved["batch_size"]
            larger = Plan(self.plan.request, {**mine, "batch_size": batch})
            if batch > mine["batch_size"] and plan.plan_id == larger.plan_id:
                Ledger(work, plan).remove()

    def remove(self) -> None:
        """Forget the plan's work."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def record(self, receipt: Receipt) -> None:
        """Append a receipt; it is on the disk when this returns."""
        line = json.dumps(receipt.to_json()) + "\n"
        try:
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            msg = f"{self._journal}: cannot be written: {err.strerror}"
            raise OutputError(msg) from err

    def _receipts(self) -> Iterator[Receipt]:
        """Yield the journal's receipts; a torn line is no receipt."""
        try:
            journal = self._journal.read_bytes()
        except FileNotFoundError:
            return
        if journal and not journal.endswith(b"\n"):
            with self._journal.open("ab") as file:
                file.write(b"\n")  # so that the next receipt begins a line of its own
        for line in journal.split(b"\n"):
            try:
                yield Receipt.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def _verifies(self, artifact: Artifact) -> bool:
        try:
            data = (self.folder / artifact.name).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == artifact.sha256


@contextmanager
def lock(work: Path) -> Iterator[None]:
    """Hold the work directory for this process.

    Advisory: it saves doubled work; correctness rests on content-addressed shards.
    The kernel releases it however the process ends.

    Raises:
        BusyError: another process holds it.
        OutputError: the directory cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("a+", encoding="utf-8")
    except OSError as err:
        msg = f"{work}: the work directory cannot be written: {err.strerror}"
        raise OutputError(msg) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            msg = f"{work}: another run is at it (process {owner}); wait for it to end"
            raise BusyError(msg) from err
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
