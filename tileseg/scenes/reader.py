"""Reading a scene in strips: one handle, read downwards, every pixel decoded once.

The only reader of a scene's pixels for the network; nothing here knows a network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.grid import Grid, Run, Strip
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.pixels import DATA, MASKED, Pixels
from tileseg.scenes.scene import Band, Scene
from tileseg.stores.source import Traffic
from tileseg.window import Window

__all__ = ["Reader"]

_NATIVE = ("uint8", "int8", "uint16", "int16", "float32")  # cross the bus as they are


Buffers = Callable[[int], NDArray[np.uint8]]


def _fresh(size: int) -> NDArray[np.uint8]:
    """Return so many bytes of memory."""
    return np.empty(size, np.uint8)


class Reader:
    """One handle on a scene, read downwards; not to be shared between threads."""

    def __init__(
        self,
        scene: Scene,
        bands: tuple[Band, ...],
        grid: Grid,
        *,
        threads: int = 1,
        empty: Buffers = _fresh,
    ) -> None:
        """Open nothing yet.

        Args:
            scene: what to read.
            bands: which of its bands, in the network's order.
            grid: its grid.
            threads: GDAL's own decoding threads.
            empty: returns memory for a strip, of so many bytes. It may be that of the
                strip before the last one.
        """
        self._scene, self._bands, self._grid = scene, bands, grid
        self._threads, self._empty = threads, empty
        self._dtype = np.dtype(scene.dtype if scene.dtype in _NATIVE else "float32")
        self.decoded_pixels = 0
        self.traffic = Traffic()

    def strips(self, run: Run, *, ring: int = 0) -> Iterator[Strip]:
        """Yield the run's tiles, top down, each pixel read once.

        Outside the scene pixel i is read at its symmetric index (period twice the
        scene's side), for scenes of any size. Strips that follow each other share
        the rows of both halos at their border.

        Args:
            run: what to read.
            ring: rings of neighbouring tiles wanted beside the run's own.

        Raises:
            InputError: a block cannot be read.
        """
        grid, high = self._grid, self._scene.block[0]
        tiles = grid.cores(run, ring=ring)
        columns = self._reach(tiles.col, tiles.col_stop, grid.width)
        end = self._reach(tiles.row, tiles.row_stop, grid.height).read.stop
        row, held = tiles.row, None
        bottom = self._reach(row, row + 1, grid.height).read.start // high * high
        with gdal_env(), Pixels(threads=self._threads, traffic=self.traffic) as source:
            while row < tiles.row_stop:
                ready = row
                while ready == row:
                    bottom = min(bottom + self._scene.strip_rows, grid.height)
                    ready = self._complete(bottom, tiles)
                rows = self._reach(row, ready, grid.height).down_to(min(bottom, end))
                held = self._held(source, rows, columns, held)
                yield self._strip(
                    Window(row, tiles.col, ready - row, tiles.width), held
                )
                row = ready

    def to_decode(self, run: Run, *, ring: int = 0) -> int:
        """Return how many pixels are in the blocks that a run is read from."""
        tiles = self._grid.cores(run, ring=ring)
        rows = self._reach(tiles.row, tiles.row_stop, self._grid.height).read
        columns = self._reach(tiles.col, tiles.col_stop, self._grid.width).read
        return self._in_blocks(
            Window(rows.start, columns.start, len(rows), len(columns))
        )

    def _in_blocks(self, window: Window) -> int:
        """Return how many pixels of the scene are in the blocks that a window meets."""
        rows = _whole(window.row, window.row_stop, self._scene.block[0])
        columns = _whole(window.col, window.col_stop, self._scene.block[1])
        blocks = Window(rows.start, columns.start, len(rows), len(columns))
        return blocks.intersect(self._grid.scene).size

    def _reach(self, start: int, stop: int, size: int) -> "_Reach":
        """Return what tiles start..stop - 1 look at along one axis of the scene."""
        grid = self._grid
        first, last = start * grid.stride - grid.halo, stop * grid.stride + grid.halo
        return _Reach.of(first, last, size)

    def _complete(self, bottom: int, tiles: Window) -> int:
        """Return the first tile row that needs source rows from `bottom` on."""
        if bottom == self._grid.height:
            return tiles.row_stop
        ready = (bottom - self._grid.halo) // self._grid.stride
        return max(tiles.row, min(tiles.row_stop, ready))

    def _held(
        self, source: Pixels, rows: "_Reach", columns: "_Reach", above: "_Held | None"
    ) -> "_Held":
        """Return pixels, of which those that are not held `above` are read."""
        there = _Held(rows, columns, *self._room((rows.size, columns.size)))
        first = rows.read.start if above is None else there.take_over(above)
        height, width = rows.read.stop - first, len(columns.read)
        window = Window(first, columns.read.start, height, width)
        if height:
            self._read(source, window, *there.of(window))
        there.mirror(first)
        return there

    def _room(self, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return memory for pixels and their states."""
        depth = len(self._bands) * self._dtype.itemsize
        buffer = self._empty((depth + 1) * prod(shape))
        pixels, state = np.split(buffer, [depth * prod(shape)])
        bands = len(self._bands)
        return pixels.view(self._dtype).reshape(bands, *shape), state.reshape(shape)

    def _strip(self, tiles: Window, held: "_Held") -> Strip:
        """Return what the tiles see of what is held."""
        pixels, state = held.seen()
        if not self._scene.is_masked:
            return Strip(tiles, pixels, state.view(np.bool_))
        return Strip(tiles, pixels, state == DATA, state == MASKED)

    def _read(
        self,
        source: Pixels,
        window: Window,
        pixels: NDArray[Any],
        state: NDArray[np.uint8],
    ) -> None:
        """Fill pixels, (bands, height, width), and their states, (height, width)."""
        source.read(self._scene, self._bands, window, pixels, state)
        self.decoded_pixels += self._in_blocks(window)


def _whole(start: int, stop: int, block: int) -> range:
    """Return all pixels of the blocks that pixels start..stop - 1 lie in."""
    return range(start // block * block, -(-stop // block) * block)


@dataclass(frozen=True, slots=True)
class _Reach:
    """Pixels along one axis that some tiles look at, and what is read for them."""

    seen: range
    """What the tiles look at; may lie outside the scene."""
    read: range
    """One piece of the scene with all that is there, or is mirrored to there."""
    scene: int
    """How many pixels the scene has."""

    @classmethod
    def of(cls, start: int, stop: int, scene: int) -> "_Reach":
        """Find what is to be read for pixels start..stop - 1."""
        source = _mirrored(np.arange(start, stop), scene)
        read = range(int(source.min()), int(source.max()) + 1)
        return cls(range(start, stop), read, scene)

    @property
    def start(self) -> int:
        """The first pixel, seen or read."""
        return min(self.seen.start, self.read.start)

    @property
    def size(self) -> int:
        """How many there are from there on."""
        return max(self.seen.stop, self.read.stop) - self.start

    def down_to(self, stop: int) -> "_Reach":
        """Return the same with all pixels up to `stop` read."""
        read = range(self.read.start, max(self.read.stop, stop))
        return replace(self, read=read)

    def at(self, start: int, stop: int) -> slice:
        """Return where pixels lie, counted from the first one."""
        return slice(start - self.start, stop - self.start)

    def mirrors(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return where pixels outside the scene lie, and where they come from."""
        seen = np.arange(self.seen.start, self.seen.stop)
        outside = seen[(seen < 0) | (seen >= self.scene)]
        return outside - self.start, _mirrored(outside, self.scene) - self.start


def _mirrored(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Return the symmetric indices, of period twice the size."""
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What is in memory: the pixels that are read, and the mirrored ones round them."""

    rows: _Reach
    columns: _Reach
    pixels: NDArray[Any]
    """(bands, rows, columns)."""
    state: NDArray[np.uint8]
    """(rows, columns)."""

    def _part(self, rows: slice, columns: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.pixels[:, rows, columns], self.state[rows, columns]

    def of(self, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return views on a window of the scene."""
        return self._part(
            self.rows.at(window.row, window.row_stop),
            self.columns.at(window.col, window.col_stop),
        )

    def seen(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return views on what the tiles look at."""
        rows, columns = self.rows.seen, self.columns.seen
        return self._part(
            self.rows.at(rows.start, rows.stop),
            self.columns.at(columns.start, columns.stop),
        )

    def take_over(self, above: "_Held") -> int:
        """Copy the rows that were read before; return the first that was not."""
        first, stop = self.rows.read.start, above.rows.read.stop
        here, there = self.rows.at(first, stop), above.rows.at(first, stop)
        self.pixels[:, here], self.state[here] = (
            above.pixels[:, there],
            above.state[there],
        )
        return stop

    def mirror(self, first: int) -> None:
        """Fill what lies outside the scene, beside rows from `first` on and above."""
        new = self.rows.at(first, self.rows.read.stop)
        for array in (*self.pixels, self.state):
            to, source = self.columns.mirrors()
            array[new, to] = array[new, source]
            to, source = self.rows.mirrors()
            array[to] = array[source]
