"""A scene at reduced size, put by while the network reads it, so nobody reads it twice.

Every n-th pixel of every n-th row, shard by shard: for looking at, not for measuring.
"""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.grid import Grid, Run, Shard, Strip
from tileseg.scenes.scene import Band, Scene
from tileseg.window import Window

__all__ = ["Collage", "Picture", "Sampling", "Sketch", "shown"]

_SIDE = 1024  # pixels of the longer side, at most: what a map shows at once
_DISPLAY = ("red", "green", "blue")

Picture = NDArray[Any]
"""(bands, height, width), as stored."""


def shown(scene: Scene, bands: tuple[Band, ...]) -> tuple[Band, ...]:
    """Return the three bands that a scene is shown in: red, green, blue if it has them.

    Else the network's first three, or its first one as grey.
    """
    by_name = {(band.name or "").casefold(): band for band in scene.bands}
    if all(name in by_name for name in _DISPLAY):
        return tuple(by_name[name] for name in _DISPLAY)
    return bands[:3] if len(bands) >= len(_DISPLAY) else bands[:1] * 3


class Sampling:
    """Which pixels of a grid's area are shown."""

    def __init__(self, grid: Grid) -> None:
        """Take as many as there is room for, the same distance apart."""
        self._grid = grid
        self.step = -(-max(grid.area.height, grid.area.width) // _SIDE)
        whole = self.of(grid.area)
        self.shape = whole.height, whole.width

    def of(self, window: Window) -> Window:
        """Return the samples in a window of the scene's pixels, counted in samples."""
        box = window.relative_to(self._grid.area)
        row, col = -(-box.row // self.step), -(-box.col // self.step)
        height = -(-box.row_stop // self.step) - row
        width = -(-box.col_stop // self.step) - col
        return Window(row, col, height, width)

    def pixels(self, samples: Window) -> Window:
        """Return the pixels from the first sample on, as many as `step` tells."""
        box, area = samples.scale(self.step), self._grid.area
        return Window(box.row + area.row, box.col + area.col, box.height, box.width)


class Sketch:
    """Takes the samples out of strips, and gives them shard by shard."""

    def __init__(self, grid: Grid, scene: Scene, bands: tuple[Band, ...]) -> None:
        """Hold nothing; take nothing if a shown band is none of those that are read.

        Args:
            grid: the scene's.
            scene: what is read.
            bands: which of its bands, in the network's order.
        """
        wanted = shown(scene, bands)
        is_read = all(band in bands for band in wanted)
        self._bands = [bands.index(band) for band in wanted] if is_read else []
        self._grid, self._sampling = grid, Sampling(grid)
        self._held: dict[Shard, Picture] = {}

    def add(self, run: Run, strip: Strip) -> None:
        """Take what a strip of a run shows of the run's shards."""
        if not self._bands:
            return
        grid = self._grid
        cores = strip.tiles.scale(grid.stride)
        seen, origin = cores.intersect(grid.pixels(run)), cores.pad(grid.halo)
        for shard in Run(seen.coarsen(grid.shard)) if seen.size else ():
            whole = self._sampling.of(grid.pixels(shard))
            part = self._sampling.of(grid.pixels(shard).intersect(seen))
            if not part.size:
                continue
            at = self._sampling.pixels(part).relative_to(origin).slices
            step = self._sampling.step
            rows, columns = (slice(axis.start, axis.stop, step) for axis in at)
            picture = self._held.get(shard)
            if picture is None:
                shape = len(self._bands), whole.height, whole.width
                picture = self._held[shard] = np.zeros(shape, strip.pixels.dtype)
            to = part.relative_to(whole).slices
            picture[:, *to] = strip.pixels[self._bands, rows, columns]

    def take(self, shard: Shard) -> bytes:
        """Return what a shard shows, and forget it; empty where that is nothing."""
        picture = self._held.pop(shard, None)
        if picture is None:
            return b""
        file = BytesIO()
        np.save(file, picture)
        return file.getvalue()


class Collage:
    """Puts the sketches of shards together."""

    def __init__(self, grid: Grid) -> None:
        """Hold nothing."""
        self._grid, self._sampling = grid, Sampling(grid)
        self._pixels = np.zeros((len(_DISPLAY), *self._sampling.shape), np.float32)
        self._is_whole = True

    def add(self, shard: Shard, data: bytes) -> None:
        """Put a shard's sketch in its place."""
        place = self._sampling.of(self._grid.pixels(shard))
        if not place.size:
            return
        if not data:
            self._is_whole = False
            return
        self._pixels[:, *place.slices] = np.load(BytesIO(data), allow_pickle=False)

    def picture(self) -> Picture | None:
        """Return the scene, 0 where no shard is; None if one had no sketch."""
        return self._pixels if self._is_whole else None
