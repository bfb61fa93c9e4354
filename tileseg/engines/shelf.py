"""A run's rows of labels -> its shards, each as soon as its last row is there."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg.base.memory import trim_heap
from tileseg.grid import Grid, Run, Shard
from tileseg.network.picture import LabelRows
from tileseg.window import Window

__all__ = ["cut"]


def cut(
    grid: Grid, run: Run, rows: Iterable[LabelRows]
) -> Iterator[tuple[Shard, LabelRows] | None]:
    """Gather a run's rows into shards, each as soon as its last row is there.

    None stands for rows that come before that.
    """
    todo = _Shelf(grid, run, run.shards.row)
    for item in rows:
        yield None
        first = 0
        while first < len(item.labels):
            first = todo.put(item, first)
            if todo.is_full:
                yield from todo.shards()
                todo = _Shelf(grid, run, todo.row + 1)
                trim_heap()


class _Shelf:
    """One row of a run's shards, filled from the top."""

    def __init__(self, grid: Grid, run: Run, row: int) -> None:
        """Begin without pixels."""
        self.row = row
        self._shards = [shard for shard in run if shard.row == row]
        self._windows = [
            grid.pixels(shard).relative_to(grid.pixels(run)) for shard in self._shards
        ]
        self._made: list[LabelRows] = []
        self._filled = 0

    @property
    def is_full(self) -> bool:
        """Whether every row is there."""
        return self._filled == self._windows[0].height

    def put(self, item: LabelRows, first: int) -> int:
        """Copy an item's rows from `first` on; return the first that has no place."""
        if not self._made:
            self._made = [_like(item, window) for window in self._windows]
        count = min(self._windows[0].height - self._filled, len(item.labels) - first)
        to, source = (slice(at, at + count) for at in (self._filled, first))
        for made, window in zip(self._made, self._windows, strict=True):
            for here, there in zip(_layers(made), _layers(item), strict=True):
                here[..., to, :] = there[..., source, window.col : window.col_stop]
        self._filled += count
        return first + count

    def shards(self) -> Iterator[tuple[Shard, LabelRows]]:
        """Yield the shards, from the left."""
        yield from zip(self._shards, self._made, strict=True)


def _layers(rows: LabelRows) -> list[NDArray[Any]]:
    """Return what there is for each pixel."""
    layers = rows.labels, *rows.layers.values(), rows.masked
    return [layer for layer in layers if layer is not None]


def _like(rows: LabelRows, window: Window) -> LabelRows:
    """Return as many layers, of another size, still to be filled."""
    shape = window.height, window.width
    return LabelRows(
        np.empty(shape, np.uint8),
        {
            name: np.empty((*layer.shape[:-2], *shape), np.uint8)
            for name, layer in rows.layers.items()
        },
        None if rows.masked is None else np.empty(shape, np.bool_),
    )
