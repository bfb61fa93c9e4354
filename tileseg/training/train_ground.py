"""What is learnt from: scenes and labels of any size, read window by window."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from tileseg.cards.card import NODATA
from tileseg.errors import UsageError
from tileseg.evaluation.reference import Points, Reference, open_reference
from tileseg.geobox import GeoBox
from tileseg.scenes.gdal import gdal_env
from tileseg.scenes.pixels import DATA, Pixels
from tileseg.scenes.raster import Band, Scene
from tileseg.training.split import Counts
from tileseg.window import Window

__all__ = [
    "Ground",
    "Labels",
    "Pixel",
    "Place",
    "View",
    "check_scales",
    "count_classes",
]

_COUNTED = 1024  # pixels of a window when labels are counted, about

Pixel = NDArray[np.float32]
Labels = NDArray[np.uint8]


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
