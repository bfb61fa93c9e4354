"""Strips of pixels -> rows of labels and confidence, on one device.

Knows tiles and batches; knows nothing of files. Shape letters: N tiles, B bands,
T tile side, K logits, H rows, W columns.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from tileseg.blend import Blend
from tileseg.errors import ModelError, PreemptedError, TileError
from tileseg.grid import Grid, Run, Strip
from tileseg.model import Network, device_error
from tileseg.picture import LabelRows, Picture

__all__ = ["Predictor", "Scaling"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Stored values -> what the network was trained on, per band."""

    gain: tuple[float, ...]
    """Multiplies the stored value."""
    bias: tuple[float, ...]
    """Is added."""


class Predictor:
    """A network applied to runs of one scene."""

    def __init__(  # noqa: PLR0913  (four values, and how to go about it)
        self,
        network: Network,
        grid: Grid,
        blend: Blend,
        scaling: Scaling,
        *,
        batch: int,
        stop: threading.Event | None = None,
    ) -> None:
        """Forward `batch` tiles at a time, always, until `stop` is set."""
        self._stop = stop or threading.Event()
        self._network, self._grid, self._blend = network, grid, blend
        self._device = network.device.name
        self._batch = batch
        with _device_errors(self._device):
            gain = torch.tensor(scaling.gain, device=self._device)
            bias = torch.tensor(scaling.bias, device=self._device)
        self._gain, self._bias = gain.view(-1, 1, 1, 1), bias.view(-1, 1, 1, 1)
        self.tiles = 0
        self.tiles_skipped = 0
        self.seconds = 0.0

    def rows(
        self, run: Run, strips: Iterable[Strip], *, confidence: bool = False
    ) -> Iterator[LabelRows]:
        """Yield the run's rows from top to bottom, each exactly once.

        Args:
            run: what the strips cover.
            strips: all of the run, with the blend's ring.
            confidence: whether to compute it.

        Raises:
            TileError: the network gave NaN or Inf for a tile.
            DeviceMemoryError: the device's memory is too small for the batch.
            DeviceFaultError: the device failed.
            ModelError: the network failed.
            PreemptedError: `stop` was set.
        """
        picture = Picture(
            self._network, self._grid, self._blend, run, confidence=confidence
        )
        steps = self._steps(run, strips, picture)
        while True:
            with _device_errors(self._device):
                step = next(steps, None)
                if step is None:
                    break
                start = perf_counter()
                finished = self._forward(step, picture) if len(step.index) else []
                finished += picture.finish(step.done)
                self.seconds += perf_counter() - start
            yield from finished
            if self._stop.is_set():
                msg = "stopped"
                raise PreemptedError(msg)
        with _device_errors(self._device):
            finished = picture.finish(picture.stop)
        yield from finished

    def _forward(self, step: "_Step", picture: Picture) -> list[LabelRows]:
        """Add a batch's tiles to the picture; return the rows finished on the way."""
        logits = self._logits(step.index, step.batch)
        rows, counts = step.index[:, 0].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        columns = step.index[:, 1].to(self._device).split(sizes)
        finished = []
        for row, *part in zip(rows.tolist(), columns, logits.split(sizes), strict=True):
            finished += picture.finish(row)
            picture.add(*part)
        self.tiles += len(step.index)
        return finished

    def _steps(
        self, run: Run, strips: Iterable[Strip], picture: Picture
    ) -> Iterator["_Step"]:
        """Yield batches, full ones but for the last and where tiles are rare.

        After each strip it is told how far down nothing is waiting: rows without data
        are finished while the scene is read, and no tile waits longer than one strip.
        """
        index = torch.empty(0, 2, dtype=torch.long)
        shape = len(self._gain), self._grid.tile, self._grid.tile
        batch = torch.zeros(self._batch, *shape, device=self._device)
        for strip in strips:
            picture.see(strip)
            source = self._tiles(strip)
            wanted = self._wanted(run, strip)
            top = strip.tiles.row
            while len(wanted) or (len(index) and index[0, 0] < top):
                room = self._batch - len(index)
                part, wanted = wanted[:room], wanted[room:]
                batch[len(index) : len(index) + len(part)] = self._gather(source, part)
                origin = torch.tensor((top, strip.tiles.col))
                index = torch.cat((index, part + origin))
                if len(index) == self._batch or index[0, 0] < top:
                    batch[len(index) :] = 0
                    yield _Step(index, batch, done=0)
                    index = index[:0]
            done = int(index[0, 0]) if len(index) else strip.tiles.row_stop
            yield _Step(index[:0], batch, done=done)
        if len(index):
            batch[len(index) :] = 0
            yield _Step(index, batch, done=0)

    def _wanted(self, run: Run, strip: Strip) -> Tensor:
        """Return (row, column) within the strip of tiles that some pixel needs.

        A tile is needed where a wanted pixel of the run lies at a weight > 0.
        """
        grid, tiles = self._grid, strip.tiles
        seen = tiles.scale(grid.stride).pad(grid.halo)
        rows, columns = grid.pixels(run).intersect(seen).relative_to(seen).slices
        target = torch.zeros(strip.valid.shape, dtype=torch.bool)
        target[rows, columns] = torch.from_numpy(strip.wanted[rows, columns])
        support = self._blend.support()
        inner = slice(grid.halo - support, None)
        side = grid.stride + 2 * support
        any_column = target[inner, inner].unfold(1, side, grid.stride).any(dim=-1)
        any_cell = any_column.unfold(0, side, grid.stride).any(dim=-1)
        wanted = any_cell.nonzero()
        own = grid.cores(run).intersect(tiles).relative_to(tiles).slices
        self.tiles_skipped += int((~any_cell[own]).sum())
        return wanted

    def _tiles(self, strip: Strip) -> tuple[Tensor, Tensor]:
        """Put a strip on the device; view it as tiles.

        Returns pixels, (B, rows, columns, T, T), and validity, (rows, columns, T, T).
        """
        tile, stride = self._grid.tile, self._grid.stride
        pixels = torch.from_numpy(strip.pixels).to(self._device)
        valid = torch.from_numpy(strip.valid).to(self._device)
        return (
            pixels.unfold(1, tile, stride).unfold(2, tile, stride),
            valid.unfold(0, tile, stride).unfold(1, tile, stride),
        )

    def _gather(self, source: tuple[Tensor, Tensor], at: Tensor) -> Tensor:
        """Return scaled tiles, (N, B, T, T) in fp32, 0 where invalid."""
        pixels, valid = source
        rows, columns = at.to(self._device).unbind(dim=1)
        # torch indexes no uint16 on every device, so its bits go as int16.
        bits = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
        tiles_BNTT = bits[:, rows, columns].view(pixels.dtype).float()  # a copy
        tiles_BNTT.mul_(self._gain).add_(self._bias)
        return tiles_BNTT.masked_fill_(~valid[rows, columns], 0).transpose(0, 1)

    def _logits(self, index: Tensor, batch: Tensor) -> Tensor:
        """Return the finite logits, (N, K, T, T), of the real tiles of a batch."""
        with _network_errors(self._device):
            logits = self._network(batch)[: len(index)]
        # One number to look at: it is not finite if one of them is not.
        if not torch.isfinite(logits.sum()):
            self._refuse(index, batch, logits)
        return logits

    def _refuse(self, index: Tensor, batch: Tensor, logits: Tensor) -> None:
        """Name the tile whose logits are not finite, if there is one."""
        is_bad = ~torch.isfinite(logits).flatten(1).all(dim=1)
        for at in is_bad.nonzero().flatten().tolist():
            row, column = index[at].tolist()
            msg = (
                f"the network gave NaN or Inf for tile (row {row}, column {column}), "
                f"whose scaled input lies in {float(batch[at].min()):.4g} to "
                f"{float(batch[at].max()):.4g}: check the weights, scale and precision"
            )
            raise TileError(msg)


@contextmanager
def _device_errors(device: str) -> Iterator[None]:
    """Say what a failing device means; it may surface at any touch of it."""
    try:
        yield
    except RuntimeError as err:
        ours = device_error(device, err)
        if ours is None:
            raise  # a bug
        raise ours from err


@contextmanager
def _network_errors(device: str) -> Iterator[None]:
    """Lay a failing forward at the network's door, unless it is the device's fault."""
    try:
        yield
    except RuntimeError as err:
        msg = f"{device}: the network failed: {err}"
        raise device_error(device, err) or ModelError(msg) from err


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Tiles to forward, if any, and how far down all tiles are then forwarded."""

    index: Tensor
    """(N, 2): tile row and column, row-major; N is at most the batch."""
    batch: Tensor
    """(batch, B, T, T), scaled; 0 from N on."""
    done: int
    """No tile above this tile row will come any more; 0 says nothing."""
