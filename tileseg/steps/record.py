"""`run.json`: what a run was asked, what it did and what it made.

All keys are always there, null where they do not apply: `assets/run.schema.json`
describes them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tileseg.base.address import is_address, shown
from tileseg.base.bounds import Gate, failed
from tileseg.base.memory import peak_rss_mb, waited_seconds
from tileseg.base.metrics import STAGES
from tileseg.base.redact import json_bytes
from tileseg.cards.card import NODATA
from tileseg.errors import ExitCode, ParkedError, TilesegError, first_line
from tileseg.grid import Grid, Run, Shard
from tileseg.plans.budget import budget_of
from tileseg.plans.cost import bill
from tileseg.plans.ledger import Plan, Receipt
from tileseg.plans.seams import add_up
from tileseg.plans.task import Task
from tileseg.publishing.place import PARKED
from tileseg.steps.verdict import ENDS, Spent, Verdict, judge

if TYPE_CHECKING:
    from tileseg.engines.crew import Failure
    from tileseg.engines.engine import Usage

__all__ = ["Record", "count_pixels"]

_MEMBER = ("name", "version", "sha256")
_DONE = ("complete", "partial", PARKED)
_QUICK = ("", "ZSTD")  # codecs that none decodes faster than


class Record:
    """Gathers what is known of one run; `values` is `run.json` at any time."""

    def __init__(self, href: str) -> None:
        """Begin with every key null."""
        self.error: Exception | None = None
        self.failures: list[Failure] = []
        self.reused: frozenset[Shard] = frozenset()
        self.unchanged: frozenset[Shard] = frozenset()
        self.distrusted = 0
        self.is_news = True  # False: what is live was so before
        self.is_made = True  # False: by an earlier run, whose work it tells of
        self.is_shared = False  # True: other scenes have the same workers
        self._start, self._waited = perf_counter(), waited_seconds()
        self._workers = 1
        self._workers_rss_mb = 0.0
        self._loaded_mb: float | None = None
        self._above_mb: float | None = None
        self._joules: float | None = None
        self._ended: dict[str, float] = {}
        self._spent = Spent()
        self.values: dict[str, Any] = {
            **_blank(_schema()),
            "status": "failed",
            "exit_code": int(ExitCode.BUG),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.values["scene"]["href"] = shown(href)

    def as_bytes(self) -> bytes:
        """Return the file's bytes; no secret is in them."""
        return json_bytes(self.values)

    def told(self) -> dict[str, Any]:
        """Return what the file says: values that hold no secret."""
        return dict(json.loads(self.as_bytes()))

    def add_task(self, task: Task) -> None:
        """Say what the scene and the model are."""
        scene, box, ensemble = task.scene, task.scene.geobox, task.ensemble
        self.values["request_id"] = task.request_id
        self.values["scene"] |= {
            "width": box.width,
            "height": box.height,
            "bands": [band.name for band in scene.bands],
            "dtype": scene.dtype,
            "crs": box.crs,
            "transform": list(box.transform)[:6],
            "nodata": [_finite(band.nodata) for band in scene.bands],
            "sha256": task.identity.files[0].sha256,
            "etag": task.identity.files[0].etag,
            "files": _files(task),
        }
        self.values["model"] = {
            **{key: ensemble.joined(key) for key in _MEMBER},
            "classes": {str(item.value): item.name for item in task.card.classes},
            "members": [
                {key: getattr(card, key) for key in _MEMBER} for card in ensemble.cards
            ],
            "tta": ensemble.tta,
        }
        self.values["seconds"]["open"] = self._elapsed()
        self._spent = replace(
            self._spent,
            is_remote=any(is_address(file.path) for file in scene.files),
            is_striped=not scene.is_tiled,
            is_quick=all(file.codec in _QUICK for file in scene.files),
            forwards=ensemble.forwards,
            has_polygons=bool(task.job.polygons),
        )

    def add_warning(self, text: str) -> None:
        """Say what a person should know before the map is used."""
        self.values["warnings"].append(text)

    def add_plan(self, plan: Plan, task: Task, engine: str, workers: list[str]) -> None:
        """Say what will be done, and by whom; nothing has failed yet."""
        from tileseg.network.blend import Blend
        from tileseg.scenes.reader import Reader

        self.failures.clear()
        self.values["failures"] = []
        grid, resolved = task.grid, plan.resolved
        self._workers = len(workers)
        self._spent = replace(self._spent, waited=waited_seconds() - self._waited)
        # A dry run checks no precision, so it cannot know what a run would decide.
        self.values["plan_id"] = None if task.job.dry_run else plan.plan_id
        self.values["precision_check"] |= plan.precision_check
        self.values["grid"] = {
            "tile": grid.tile,
            "halo": grid.halo,
            "stride": grid.stride,
            "shard": grid.shard,
            "blend": task.job.blend,
            "area": [grid.area.row, grid.area.col, grid.area.height, grid.area.width],
        }
        self.values["engine"] = {
            "kind": engine,
            "workers": len(workers),
            "devices": [f"{name} ({resolved['hardware']})" for name in workers],
            "precision": resolved["precision"],
            "precision_asked": task.job.precision,
            "network": resolved["network"],
            "batch_size": resolved["batch_size"],
        }
        runs = task.runs(list(Run(grid.shape)), len(workers))
        reader = Reader(task.scene, task.bands, grid)
        ring = Blend(grid.stride, grid.halo, task.job.blend).ring
        together = len(workers) if engine == "local" else 1
        if task.job.dry_run and task.job.precision == "auto":
            resolved = {**resolved, "precision": "fp32"}  # nobody has compared yet
        budget = budget_of(task, runs, resolved, together=together)
        self.values["estimate"] = {
            "runs": len(runs),
            "shards": grid.shape.size,
            "tiles": grid.tiles.size,
            "forwards": grid.tiles.size * task.ensemble.forwards,
            "bytes_to_read": task.scene.size * grid.area.size // grid.scene.size,
            "decoded_pixels": sum(reader.to_decode(run, ring=ring) for run in runs),
            "memory_mb": budget.host_mb,
            "device_mb": budget.device_mb,
        }

    def add_failure(self, failure: "Failure", grid: Grid) -> None:
        """Say which shard was given up, and why."""
        self.failures.append(failure)
        window = grid.pixels(failure.shard)
        self.values["failures"].append(
            {
                "shard": list(failure.shard),
                "window": [window.row, window.col, window.height, window.width],
                "reason": str(failure.error),
            }
        )

    def add_usage(self, usage: "Usage") -> None:
        """Say who took part, what they took and what befell them."""
        self.values["memory"]["device_mb"] = usage.device_mb
        self.values["counts"] |= {
            "retries": usage.retries,
            "worker_restarts": usage.restarts,
        }
        if usage.workers:  # else all was done before
            self._workers = usage.workers
            engine = self.values["engine"]
            engine["workers"] = usage.workers
            engine["devices"] = engine["devices"][: usage.workers]
            if usage.hardware:
                kind = engine["devices"][0].partition(" ")[0]
                engine["devices"] = [f"{kind} ({model})" for model in usage.hardware]
        self._workers_rss_mb = usage.rss_mb
        self._loaded_mb, self._above_mb = usage.loaded_mb, usage.above_mb
        self._joules = usage.joules

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.values["seconds"][name] = perf_counter() - start
            self._ended[name] = self._elapsed()

    def add_receipts(self, receipts: Mapping[Shard, Receipt], task: Task) -> None:
        """Say what was done; shards made by earlier attempts count, their time too."""
        done = [receipts[shard] for shard in sorted(receipts)]
        classes = task.card.classes
        self.values["counts"] |= {
            "shards": task.grid.shape.size,
            "shards_done": len(done),
            "shards_skipped": sum(
                item.pixels[NODATA] == sum(item.pixels.values()) for item in done
            ),
            "tiles": int(_work(done, "tiles")),
            "tiles_skipped": int(_work(done, "tiles_skipped")),
            "shards_reused": len(self.reused),
            "shards_unchanged": len(self.unchanged),
            "shards_distrusted": self.distrusted,
            "shards_failed": len(self.failures),
            "requests": int(_work(done, "requests")),
            "read_retries": int(_work(done, "read_retries")),
        }
        pixels = count_pixels(done)
        total = task.grid.area.size
        self.values["pixels"] = {
            "total": total,
            "nodata": total - sum(pixels[item.value] for item in classes),
            "masked": sum(item.masked for item in done),
            "outside": sum(item.outside for item in done),
            "by_class": {item.name: pixels[item.value] for item in classes},
        }
        seams = add_up(item.seams for item in done)
        self.values["seams"] = {
            "border": seams.border,
            "inside": seams.inside,
            "ratio": seams.ratio,
        }
        if all(item.hectares is not None for item in done):
            self.values["hectares"] = {
                item.name: sum((r.hectares or {}).get(item.value, 0.0) for r in done)
                for item in classes
            }
        self.values["seconds"] |= {key: _work(done, key) for key in STAGES}
        self.values["decode"] = {
            "source_pixels": total,
            "decoded_pixels": int(_work(done, "decoded_pixels")),
            "bytes_fetched": int(_work(done, "bytes_fetched")),
        }
        old = self.reused | self.unchanged
        fresh = [item for item in done if item.shard not in old]
        self._spent = replace(
            self._spent, stages={key: _work(fresh, key) for key in STAGES}
        )
        self._add_rates(fresh, task)
        self._add_spent(fresh, task)

    def _add_spent(self, done: list[Receipt], task: Task) -> None:
        """Say what this attempt's workers did, and what their devices took."""
        held = self._workers * (self.values["seconds"]["work"] or 0.0)
        self.values["spent"] = {
            **bill(held, self._joules, task.job),
            "tiles": int(_work(done, "tiles") + _work(done, "tiles_skipped")),
            "decoded_pixels": int(_work(done, "decoded_pixels")),
            "seconds": {key: _work(done, key) for key in STAGES},
        }

    def _add_rates(self, done: list[Receipt], task: Task) -> None:
        """Say how fast this attempt was, from its start to the finished products."""
        tiles, forward = _work(done, "tiles"), _work(done, "forward")
        seconds = self._elapsed()
        if tiles and forward:
            pixels = sum(task.grid.pixels(item.shard).size for item in done)
            self.values["rates"] = {
                "mpx_s": pixels / 1e6 / seconds,
                "tiles_s": tiles / seconds,
                "forward_tiles_s": tiles / forward * self._workers,
                "end_to_end_ratio": forward / seconds / self._workers,
            }

    def adopt(self, published: dict[str, Any]) -> None:
        """Be the record of what is published already, or parked."""
        self.values = published
        self.is_news = self.is_made = False
        is_parked = published["status"] == PARKED
        self.error = ParkedError(published["error"]) if is_parked else None

    def add_gates(self, gates: list[Gate], output: object) -> None:
        """Say which gates the result passes; what it does not is a warning too."""
        self.values["gates"] = [asdict(gate) for gate in gates]
        if not (refused := failed(gates)):
            return
        for gate in refused:
            self.add_warning(f"gate {gate}")
        self.error = ParkedError(self.refusal(refused, output))

    @staticmethod
    def refusal(refused: Sequence[Gate], output: object) -> str:
        """Return what a person is told of a result that is parked."""
        return (
            f"{output}: parked, not published: {'; '.join(map(str, refused))}; look at "
            f"it (tileseg versions {output}), then tileseg release {output} makes it "
            "live, or with --discard makes room for another"
        )

    def finish(self) -> None:
        """Say that the products are made, with holes or without, or not to go live."""
        if isinstance(self.error, ParkedError):
            self.values["error"] = str(self.error)
            self.close(PARKED, self.error.exit_code)
        elif self.failures:
            self.close("partial", ExitCode.PARTIAL)
        else:
            self.close("complete", ExitCode.OK)

    def close(self, status: str, code: int) -> None:
        """Say how it ended."""
        self.values |= {"status": status, "exit_code": int(code)}
        self.values["seconds"]["total"] = self._elapsed()
        peak = peak_rss_mb()
        if self._loaded_mb is not None:  # else the workers are no part of this process
            self._above_mb = max(0.0, peak - self._loaded_mb)
        self.values["memory"]["peak_rss_mb"] = max(peak, self._workers_rss_mb)
        self.values["memory"]["above_mb"] = self._above_mb
        verdict = self._judge() if status in _DONE else Verdict()
        self.values["verdict"] = asdict(verdict)

    def _judge(self) -> Verdict:
        seconds, devices = self.values["seconds"], self.values["engine"]["devices"]
        spent = replace(
            self._spent,
            total=seconds["total"],
            work=seconds["work"],
            finish=seconds["total"] - self._ended["work"],
            plan=seconds["plan"],
            compare=seconds["compare"] or 0.0,
            workers=self._workers,
            ends={key: seconds[key] or 0.0 for key in ENDS},
            is_gpu=devices[0].startswith("cuda"),
            is_shared=self.is_shared,
        )
        return judge(spent)

    def fail(self, error: Exception) -> None:
        """Say that it ended with an error."""
        self.error = error
        code, text = ExitCode.BUG, f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, TilesegError):
            code, text = error.exit_code, str(error)
        resumable = code in (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)
        self.values["error"] = text
        self.close("interrupted" if resumable else "failed", code)

    def _elapsed(self) -> float:
        return perf_counter() - self._start


@cache
def _schema() -> dict[str, Any]:
    text = (files("tileseg") / "assets/run.schema.json").read_text("utf-8")
    return dict(json.loads(text))


def _blank(schema: Mapping[str, Any]) -> Any:  # noqa: ANN401  (as JSON has it)
    """Return what a schema describes while nothing is known of it."""
    match schema.get("type"):
        case "object":
            return {name: _blank(it) for name, it in schema["properties"].items()}
        case "array":
            return []
    return None


def count_pixels(receipts: Iterable[Receipt]) -> Counter[int]:
    """Return the pixels of all receipts together, by mask value."""
    return sum((Counter(item.pixels) for item in receipts), Counter())


def _work(receipts: list[Receipt], key: str) -> float:
    return sum(item.work.get(key, 0) for item in receipts)


def _files(task: Task) -> list[dict[str, Any]] | None:
    """Return every file of a scene that has several, masks included."""
    files = zip(task.scene.files, task.identity.files, strict=True)
    found = [{"href": file.href, **identity.facts()} for file, identity in files]
    return found if len(found) > 1 else None


def _finite(value: float | None) -> float | str | None:
    """Return what JSON can say: NaN and Inf by name."""
    return value if value is None or isfinite(value) else str(value)
