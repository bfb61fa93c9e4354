"""Strips of pixels -> rows of labels and how certain they are, on one device.

Knows when what is computed, and in which order it is put together; knows nothing of
files.
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
from torch import Tensor

from tileseg.errors import ModelError, PreemptedError, TileError, last_line
from tileseg.grid import Grid, Run, Strip
from tileseg.network.batches import Batches, Scaling, Step
from tileseg.network.blend import Blend
from tileseg.network.bus import Bus, Landing
from tileseg.network.device import device_error, device_errors
from tileseg.network.lanes import ALONE, Lanes, Threads
from tileseg.network.model import Network
from tileseg.network.picture import LabelRows, Part, Picture, RowsUnderWay

__all__ = ["Predictor", "Scaling"]


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
        threads: Threads = ALONE,
    ) -> None:
        """Forward `batch` tiles at a time, always, until `stop` is set."""
        self._stop = stop or threading.Event()
        self._network, self._grid, self._blend = network, grid, blend
        self._device = network.device.name
        self._lanes = Lanes(threads)
        with device_errors(self._device):
            self.bus = Bus(self._device)
            self._batches = Batches(
                grid,
                blend,
                scaling,
                size=batch,
                dtype=network.device.dtype,
                bus=self.bus,
            )
        self.tiles = 0
        self.seconds = 0.0

    def close(self) -> None:
        """Let its threads go; of no more use then."""
        self._lanes.close()

    @property
    def tiles_skipped(self) -> int:
        """Tiles that no pixel needed, so far."""
        return self._batches.tiles_skipped

    def rows(
        self, run: Run, strips: Iterable[Strip], *, layers: tuple[str, ...] = ()
    ) -> Iterator[LabelRows]:
        """Yield the run's rows from top to bottom, each exactly once.

        Args:
            run: what the strips cover.
            strips: all of the run, with the blend's ring. One is done with when the
                next is asked for: its memory may be used again.
            layers: what to compute beside the labels, of `LAYERS`.

        Raises:
            TileError: the network gave NaN or Inf for a tile.
            DeviceMemoryError: the device's memory is too small for the batch.
            DeviceFaultError: the device failed.
            ModelError: the network failed.
            PreemptedError: `stop` was set.
        """
        with device_errors(self._device):
            picture = Picture(
                self._network,
                self._grid,
                self._blend,
                run,
                self.bus,
                layers=layers,
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
        ahead: deque[tuple[Step, Future[_Answer] | None]] = deque()
        try:
            for step in self._batches.of(run, _shown(strips, picture)):
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

    def _forward(self, step: Step, picture: Picture) -> "Future[_Answer] | None":
        """Give a step's tiles, if any, to the network."""
        if not step.count:
            return None
        step.batch[step.count :] = 0
        return self._lanes.submit(self._answer, step, picture)

    @torch.inference_mode()
    def _answer(self, step: Step, picture: Picture) -> "_Answer":
        """Return what the network makes of a batch; needs no order."""
        start = perf_counter()
        with _network_errors(self._device):
            logits = self._network(step.batch.permute(0, 3, 1, 2))[: step.count]
        # NaN is greater and smaller than everything, Inf than what is finite.
        ends = torch.stack((logits.amax(dim=(1, 2, 3)), logits.amin(dim=(1, 2, 3))))
        ends = ends.float()  # the host knows no bf16
        part = picture.prepare(logits)
        return _Answer(ends, part, perf_counter() - start)

    def _add(
        self, step: Step, future: "Future[_Answer] | None", picture: Picture
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


def _shown(strips: Iterable[Strip], picture: Picture) -> Iterator[Strip]:
    """Pass strips on when the picture has seen them."""
    for strip in strips:
        picture.see(strip)
        yield strip


def _is_done(future: "Future[Any] | None") -> bool:
    return future is None or future.done()


def _refused(step: Step, at: int) -> TileError:
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
def _network_errors(device: str) -> Iterator[None]:
    """Lay a failing forward at the network's door, unless it is the device's fault."""
    try:
        yield
    except RuntimeError as err:
        msg = f"{device}: the network failed: {last_line(err)}"
        raise device_error(device, err) or ModelError(msg) from err


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

    step: Step
    """Which one."""
    ends: Landing | None
    """See `_Answer`; None for a step without tiles."""
    rows: list[RowsUnderWay]
    """Those it finished."""
