"""Which blocks of the scenes are for training, validation and test. Opens no file.

Neighbouring pixels are alike, so pixels drawn at random would be judged by their
neighbours. Whole blocks are: no tile that is trained on comes near one for another
purpose, of any scene, and scenes on one grid are cut alike, whatever their date.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tileseg.errors import UsageError
from tileseg.window import Window

__all__ = ["PARTS", "TEST", "TRAINING", "VALIDATION", "Counts", "Split", "split"]

TRAINING, VALIDATION, TEST = 0, 1, 2
PARTS = ("training", "validation", "test")
"""What the three are called."""

_ORDERS = 256  # random divisions, of which the best one is taken
_TRIES = 16  # random places of a tile, before it is put into the block itself

Counts = NDArray[np.int64]
"""(block rows, block columns, classes): labelled pixels."""
Places = NDArray[np.int64]
"""Of each block the number of its grid."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What each block of each scene is for."""

    block: int
    """Side in pixels."""
    margin: int
    """Pixels that training tiles keep from other blocks."""
    parts: tuple[NDArray[np.uint8], ...]
    """Of each scene (block rows, block columns): index of `PARTS`."""
    closed: tuple[NDArray[np.int64], ...]
    """Of each scene (n, 4): boxes of its pixels, first row and column and those after
    the last, that scenes on other grids have for validation or test."""

    def blocks(self, part: int, counts: Sequence[Counts]) -> NDArray[np.int64]:
        """Return (scene, block row, block column), (n, 3), of what is labelled."""
        found = [
            np.column_stack((np.full(len(at), scene), at))
            for scene, (parts, some) in enumerate(zip(self.parts, counts, strict=True))
            for at in [np.argwhere((parts == part) & (some.sum(axis=2) > 0))]
        ]
        return np.concatenate(found).astype(np.int64)

    def labelled(self, part: int, counts: Sequence[Counts]) -> NDArray[np.int64]:
        """Return the labelled pixels of each class, (classes,)."""
        pairs = zip(self.parts, counts, strict=True)
        sums = [some[parts == part].sum(axis=0) for parts, some in pairs]
        return np.asarray(sum(sums))

    def window(self, row: int, col: int) -> Window:
        """Return a block's pixels, some of them outside the scene at its edges."""
        return Window(row, col, 1, 1).scale(self.block)

    def is_free(self, scene: int, window: Window) -> bool:
        """Return whether a training tile may see a window."""
        parts, near = self.parts[scene], window.pad(self.margin)
        there = near.coarsen(self.block).intersect(Window(0, 0, *parts.shape))
        if (parts[there.slices] != TRAINING).any():
            return False
        return not len(self._closed_in(scene, near))

    def _closed_in(self, scene: int, window: Window) -> NDArray[np.int64]:
        """Return the boxes that meet a window."""
        boxes = self.closed[scene]
        top, left, bottom, right = boxes.T
        meets = (top < window.row_stop) & (bottom > window.row)
        meets &= (left < window.col_stop) & (right > window.col)
        found: NDArray[np.int64] = boxes[meets]
        return found

    def room(self, scene: int, row: int, col: int, tile: int) -> NDArray[np.bool_]:
        """Return of a block's pixels, (block, block), which some free tile has."""
        near = self.window(row, col).pad(tile - 1 + self.margin)
        corners = _sums(self._held(scene, near), tile + 2 * self.margin) == 0
        return _sums(corners, tile) > 0

    def _held(self, scene: int, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window no training tile may come near."""
        parts = self.parts[scene]
        cells = window.coarsen(self.block)
        there = cells.intersect(Window(0, 0, *parts.shape))
        held = np.zeros((cells.height, cells.width), bool)
        held[there.relative_to(cells).slices] = parts[there.slices] != TRAINING
        pixels = held.repeat(self.block, axis=0).repeat(self.block, axis=1)
        pixels = pixels[window.relative_to(cells.scale(self.block)).slices].copy()
        for top, left, bottom, right in self._closed_in(scene, window).tolist():
            box = Window(top, left, bottom - top, right - left).intersect(window)
            pixels[box.relative_to(window).slices] = True
        return pixels

    def draw(
        self, scene: int, pixel: tuple[int, int], tile: int, random: np.random.Generator
    ) -> Window | None:
        """Return a random tile with a pixel of a training block in it.

        Where none is found soon, one whose rows, or columns, or both are the nearest
        within the pixel's block; None if none has the pixel, or another scene keeps
        them: it lies too near a block for another purpose.
        """
        row, col = pixel
        inner = self.window(row // self.block, col // self.block).pad(-self.margin)
        top = _between(row - tile // 2, inner.row, inner.row_stop - tile)
        left = _between(col - tile // 2, inner.col, inner.col_stop - tile)
        corners = [
            (row - up, col - along)
            for up, along in random.integers(tile, size=(_TRIES, 2)).tolist()
        ]
        tries = (
            *corners,
            *((top, along) for _, along in corners),
            *((up, left) for up, _ in corners),
            (top, left),
        )
        for corner in tries:
            window = Window(*corner, tile, tile)
            has_pixel = window.intersect(Window(row, col, 1, 1)).size > 0
            if has_pixel and self.is_free(scene, window):
                return window
        return None


def _sums(values: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Return the sum of each square that lies in an array, (rows - side + 1, ...)."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32)
    sums = (sums[side:] - sums[:-side]).cumsum(axis=1, dtype=np.int32)
    squares: NDArray[np.int32] = sums[:, side:] - sums[:, :-side]
    return squares


def _between(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)


def split(
    grids: Sequence[Hashable],
    counts: Sequence[Counts],
    shares: tuple[float, float],
    seed: int,
) -> list[NDArray[np.uint8]]:
    """Say what each block of each scene is for.

    Each grid is divided by itself, so that every place is judged. Of many random
    divisions the one is taken that gives each class most nearly its share of every
    part, in all and in each grid.

    Args:
        grids: what tells the scenes' grids apart; those of one grid are cut alike.
        counts: of each scene.
        shares: of the labels, each class as heavy as the others: validation, test.
        seed: of the divisions.

    Returns:
        Of each scene (block rows, block columns): index of `PARTS`. Blocks without
        labels are training's, where no tile is drawn from them.

    Raises:
        UsageError: the labels lie in too few blocks.
    """
    sums: dict[Hashable, Counts] = {}
    for grid, some in zip(grids, counts, strict=True):
        sums[grid] = sums[grid] + some if grid in sums else some.astype(np.int64)
    is_labelled = {grid: some.any(axis=2) for grid, some in sums.items()}
    found = [some[is_labelled[grid]] for grid, some in sums.items()]
    of = np.repeat(np.arange(len(found)), [len(some) for some in found])
    chosen = _best(np.concatenate(found), of, np.array(shares), seed)
    parts, first = {}, 0
    for grid, is_there in is_labelled.items():
        parts[grid] = np.full(is_there.shape, TRAINING, np.uint8)
        stop = first + int(is_there.sum())
        parts[grid][is_there] = chosen[first:stop]
        first = stop
    return [parts[grid] for grid in grids]


def _best(
    labelled: Counts, of: Places, shares: NDArray[np.float64], seed: int
) -> NDArray[np.int8]:
    """Return the part of each of (blocks, classes), `of` some grid."""
    random = np.random.default_rng((seed, 0))
    weights = labelled / np.maximum(labelled.sum(axis=0), 1)
    divisions = (
        _divided(weights.mean(axis=1), of, shares, random) for _ in range(_ORDERS)
    )
    off, parts = min(
        ((_off(labelled, of, parts, shares), parts) for parts in divisions),
        key=lambda found: found[0],
    )
    if not np.isfinite(off):
        wanted = [n for n, share in zip(PARTS[1:], shares, strict=True) if share > 0]
        msg = (
            f"the labels lie in {len(labelled)} blocks, too few for training and "
            f"{' and '.join(wanted)} to have some, and training every class: label "
            "more places, make blocks smaller (--block), or leave a part out "
            "(--validation 0, --test 0)"
        )
        raise UsageError(msg)
    return parts


def _divided(
    mass: NDArray[np.float64],
    of: Places,
    shares: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.int8]:
    """Return a part of each block, by chance: of each grid's mass about its share.

    Each grid's blocks lie in random order on a circle as long as their mass, which the
    parts share from a random point on: so a grid of one block is judged as often as
    its share says.
    """
    order = random.permutation(len(mass))
    order = order[np.argsort(of[order], kind="stable")]
    grids, ends = of[order], np.cumsum(mass[order])
    sums = np.bincount(of, mass)
    middles = ends - mass[order] / 2 - (np.cumsum(sums) - sums)[grids]
    turns = random.random(len(sums))[grids]
    at = (middles / np.maximum(sums, 1e-12)[grids] + turns) % 1
    parts = np.empty(len(mass), np.int8)
    # Validation first, then test, the rest is for training.
    parts[order] = (np.searchsorted(np.cumsum(shares), at, side="right") + 1) % 3
    return parts


def _off(
    labelled: Counts, of: Places, parts: NDArray[np.int8], shares: NDArray[np.float64]
) -> float:
    """Return how far a division is from the shares; infinite if it cannot be used."""
    given = np.zeros((3, of.max(initial=0) + 1, labelled.shape[1]))
    np.add.at(given, (parts, of), labelled)
    by_class = given.sum(axis=1)
    by_class = by_class[:, by_class.any(axis=0)]
    if not by_class[TRAINING].all() or any(
        share > 0 and not by_class[part].any() for part, share in enumerate(shares, 1)
    ):
        return np.inf
    by_grid = given[:, given.any(axis=0)]  # a column of each grid and class
    return float(_away(by_class, shares).max() + _away(by_grid, shares).mean())


def _away(
    given: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far validation's and test's part of each column is from its share."""
    away: NDArray[np.float64] = abs(given[1:] / given.sum(axis=0) - shares[:, None])
    return away
