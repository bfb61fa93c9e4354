"""What Prometheus is told of a run and of a night: names, and values from records.

Pure: `run.json` and `night.json` in, samples out. Both ways to Prometheus, Ray's port
(`meters.py`) and a text file (`monitor.py`), take names, kinds and labels from here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["METRICS", "STAGES", "Metric", "Sample", "of_end", "of_night", "of_run"]

STAGES = ("load", "read", "wait", "forward", "hold", "write")
"""Of a worker, as `seconds` in `run.json` has them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A time series of Prometheus', or one for each value of its label."""

    name: str
    """Without the `_total` that Prometheus' writers put behind a counter's name."""
    kind: str
    """`counter`, which only grows, or `gauge`."""
    help: str
    """What it says, with its unit."""
    label: str = ""
    """What tells its series apart; empty for one series."""

    @property
    def series(self) -> str:
        """What a query calls it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


@dataclass(frozen=True, slots=True)
class Sample:
    """What a metric says, or by how much its counter has grown."""

    metric: Metric
    value: float
    label: str = ""
    """The value of the metric's label."""


_ALL = (
    Metric("tileseg_tiles", "counter", "Tiles forwarded or skipped"),
    Metric("tileseg_shards", "counter", "Shards, done or failed", "status"),
    Metric("tileseg_seconds", "counter", "Seconds of the workers, by stage", "stage"),
    Metric("tileseg_read_pixels", "counter", "Pixels decoded"),
    Metric("tileseg_written_bytes", "counter", "Bytes of shard files (Ray only)"),
    Metric("tileseg_shard_retries", "counter", "Shards handed out again"),
    Metric("tileseg_worker_restarts", "counter", "Workers lost"),
    Metric("tileseg_device_seconds", "counter", "Seconds in which devices were held"),
    Metric("tileseg_energy_joules", "counter", "Energy of the devices, where known"),
    Metric("tileseg_cost", "counter", "What devices cost, where a price is given"),
    Metric("tileseg_scenes", "counter", "Scenes that ended, by state", "state"),
    Metric("tileseg_device_busy", "gauge", "Share of time with the network at work"),
    Metric("tileseg_shards_left", "gauge", "Shards not done yet (Ray only)"),
    Metric("tileseg_progress_ratio", "gauge", "Of the scene in hand, 0 to 1"),
    Metric("tileseg_scene_seconds", "gauge", "Seconds that the last scene took"),
    Metric("tileseg_scene_mpx_per_second", "gauge", "How fast the last scene was made"),
    Metric("tileseg_night_seconds", "gauge", "Seconds that the last night took"),
    Metric("tileseg_night_scenes", "gauge", "Scenes of a night, by state", "state"),
    Metric("tileseg_exit_code", "gauge", "Exit code of the last command"),
    Metric(
        "tileseg_heartbeat_timestamp_seconds", "gauge", "When it last showed progress"
    ),
    Metric("tileseg_last_end_timestamp_seconds", "gauge", "When a command last ended"),
    Metric(
        "tileseg_last_success_timestamp_seconds", "gauge", "When one last exited with 0"
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric there is, by name."""


def of_run(
    values: Mapping[str, Any], *, is_news: bool, is_made: bool
) -> Iterator[Sample]:
    """Yield what a scene's end adds.

    Args:
        values: its `run.json`.
        is_news: whether what is live was not so before.
        is_made: whether this run made it, so that its work is new.
    """
    state = values["status"] if is_news else "unchanged"
    yield Sample(METRICS["tileseg_scenes"], 1, state)
    if is_made:
        yield from _work(values)
        yield from _speed(values)


def _work(values: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield what workers did, counters all; shards of former attempts were counted."""
    counts, spent = values["counts"], values["spent"]
    grown = {
        "tileseg_tiles": spent["tiles"],
        "tileseg_read_pixels": spent["decoded_pixels"],
        "tileseg_shard_retries": counts["retries"],
        "tileseg_worker_restarts": counts["worker_restarts"],
        "tileseg_device_seconds": spent["device_seconds"],
        "tileseg_energy_joules": _joules(spent["kwh"]),
        "tileseg_cost": spent["cost"],
    }
    for name, value in grown.items():
        if value is not None:
            yield Sample(METRICS[name], value)
    old = (counts["shards_reused"] or 0) + (counts["shards_unchanged"] or 0)
    done = (counts["shards_done"] or 0) - old
    yield Sample(METRICS["tileseg_shards"], done, "done")
    yield Sample(METRICS["tileseg_shards"], counts["shards_failed"] or 0, "failed")
    for stage in STAGES:
        if spent["seconds"]:
            yield Sample(METRICS["tileseg_seconds"], spent["seconds"][stage], stage)


def _speed(values: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield how fast the scene was, as far as it is known."""
    known = {
        "tileseg_device_busy": values["verdict"]["busy"]["forward"],
        "tileseg_scene_seconds": values["seconds"]["total"],
        "tileseg_scene_mpx_per_second": values["rates"]["mpx_s"],
    }
    for name, value in known.items():
        if value is not None:
            yield Sample(METRICS[name], value)


def of_night(summary: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield what `night.json` says of the whole night."""
    yield Sample(METRICS["tileseg_night_seconds"], summary["seconds"])
    for state, number in summary["counts"].items():
        if state != "scenes":  # their sum
            yield Sample(METRICS["tileseg_night_scenes"], number, state)


def of_end(exit_code: int) -> Iterator[Sample]:
    """Yield that a command ended now, and how."""
    now = datetime.now(UTC).timestamp()
    yield Sample(METRICS["tileseg_exit_code"], exit_code)
    yield Sample(METRICS["tileseg_last_end_timestamp_seconds"], now)
    if exit_code == 0:
        yield Sample(METRICS["tileseg_last_success_timestamp_seconds"], now)


def _joules(kwh: float | None) -> float | None:
    return None if kwh is None else kwh * 3.6e6
