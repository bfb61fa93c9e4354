"""A training tile as it might also have been: turned, mirrored, under another sky."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["jittered", "turned"]


def turned(pixels: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Return one of the eight symmetries of a square (D4) of the last two axes.

    Args:
        pixels: (..., side, side).
        symmetry: 0, which changes nothing, to 7.
    """
    quarters, is_mirrored = symmetry % 4, symmetry >= 4  # noqa: PLR2004  (of eight)
    there = np.rot90(pixels, quarters, axes=(-2, -1))
    return np.ascontiguousarray(there[..., ::-1] if is_mirrored else there)


def jittered(
    tile: NDArray[np.float32], random: np.random.Generator, strength: float = 1.0
) -> NDArray[np.float32]:
    """Return a scaled tile, (bands, height, width), brighter, hazier, noisier.

    Gain and haze differ a little between the bands; all in standard deviations.
    """
    bands = (len(tile), 1, 1)
    gain = 1 + strength * (random.normal(0, 0.05) + random.normal(0, 0.03, bands))
    haze = strength * (random.normal(0, 0.08) + random.normal(0, 0.04, bands))
    noise = random.standard_normal(tile.shape, np.float32) * np.float32(0.02 * strength)
    changed: NDArray[np.float32] = (tile * gain + haze).astype(np.float32) + noise
    return changed
