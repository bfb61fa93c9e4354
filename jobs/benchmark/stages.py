"""Each stage alone: what it does with a scene's pixels when nothing else runs.

Figures are millions of scene pixels a second; `tiles_s` says for how many tiles of
the network a stage would do.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.scenes import Kind, land_cover, make_model, make_scene, own_model
from benchmark.setting import Setting
from benchmark.table import Row, interleave, seconds_of, spread
from tileseg.grid import Run, Shard, Strip
from tileseg.masks.encode import block_side, looks, shard_bytes
from tileseg.network.blend import Blend, Fold
from tileseg.network.model import Network, load
from tileseg.network.predict import Predictor, Scaling
from tileseg.outputs.stitch import stitch
from tileseg.outputs.verify import verify_mask
from tileseg.plans.ledger import Files
from tileseg.plans.task import Task, prepare
from tileseg.polygons.vectorize import polygonise
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.reader import Reader
from tileseg.settings import LAYERS, Job

__all__ = ["Ready", "measure", "predictor_of"]

_CODECS = ("deflate", "zstd", "lzw", "none")


@dataclass(frozen=True, slots=True)
class Stage:
    """Something to time, and how many pixels of a scene it deals with."""

    name: str
    """What it is."""
    mpx: float
    """Millions of pixels."""
    call: Callable[[], object]
    """Does it once."""
    note: str = ""
    """What one must know to read it."""


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for each stage."""
    side = 2_048 if setting.quick else 4_096
    with TemporaryDirectory() as place:
        for group in (_decoding, _forwarding, _finishing):
            stages = list(group(setting, side, Path(place)))
            timed = {item.name: partial(seconds_of, item.call) for item in stages}
            found = interleave(timed, setting.rounds)
            for stage in stages:
                yield _row(stage, found[stage.name])


def _row(stage: Stage, seconds: list[float]) -> Row:
    middle = median(seconds)
    figures = {
        "mpx_s": stage.mpx / middle,
        "tiles_s": stage.mpx * 1e6 / 96**2 / middle,
        "spread": spread(seconds),
    }
    return Row("stages", stage.name, {**figures}, stage.note)


def _task(scene: Path, model: Path, place: Path) -> Task:
    return prepare(Job(input=str(scene), model=str(model), output=str(place / "out")))


def _decoding(setting: Setting, side: int, place: Path) -> Iterator[Stage]:
    """Yield reading whole scenes of many kinds, as strips for the network."""
    square = Kind(height=side, width=side)
    kinds = [replace(square, codec=codec) for codec in _CODECS]
    kinds += [
        replace(square, block=256),
        replace(square, block=1024),
        replace(square, block=0),
        replace(square, dtype="uint8"),
        replace(square, dtype="float32"),
        replace(square, bands=12),
        replace(square, bands=12, dtype="float32"),
    ]
    if not setting.quick:
        kinds += [
            replace(square, codec=codec, dtype=dtype)
            for codec in _CODECS[1:]
            for dtype in ("uint8", "float32")
        ]
    for kind in kinds:
        scene = make_scene(kind, setting.folder / "scenes")
        model = make_model(setting.folder, width=8, bands=kind.bands)
        task = _task(scene, model, place)
        for threads in (1, 2) if kind == square else (1,):
            read = partial(_read, task, threads)
            name = f"decode {kind.layout}, {_count(threads, 'thread')}"
            yield Stage(name, kind.mpx, read)
    sparse = replace(square, every=1_000_000)
    model = make_model(setting.folder, width=8)
    task = _task(make_scene(sparse, setting.folder / "scenes"), model, place)
    read = partial(_read, task, 1)
    yield Stage("decode a scene whose file has no block", sparse.mpx, read)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _whole(task: Task) -> Run:
    """Return the run that is the whole scene."""
    return Run(task.grid.shape)


def _read(task: Task, threads: int) -> None:
    reader = Reader(task.scene, task.bands, task.grid, threads=threads)
    for _ in reader.strips(_whole(task)):
        pass


class Ready(Network):
    """A network whose answer is there already, the same each time."""

    def __init__(self, network: Network, batch: int) -> None:
        """Know one answer by heart."""
        super().__init__(network.card, torch.nn.Identity(), network.device)
        card = network.card
        shape = batch, card.outputs, card.tile, card.tile
        self._logits = torch.randn(shape, device=network.device.name)

    def __call__(self, tiles_NBTT: Tensor) -> Tensor:  # noqa: N803  (shape suffix)
        """Return logits, (N, outputs, tile, tile)."""
        return self._logits[: len(tiles_NBTT)]


def _forwarding(setting: Setting, side: int, place: Path) -> Iterator[Stage]:
    """Yield what happens on the device, the scene being in memory."""
    kind = Kind(height=side, width=side)
    scene = make_scene(kind, setting.folder / "scenes")
    model = own_model(setting.folder, 16)
    task = _task(scene, model, place)
    reader = Reader(task.scene, task.bands, task.grid)
    strips = [_copy(strip) for strip in reader.strips(_whole(task))]
    device = setting.device
    network = load(model, task.card, device)
    if setting.is_gpu:
        yield Stage("host → device", kind.mpx, partial(_cross, strips, device.name))
    wanted = {"labels": (), "labels and confidence": LAYERS[:1], "all layers": LAYERS}
    for name, layers in wanted.items():
        ready = predictor_of(task, Ready(network, setting.batch(task.card)), setting)
        call = partial(_predict, ready, task, strips, layers=layers)
        text = f"all on the device but the network, {name}"
        yield Stage(text, kind.mpx, call, "scale, tiles, crop, argmax, labels back")
    for blend in ("crop", "cosine"):
        fold = partial(_fold, task, blend, setting)
        name = f"blend {task.card.outputs} classes, {blend}"
        yield Stage(name, kind.mpx, fold)
    call = partial(_predict, predictor_of(task, network, setting), task, strips)
    yield Stage(f"the same with the network, {device.precision}", kind.mpx, call)


def _copy(strip: Strip) -> Strip:
    """Return a strip in memory of its own: a reader may use its own again."""
    return replace(strip, pixels=strip.pixels.copy(), valid=strip.valid.copy())


def _cross(strips: list[Strip], device: str) -> None:
    for strip in strips:
        torch.from_numpy(strip.pixels).pin_memory().to(device, non_blocking=True)
    torch.cuda.synchronize()


def predictor_of(task: Task, network: Network, setting: Setting) -> Predictor:
    """Return what forwards a task's strips, cropping."""
    grid = task.grid
    blend = Blend(grid.stride, grid.halo, "crop")
    scaling = Scaling(*task.gains())
    return Predictor(network, grid, blend, scaling, batch=setting.batch(task.card))


def _predict(
    predictor: Predictor,
    task: Task,
    strips: list[Strip],
    *,
    layers: tuple[str, ...] = (),
) -> None:
    for _ in predictor.rows(_whole(task), strips, layers=layers):
        pass


def _fold(task: Task, kind: str, setting: Setting) -> None:
    """Put every tile of a scene into its place, and take finished rows out."""
    grid, device = task.grid, setting.device.name
    tiles = grid.tiles
    blend = Blend(grid.stride, grid.halo, kind)
    outputs = task.card.outputs
    fold = Fold(blend, outputs=outputs, columns=tiles.width, device=device)
    logits = torch.zeros(tiles.width, outputs, grid.tile, grid.tile, device=device)
    rows = torch.zeros(())
    for _ in range(tiles.height):
        fold.add(0, fold.weigh(logits))
        rows = fold.next_row()
    rows.sum().item()  # waits for a GPU


def _finishing(setting: Setting, side: int, place: Path) -> Iterator[Stage]:
    """Yield what is made of labels, on the CPU."""
    side *= 2 if setting.quick else 4
    kind = Kind(height=side, width=side, every=1_000_000)
    scene = make_scene(kind, setting.folder / "scenes")
    task = _task(scene, own_model(setting.folder, 16), place)
    grid, box = task.grid, task.geobox
    labels = land_cover(side, side)
    parts = {shard: labels[grid.pixels(shard).slices] for shard in _whole(task)}
    note = f"a mask of {side}², patches and single pixels"
    encoded = _encode(parts, task)
    yield Stage("encode shards", kind.mpx, partial(_encode, parts, task), note)
    mask = place / "mask.tif"
    call = partial(_stitch, encoded, task, mask)
    yield Stage("stitch, with overviews", kind.mpx, call, "of shard files in memory")
    counts = dict(enumerate(np.bincount(labels.ravel(), minlength=256).tolist()))
    known = {value: n for value, n in counts.items() if n and value in range(255)}
    call()
    verify = partial(verify_mask, mask, box, known)
    yield Stage("verify", kind.mpx, verify, "reading the finished raster again")
    some = dict(list(parts.items())[:4])
    mpx = sum(part.size for part in some.values()) / 1e6
    trace = partial(_polygonise, some, task)
    yield Stage("polygonise", mpx, trace, f"{len(some)} shards")


def _encode(parts: dict[Shard, NDArray[np.uint8]], task: Task) -> dict[Shard, bytes]:
    grid = task.grid
    with gdal_env():
        return {
            shard: shard_bytes(
                part,
                task.scene.geobox.crop(grid.pixels(shard)),
                block=block_side(grid.shard),
            )
            for shard, part in parts.items()
        }


def _stitch(encoded: dict[Shard, bytes], task: Task, mask: Path) -> None:
    def read(shards: Iterable[Shard]) -> Iterator[tuple[Shard, bytes]]:
        return ((shard, encoded[shard]) for shard in shards)

    mask.unlink(missing_ok=True)
    files = Files(frozenset(encoded), read)
    look = looks(task.ensemble)["mask"]
    stitch(files, task.grid, task.scene, look, mask)


def _polygonise(parts: dict[Shard, NDArray[np.uint8]], task: Task) -> None:
    for shard, part in parts.items():
        polygonise(part, None, task.grid.pixels(shard), left_out=(255,))
