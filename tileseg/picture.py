"""The rows of one run while its tiles are being added: sums in, labels out.

Shape letters: N tiles, K logits, H rows, W columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tileseg.blend import Blend, Fold
from tileseg.card import CONFIDENCE_STEPS, NODATA
from tileseg.grid import Grid, Run, Strip
from tileseg.model import Network
from tileseg.window import Window

__all__ = ["LabelRows", "Picture"]


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """Consecutive finished rows of a run; the first follow on the run's top."""

    labels: NDArray[np.uint8]
    """(rows, width of the run), 255 where invalid."""
    confidence: NDArray[np.uint8] | None
    """Same shape: round(254 p) of the label, 255 where invalid; None if not wanted."""
    masked: NDArray[np.bool_] | None = None
    """Same shape: True where only a mask makes it invalid; None if there is none."""


class Picture:
    """The rows of one run while its tiles are being added."""

    def __init__(
        self,
        network: Network,
        grid: Grid,
        blend: Blend,
        run: Run,
        *,
        confidence: bool,
    ) -> None:
        """Begin above the run's first row; `confidence` says whether it is wanted."""
        self._grid, self._blend, self._confidence = grid, blend, confidence
        self._run = grid.pixels(run)
        self._tiles = grid.cores(run, ring=blend.ring)
        self._row = self._tiles.row
        device = network.device.name
        self._fold = Fold(
            blend,
            outputs=network.card.outputs,
            columns=self._tiles.width,
            device=device,
        )
        self._weights_y = self._fold.weight_sum(self._tiles.height).to(device)
        self._weights_x = self._fold.weight_sum(self._tiles.width).to(device)
        self._valid = np.zeros((0, self._run.width), dtype=np.bool_)
        self._hidden = self._valid

    def see(self, strip: Strip) -> None:
        """Remember which pixels of the run get a label."""
        box = strip.tiles.scale(self._grid.stride)
        part = self._run.intersect(box).relative_to(box.pad(self._grid.halo))
        self._valid = np.concatenate((self._valid, strip.wanted[part.slices]))
        if strip.masked is not None:
            self._hidden = np.concatenate((self._hidden, strip.masked[part.slices]))

    @property
    def stop(self) -> int:
        """The tile row at which everything is finished."""
        return self._tiles.row_stop + self._blend.ring

    def add(self, columns: Tensor, logits: Tensor) -> None:
        """Add tiles of the topmost row that is not finished.

        Args:
            columns: (N,), tile columns of the scene, ascending.
            logits: (N, K, tile, tile) in fp32.
        """
        self._fold.add(columns - self._tiles.col, logits)

    def finish(self, stop: int) -> list[LabelRows]:
        """Return the rows that the tile rows above `stop` complete."""
        finished = []
        while self._row < stop:
            finished.append(self._finish(self._row))
            self._row += 1
        return [rows for rows in finished if len(rows.labels)]

    def _finish(self, tile_row: int) -> LabelRows:
        stride = self._grid.stride
        first = tile_row * stride - self._blend.overlap
        left = self._tiles.col * stride - self._blend.overlap
        sums = self._fold.next_row()
        box = Window(first, left, *sums.shape[1:])
        window = self._run.intersect(box)
        rows, columns = window.relative_to(box).slices
        sums = sums[:, rows, columns]
        valid, self._valid = np.split(self._valid, [window.height])
        confidence = None
        if self._confidence:
            above = (tile_row - self._tiles.row) * stride
            weights = torch.outer(
                self._weights_y[above : above + stride][rows], self._weights_x[columns]
            )
            confidence = _masked(_confidence(sums / weights), valid)
        hidden, self._hidden = np.split(self._hidden, [window.height])
        masked = hidden if len(hidden) else None  # else no strip has any
        return LabelRows(_masked(_labels(sums), valid), confidence, masked)


def _labels(sums_KHW: Tensor) -> Tensor:
    """Return uint8 labels, (H, W); ties go to the lowest class.

    sum(w) > 0 divides every class alike, so the weighted sums decide.
    """
    if len(sums_KHW) == 1:
        return (sums_KHW[0] > 0).to(torch.uint8)
    # torch gives the first of equal values here too, and faster than in argmax
    return sums_KHW.max(dim=0).indices.to(torch.uint8)


def _confidence(logits_KHW: Tensor) -> Tensor:
    """Return round(254 p), uint8 (H, W), p the probability of the label."""
    if len(logits_KHW) == 1:
        best = torch.sigmoid(logits_KHW[0].abs())
    else:
        best = torch.softmax(logits_KHW, dim=0).amax(dim=0)
    return (best * CONFIDENCE_STEPS).round().to(torch.uint8)


def _masked(values: Tensor, valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the values on the host, 255 where invalid."""
    return np.where(valid, values.cpu().numpy(), np.uint8(NODATA))
