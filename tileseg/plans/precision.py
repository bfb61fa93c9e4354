"""Is the fast arithmetic good enough? The same tiles again in fp32, label by label."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.errors import InputError, TileError
from tileseg.grid import Grid, Run, Strip
from tileseg.network import averaging
from tileseg.network.blend import Blend
from tileseg.network.device import Device
from tileseg.network.model import Network
from tileseg.network.predict import Predictor, Scaling
from tileseg.plans.task import Task
from tileseg.scenes.reader import Reader
from tileseg.window import Window

__all__ = ["ENOUGH", "Check", "compare", "settle", "spots", "trim_of"]

ENOUGH = 0.999
"""Share of labels that must agree for `--precision auto` to keep the fast numbers."""

_SPOTS, _FINER = 3, 9  # per side of the scene; where these have next to no data
_SPOT = 2  # tiles per side of a spot, of a large one
_SMALL, _LARGE = 256, 14_400  # tiles
_FEW = 4  # tiles whose valid pixels are few, but enough where they agree


@dataclass(frozen=True, slots=True)
class Check:
    """What a comparison found."""

    tiles: int
    """Tiles looked at."""
    agreement: float | None
    """Share of valid pixels with the same label, 0 to 1; None where all is nodata."""


def settle(task: Task, device: Device, among: int = 1) -> Device:
    """Return the device with the way to run the task's networks: see `model.choose`.

    They are then at hand there.

    Args:
        task: the job.
        device: one of those that do it.
        among: how many do; each would compile for itself, and has its share to do.

    Raises:
        ModelError: the way that was asked for is not right there; or the device failed.
    """
    asked, todo = task.job.network, ceil(task.grid.tiles.size / among)
    models, trim = task.ensemble, trim_of(task)
    return averaging.settle(models, device, asked=asked, todo=todo, trim=trim)


def trim_of(task: Task) -> int:
    """Return how many pixels on each side of a tile the task's networks leave out."""
    return Blend(task.grid.stride, task.grid.halo, task.job.blend).trim


def compare(task: Task, device: Device) -> Check:
    """Label a few tiles all over the scene as the device does, and plainly in fp32.

    Spots that cannot be read, or for which fp32 gives NaN or Inf too, are left out; the
    run itself will say so. Of a small scene those first looked at are enough, if they
    agree: a spot takes as long as some tiles of the job. Where there is next to no data
    more spots are looked at.

    Raises:
        ModelError: the network, or the device, failed.
    """
    todo = task.grid.tiles.size
    grid = replace(task.grid, shard=(_SPOT if todo >= _LARGE else 1) * task.grid.stride)
    enough = _FEW * grid.stride**2
    plain = replace(device, precision="fp32", network="plain")
    blend, models = Blend(grid.stride, grid.halo, "crop"), task.ensemble
    networks = (
        averaging.load(models, plain, blend.trim),
        averaging.at_hand(models, device, trim_of(task)),  # the job goes on with it
    )
    exact, fast = (_predictor(task, grid, blend, it) for it in networks)
    pixels, right = 0, 0
    usual, finer = _places(grid)
    for places in (usual, finer):
        for spot, strips in _read(task, grid, places):
            try:
                wanted = _labels(exact, spot, strips)
            except TileError:
                continue
            try:
                is_right = _labels(fast, spot, strips) == wanted
            except TileError:  # fp32 has an answer: it is the fast numbers' fault
                return Check(exact.tiles, 0.0)
            is_valid = wanted != NODATA
            pixels += int(is_valid.sum())
            right += int(is_right[is_valid].sum())
            may_end = todo < _SMALL or places is finer
            if may_end and pixels >= enough and right >= ENOUGH * pixels:
                break
        if pixels >= enough:
            break
    return Check(exact.tiles, right / pixels if pixels else None)


def _places(grid: Grid) -> tuple[list[Run], list[Run]]:
    """Return spots, first those in the corners and the middle; and more of them."""
    usual = list(spots(grid))
    finer = [spot for spot in spots(grid, _FINER) if spot not in usual]
    return usual[::2] + usual[1::2], finer


def _read(
    task: Task, grid: Grid, places: Iterable[Run]
) -> Iterator[tuple[Run, list[Strip]]]:
    """Yield every spot that can be read."""
    reader = Reader(task.scene, task.bands, grid)
    for spot in places:
        try:
            strips = list(reader.strips(spot))
        except InputError:
            continue
        yield spot, strips


def _predictor(task: Task, grid: Grid, blend: Blend, network: Network) -> Predictor:
    batch = (grid.shard // grid.stride) ** 2
    return Predictor(network, grid, blend, Scaling(*task.gains()), batch=batch)


def _labels(predictor: Predictor, spot: Run, strips: list[Strip]) -> NDArray[np.uint8]:
    return np.concatenate([rows.labels for rows in predictor.rows(spot, strips)])


def spots(grid: Grid, side: int = _SPOTS) -> Iterator[Run]:
    """Yield small runs in an even lattice over what is asked for, `side` a side."""
    shape = grid.shape
    steps = range(1, 2 * side, 2)
    for row in sorted({shape.height * step // (2 * side) for step in steps}):
        for col in sorted({shape.width * step // (2 * side) for step in steps}):
            yield Run(Window(shape.row + row, shape.col + col, 1, 1))
