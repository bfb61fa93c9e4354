"""Strips of pixels -> batches of scaled tiles, on one device.

Knows what a tile looks at; knows nothing of files or networks. Shape letters: N tiles,
B bands or channels, T tile side, H rows, W columns, C tile columns.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tileseg.grid import Grid, Run, Strip
from tileseg.network.blend import Blend
from tileseg.network.bus import Bus

__all__ = ["Batches", "Scaling", "Step"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Stored values -> what the network was trained on, per channel of a tile."""

    gain: tuple[float, ...]
    """Multiplies the stored value."""
    bias: tuple[float, ...]
    """Is added."""
    bands: tuple[int, ...] = ()
    """Which of the strips' bands each is of; empty: all of them in their order."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tiles side by side."""

    row: int
    """Their tile row of the scene."""
    column: int
    """The first one's tile column."""
    count: int
    """How many."""


class Step:
    """Tiles to forward, if any, and how far down all tiles are then forwarded."""

    def __init__(self, batch_NTTB: Tensor, done: int = 0) -> None:
        """Begin without tiles.

        Args:
            batch_NTTB: to be filled with scaled tiles.
            done: no tile above this tile row will come any more; 0 says nothing.
        """
        self.batch, self.done = batch_NTTB, done
        self.spans: list[Span] = []
        self.count = 0

    def put(self, span: Span, tiles: Tensor) -> None:
        """Copy the span's tiles into the batch."""
        self.batch[self.count : self.count + span.count] = tiles
        self.spans.append(span)
        self.count += span.count


class Batches:
    """What a network is given, batch after batch, of runs of one scene."""

    def __init__(  # noqa: PLR0913  (three values, and how to go about it)
        self,
        grid: Grid,
        blend: Blend,
        scaling: Scaling,
        *,
        size: int,
        dtype: torch.dtype,
        bus: Bus,
    ) -> None:
        """Make batches of `size` tiles on the device that the bus goes to."""
        self._grid, self._blend, self._bus = grid, blend, bus
        self._size, self._dtype = size, dtype
        gain = torch.tensor(scaling.gain, device=bus.device)
        bias = torch.tensor(scaling.bias, device=bus.device)
        self._gain, self._bias = gain.view(-1, 1, 1), bias.view(-1, 1, 1)
        self._bands = list(scaling.bands or range(len(gain)))
        self._rows = torch.empty(0), torch.empty(0)
        self.tiles_skipped = 0

    def of(self, run: Run, strips: Iterable[Strip]) -> Iterator[Step]:
        """Yield batches, full ones but for the last and where tiles are rare.

        After each strip it is told how far down nothing is waiting: rows without data
        are finished while the scene is read, and no tile waits longer than one strip.
        """
        step = self._blank()
        pixels, below = None, -1  # of a strip, and the tile row that goes on below it
        for strip in strips:
            wanted = self._wanted(run, strip)
            if wanted.any():
                above = pixels if below == strip.tiles.row else None
                pixels, invalid = self._bring(strip, above)
                below = strip.tiles.row_stop
                for row in np.flatnonzero(wanted.any(axis=1)).tolist():
                    place = Span(strip.tiles.row + row, strip.tiles.col, 0)
                    tiles = self._row(pixels, invalid, row)
                    step = yield from self._fill(step, place, tiles, wanted[row])
            if step.count and step.spans[0].row < strip.tiles.row:
                yield step
                step = self._blank()
            self._bus.settle()
            done = step.spans[0].row if step.count else strip.tiles.row_stop
            yield Step(step.batch[:0], done=done)
        if step.count:
            yield step

    def _fill(
        self, step: Step, place: Span, tiles: Tensor, wanted: NDArray[np.bool_]
    ) -> Generator[Step, None, Step]:
        """Put a row's wanted tiles into batches; yield those that are full.

        Returns the one that is not, which is begun with `step`.
        """
        for at, stop in _stretches(wanted):
            while at < stop:
                count = min(stop - at, self._size - step.count)
                span = Span(place.row, place.column + at, count)
                step.put(span, tiles[at : at + count])
                at += count  # noqa: PLW2901  (a stretch may fill several batches)
                if step.count == self._size:
                    yield step
                    step = self._blank()
        return step

    def _blank(self) -> Step:
        """Return a step without tiles."""
        shape = self._size, self._grid.tile, self._grid.tile, len(self._gain)
        return Step(torch.empty(shape, dtype=self._dtype, device=self._bus.device))

    def _wanted(self, run: Run, strip: Strip) -> NDArray[np.bool_]:
        """Return True, (tile rows, tile columns), for tiles that some pixel needs.

        A tile is needed where a wanted pixel of the run lies at a weight > 0.
        """
        grid, tiles = self._grid, strip.tiles
        seen = tiles.scale(grid.stride).pad(grid.halo)
        inner = grid.pixels(run).intersect(seen).relative_to(seen)
        support = self._blend.support()
        reach = [
            np.arange(count) * grid.stride + grid.halo - support
            for count in (tiles.height, tiles.width)
        ]
        side = grid.stride + 2 * support
        first, last = (
            np.clip(reach[0] + more, inner.row, inner.row_stop) for more in (0, side)
        )
        left, right = (
            np.clip(reach[1] + more, inner.col, inner.col_stop) for more in (0, side)
        )
        target = strip.wanted
        count = np.zeros((tiles.height, target.shape[1] + 1), np.int32)
        for row, (top, bottom) in enumerate(zip(first, last, strict=True)):
            any_row = np.bitwise_or.reduce(target[top:bottom], axis=0)
            np.cumsum(any_row, out=count[row, 1:])
        wanted: NDArray[np.bool_] = count[:, right] > count[:, left]
        own = grid.cores(run).intersect(tiles).relative_to(tiles).slices
        self.tiles_skipped += int((~wanted[own]).sum())
        return wanted

    def _bring(
        self, strip: Strip, above: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put a strip on the device, below what is there, if that is known.

        Returns its pixels, and where they are invalid; None: nowhere.
        """
        pixels = self._bus.bring(strip.pixels, above, 2 * self._grid.halo)
        if strip.valid.all():
            return pixels, None
        valid = self._bus.bring(strip.valid[None], None, 0)
        return pixels, ~valid[0]

    def _row(self, pixels: Tensor, invalid: Tensor | None, row: int) -> Tensor:
        """Return one row of scaled tiles, (C, T, T, B), 0 where invalid.

        What was returned for another row is lost.
        """
        tile, stride = self._grid.tile, self._grid.stride
        rows = slice(row * stride, row * stride + tile)
        stored_BHW = pixels[:, rows]
        shape = torch.Size((len(self._bands), *stored_BHW.shape[1:]))
        exact_BHW, scaled_HWB = self._buffers(shape)
        for exact_HW, band in zip(exact_BHW, self._bands, strict=True):
            exact_HW.copy_(stored_BHW[band])
        exact_BHW.mul_(self._gain).add_(self._bias)
        if invalid is not None:
            exact_BHW.masked_fill_(invalid[rows], 0)
        scaled_HWB.copy_(exact_BHW.to(scaled_HWB.dtype).permute(1, 2, 0))
        return scaled_HWB.unfold(1, tile, stride).permute(1, 0, 3, 2)

    def _buffers(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return memory for a row of tiles, (B, H, W) in fp32, (H, W, B) as computed.

        The same as before, for the same shape: fresh memory costs more than arithmetic.
        """
        if self._rows[0].shape != shape:
            bands, height, width = shape
            exact = torch.empty(shape, device=self._bus.device)
            device, dtype = self._bus.device, self._dtype
            scaled = torch.empty(height, width, bands, dtype=dtype, device=device)
            self._rows = exact, scaled
        return self._rows


def _stretches(wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each stretch of True."""
    borders = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    yield from zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True)
