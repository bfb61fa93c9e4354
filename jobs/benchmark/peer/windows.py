"""A DataLoader of rasterio windows, as many a script has it."""

from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmark.peer.contract import Wish, place


class Windows(Dataset[tuple[Tensor, int, int]]):
    """The windows of a scene; every process opens it for itself."""

    def __init__(self, wish: Wish) -> None:
        """Open the scene for its size only."""
        self.wish = wish
        self._source: Any = None
        with rasterio.open(wish.scene) as source:
            self.shape = source.height, source.width
        rows, columns = (
            [*range(0, size - wish.tile, wish.stride), size - wish.tile]
            for size in self.shape
        )
        self._corners = [(row, col) for row in rows for col in columns]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._corners)

    def __getitem__(self, number: int) -> tuple[Tensor, int, int]:
        """Return a window's pixels, scaled, and its first row and column."""
        if self._source is None:
            self._source = rasterio.open(self.wish.scene)
        row, col = self._corners[number]
        window = Window(col, row, self.wish.tile, self.wish.tile)
        pixels = self._source.read(window=window)
        return torch.from_numpy(self.wish.scaled(pixels)), row, col


def segment(wish: Wish, network: nn.Module) -> NDArray[np.uint8]:
    """Return the scene's labels."""
    windows = Windows(wish)
    loader = DataLoader(windows, batch_size=wish.batch, num_workers=wish.workers)
    mask = np.zeros(windows.shape, np.uint8)
    for tiles, rows, columns in loader:
        labels = network(tiles.to(wish.device)).argmax(dim=1).to(torch.uint8)
        corners = zip(rows.tolist(), columns.tolist(), strict=True)
        for part, corner in zip(labels.cpu().numpy(), corners, strict=True):
            place(mask, part, corner, wish)
    return mask
