"""Digests of what the network sees of a scene, shard by shard, as its strips pass.

Two scenes with the same digest there have the same labels there, if all else is equal.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from tileseg.grid import Grid, Run, Shard, Strip
from tileseg.window import Window

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Prints"]


class Prints:
    """Takes strips, and gives the digest of all that decides a shard's labels."""

    def __init__(self, grid: Grid, *, ring: int) -> None:
        """Hold nothing.

        Args:
            grid: the scene's.
            ring: rings of tiles round a shard that have a say in its labels.
        """
        self._grid, self._ring = grid, ring
        self._held: dict[Shard, _Hash] = {}

    def add(self, run: Run, strip: Strip) -> None:
        """Take what a strip of a run has of its shards.

        Whatever the strips' heights are: a row of tiles at a time is taken, with the
        halo above the first and below the last one, so that no pixel is taken twice.
        """
        for row in range(strip.tiles.row, strip.tiles.row_stop):
            for shard in run:
                tiles = self._tiles(shard)
                if row == tiles.row:  # anew too, where reading it failed half-way
                    self._held[shard] = hashlib.sha256()
                if tiles.row <= row < tiles.row_stop:
                    for part in self._parts(strip, tiles, row):
                        self._held[shard].update(part)

    def take(self, shard: Shard) -> str:
        """Return the digest, and forget it."""
        return self._held.pop(shard).hexdigest()[:32]

    def _tiles(self, shard: Shard) -> Window:
        return self._grid.cores(Run(Window(*shard, 1, 1)), ring=self._ring)

    def _parts(self, strip: Strip, tiles: Window, row: int) -> list[bytes]:
        """Return what a shard's tiles see in a row: validity, and what is valid."""
        grid = self._grid
        window = Window(row, tiles.col, 1, tiles.width).scale(grid.stride)
        above = grid.halo if row == tiles.row else 0
        below = grid.halo if row == tiles.row_stop - 1 else 0
        window = Window(
            window.row - above,
            window.col - grid.halo,
            window.height + above + below,
            window.width + 2 * grid.halo,
        )
        at = window.relative_to(strip.tiles.scale(grid.stride).pad(grid.halo)).slices
        valid = strip.valid[at]
        pixels = np.where(valid, strip.pixels[:, *at], 0)
        parts = [np.packbits(valid), pixels]
        if strip.masked is not None:
            parts.append(np.packbits(strip.masked[at]))
        return [part.tobytes() for part in parts]
