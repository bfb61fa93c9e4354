"""The tiles that are learnt from and judged by: which, and in which order.

What a tile of a step is follows from the seed, the step's number and its own alone, so
that a training can go on at any step, and several processes can draw a batch. In memory
are counts of classes per block, a few blocks of labels, and the tiles in hand.
"""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.errors import UsageError
from tileseg.training.augment import jittered, turned
from tileseg.training.split import TRAINING, Counts, Split
from tileseg.training.team import ALONE, Team
from tileseg.training.train_ground import Ground, Labels, Pixel, View
from tileseg.window import Window

__all__ = ["Batch", "Samples"]

_KEPT = 16 << 20  # pixels of labels, kept for the next tiles
_TRIES = 1000  # to find room for a tile
_DRAWS = 16  # of tiles, until one has a valid pixel with a label
_PLACES, _TILES = 1, 2  # what random numbers are for

Batch = tuple[Pixel, Labels]
"""Scaled tiles, (n, bands, tile, tile), 0 where invalid; labels, (n, tile, tile)."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """How tiles are drawn."""

    ground: Ground
    split: Split
    counts: tuple[Counts, ...]
    """Of each scene."""
    tile: int
    """Side in pixels."""
    halo: int
    """Margin of a tile that is not judged."""
    mean: tuple[float, ...]
    """Per band, in the ground's unit."""
    std: tuple[float, ...]
    """Likewise."""
    jitter: float
    """How much brightness, haze and noise are varied."""
    weights: tuple[float, ...]
    """How often a tile is drawn of each scene, beside 1; none for 1 of all."""
    seed: int

    def batches(self, steps: range, size: int, team: Team = ALONE) -> Generator[Batch]:
        """Yield the team's share of each step's batch: each class is sought as often.

        A tile is one that lies by chance over a pixel of its class, which itself is
        drawn from all of the class in training blocks.
        """
        lots = _Lots(self.split, self.counts, self.weights)
        with self.ground.open() as view:
            kept = _Blocks(view, self.split)
            for step in steps:
                randoms = (
                    np.random.default_rng((self.seed, _TILES, step, tile))
                    for tile in team.share(range(size))
                )
                yield _stacked([self._draw(view, kept, lots, it) for it in randoms])

    def _draw(
        self, view: View, kept: "_Blocks", lots: "_Lots", random: np.random.Generator
    ) -> Batch:
        """Return a training tile, (bands, tile, tile), and its labels.

        Where all that is labelled in it is invalid, as beside a swath that lies aslant
        in its file, another one is drawn.
        """
        for _ in range(_DRAWS):
            place, window = self._window(kept, lots, random)
            scaled, valid = self._scaled(view, place, window)
            labels = np.where(valid, view.labels(place, window), np.uint8(NODATA))
            if (labels != NODATA).any():
                break
        scaled = jittered(scaled, random, self.jitter) * valid
        symmetry = int(random.integers(8))
        return turned(scaled, symmetry), turned(labels, symmetry)

    def _window(
        self, kept: "_Blocks", lots: "_Lots", random: np.random.Generator
    ) -> tuple[int, Window]:
        """Return where a training tile lies.

        Raises:
            UsageError: there is no room for any.
        """
        for _ in range(_TRIES):
            value, (place, row, col) = lots.draw(random)
            rows, cols = (kept.labels(place, row, col) == value).nonzero()
            nth, corner = random.integers(len(rows)), self.split.window(row, col)
            pixel = corner.row + int(rows[nth]), corner.col + int(cols[nth])
            window = self.split.draw(place, pixel, self.tile, random)
            if window is not None:
                return place, window
        msg = (
            f"no training tile keeps {self.split.margin} pixels from the blocks that "
            "are for validation or test; make blocks larger (--block)"
        )
        raise UsageError(msg)

    def judged(
        self, part: int, size: int, most: int, team: Team = ALONE
    ) -> Generator[Batch]:
        """Yield tiles that cover the labels of a part's blocks, as segmenting would.

        Only the core of a tile has labels, and each pixel is in one core. The same
        tiles in the same batches each time, all or `most` of them by chance; of these
        batches the team's share.
        """
        with self.ground.open() as view:
            known = islice(self._known(view, part), most)
            number = 0
            while batch := list(islice(known, size)):
                if number % team.size == team.rank:
                    yield _stacked([self._seen(view, *item) for item in batch])
                number += 1

    def _known(self, view: View, part: int) -> Iterator[tuple[int, Window, Labels]]:
        """Yield place, tile and labels, (tile, tile), by chance; none without any."""
        tiles = self._cores(part)
        order = np.random.default_rng((self.seed, _PLACES)).permutation(len(tiles))
        for place, core in (tiles[n] for n in order.tolist()):
            seen = core.pad(self.halo)
            labels = np.full((self.tile, self.tile), NODATA, np.uint8)
            labels[core.relative_to(seen).slices] = view.labels(place, core)
            if (labels != NODATA).any():
                yield place, Window(seen.row, seen.col, self.tile, self.tile), labels

    def _seen(self, view: View, place: int, window: Window, labels: Labels) -> Batch:
        """Return a tile, (bands, tile, tile), and its labels where it is valid."""
        scaled, valid = self._scaled(view, place, window)
        return scaled, np.where(valid, labels, np.uint8(NODATA))

    def _cores(self, part: int) -> list[tuple[int, Window]]:
        """Return the cores of tiles in the labelled blocks of a part."""
        stride = self.tile - 2 * self.halo
        cores = []
        for place, row, col in self.split.blocks(part, self.counts).tolist():
            scene = self.ground.places[place].scene.geobox.window
            block = self.split.window(row, col).intersect(scene)
            for top in range(block.row, block.row_stop, stride):
                for left in range(block.col, block.col_stop, stride):
                    core = Window(top, left, stride, stride).intersect(block)
                    cores.append((place, core))
        return cores

    def _scaled(
        self, view: View, place: int, window: Window
    ) -> tuple[Pixel, NDArray[np.bool_]]:
        """Return a window as the network sees it, and validity."""
        pixels, valid = view.pixels(place, window)
        mean, std = (
            np.array(values, np.float32)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std * valid, valid


def _stacked(tiles: list[Batch]) -> Batch:
    pixels, labels = zip(*tiles, strict=True)
    return np.stack(pixels), np.stack(labels)


class _Lots:
    """Training blocks, to be drawn by class.

    A scene counts by the root of how much it has of the class, so that a large one does
    not drown the others, and by its weight.
    """

    def __init__(
        self, split: Split, counts: Sequence[Counts], weights: Sequence[float]
    ) -> None:
        self._blocks = split.blocks(TRAINING, counts)
        found = np.array([counts[at][row, col] for at, row, col in self._blocks])
        scenes = self._blocks[:, 0]
        totals = np.zeros((len(counts), found.shape[1]))
        np.add.at(totals, scenes, found)
        chances = found / np.sqrt(np.maximum(totals, 1))[scenes]
        if weights:
            chances *= np.array(weights)[scenes, None]
        self._sums = np.cumsum(chances, axis=0)
        self._classes = np.flatnonzero(self._sums[-1])

    def draw(self, random: np.random.Generator) -> tuple[int, tuple[int, int, int]]:
        """Return a class, and (scene, block row, block column) that has some of it."""
        value = int(random.choice(self._classes))
        sums = self._sums[:, value]
        at = np.searchsorted(sums, random.random() * sums[-1], side="right")
        place, row, col = self._blocks[at].tolist()
        return value, (place, row, col)


class _Blocks:
    """Labels of whole blocks, of which the last ones are kept."""

    def __init__(self, view: View, split: Split) -> None:
        self._view, self._split = view, split
        self._most = max(1, _KEPT // split.block**2)
        self._kept: OrderedDict[tuple[int, int, int], Labels] = OrderedDict()

    def labels(self, place: int, row: int, col: int) -> Labels:
        """Return the labels of a block."""
        key = place, row, col
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            if len(self._kept) == self._most:
                self._kept.popitem(last=False)
            self._kept[key] = self._view.labels(place, self._split.window(row, col))
        return self._kept[key]
