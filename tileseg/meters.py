"""What Ray's metrics port tells of a job; sum over workers to read it."""

from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from ray.util import metrics

from tileseg.crew import Failure, Outcome

__all__ = ["DriverMeters", "WorkerMeters"]

_STAGES = ("read", "wait", "forward", "hold", "write")


class WorkerMeters:
    """Of one worker."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._tiles = metrics.Counter("tileseg_tiles", "Tiles forwarded or skipped")
        self._shards = metrics.Counter("tileseg_shards", "Shards", ("status",))
        self._seconds = metrics.Counter("tileseg_seconds", "By stage", ("stage",))
        self._pixels = metrics.Counter("tileseg_read_pixels", "Pixels decoded")
        self._bytes = metrics.Counter("tileseg_written_bytes", "Bytes of shard files")
        self._busy = metrics.Gauge(
            "tileseg_device_busy", "Share of the time in which the network was at work"
        )
        self._since = perf_counter()

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add what was done."""
        receipts = [item for item in outcomes if not isinstance(item, Failure)]
        self._inc(self._shards, len(outcomes) - len(receipts), status="failed")
        self._inc(self._shards, len(receipts), status="done")
        work: Counter[str] = sum((Counter(item.work) for item in receipts), Counter())
        self._inc(self._tiles, work["tiles"] + work["tiles_skipped"])
        self._inc(self._pixels, work["decoded_pixels"])
        files = [file for item in receipts for file in item.artifacts.values()]
        self._inc(self._bytes, sum(file.bytes for file in files))
        for stage in _STAGES:
            self._inc(self._seconds, work[stage], stage=stage)
        if receipts:
            now = perf_counter()
            self._busy.set(min(1.0, work["forward"] / (now - self._since)))
            self._since = now

    @staticmethod
    def _inc(meter: metrics.Counter, number: float, **tags: str) -> None:
        if number > 0:  # Ray refuses 0
            meter.inc(number, tags)


class DriverMeters:
    """Of the driver."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._left = metrics.Gauge("tileseg_shards_left", "Shards not done yet")
        self._lost = metrics.Counter("tileseg_worker_restarts", "Workers lost")

    def left(self, shards: int) -> None:
        """Say how many shards are not done yet."""
        self._left.set(shards)

    def restart(self) -> None:
        """Count a worker that was lost."""
        self._lost.inc()
