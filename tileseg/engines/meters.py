"""What Ray's metrics port tells of a job; sum over workers to read it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any

import ray
from ray.util import metrics

from tileseg.base.metrics import METRICS, STAGES, Sample
from tileseg.engines.crew import Failure, Outcome

__all__ = ["DriverMeters", "WorkerMeters", "tell"]

# What workers and driver count while it happens: not again when the scene ends.
_LIVE = {
    "tileseg_device_busy",
    "tileseg_read_pixels",
    "tileseg_seconds",
    "tileseg_shards",
    "tileseg_tiles",
    "tileseg_worker_restarts",
}
_meters: dict[str, Any] = {}


def _meter(name: str) -> Any:  # noqa: ANN401  (Ray's counters and gauges are two kinds)
    """Return Ray's meter for a metric; one in each process."""
    if name not in _meters:
        metric = METRICS[name]
        kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
        labels = (metric.label,) if metric.label else ()
        _meters[name] = kind(name, metric.help, labels)
    return _meters[name]


def tell(samples: Iterable[Sample]) -> None:
    """Tell what the driver knows at the end of a scene or a night."""
    if not ray.is_initialized():
        return
    for sample in samples:
        metric = sample.metric
        if metric.name in _LIVE:
            continue
        tags = {metric.label: sample.label} if metric.label else None
        if metric.kind == "gauge":
            _meter(metric.name).set(sample.value, tags)
        elif sample.value > 0:  # Ray refuses 0
            _meter(metric.name).inc(sample.value, tags)


class WorkerMeters:
    """Of one worker."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._tiles = _meter("tileseg_tiles")
        self._shards = _meter("tileseg_shards")
        self._seconds = _meter("tileseg_seconds")
        self._pixels = _meter("tileseg_read_pixels")
        self._bytes = _meter("tileseg_written_bytes")
        self._busy = _meter("tileseg_device_busy")
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
        for stage in STAGES:
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
        self._left = _meter("tileseg_shards_left")
        self._lost = _meter("tileseg_worker_restarts")

    def left(self, shards: int) -> None:
        """Say how many shards are not done yet."""
        self._left.set(shards)

    def restart(self) -> None:
        """Count a worker that was lost."""
        self._lost.inc()
