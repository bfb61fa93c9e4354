"""Some pixels from all over a scene, always the same: what its values are like."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from tileseg.errors import InputError
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.pixels import DATA, Pixels
from tileseg.scenes.raster import Band, Scene
from tileseg.window import Window

__all__ = ["Sample", "affordable", "sample"]

_PLACES = 64  # where pixels are taken, at most
_PLACE = 256  # rows and columns of one, about: whole blocks
_CHEAP = 1 << 20  # pixels that no job minds to read
_READ = 1 << 18  # pixels of one that are read, where a block has more
_KEPT = 1 << 18  # pixels of all of them, at most
_DECODED = 512 << 20  # bytes of all of them, about

Scale = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What was found."""

    pixels: NDArray[np.float32]
    """(bands, N): the valid ones, in the unit that the scale leads to."""
    looked_at: int
    """How many there were, valid or not."""
    unreadable: int
    """Places that cannot be read."""


def sample(
    scene: Scene,
    bands: tuple[Band, ...],
    scale: Scale,
    area: Window | None = None,
    *,
    places: int = _PLACES,
) -> Sample:
    """Read some whole blocks, each in its own part of the scene; all of a small one.

    What is read does not grow with the scene, but for one that is a single block.

    Args:
        scene: what to look at.
        bands: which of its bands.
        scale: (scale, offset) of each: stored values to a physical unit.
        area: the part of the scene that counts; all of it if None.
        places: where, at most.

    Raises:
        UsageError: fp32 does not hold its numbers.
        StorageError: its server kept failing.
    """
    area = area or scene.geobox.window
    high, wide = _place(scene)
    decoded = high * wide * len(scene.bands) * np.dtype(scene.dtype).itemsize
    places = max(1, min(places, _DECODED // decoded))
    rows = max(1, min(high, _READ // wide))
    step = -(-min(area.size, places * rows * wide) // _KEPT)
    held, looked_at, unreadable = [np.empty((len(bands), 0), np.float32)], 0, 0
    with gdal_env(), Pixels() as source:
        for place in _windows(area, (high, wide), places):
            window = replace(place, height=min(place.height, rows))
            shape = window.height, window.width
            pixels = np.empty((len(bands), *shape), np.float32)
            state = np.empty(shape, np.uint8)
            try:
                source.read(scene, bands, window, pixels, state)
            except InputError:
                unreadable += 1
                continue
            is_valid = state.reshape(-1)[::step] == DATA
            looked_at += len(is_valid)
            held.append(pixels.reshape(len(bands), -1)[:, ::step][:, is_valid])
    gain, offset = np.array(scale, np.float32).T[:, :, np.newaxis]
    found = np.concatenate(held, axis=1) * gain + offset
    return Sample(found, looked_at, unreadable)


def affordable(scene: Scene, area: Window) -> int:
    """Return how many places a job can read that is about an area: 1 % of it, or 1 Mpx.

    None, 0, where a single block is more than that.
    """
    high, wide = _place(scene)
    return min(_PLACES, max(area.size // 100, _CHEAP) // (high * wide))


def _place(scene: Scene) -> tuple[int, int]:
    """Return rows and columns of a place: whole blocks, several of small ones."""
    high, wide = scene.block
    wide *= -(-_PLACE // wide)
    return high * max(1, _PLACE**2 // wide // high), wide


def _windows(area: Window, place: tuple[int, int], count: int) -> Iterator[Window]:
    """Yield one place in each of `count` parts of an area, top down."""
    high, wide = place
    rows = np.arange(area.row // high, -(-area.row_stop // high))
    cols = np.arange(area.col // wide, -(-area.col_stop // wide))
    down = min(len(rows), max(isqrt(count), count // len(cols)))
    right = min(len(cols), count // down)
    random = np.random.default_rng(0)
    for some_rows in np.array_split(rows, down):
        for some_cols in np.array_split(cols, right):
            row, col = random.choice(some_rows), random.choice(some_cols)
            yield Window(int(row) * high, int(col) * wide, high, wide).intersect(area)
