"""A scene opened as a job would, and what a person should know before the night.

Computes a few tiles, to tell how long the rest would take; writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path

import numpy as np

from tileseg.errors import InputError
from tileseg.grid import Run
from tileseg.network import averaging
from tileseg.network.blend import Blend
from tileseg.network.device import Device, default_batch, resolve_device, worker_devices
from tileseg.network.predict import Predictor, Scaling
from tileseg.plans.budget import budget_of
from tileseg.plans.fit import doubts_of
from tileseg.plans.precision import settle, spots, trim_of
from tileseg.plans.task import Task, draft, meet
from tileseg.scenes.area import row_hectares
from tileseg.scenes.raster import Scene
from tileseg.scenes.reader import Reader
from tileseg.scenes.sample import affordable, sample
from tileseg.settings import Job

__all__ = ["Finding", "check", "tile_rate"]

_SIDECARS = (".aux.xml", ".ovr", ".msk")
_WORLD_FILES = (".tfw", ".tifw", ".wld")
_EXACT = 1 << 24  # whole numbers up to here are exact in fp32
_WIDE = ("int32", "uint32", "int64", "uint64", "float64")
_PLACES = 9  # that are looked at, at least
_TALL = 64  # rows of a strip, from where a person should know


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know."""

    topic: str
    """What it is about: `is`, `lies`, `odd`, `model`, `data`, `job` or `cost`."""
    text: str
    """One line."""


def check(job: Job) -> Iterator[Finding]:
    """Say what a job's scene is, what is odd about it, and what the job would take.

    Raises:
        TilesegError: what would end the job before it began.
    """
    ensemble, scene = meet(job)
    yield from _describe(scene)
    yield from _oddities(scene, is_listed=bool(job.bands))
    task = draft(job, ensemble, scene)
    yield from _fit(task)
    yield from _cost(task)


def _describe(scene: Scene) -> Iterator[Finding]:
    """Say what a scene is."""
    box, files = scene.geobox, len(scene.files)
    size = f"{box.height:,} rows x {box.width:,} columns of {scene.dtype}"
    yield Finding("is", f"{size}, {scene.size / 1e6:,.1f} MB in {files} file(s)")
    for band in scene.bands:
        facts = [f"band {band.index}: {band.name or '(unnamed)'}"]
        if (band.scale, band.offset) != (1, 0):
            facts.append(f"stored * {band.scale:g} + {band.offset:g}")
        if band.nodata is not None:
            facts.append(f"nodata {band.nodata:g}")
        yield Finding("is", ", ".join(facts))
    for mask in scene.masks:
        yield Finding("is", f"masked by {mask.raster.href}")
    yield Finding("lies", _place(scene))


def _place(scene: Scene) -> str:
    box = scene.geobox
    if box.crs is None:
        return "nowhere: it has no CRS"
    name = box.crs.partition('["')[2].partition('"')[0]
    transform = box.transform
    across = hypot(transform.a, transform.d)
    down = hypot(transform.b, transform.e)
    hectares = row_hectares(box)
    area = "" if hectares is None else f", {hectares.sum() * box.width:,.0f} ha in all"
    return f"{name}, pixels of {across:.6g} x {down:.6g} of its units{area}"


def _oddities(scene: Scene, *, is_listed: bool) -> Iterator[Finding]:
    """Say what most scenes are not, and what tileseg makes of it.

    Args:
        scene: what is looked at.
        is_listed: whether the job lists its bands.
    """
    box, (height, width) = scene.geobox, scene.block
    transform = box.transform
    odd = {
        "does not say where it lies; nor will its mask": transform.is_identity,
        "is rotated or sheared; its mask will be too": (
            (transform.b, transform.d) != (0, 0)
        ),
        "has its south at the top; its mask will too": transform.e > 0,
        "is placed by pixels' centres (AREA_OR_POINT=Point); its mask will too": (
            scene.point
        ),
        "has unnamed bands: list them in the model's order in a job file (bands)": (
            not (is_listed or all(band.name for band in scene.bands))
        ),
        f"is stored in strips of {height} rows: all of its width is read at once": (
            width == box.width and height > _TALL
        ),
        "has no nodata value, mask or alpha: every pixel will have a class": (
            not scene.is_masked
            and not any(file.has_mask or file.alpha for file in scene.files)
            and all(band.nodata is None for band in scene.bands)
        ),
        f"is of {scene.dtype}: whole numbers beyond {_EXACT:,} are rounded": (
            scene.dtype in _WIDE
        ),
        "is resampled": scene.is_resampled,
    }
    yield from (Finding("odd", text) for text, is_so in odd.items() if is_so)
    for file in scene.files:
        for name in _beside(Path(file.path)):
            yield Finding("odd", f"has {name} beside it, which is not read")


def _beside(path: Path) -> list[str]:
    """Return the names of a local file's sidecars."""
    names = [f"{path.name}{end}" for end in _SIDECARS]
    names += [path.with_suffix(end).name for end in _WORLD_FILES]
    return [name for name in names if (path.parent / name).exists()]


def _fit(task: Task) -> Iterator[Finding]:
    """Say whether the models were made for pixels like these."""
    ensemble, area = task.ensemble, task.grid.area
    for card in ensemble.cards:
        text = f"{card.name} {card.version}, {len(card.classes)} classes"
        yield Finding("model", text)
    # At least where the job itself would look, so that it doubts nothing else.
    most = max(affordable(task.scene, area), _PLACES)
    found = sample(task.scene, task.bands, task.scale, area, places=most)
    pixels = found.pixels
    if found.unreadable:
        text = f"cannot be read at {found.unreadable} of the places tried"
        yield Finding("odd", text)
    if not pixels.size:
        yield Finding("odd", "has no valid pixel at the places looked at")
        return
    share = pixels.shape[1] / found.looked_at
    text = f"{share:.0%} of {found.looked_at:,} pixels looked at are valid"
    yield Finding("data", text)
    spreads = [np.percentile(values, (2, 50, 98)) for values in pixels]
    for channel in ensemble.channels:
        name, band = ensemble.bands[channel.band], task.bands[channel.band]
        low, middle, high = spreads[channel.band]
        text = (
            f"{name} from band {band.index}: {low:.4g} to {high:.4g} "
            f"{task.card.unit}, median {middle:.4g}; "
            f"trained on {channel.mean:.4g} ± {channel.std:.4g}"
        )
        yield Finding("data", text)
    for text in doubts_of(task, found, ensemble.cards)[0]:
        yield Finding("odd", text)


def _cost(task: Task) -> Iterator[Finding]:
    """Say what the job would do and take, from a few tiles on this machine.

    Raises:
        ModelError: the network or the device fails on them.
    """
    job, (device, batch) = task.job, _means(task)
    workers = worker_devices(device, job.workers)
    tiles = task.grid.tiles.size
    todo = f"{task.grid.shape.size:,} shards, {tiles:,} tiles"
    yield Finding("job", f"{todo}; its results would go to {job.destination}")
    runs = task.runs(list(Run(task.grid.shape)), len(workers))
    facts = {"device": device.name, "precision": device.precision, "batch_size": batch}
    together = len(workers) if job.engine_kind == "local" else 1
    budget = budget_of(task, runs, facts, together=together)
    memory = f"at most {budget.host_mb:,.0f} MB above the loaded network"
    if budget.device_mb is not None:
        memory += f", and {budget.device_mb:,.0f} MB on the GPU"
    yield Finding("cost", memory)
    if rate := _rate(task, device, batch):
        who = f"{len(workers)} x {device.name} ({device.hardware})"
        text = (
            f"about {tiles / rate / len(workers) / 60:.1f} minutes on {who}: "
            f"{rate:.1f} tiles/s in {device.precision}, measured here on one"
        )
        yield Finding("cost", text)


def tile_rate(task: Task) -> float | None:
    """Return how many tiles a device here does in a second; None of nodata alone.

    Raises:
        ModelError: the network or the device fails on them.
    """
    device, batch = _means(task)
    return _rate(task, device, batch)


def _means(task: Task) -> tuple[Device, int]:
    """Return on what a task is done here, and how many tiles at a time."""
    job = task.job
    device = settle(task, resolve_device(job.device, job.precision))
    batch = default_batch(device, task.ensemble, task.grid.tiles.size)
    return device, job.batch_size or batch


def _rate(task: Task, device: Device, batch: int) -> float | None:
    """Return tiles in a second, of a few of the scene; None of nodata alone."""
    grid = replace(task.grid, shard=int(batch**0.5) * task.grid.stride)
    reader = Reader(task.scene, task.bands, grid)
    blend, scaling = Blend(grid.stride, grid.halo, "crop"), Scaling(*task.gains())
    network = averaging.at_hand(task.ensemble, device, trim_of(task))
    for spot in spots(grid):
        try:
            strips = list(reader.strips(spot))
        except InputError:
            continue
        for _ in range(2):  # the first one warms up
            predictor = Predictor(network, grid, blend, scaling, batch=batch)
            for _rows in predictor.rows(spot, strips):
                pass
        if predictor.tiles:
            return predictor.tiles / predictor.seconds
    return None
