"""What every library is told, and how tiles are put together where it does not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from tileseg.network.unet import UNet

__all__ = ["Wish", "place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One scene to segment, with the same network for everybody."""

    scene: str
    """A GeoTIFF all of whose pixels are valid."""
    weights: str
    """Safetensors of a `UNet`."""
    width: int
    """Its base width."""
    bands: int
    """Of the scene, and of the network."""
    classes: int
    """Channels that the network answers with."""
    gain: tuple[float, ...]
    """Per band; network input = stored * gain + bias."""
    bias: tuple[float, ...]
    """See `gain`."""
    tile: int
    """Side of what the network sees."""
    stride: int
    """From one tile to the next."""
    batch: int
    """Tiles in one forward."""
    workers: int
    """Processes that may read."""
    device: str
    """`cpu` or `cuda`."""
    mask: str
    """The GeoTIFF to write; its labels go into an .npy beside it."""

    def scaled(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the network's input, of (bands, height, width) as stored."""
        gain, bias = np.array(self.gain), np.array(self.bias)
        return np.asarray(
            pixels * gain[:, None, None] + bias[:, None, None], np.float32
        )

    def network(self) -> nn.Module:
        """Return the network as everybody would load it."""
        module = UNet(self.bands, self.classes, width=self.width)
        module.load_state_dict(load_file(self.weights))
        return module.eval().to(self.device)


def place(
    mask: NDArray[np.uint8], labels: NDArray[np.uint8], at: tuple[int, int], wish: Wish
) -> None:
    """Put a tile's labels into a mask, but for half of its overlap with others.

    Args:
        mask: (height, width) of the scene.
        labels: (tile, tile).
        at: row and column in the mask of the tile's first pixel; tiles may lie over
            the scene's edges, where all is kept.
        wish: tells the overlap.
    """
    halo = (wish.tile - wish.stride) // 2
    target, source = [], []
    for start, size in zip(at, mask.shape, strict=True):
        first = max(start + halo, 0) if start > 0 else 0
        is_last = start + wish.tile >= size
        last = size if is_last else start + wish.tile - halo
        target.append(slice(first, last))
        source.append(slice(first - start, last - start))
    mask[tuple(target)] = labels[tuple(source)]
