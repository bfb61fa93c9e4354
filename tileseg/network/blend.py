"""Overlapping tiles -> one picture: crop and cosine are one formula, sum(w p) / sum(w).

Tiles are trimmed to their core and an overlap on each side (0 for crop, the halo for
cosine); weights along one axis ramp over twice the overlap and are multiples of 1/256
whose pairs sum to exactly 1. Shape letters: N tiles, K logits, C tile columns.
"""

from dataclasses import dataclass
from math import pi, sin

import torch
from torch import Tensor

__all__ = ["Blend", "Fold"]


@dataclass(frozen=True, slots=True)
class Blend:
    """How neighbouring tiles share the pixels at their common border."""

    stride: int
    """Side of a core in pixels."""
    halo: int
    """Margin of a tile in pixels."""
    kind: str
    """`crop`: each pixel from one tile; `cosine`: a ramp over twice the halo."""

    @property
    def overlap(self) -> int:
        """Pixels beyond its core that a tile contributes to."""
        return self.halo if self.kind == "cosine" else 0

    @property
    def ring(self) -> int:
        """Rings of neighbouring tiles that reach into a run: 0 or 1."""
        return int(self.overlap > 0)

    @property
    def trim(self) -> int:
        """Pixels on each side of a tile that carry neither weight nor ramp."""
        return self.halo - self.overlap

    def core(self, logits: Tensor) -> Tensor:
        """Return what does, of (..., tile, tile); some may be trimmed off already."""
        side = logits.shape[-1]
        first = (side - self.stride) // 2 - self.overlap
        inner = slice(first, side - first)
        return logits[..., inner, inner]

    def weights(self) -> Tensor:
        """Return the weights along one axis, (stride + 2 overlap,), each in [0, 1]."""
        size = 2 * self.overlap
        ramp = torch.tensor(
            [
                round(256 * sin(pi * (i + 0.5) / (2 * size)) ** 2) / 256
                for i in range(size)
            ]
        )
        return torch.cat((ramp, torch.ones(self.stride - size), ramp.flip(0)))

    def support(self) -> int:
        """Return how many pixels beyond its core a tile has a weight > 0."""
        return self.overlap - int((self.weights() == 0).sum()) // 2


class Fold:
    """Sums weighted tiles row by row, always in row-major order of the tiles.

    The fp32 sums then do not depend on how a scene is cut or batched. Coordinates are
    those of one run: `cols` counts from its first tile column, and the picture's first
    row and column lie `overlap` pixels before the first core.
    """

    def __init__(
        self, blend: Blend, *, outputs: int, columns: int, device: str
    ) -> None:
        """Begin above the first row of `columns` tiles."""
        self._blend = blend
        weights = blend.weights()
        self._weights = torch.outer(weights, weights).to(device)  # (rows, columns)
        self._columns = columns
        self._overlap, self._stride = 2 * blend.overlap, blend.stride
        self._sum = torch.zeros(
            outputs,
            self._stride + self._overlap,
            columns * self._stride + self._overlap,
            device=device,
        )

    def weigh(self, logits: Tensor) -> Tensor:
        """Return tiles ready to be added, (K, trimmed tile, N, trimmed tile).

        Args:
            logits: (N, K, tile, tile) in fp32; some may be trimmed off already.
        """
        tiles_KHNW = self._blend.core(logits).permute(1, 2, 0, 3)
        part = torch.empty(tiles_KHNW.shape, device=logits.device)
        return torch.mul(tiles_KHNW, self._weights[:, None], out=part)

    def add(self, column: int, part_KHNW: Tensor) -> None:
        """Add neighbouring tiles of the current row.

        Args:
            column: of the first of them; later calls for the row go on to the right.
            part_KHNW: what `weigh` made of them.
        """
        overlap, stride = self._overlap, self._stride
        columns = slice(column, column + part_KHNW.shape[2])
        # A column shared by two tiles belongs to the left one's body and to the
        # right one's ramp: bodies first keeps row-major order.
        body = self._cells(self._sum[:, :, overlap:])
        body[:, :, columns] += part_KHNW[..., overlap:]
        if overlap:
            ramp = self._cells(self._sum[:, :, : self._columns * stride])
            ramp[:, :, columns, :overlap] += part_KHNW[..., :overlap]

    def next_row(self) -> Tensor:
        """Return the finished rows, (K, stride, width), and go to the next tile row.

        Their first row lies `overlap` pixels above the current core's.
        """
        done = self._sum[:, : self._stride]
        blank = torch.zeros_like(done)
        self._sum = torch.cat((self._sum[:, self._stride :], blank), dim=1)
        return done

    def _cells(self, sums: Tensor) -> Tensor:
        """View (K, H, C * stride) as (K, H, C, stride)."""
        height = sums.shape[1]
        return sums.view(len(sums), height, self._columns, self._stride)

    def weight_sum(self, tiles: int) -> Tensor:
        """Return sum(w) along one axis of `tiles` tiles, from the first overlap on."""
        total = torch.zeros(tiles * self._stride + self._overlap)
        for start in range(0, tiles * self._stride, self._stride):
            total[start : start + self._stride + self._overlap] += self._blend.weights()
        return total
