"""A scene's shape cut into runs, shards and tiles: one grid, anchored at pixel (0, 0).

Shards and runs are rectangles of tile cores, so no result can depend on how many
there are, who computes them or in which order.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tileseg.window import Window

__all__ = ["Grid", "Run", "Shard", "Strip", "shard_size"]

_BLOCK, _SMALL_BLOCK = 512, 256
_MIN_SHARD, _MAX_SHARD = 1536, 4096


class Shard(NamedTuple):
    """The unit of recovery, by its place in the grid of shards."""

    row: int
    """Shard row, from 0."""
    col: int
    """Shard column, from 0."""

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.row}_{self.col}"


@dataclass(frozen=True, slots=True)
class Run:
    """The unit of reading: shard rows of one column band, read downwards."""

    shards: Window
    """The rectangle it covers, counted in shards."""

    def __iter__(self) -> Iterator[Shard]:
        """Iterate over its shards in row-major order."""
        box = self.shards
        for row in range(box.row, box.row_stop):
            for col in range(box.col, box.col_stop):
                yield Shard(row, col)


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """What one read brings to the network: whole tiles of one run."""

    tiles: Window
    """Which tiles, counted in cores; consecutive strips follow downwards."""
    pixels: NDArray[Any]
    """(bands, rows * stride + 2 halo, columns * stride + 2 halo), as stored."""
    valid: NDArray[np.bool_]
    """Same rows and columns; True where every band is a measurement."""
    masked: NDArray[np.bool_] | None = None
    """True where it would be but for a mask from outside; None if there is none."""
    inside: NDArray[np.bool_] | None = None
    """Same rows and columns; True where a label is asked for; None: everywhere."""

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """True where the network's answer is of use."""
        return self.valid if self.inside is None else self.valid & self.inside


def shard_size(tile: int, halo: int) -> tuple[int, int]:
    """Return (shard, block), both in pixels, for a tile and its halo.

    The shard is the least multiple of the stride and the block that is >= 1536; the
    block is 512, or 256 where the shard would exceed 4096.

    Raises:
        ValueError: neither block gives a shard of at most 4096 pixels.
    """
    stride = tile - 2 * halo
    for block in (_BLOCK, _SMALL_BLOCK):
        unit = lcm(stride, block)
        size = unit * -(-_MIN_SHARD // unit)
        if size <= _MAX_SHARD:
            return size, block
    msg = (
        f"tile {tile} with halo {halo} (stride {stride}) needs shards of {size} "
        f"pixels, at most {_MAX_SHARD} are supported: choose another halo"
    )
    raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The one tile grid of a scene, and the part of it that is asked for."""

    height: int
    """Scene rows in pixels."""
    width: int
    """Scene columns in pixels."""
    tile: int
    """Side of what the network sees, in pixels."""
    halo: int
    """Margin round a core, in pixels; at most a quarter of the tile."""
    shard: int
    """Side of a shard in pixels, a multiple of the stride."""
    part: Window | None = None
    """The pixels that are asked for; None for all of the scene."""

    def __post_init__(self) -> None:
        """Refuse a geometry that cannot tile a scene."""
        if self.height < 1 or self.width < 1:
            msg = f"scene must have pixels, got {self.height} x {self.width}"
            raise ValueError(msg)
        if self.tile < 1 or not 0 <= 4 * self.halo <= self.tile:
            msg = f"halo must be 0 to tile/4, got tile {self.tile}, halo {self.halo}"
            raise ValueError(msg)
        if self.shard < 1 or self.shard % self.stride:
            msg = f"shard must be a multiple of {self.stride}, got {self.shard}"
            raise ValueError(msg)
        if not self.area.size or self.area != self.area.intersect(self.scene):
            msg = f"part must be pixels of the scene, got {self.part}"
            raise ValueError(msg)

    @property
    def stride(self) -> int:
        """Side of a core in pixels."""
        return self.tile - 2 * self.halo

    @property
    def scene(self) -> Window:
        """The whole scene in pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def area(self) -> Window:
        """The pixels that are asked for; the grid's origin is still the scene's."""
        return self.part or self.scene

    @property
    def shape(self) -> Window:
        """The shards that meet the area, as a rectangle counted in shards."""
        return self.area.coarsen(self.shard)

    @property
    def tiles(self) -> Window:
        """The tiles whose core meets the area, as a rectangle counted in cores."""
        return self.area.coarsen(self.stride)

    def pixels(self, part: Shard | Run) -> Window:
        """Return the pixels of a shard or run, clipped to the area.

        Every pixel of the area lies in exactly one shard.
        """
        box = part.shards if isinstance(part, Run) else Window(*part, 1, 1)
        return box.scale(self.shard).intersect(self.area)

    def cores(self, run: Run, *, ring: int = 0) -> Window:
        """Return a run's tiles, counted in cores, with `ring` neighbours around.

        The neighbours may lie outside the area, but not outside the scene: what a
        pixel becomes does not depend on how much is asked for.
        """
        box = run.shards.scale(self.shard // self.stride).intersect(self.tiles)
        return box.pad(ring).intersect(self.scene.coarsen(self.stride))

    def runs(self, todo: Collection[Shard], *, band: int, rows: int) -> tuple[Run, ...]:
        """Cut `todo` into runs of at most `rows` x `band` shards.

        Every shard of `todo` lies in exactly one run and no other shard in any; runs
        follow each other down each column band.
        """
        wanted = set(todo)
        return tuple(
            run
            for left in range(self.shape.col, self.shape.col_stop, band)
            for run in _stack(_spans(wanted, self.shape, left, band), rows)
        )


def _spans(wanted: set[Shard], shape: Window, left: int, band: int) -> list[Window]:
    """Return the one-row rectangles of wanted shards in one column band."""
    columns = range(left, min(left + band, shape.col_stop))
    spans = []
    for row in range(shape.row, shape.row_stop):
        for is_wanted, group in groupby(columns, lambda c: Shard(row, c) in wanted):  # noqa: B023  (used before the next row)
            cells = list(group)
            if is_wanted:
                spans.append(Window(row, cells[0], 1, len(cells)))
    return spans


def _stack(spans: list[Window], rows: int) -> Iterator[Run]:
    """Join rectangles of equal columns on consecutive rows, at most `rows` high."""
    for (_, _), group in groupby(
        sorted(spans, key=lambda s: (s.col, s.width, s.row)),
        lambda s: (s.col, s.width),
    ):
        held: Window | None = None
        for span in group:
            if held and span.row == held.row_stop and held.height < rows:
                held = Window(held.row, held.col, held.height + 1, held.width)
                continue
            if held:
                yield Run(held)
            held = span
        if held:
            yield Run(held)
