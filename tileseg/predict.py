"""Strips of pixels -> rows of labels and confidence, on one device.

Knows tiles and batches; knows nothing of files. Shape letters: N tiles, B bands,
T tile side, K logits, H rows, W columns, C tile columns.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tileseg.blend import Blend
from tileseg.bus import Bus, Landing
from tileseg.errors import ModelError, PreemptedError, TileError
from tileseg.grid import Grid, Run, Strip
from tileseg.lanes import Lanes, Threads
from tileseg.model import Network, device_error
from tileseg.picture import LabelRows, Part, Picture, RowsUnderWay

__all__ = ["Predictor", "Scaling"]

_ALONE = Threads()


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
        threads: Threads = _ALONE,
    ) -> None:
        """Forward `batch` tiles at a time, always, until `stop` is set."""
        self._stop = stop or threading.Event()
        self._network, self._grid, self._blend = network, grid, blend
        self._device = network.device.name
        self._batch = batch
        self._lanes = Lanes(threads)
        with _device_errors(self._device):
            self.bus = Bus(self._device)
            gain = torch.tensor(scaling.gain, device=self._device)
            bias = torch.tensor(scaling.bias, device=self._device)
        self._gain, self._bias = gain.view(-1, 1, 1), bias.view(-1, 1, 1)
        self._rows = torch.empty(0), torch.empty(0)
        self.tiles = 0
        self.tiles_skipped = 0
        self.seconds = 0.0

    def rows(
        self, run: Run, strips: Iterable[Strip], *, confidence: bool = False
    ) -> Iterator[LabelRows]:
        """Yield the run's rows from top to bottom, each exactly once.

        Args:
            run: what the strips cover.
            strips: all of the run, with the blend's ring. One is done with when the
                next is asked for: its memory may be used again.
            confidence: whether to compute it.

        Raises:
            TileError: the network gave NaN or Inf for a tile.
            DeviceMemoryError: the device's memory is too small for the batch.
            DeviceFaultError: the device failed.
            ModelError: the network failed.
            PreemptedError: `stop` was set.
        """
        with _device_errors(self._device):
            picture = Picture(
                self._network,
                self._grid,
                self._blend,
                run,
                self.bus,
                confidence=confidence,
            )
            coming: deque[_Arrival] = deque()
            for arrival in self._computed(run, strips, picture):
                coming.append(arrival)
                while len(coming) > self.bus.ahead:
                    yield from self._land(coming.popleft())
                if self._stop.is_set():
                    msg = "stopped"
                    raise PreemptedError(msg)
            while coming:
                yield from self._land(coming.popleft())
            last = picture.finish(picture.stop)
            yield from (rows.land() for rows in last)

    def _computed(
        self, run: Run, strips: Iterable[Strip], picture: Picture
    ) -> Iterator["_Arrival"]:
        """Yield what becomes of each step, in their order."""
        ahead: deque[tuple[_Step, Future[_Answer] | None]] = deque()
        try:
            for step in self._steps(run, strips, picture):
                ahead.append((step, self._forward(step, picture)))
                while ahead and (
                    _is_done(ahead[0][1]) or len(ahead) > self._lanes.ahead
                ):
                    yield self._add(*ahead.popleft(), picture)
            while ahead:
                yield self._add(*ahead.popleft(), picture)
        finally:
            futures = [future for _, future in ahead if future]
            for future in futures:
                future.cancel()
            wait(futures)  # else the network would be in use after the run's end

    def _forward(self, step: "_Step", picture: Picture) -> "Future[_Answer] | None":
        """Give a step's tiles, if any, to the network."""
        if not step.count:
            return None
        step.batch[step.count :] = 0
        return self._lanes.submit(self._answer, step, picture)

    @torch.inference_mode()
    def _answer(self, step: "_Step", picture: Picture) -> "_Answer":
        """Return what the network makes of a batch; needs no order."""
        start = perf_counter()
        with _network_errors(self._device):
            logits = self._network(step.batch.permute(0, 3, 1, 2))[: step.count]
        # NaN is greater and smaller than everything, Inf than what is finite.
        ends = torch.stack((logits.amax(dim=(1, 2, 3)), logits.amin(dim=(1, 2, 3))))
        part = picture.prepare(logits)
        return _Answer(ends, part, perf_counter() - start)

    def _add(
        self, step: "_Step", future: "Future[_Answer] | None", picture: Picture
    ) -> "_Arrival":
        """Add a step's tiles to the picture, whose finished rows go to the host."""
        if future is None:
            return _Arrival(step, None, picture.finish(step.done))
        answer = future.result()
        finished, first = [], 0
        for span in step.spans:
            finished += picture.finish(span.row)
            tiles = slice(first, first + span.count)
            part = tuple(layer[..., tiles, :] for layer in answer.part)
            picture.add(span.column, part)
            first += span.count
        self.tiles += step.count
        self.seconds += answer.seconds / max(1, self._lanes.count)
        return _Arrival(step, self.bus.fetch(answer.ends), finished)

    def _land(self, arrival: "_Arrival") -> Iterator[LabelRows]:
        """Yield the finished rows, if all that is in them is finite."""
        start = perf_counter()
        if arrival.ends is not None:
            is_finite = np.isfinite(arrival.ends.wait()).all(axis=0)
            if not is_finite.all():
                raise _refused(arrival.step, int(np.argmin(is_finite)))
        landed = [rows.land() for rows in arrival.rows]
        self.seconds += perf_counter() - start
        yield from landed

    def _steps(
        self, run: Run, strips: Iterable[Strip], picture: Picture
    ) -> Iterator["_Step"]:
        """Yield batches, full ones but for the last and where tiles are rare.

        After each strip it is told how far down nothing is waiting: rows without data
        are finished while the scene is read, and no tile waits longer than one strip.
        """
        step = self._blank()
        below, above = -1, None  # the tile row that would go on with `above`
        for strip in strips:
            picture.see(strip)
            wanted = self._wanted(run, strip)
            if wanted.any():
                held = above if below == strip.tiles.row else None
                above, invalid = self._bring(strip, held)
                below = strip.tiles.row_stop
            for row in np.flatnonzero(wanted.any(axis=1)).tolist():
                tiles = self._row(above, invalid, row)
                for start, stop in _spans(wanted[row]):
                    at = start
                    while at < stop:
                        span = _Span(
                            strip.tiles.row + row,
                            strip.tiles.col + at,
                            min(stop - at, self._batch - step.count),
                        )
                        step.put(span, tiles[at : at + span.count])
                        at += span.count
                        if step.count == self._batch:
                            yield step
                            step = self._blank()
            if step.count and step.spans[0].row < strip.tiles.row:
                yield step
                step = self._blank()
            self.bus.settle()
            done = step.spans[0].row if step.count else strip.tiles.row_stop
            yield _Step(step.batch[:0], done=done)
        if step.count:
            yield step

    def _blank(self) -> "_Step":
        """Return a step without tiles."""
        tile, bands = self._grid.tile, len(self._gain)
        dtype = self._network.device.dtype
        shape = self._batch, tile, tile, bands
        return _Step(torch.empty(shape, dtype=dtype, device=self._device))

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
        count = np.zeros((tiles.height, strip.wanted.shape[1] + 1), np.int32)
        target = strip.wanted
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
        """Put a strip on the device, below the one that is `above` it, if that is known.

        Returns its pixels, and where they are invalid; None: nowhere.
        """
        pixels = self.bus.bring(strip.pixels, above, 2 * self._grid.halo)
        if strip.valid.all():
            return pixels, None
        valid = self.bus.bring(strip.valid[None], None, 0)
        return pixels, ~valid[0]

    def _row(self, pixels: Tensor, invalid: Tensor | None, row: int) -> Tensor:
        """Return one row of scaled tiles, (C, T, T, B), 0 where invalid.

        What was returned for another row is lost.
        """
        tile, stride = self._grid.tile, self._grid.stride
        rows = slice(row * stride, row * stride + tile)
        stored_BHW = pixels[:, rows]
        exact_BHW, scaled_HWB = self._buffers(stored_BHW.shape)
        exact_BHW.copy_(stored_BHW)
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
            exact = torch.empty(shape, device=self._device)
            dtype = self._network.device.dtype
            scaled = torch.empty(
                height, width, bands, dtype=dtype, device=self._device
            )
            self._rows = exact, scaled
        return self._rows


def _is_done(future: "Future[Any] | None") -> bool:
    return future is None or future.done()


def _spans(wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each stretch of True."""
    borders = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    yield from zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True)


def _refused(step: "_Step", at: int) -> TileError:
    """Name the tile whose logits are not finite."""
    first = 0
    for span in step.spans:
        if at < first + span.count:
            break
        first += span.count
    scaled = step.batch[at].float()
    msg = (
        f"the network gave NaN or Inf for tile (row {span.row}, column "
        f"{span.column + at - first}), whose scaled input lies in "
        f"{float(scaled.min()):.4g} to {float(scaled.max()):.4g}: check the weights, "
        "scale and precision"
    )
    return TileError(msg)


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


@dataclass(frozen=True, slots=True)
class _Span:
    """Tiles side by side."""

    row: int
    """Their tile row of the scene."""
    column: int
    """The first one's tile column."""
    count: int
    """How many."""


class _Step:
    """Tiles to forward, if any, and how far down all tiles are then forwarded."""

    def __init__(self, batch_NTTB: Tensor, done: int = 0) -> None:
        """Begin without tiles.

        Args:
            batch_NTTB: to be filled with scaled tiles.
            done: no tile above this tile row will come any more; 0 says nothing.
        """
        self.batch, self.done = batch_NTTB, done
        self.spans: list[_Span] = []
        self.count = 0

    def put(self, span: _Span, tiles: Tensor) -> None:
        """Copy the span's tiles into the batch."""
        self.batch[self.count : self.count + span.count] = tiles
        self.spans.append(span)
        self.count += span.count


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What the network makes of a step, on the device."""

    ends: Tensor
    """(2, N): each tile's greatest and least logit."""
    part: Part
    """What goes into the picture."""
    seconds: float
    """What that took."""


@dataclass(frozen=True, slots=True, eq=False)
class _Arrival:
    """What becomes of a step, on its way to the host."""

    step: _Step
    """Which one."""
    ends: Landing | None
    """See `_Answer`; None for a step without tiles."""
    rows: list[RowsUnderWay]
    """Those it finished."""
