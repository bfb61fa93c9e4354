"""Is the fast arithmetic good enough? The same tiles again in fp32, label by label."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tileseg import averaging
from tileseg.blend import Blend
from tileseg.card import NODATA
from tileseg.device import Device
from tileseg.errors import InputError, TileError
from tileseg.grid import Grid, Run
from tileseg.predict import Predictor, Scaling
from tileseg.reader import Reader
from tileseg.task import Task
from tileseg.window import Window

__all__ = ["ENOUGH", "Check", "compare", "settle", "spots"]

ENOUGH = 0.999
"""Share of labels that must agree for `--precision auto` to keep the fast numbers."""

_SPOTS = 3  # per side of the scene
_SPOT = 2  # tiles per side of a spot


@dataclass(frozen=True, slots=True)
class Check:
    """What a comparison found."""

    tiles: int
    """Tiles looked at."""
    agreement: float | None
    """Share of valid pixels with the same label, 0 to 1; None where all is nodata."""


def settle(task: Task, device: Device) -> Device:
    """Return the device with the way to run the task's networks: see `model.choose`.

    Raises:
        ModelError: the way that was asked for is not right there; or the device failed.
    """
    job, todo = task.job, task.grid.tiles.size
    return averaging.settle(task.ensemble, device, asked=job.network, todo=todo)


def compare(task: Task, device: Device) -> Check:
    """Label a few tiles all over the scene as the device does, and plainly in fp32.

    Spots that cannot be read are left out; the run itself will say so.

    Raises:
        ModelError: the device failed, or fp32 gives NaN or Inf too.
    """
    plain = replace(device, precision="fp32", network="plain")
    exact, tiles = _labels(task, plain)
    is_valid = exact != NODATA
    if not is_valid.any():
        return Check(tiles, None)
    try:
        fast, _ = _labels(task, device)
    except TileError:
        return Check(tiles, 0.0)
    return Check(tiles, float((fast == exact)[is_valid].mean()))


def _labels(task: Task, device: Device) -> tuple[NDArray[np.uint8], int]:
    """Return the labels of every spot, one after the other, and the tiles forwarded."""
    grid = replace(task.grid, shard=_SPOT * task.grid.stride)
    reader = Reader(task.scene, task.bands, grid)
    predictor = Predictor(
        averaging.load(task.ensemble, device),
        grid,
        Blend(grid.stride, grid.halo, "crop"),
        Scaling(*task.gains()),
        batch=_SPOT**2,
    )
    labels = [np.empty(0, np.uint8)]
    for spot in spots(grid):
        try:
            strips = list(reader.strips(spot))
        except InputError:
            continue
        labels += [rows.labels.ravel() for rows in predictor.rows(spot, strips)]
    return np.concatenate(labels), predictor.tiles


def spots(grid: Grid) -> Iterator[Run]:
    """Yield small runs in an even lattice over what is asked for."""
    shape = grid.shape
    steps = range(1, 2 * _SPOTS, 2)
    for row in sorted({shape.height * step // (2 * _SPOTS) for step in steps}):
        for col in sorted({shape.width * step // (2 * _SPOTS) for step in steps}):
            yield Run(Window(shape.row + row, shape.col + col, 1, 1))
