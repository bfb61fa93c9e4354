"""The rows of one run while its tiles are being added: logits in, labels out.

Shape letters: N tiles, K logits, H rows, W columns.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tileseg.cards.card import CONFIDENCE_STEPS, NODATA
from tileseg.grid import Grid, Run, Strip
from tileseg.network.blend import Blend, Fold
from tileseg.network.bus import Bus, Landing
from tileseg.network.model import Network
from tileseg.window import Window

__all__ = ["LabelRows", "Picture", "RowsUnderWay"]

_LABELS, _CHANCES = "", "probabilities"

Part = tuple[Tensor, ...]
"""What of a batch goes into the picture; each (..., H, N, W), N tiles side by side."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """Consecutive finished rows of a run; the first follow on the run's top."""

    labels: NDArray[np.uint8]
    """(rows, width of the run), 255 where invalid."""
    layers: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Those of `LAYERS` that are wanted: round(254 x), 255 where invalid.

    Of the same shape; probabilities (classes, rows, width of the run)."""
    masked: NDArray[np.bool_] | None = None
    """Same shape: True where only a mask makes it invalid; None if there is none."""

    @property
    def confidence(self) -> NDArray[np.uint8] | None:
        """That layer; None if it is not wanted."""
        return self.layers.get("confidence")


@dataclass(frozen=True, slots=True, eq=False)
class RowsUnderWay:
    """Finished rows on their way to the host, and what of them is asked for."""

    layers: Mapping[str, Landing]
    """Labels (`""`) and those of `LAYERS` that are wanted; (rows, width of the run)."""
    unwanted: NDArray[np.bool_] | None
    """Same shape: True where there is no label; None: everywhere is one."""
    masked: NDArray[np.bool_] | None
    """See `LabelRows`."""

    def land(self) -> LabelRows:
        """Return them when they are there."""
        layers = {}
        for name, layer in self.layers.items():
            values: NDArray[np.uint8] = layer.wait()
            if self.unwanted is not None:
                np.copyto(values, np.uint8(NODATA), where=self.unwanted)
            layers[name] = values
        return LabelRows(layers.pop(_LABELS), layers, self.masked)


class Canvas(Protocol):
    """Tiles -> rows of labels, on the device."""

    def prepare(self, logits: Tensor) -> Part:
        """Return what of (N, K, tile, tile) logits is added; needs no order."""

    def add(self, column: int, part: Part) -> None:
        """Add tiles side by side to the topmost row, from the left to the right."""

    def next_row(self) -> Part:
        """Return labels and the layers wanted, (..., stride, width), of that row.

        Their first pixel lies `overlap` pixels above and left of the first core's.
        """


class Picture:
    """The rows of one run while its tiles are being added."""

    def __init__(  # noqa: PLR0913  (five values, and what is wanted)
        self,
        network: Network,
        grid: Grid,
        blend: Blend,
        run: Run,
        bus: Bus,
        *,
        layers: tuple[str, ...],
    ) -> None:
        """Begin above the run's first row; `layers` are wanted beside the labels."""
        self._grid, self._blend, self._bus = grid, blend, bus
        self._run = grid.pixels(run)
        self._tiles = grid.cores(run, ring=blend.ring)
        self._row = self._tiles.row
        # Where no tiles overlap, sums of one term need not be made.
        kind = Sums if blend.overlap else Cores
        self._canvas: Canvas = kind(blend, self._tiles, network, layers=layers)
        self._names = (_LABELS, *layers)
        self._wanted = _Rows()
        self._masked = _Rows()

    def see(self, strip: Strip) -> None:
        """Remember which pixels of the run get a label."""
        box = strip.tiles.scale(self._grid.stride)
        part = self._run.intersect(box).relative_to(box.pad(self._grid.halo))
        self._wanted.append(strip.wanted[part.slices])
        if strip.masked is not None:
            self._masked.append(strip.masked[part.slices])

    @property
    def stop(self) -> int:
        """The tile row at which everything is finished."""
        return self._tiles.row_stop + self._blend.ring

    def prepare(self, logits: Tensor) -> Part:
        """Return what of (N, K, tile, tile) logits goes into the picture.

        May be asked from any thread, for any tiles.
        """
        return self._canvas.prepare(logits)

    def add(self, column: int, part: Part) -> None:
        """Add neighbouring tiles of the topmost row that is not finished.

        Args:
            column: tile column of the scene of the first one; later calls for the
                row go on to the right.
            part: what `prepare` made of them.
        """
        self._canvas.add(column - self._tiles.col, part)

    def finish(self, stop: int) -> list[RowsUnderWay]:
        """Return the rows that the tile rows above `stop` complete."""
        finished = []
        while self._row < stop:
            finished += self._finish()
            self._row += 1
        return finished

    def _finish(self) -> list[RowsUnderWay]:
        """Return the topmost row's pixels, if any of them is the run's."""
        first = self._row * self._grid.stride - self._blend.overlap
        left = self._tiles.col * self._grid.stride - self._blend.overlap
        layers = self._canvas.next_row()
        box = Window(first, left, *layers[0].shape)
        window = self._run.intersect(box)
        if not window.height:
            return []
        rows, cols = window.relative_to(box).slices
        wanted = self._wanted.take(window.height)
        named = zip(self._names, layers, strict=True)
        landings = {
            name: self._bus.fetch(layer[..., rows, cols]) for name, layer in named
        }
        unwanted = None if wanted is None or wanted.all() else ~wanted
        masked = self._masked.take(window.height)
        return [RowsUnderWay(landings, unwanted, masked)]


class _Rows:
    """Rows of pixels that come in strips and go in tile rows."""

    def __init__(self) -> None:
        self._held: deque[NDArray[np.bool_]] = deque()

    def append(self, rows: NDArray[np.bool_]) -> None:
        """Add a copy of them."""
        self._held.append(rows.copy())

    def take(self, count: int) -> NDArray[np.bool_] | None:
        """Return the first `count` rows; None if there never were any."""
        if not self._held:
            return None
        taken = []
        while count:
            rows = self._held.popleft()
            taken.append(rows[:count])
            if len(rows) > count:
                self._held.appendleft(rows[count:])
            count -= len(taken[-1])
        return taken[0] if len(taken) == 1 else np.concatenate(taken)


class Cores:
    """A canvas where each pixel is of one tile: labels are made tile by tile."""

    def __init__(
        self,
        blend: Blend,
        tiles: Window,
        network: Network,
        *,
        layers: tuple[str, ...],
    ) -> None:
        """Begin above the first row of `tiles`."""
        self._blend, self._wanted = blend, layers
        blank_HNW = torch.zeros(
            blend.stride,
            tiles.width,
            blend.stride,
            dtype=torch.uint8,
            device=network.device.name,
        )
        chances = blank_HNW.expand(max(2, network.card.outputs), -1, -1, -1)
        self._blank = (
            blank_HNW,
            *(chances if name == _CHANCES else blank_HNW for name in layers),
        )
        self._layers = self._blanks()

    def prepare(self, logits: Tensor) -> Part:
        """Return what of (N, K, tile, tile) logits is added; needs no order."""
        cores_KHNW = self._blend.core(logits).permute(1, 2, 0, 3)
        return _labels(cores_KHNW), *_certainties(cores_KHNW, self._wanted)

    def add(self, column: int, part: Part) -> None:
        """Add tiles side by side to the topmost row, from the left to the right."""
        for layer_HNW, tiles_HNW in zip(self._layers, part, strict=True):
            layer_HNW[..., column : column + tiles_HNW.shape[-2], :] = tiles_HNW

    def next_row(self) -> Part:
        """Return labels and the layers wanted, (..., stride, width), of that row."""
        done, self._layers = self._layers, self._blanks()
        return tuple(layer_HNW.flatten(-2) for layer_HNW in done)

    def _blanks(self) -> Part:
        """Return layers of their own: those of the row before may still be read."""
        return tuple(
            blank.clone(memory_format=torch.contiguous_format) for blank in self._blank
        )


class Sums:
    """A canvas where tiles overlap: labels are made of weighted sums."""

    def __init__(
        self,
        blend: Blend,
        tiles: Window,
        network: Network,
        *,
        layers: tuple[str, ...],
    ) -> None:
        """Begin above the first row of `tiles`."""
        device = network.device.name
        self._stride, self._wanted = blend.stride, layers
        self._fold = Fold(
            blend, outputs=network.card.outputs, columns=tiles.width, device=device
        )
        self._weights_H = self._fold.weight_sum(tiles.height).to(device)
        self._weights_W = self._fold.weight_sum(tiles.width).to(device)
        self._above = 0

    def prepare(self, logits: Tensor) -> Part:
        """Return what of (N, K, tile, tile) logits is added; needs no order."""
        return (self._fold.weigh(logits),)

    def add(self, column: int, part: Part) -> None:
        """Add tiles side by side to the topmost row, from the left to the right."""
        self._fold.add(column, *part)

    def next_row(self) -> Part:
        """Return labels and the layers wanted, (..., stride, width), of that row."""
        sums_KHW = self._fold.next_row()
        above, self._above = self._above, self._above + self._stride
        if not self._wanted:
            return (_labels(sums_KHW),)
        rows = self._weights_H[above : self._above]
        weights_HW = torch.outer(rows, self._weights_W)
        mean_KHW = sums_KHW[:, : len(rows)] / weights_HW
        layers = _certainties(mean_KHW, self._wanted)
        return _labels(sums_KHW[:, : len(rows)]), *layers


def _labels(logits: Tensor) -> Tensor:
    """Return the uint8 labels of (K, ...) logits; ties go to the lowest class.

    Of weighted sums too: sum(w) > 0 divides every class alike.
    """
    if len(logits) == 1:
        return (logits[0] > 0).to(torch.uint8)
    # Class by class over all pixels, each class in one piece: faster than a search in
    # each pixel.
    best, *others = logits.contiguous()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for label, here in enumerate(others, start=1):
        is_more = (here > best).view(torch.uint8)
        labels = torch.maximum(labels, is_more.mul_(label))
        best = torch.maximum(best, here)
    return labels


def _certainties(logits: Tensor, wanted: tuple[str, ...]) -> Part:
    """Return round(254 x), uint8, of (K, ...) logits, for each layer x wanted.

    Of one logit the first class is what it is not.
    """
    if not wanted:
        return ()
    if len(logits) == 1:
        chances = torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)))
    else:
        chances = torch.softmax(logits, dim=0)
    return tuple(
        # Class by class, so that nothing else is as large.
        torch.stack([_steps(here) for here in chances])
        if name == _CHANCES
        else _steps(_CERTAINTIES[name](chances))
        for name in wanted
    )


def _steps(shares: Tensor) -> Tensor:
    return (shares * CONFIDENCE_STEPS).round().to(torch.uint8)


def _greatest(chances: Tensor) -> Tensor:
    """Return the probability of the label."""
    return chances.amax(dim=0)


def _margin(chances: Tensor) -> Tensor:
    """Return how much more probable the label is than the next class, 0 to 1."""
    best, next_best = chances[0], torch.zeros_like(chances[0])
    for here in chances[1:]:
        next_best = torch.maximum(next_best, torch.minimum(best, here))
        best = torch.maximum(best, here)
    return best - next_best


def _entropy(chances: Tensor) -> Tensor:
    """Return the entropy as a share of the greatest that there can be, 0 to 1."""
    # Class by class: the order of the sum then depends on nothing else.
    total = torch.zeros_like(chances[0])
    for here in chances:
        total += torch.special.entr(here)
    return total / log(len(chances))


_CERTAINTIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "confidence": _greatest,
    "margin": _margin,
    "entropy": _entropy,
}
