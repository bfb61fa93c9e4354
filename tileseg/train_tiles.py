"""Where tiles are drawn from: scenes and labels of any size, read window by window.

What a tile of a step is follows from the seed, the step's number and its own alone, so
that a training can go on at any step, and several processes can draw a batch. In memory
are counts of classes per block, a few blocks of labels, and the tiles in hand.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from tileseg.augment import jittered, turned
from tileseg.card import NODATA
from tileseg.errors import UsageError
from tileseg.gdal import gdal_env
from tileseg.geobox import GeoBox
from tileseg.pixels import DATA, Pixels
from tileseg.raster import Band, Scene
from tileseg.reference import Points, Reference, open_reference
from tileseg.split import TRAINING, Counts, Split
from tileseg.team import ALONE, Team
from tileseg.window import Window

__all__ = [
    "Batch",
    "Ground",
    "Place",
    "Samples",
    "View",
    "check_scales",
    "count_classes",
]

_COUNTED = 1024  # pixels of a window when labels are counted, about
_KEPT = 16 << 20  # pixels of labels, kept for the next tiles
_TRIES = 1000  # to find room for a tile
_DRAWS = 16  # of tiles, until one has a valid pixel with a label
_PLACES, _TILES = 1, 2  # what random numbers are for

Pixel = NDArray[np.float32]
Labels = NDArray[np.uint8]
Batch = tuple[Pixel, Labels]
"""Scaled tiles, (n, bands, tile, tile), 0 where invalid; labels, (n, tile, tile)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A scene and what is known of it."""

    scene: Scene
    bands: tuple[Band, ...]
    """In the network's order."""
    labels: str
    """Path of what `open_reference` reads."""


@dataclass(frozen=True, slots=True)
class Ground:
    """All that is learnt from."""

    places: tuple[Place, ...]
    classes: tuple[str, ...]
    """In the order of their values."""
    renamed: tuple[tuple[str, str], ...]
    """What the labels say -> the class."""
    column: str
    """Of vector files: which one says the class."""
    unit: str
    """`reflectance` or `dn`."""

    @contextmanager
    def open(self) -> Iterator["View"]:
        """Open scenes and labels, for this thread.

        Raises:
            InputError: one cannot be read.
            UsageError: a class is unknown.
        """
        with ExitStack() as stack:
            stack.enter_context(gdal_env())
            source = stack.enter_context(Pixels())
            names, renamed = self.classes, dict(self.renamed)
            known = [
                stack.enter_context(
                    open_reference(
                        place.labels, place.scene.geobox, names, renamed, self.column
                    )
                )
                for place in self.places
            ]
            yield View(self, source, known)


class View:
    """Scenes and labels, open; belongs to the thread that opened it."""

    def __init__(
        self, ground: Ground, source: Pixels, known: Sequence[Reference | Points]
    ) -> None:
        """Take what is open."""
        self._ground, self._source, self._known = ground, source, known

    def box(self, place: int) -> GeoBox:
        """Return a scene's grid."""
        return self._ground.places[place].scene.geobox

    def labels(self, place: int, window: Window) -> Labels:
        """Return the classes of a window, 255 where nothing is known or is no scene."""
        labels = np.full((window.height, window.width), NODATA, np.uint8)
        inner = window.intersect(self.box(place).window)
        at, known = inner.relative_to(window), self._known[place]
        if isinstance(known, Points):
            rows, cols, classes = known.within(inner)
            labels[at.slices][rows, cols] = classes
        elif inner.size:
            labels[at.slices] = known.labels(inner)
        return labels

    def learnable(self, place: int, window: Window) -> Labels:
        """Return the same where the scene has data, which is read where labels are."""
        labels = self.labels(place, window)
        if (labels != NODATA).any():
            inner = window.intersect(self.box(place).window)
            _, valid = self._stored(place, inner)
            labels[inner.relative_to(window).slices][~valid] = NODATA
        return labels

    def pixels(self, place: int, window: Window) -> tuple[Pixel, NDArray[np.bool_]]:
        """Return a window in the ground's unit, (bands, height, width), and validity.

        Beyond the scene's edge the window's own pixels are mirrored, so that nothing is
        seen that does not lie in it. It must meet the scene.
        """
        bands = self._ground.places[place].bands
        inner = window.intersect(self.box(place).window)
        values, valid = self._stored(place, inner)
        if self._ground.unit == "reflectance":
            pairs = [(band.scale, band.offset) for band in bands]
            scale, offset = np.array(pairs, np.float32).T[..., None, None]
            values = values * scale + offset
        here = inner.relative_to(window)
        beyond = (
            (here.row, window.height - here.row_stop),
            (here.col, window.width - here.col_stop),
        )
        valid = np.pad(valid, beyond, "symmetric")
        values = np.pad(values, ((0, 0), *beyond), "symmetric")
        return np.where(valid, values, np.float32(0)), valid

    def _stored(self, place: int, window: Window) -> tuple[Pixel, NDArray[np.bool_]]:
        """Return values as stored, (bands, height, width), and validity."""
        item, shape = self._ground.places[place], (window.height, window.width)
        values = np.empty((len(item.bands), *shape), np.float32)
        state = np.empty(shape, np.uint8)
        self._source.read(item.scene, item.bands, window, values, state)
        return values, state == DATA


def check_scales(place: Place) -> None:
    """Refuse a scene that does not say how its numbers become reflectance.

    Raises:
        UsageError: it does not.
    """
    for band in place.bands:
        says = band.scale, band.offset
        if says == (1.0, 0.0) or not (all(map(isfinite, says)) and band.scale):
            msg = (
                f"{place.scene.href}: band {band.index} says scale {band.scale:g} and "
                f"offset {band.offset:g} (1 and 0: nothing), by which values become no "
                "reflectance: give --scale and --offset (1 and 0 if they are it), set "
                "its GDAL scale and offset tags, or train on the values as they are "
                "(--unit dn)"
            )
            raise UsageError(msg)


def count_classes(
    view: View, place: int, classes: int, block: int, tick: Callable[[int], None]
) -> Counts:
    """Return the labelled pixels of each class in each block of a scene.

    Those where the scene has no data are none: nobody can learn from them.

    Args:
        view: what is open.
        place: which scene.
        classes: how many there are.
        block: side in pixels.
        tick: is told how many pixels were counted, again and again.
    """
    scene = view.box(place).window
    rows, cols = scene.coarsen(block).height, scene.coarsen(block).width
    counts = np.zeros((rows, cols, classes), np.int64)
    several = max(1, _COUNTED // block)
    for cell in Window(0, 0, rows, cols).coarsen(several).cells():
        blocks = cell.scale(several)
        labels = view.learnable(place, blocks.scale(block))
        cut = labels.reshape(several, block, several, block)
        part = counts[blocks.slices]
        for value in range(classes):
            found = (cut == value).sum(axis=(1, 3))
            part[..., value] = found[: part.shape[0], : part.shape[1]]
        tick(blocks.scale(block).intersect(scene).size)
    return counts


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
