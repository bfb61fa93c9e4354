"""What watches a command from outside: a text file of metrics, and a heartbeat.

The file is for node_exporter's textfile collector. Nothing here may end a job.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_fd_to_metric_families

from tileseg.base.metrics import METRICS, Sample, of_end, of_night, of_run
from tileseg.base.stopping import StopSignal
from tileseg.errors import ExitCode, TilesegError, worst
from tileseg.steps.execution import Progress
from tileseg.steps.record import Record

__all__ = ["Monitor"]

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_WRITE_SECONDS = 15.0  # what Prometheus asks for oftener, it gets again
_IN_HAND = "tileseg_progress_ratio", ""  # there is none between scenes
_SERVICE = "service"  # the label that tells several commands' files apart


@dataclass(slots=True, eq=False)  # hashed by prometheus_client
class Monitor:
    """Tells how a command is doing, as far as anybody wants to know."""

    metrics: str | None = None
    """File to write Prometheus' text to; None for none."""
    heartbeat: str | None = None
    """File that is touched as long as there is progress; None for none."""
    code: int = int(ExitCode.OK)
    """The exit code so far."""
    _values: dict[tuple[str, str], float] = field(default_factory=dict)
    """(name, value of the label) -> what is said."""
    _beat: float = 0.0
    _written: float = 0.0

    def __post_init__(self) -> None:
        """Go on counting where the file stands; begin to beat."""
        if self.metrics:
            self._values = _read(Path(self.metrics))
            self._values.pop(_IN_HAND, None)  # of a command that was killed
        self.pulse(0, 0)

    def pulse(self, done: int, total: int) -> None:
        """Say that there is progress: tiles done, and in all."""
        now = monotonic()
        if now - self._beat < _BEAT_SECONDS:
            return
        self._beat = now
        self._values["tileseg_heartbeat_timestamp_seconds", ""] = time()
        if self.heartbeat:
            _touch(Path(self.heartbeat))
        if total:
            self._take([Sample(METRICS["tileseg_progress_ratio"], done / total)])
        if now - self._written > _WRITE_SECONDS:
            self._write()

    def __enter__(self) -> Self:
        """Watch from here on."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Say how the command ended; there is no heart to beat any more."""
        cause = error.error if isinstance(error, StopSignal) else error
        if isinstance(cause, TilesegError):
            self.code = int(cause.exit_code)
        elif cause:
            self.code = int(ExitCode.BUG)
        self._values.pop(_IN_HAND, None)
        self._tell(of_end(self.code))
        if self.heartbeat:
            with suppress(OSError):
                Path(self.heartbeat).unlink()

    def beside(self, told: Progress) -> Progress:
        """Return what tells the progress of a scene, and shows that there is some."""

        def tell(done: int, total: int) -> None:
            self.pulse(done, total)
            told(done, total)

        return tell

    def add(self, record: Record) -> None:
        """Count a scene that has ended."""
        self.pulse(0, 0)  # of many that are unchanged, nothing else tells
        self.code = worst((self.code, record.values["exit_code"]))
        self._values.pop(_IN_HAND, None)
        is_news, is_made = record.is_news, record.is_made
        self._tell(of_run(record.values, is_news=is_news, is_made=is_made))

    def sum_up(self, night: Mapping[str, Any]) -> None:
        """Say what `night.json` says, the exit code too."""
        self.code = night["exit_code"]
        self._tell(of_night(night))

    def _tell(self, samples: Iterable[Sample]) -> None:
        told = list(samples)
        self._take(told)
        self._write()
        if "ray" in sys.modules:
            from tileseg.engines.meters import tell

            tell(told)

    def _take(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            key = sample.metric.name, sample.label
            before = self._values.get(key, 0.0)
            is_counter = sample.metric.kind == "counter"
            self._values[key] = sample.value + (before if is_counter else 0)

    def _write(self) -> None:
        """Replace the file as a whole."""
        if not self.metrics:
            return
        self._written = monotonic()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            write_to_textfile(self.metrics, registry)
        except OSError as err:
            logger.warning("%s: no metrics: %s", self.metrics, err.strerror)
            self.metrics = None

    def collect(self) -> Iterator[Metric]:
        """Yield what the file says; prometheus_client asks."""
        service = Path(self.metrics or "").stem
        for name, metric in METRICS.items():
            own = [metric.label] if metric.label else []
            is_counter = metric.kind == "counter"
            kind = CounterMetricFamily if is_counter else GaugeMetricFamily
            family = kind(name, metric.help, labels=[_SERVICE, *own])
            for (key, label), value in sorted(self._values.items()):
                if key == name:
                    family.add_metric([service, label][: 1 + len(own)], value)
            if family.samples:
                yield family


def _read(path: Path) -> dict[tuple[str, str], float]:
    """Return what a file of ours says; of one that cannot be read nothing."""
    try:
        with path.open(encoding="utf-8") as file:
            families = list(text_fd_to_metric_families(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as err:
        logger.warning("%s: its counters begin anew: %s", path, err)
        return {}
    return {
        (family.name, sample.labels.get(METRICS[family.name].label, "")): sample.value
        for family in families
        for sample in family.samples
        if family.name in METRICS
    }


def _touch(path: Path) -> None:
    """Set a file's time to now, and make it if there is none."""
    try:
        path.touch()
    except OSError as err:
        logger.debug("%s: no heartbeat: %s", path, err)
