"""How much memory a plan takes: what is predicted before it is begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tileseg.base.address import is_address
from tileseg.grid import Run
from tileseg.plans.task import Task
from tileseg.scenes.gdal import CACHE_BYTES
from tileseg.scenes.pixels import HANDLES
from tileseg.stores.remote import memory_bytes

__all__ = ["Budget", "budget_of"]

_FP32_BYTES = 4
_STRIPS = 4  # read, held, gathered, in the network
_BATCHES = 2  # in the network side by side, or one there and one being gathered
_SPARE = 4 / 3  # times what a forward holds: an allocator keeps more
_SUMS = {"crop": 4, "cosine": 6}  # times the logits of a row of tiles
_WAITING = {"crop": 0, "cosine": 6}  # batches whose logits wait to be summed
_COPIES = 2  # of a layer: class by class, then together
_PIECES_BYTES = 64  # of a pixel of the shard that is polygonised
_FIXED_BYTES = CACHE_BYTES + 200_000_000  # with what libraries and the picture take


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds in MB (10^6 bytes)."""

    host_mb: float
    """Of a process of workers, above what it holds with a network loaded."""
    device_mb: float | None
    """Of torch on a GPU, the network too; None where the device is the host."""


def budget_of(
    task: Task, runs: Sequence[Run], resolved: Mapping[str, Any], *, together: int = 1
) -> Budget:
    """Predict the memory of workers in one process, each as the one of the widest run.

    Nothing grows with the scene's height, and column bands bound the width; polygons
    count as those of one shard usually take.

    Args:
        task: what is asked for.
        runs: how it is cut.
        resolved: of the plan: `device`, `precision` and `batch_size`.
        together: how many share a process.
    """
    width = max((_width(task, run) for run in runs), default=0)
    strip = _strip_bytes(task, width)
    labels = _STRIPS * task.grid.shard * width * task.planes
    pieces = _PIECES_BYTES * task.grid.shard**2 if task.job.polygons else 0
    own = _STRIPS * strip + labels + pieces + _fetched(task)
    work = _work_bytes(task, width, resolved)
    host = _FIXED_BYTES + together * own
    if resolved["device"] == "cpu":
        host += together * work
        return Budget(host / 1e6, None)
    members = zip(task.ensemble.paths, task.ensemble.cards, strict=True)
    weights = sum((path / card.weights).stat().st_size for path, card in members)
    return Budget(host / 1e6, (work + 2 * strip + weights) / 1e6)


def _strip_bytes(task: Task, width: int) -> int:
    rows = task.scene.strip_rows + 2 * task.grid.tile
    return rows * width * task.scene.pixel_bytes(task.bands)


def _work_bytes(task: Task, width: int, resolved: Mapping[str, Any]) -> int:
    """Return what the network and summing its logits take."""
    ensemble, tile = task.ensemble, task.grid.tile
    item = _FP32_BYTES if resolved["precision"] == "fp32" else _FP32_BYTES // 2
    # Logits, what becomes of them, and the bytes of the layers.
    ends = ensemble.ends * (2 * _FP32_BYTES + item) + _COPIES * task.planes
    held = ceil(_SPARE * ensemble.floats) * item
    tiles: int = resolved["batch_size"]
    batch = tiles * tile**2 * (held + ends)
    # Of a row of tiles: while they are joined, labelled and made a probability of.
    logits = task.card.outputs * _FP32_BYTES
    sums = _SUMS[task.job.blend] * logits + _COPIES * task.planes
    waiting = _WAITING[task.job.blend] * logits  # without sums labels are kept instead
    return _BATCHES * batch + waiting * tiles * tile**2 + sums * tile * width


def _fetched(task: Task) -> int:
    """Return what is held of files that are fetched."""
    remote = sum(is_address(file.path) for file in task.scene.files)
    return memory_bytes(min(remote, HANDLES))


def _width(task: Task, run: Run) -> int:
    """Return how many columns are held of a run: whole blocks, with its margin."""
    grid = task.grid
    cores = grid.cores(run, ring=1).width * grid.stride
    return min(cores + 2 * (grid.halo + task.scene.block[1]), grid.width)
