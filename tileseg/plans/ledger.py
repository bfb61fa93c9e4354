"""The durable record of a plan: what is to be done, what is done, may it be reused.

Everything lives in `<work>/<plan_id>/`: `plan.json`, the journal of receipts and
`shards/`. Knows nothing of pixels.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import tee
from typing import Any

from tileseg.base.overlap import side_by_side
from tileseg.errors import OutputError
from tileseg.grid import Shard
from tileseg.plans.moments import Moments
from tileseg.plans.seams import Seams
from tileseg.stores.storage import Storage

__all__ = [
    "Artifact",
    "Files",
    "Ledger",
    "Plan",
    "Receipt",
    "digest",
    "find_plan",
    "forget",
    "plans",
    "tiles_done",
]

logger = logging.getLogger(__name__)

_ID_DIGITS = 32
_ID = re.compile(rf"[0-9a-f]{{{_ID_DIGITS}}}")


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
    output: str = ""
    """Where its result is to go; no part of the id either."""

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
    masked: int
    """Pixels that are nodata only because a mask from outside says so."""
    hectares: Mapping[int, float] | None
    """Class value to area; None where the CRS knows no metres."""
    work: Mapping[str, float]
    """Tiles, seconds by stage and pixels decoded since the worker's last receipt."""
    seams: Seams
    """Whether the borders of cores show in it."""
    seen: str = ""
    """Digest of what the network saw for it; empty where nobody asked."""
    outside: int = 0
    """Pixels that lie outside the polygons asked for; nodata, whatever they are."""
    moments: Mapping[str, tuple[Moments, ...]] = field(default_factory=dict)
    """Layer to the sums of each of its bands."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Receipt":
        """Rebuild what `to_json` gave."""
        hectares = value["hectares"]
        return cls(
            shard=Shard(*value["shard"]),
            artifacts={k: Artifact(**item) for k, item in value["artifacts"].items()},
            pixels={int(k): int(n) for k, n in value["pixels"].items()},
            masked=int(value["masked"]),
            hectares=hectares and {int(k): float(x) for k, x in hectares.items()},
            moments={
                name: tuple(Moments(*map(int, band)) for band in bands)
                for name, bands in value["moments"].items()
            },
            seams=Seams(*map(int, value["seams"])),
            outside=int(value["outside"]),
            seen=str(value["seen"]),
            work=dict(value["work"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `asdict` would copy them all, one by one."""
        files = {
            product: {"name": file.name, "bytes": file.bytes, "sha256": file.sha256}
            for product, file in self.artifacts.items()
        }
        return {
            "shard": list(self.shard),
            "artifacts": files,
            "pixels": self.pixels,
            "masked": self.masked,
            "hectares": self.hectares,
            "moments": self.moments,
            "seams": self.seams,
            "outside": self.outside,
            "seen": self.seen,
            "work": self.work,
        }


def find_plan(
    work: Storage, request: Mapping[str, Any], machine: Mapping[str, Any]
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
        for plan in plans(work)
        if plan.request_id == wanted and machine.items() <= plan.resolved.items()
    ]
    return min(begun, key=lambda plan: plan.resolved["batch_size"], default=None)


def plans(work: Storage) -> Iterator[Plan]:
    """Yield the plans begun in a work directory."""
    for folder in work.folders():
        try:
            plan = Plan(**json.loads(work.read(f"{folder}/plan.json")))
            is_plan = plan.request_id and plan.resolved["batch_size"] > 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if is_plan:
            yield plan


def tiles_done(work: Storage) -> int:
    """Return how many tiles are done, of the plan that is furthest.

    By its receipts alone; whether files are what they say, who goes on looks.
    """
    return max((Ledger(work, plan).tiles() for plan in plans(work)), default=0)


def forget(work: Storage, plan_id: str) -> None:
    """Remove a plan's work; what is no id, in a record of others, names nothing."""
    if _ID.fullmatch(plan_id):
        work.below(plan_id).clear()


@dataclass(frozen=True, slots=True)
class Files:
    """The shard files of one product."""

    shards: frozenset[Shard]
    """Which there are."""
    read: Callable[[Iterable[Shard]], Iterator[tuple[Shard, bytes]]]
    """Gives shards and their bytes in the order asked for, a few read ahead."""

    def told(self, listener: Callable[[Shard, bytes], None]) -> "Files":
        """Return the same files; whatever is read of them, a listener is told too."""

        def read(shards: Iterable[Shard]) -> Iterator[tuple[Shard, bytes]]:
            for shard, data in self.read(shards):
                listener(shard, data)
                yield shard, data

        return Files(self.shards, read)


class Ledger:
    """One plan's part of the work directory."""

    def __init__(self, work: Storage, plan: Plan) -> None:
        """Name the place; touch nothing."""
        self.plan = plan
        self.folder = work.below(plan.plan_id)
        self.distrusted = 0
        """Shards that had receipts and, when it was opened, no files of that digest."""
        self._work = work
        self._journal = self.folder.journal("receipts")

    def open(self) -> dict[Shard, Receipt]:
        """Begin or go on; return the shards whose files verify."""
        plan = json.dumps(asdict(self.plan), indent=1).encode()
        self.folder.write("plan.json", plan)
        self._remove_given_up()
        for place in (self._work, self.folder, self.folder.below("shards")):
            place.sweep()
        receipts = list(self._receipts())
        verified = zip(receipts, side_by_side(self._verifies, receipts), strict=True)
        done = {item.shard: item for item, is_true in verified if is_true}
        self.distrusted = len({item.shard for item in receipts} - set(done))
        if self.distrusted:
            text = "%s: %d shards are not what was written there; made again"
            logger.warning(text, self.folder, self.distrusted)
        return done

    def _remove_given_up(self) -> None:
        """Forget the plans that are this one but for a batch that was too large."""
        mine = self.plan.resolved
        for plan in plans(self._work):
            batch = plan.resolved["batch_size"]
            larger = Plan(self.plan.request, {**mine, "batch_size": batch})
            if batch > mine["batch_size"] and plan.plan_id == larger.plan_id:
                forget(self._work, plan.plan_id)

    def record(self, receipt: Receipt) -> None:
        """Add a receipt to the journal.

        Raises:
            TilesegError: it, or one before it, cannot be written.
        """
        self._journal.add(json.dumps(receipt.to_json()).encode())

    def flush(self) -> None:
        """Come back when every receipt would outlive a crash.

        Raises:
            TilesegError: one cannot be written.
        """
        self._journal.flush()

    def files(self, receipts: Mapping[Shard, Receipt], product: str) -> "Files":
        """Return the files of a product.

        Reading them raises:
            OutputError: a file is not what its worker wrote.
            StorageError: the store keeps failing.
        """

        def read(shards: Iterable[Shard]) -> Iterator[tuple[Shard, bytes]]:
            asked, found = tee(shards)
            artifacts = (receipts[shard].artifacts[product] for shard in found)
            return zip(asked, side_by_side(self._read, artifacts), strict=True)

        return Files(frozenset(receipts), read)

    def tiles(self) -> int:
        """Return how many tiles receipts tell of."""
        done = {receipt.shard: receipt.work for receipt in self._receipts()}
        return int(sum(it["tiles"] + it["tiles_skipped"] for it in done.values()))

    def _receipts(self) -> Iterator[Receipt]:
        """Yield the journal's receipts; a torn entry is no receipt."""
        for entry in self._journal.entries():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                yield Receipt.from_json(json.loads(entry))

    def _verifies(self, receipt: Receipt) -> bool:
        return None not in map(self._find, receipt.artifacts.values())

    def _read(self, artifact: Artifact) -> bytes:
        data = self._find(artifact)
        if data is None:
            msg = (
                f"{self.folder}/{artifact.name}: is gone, or is not what was written "
                "there; run again, and the shard is made again"
            )
            raise OutputError(msg)
        return data

    def _find(self, artifact: Artifact) -> bytes | None:
        """Return a file's bytes; None if they are not those of the digest."""
        try:
            data = self.folder.read(artifact.name)
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == artifact.sha256 else None
