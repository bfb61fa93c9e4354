"""Reading a scene in strips: one handle, read downwards, every pixel decoded once.

The only reader of a scene's pixels for the network; nothing here knows a network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.gdal import gdal_env
from tileseg.grid import Grid, Run, Strip
from tileseg.pixels import DATA, MASKED, Pixels
from tileseg.scene import Band, Scene
from tileseg.source import Traffic
from tileseg.window import Window

__all__ = ["Reader"]

_NATIVE = ("uint8", "int8", "uint16", "int16", "float32")  # cross the bus as they are


class Reader:
    """One handle on a scene, read downwards; not to be shared between threads."""

    def __init__(
        self, scene: Scene, bands: tuple[Band, ...], grid: Grid, *, threads: int = 1
    ) -> None:
        """Open nothing yet.

        Args:
            scene: what to read.
            bands: which of its bands, in the network's order.
            grid: its grid.
            threads: GDAL's own decoding threads.
        """
        self._scene, self._bands, self._grid = scene, bands, grid
        self._threads = threads
        self._dtype = scene.dtype if scene.dtype in _NATIVE else "float32"
        self.decoded_pixels = 0
        self.traffic = Traffic()

    def strips(self, run: Run, *, ring: int = 0) -> Iterator[Strip]:
        """Yield the run's tiles, top down, each pixel read once.

        Outside the scene pixel i is read at its symmetric index (period twice the
        scene's side), for scenes of any size.

        Args:
            run: what to read.
            ring: rings of neighbouring tiles wanted beside the run's own.

        Raises:
            InputError: a block cannot be read.
        """
        grid, stride = self._grid, self._grid.stride
        tiles = grid.cores(run, ring=ring)
        columns = self._reach(tiles.col, tiles.col_stop, grid.width)
        rows = self._reach(tiles.row, tiles.row + 1, grid.height)
        left, right = self._aligned(columns, self._scene.block[1], grid.width)
        top, _ = self._aligned(rows, self._scene.block[0], grid.height)
        end = np.array([tiles.row_stop * grid.stride + grid.halo - 1])
        _, end_row = self._aligned(end, self._scene.block[0], grid.height)
        held = _Held.blank(top, len(self._bands), right - left, self._dtype)
        tile_row = tiles.row
        pixels_of = Pixels(threads=self._threads, traffic=self.traffic)
        with gdal_env(), pixels_of as source:
            while tile_row < tiles.row_stop:
                bottom = min(held.stop + self._scene.strip_rows, end_row)
                window = Window(held.stop, left, bottom - held.stop, right - left)
                held = held.extend(window.height)
                self._read(source, window, *held.last(window.height))
                ready = self._complete(bottom, tiles)
                if ready == tile_row:
                    continue
                rows = self._reach(tile_row, ready, grid.height)
                box = Window(tile_row, tiles.col, ready - tile_row, tiles.width)
                pixels, state = held.gather(rows, columns - left)
                masked = state == MASKED if self._scene.is_masked else None
                yield Strip(box, pixels, state == DATA, masked)
                # The last tiles of the scene are mirrored on up to stride + halo rows
                # above their cores.
                held = held.drop(ready * stride - stride - grid.halo)
                tile_row = ready

    def _reach(self, start: int, stop: int, size: int) -> NDArray[np.intp]:
        """Return the source rows (or columns) that tiles start..stop - 1 look at."""
        grid = self._grid
        first, last = start * grid.stride - grid.halo, stop * grid.stride + grid.halo
        index = np.arange(first, last) % (2 * size)
        return np.where(index < size, index, 2 * size - 1 - index)

    def _complete(self, bottom: int, tiles: Window) -> int:
        """Return the first tile row that needs source rows from `bottom` on."""
        if bottom == self._grid.height:
            return tiles.row_stop
        ready = (bottom - self._grid.halo) // self._grid.stride
        return max(tiles.row, min(tiles.row_stop, ready))

    @staticmethod
    def _aligned(index: NDArray[np.intp], block: int, size: int) -> tuple[int, int]:
        """Return the block borders round all of `index`, within the scene."""
        first, last = int(index.min()), int(index.max()) + 1
        return first // block * block, min(-(-last // block) * block, size)

    def _read(
        self,
        source: Pixels,
        window: Window,
        pixels: NDArray[Any],
        state: NDArray[np.uint8],
    ) -> None:
        """Fill pixels, (bands, height, width), and their states, (height, width)."""
        source.read(self._scene, self._bands, window, pixels, state)
        self.decoded_pixels += window.size


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Consecutive decoded rows of one run, from row `start` of the scene on."""

    start: int
    pixels: NDArray[Any]
    state: NDArray[np.uint8]

    @property
    def stop(self) -> int:
        return self.start + len(self.state)

    @classmethod
    def blank(cls, start: int, bands: int, width: int, dtype: str) -> "_Held":
        """Hold no rows, of this shape and type."""
        pixels = np.empty((bands, 0, width), dtype)
        return cls(start, pixels, np.empty((0, width), np.uint8))

    def extend(self, rows: int) -> "_Held":
        """Return the same rows and below them `rows` that are still to be filled."""
        bands, height, width = self.pixels.shape
        pixels = np.empty((bands, height + rows, width), self.pixels.dtype)
        state = np.empty((height + rows, width), np.uint8)
        pixels[:, :height], state[:height] = self.pixels, self.state
        return _Held(self.start, pixels, state)

    def last(self, rows: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return views on the last rows."""
        return self.pixels[:, -rows:], self.state[-rows:]

    def drop(self, row: int) -> "_Held":
        """Forget the rows above `row`."""
        above = max(0, row - self.start)
        return _Held(
            self.start + above,
            self.pixels[:, above:].copy(),
            self.state[above:].copy(),
        )

    def gather(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp]
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        at = np.ix_(rows - self.start, columns)
        return self.pixels[:, at[0], at[1]], self.state[at]
