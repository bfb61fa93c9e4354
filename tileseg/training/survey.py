"""What there is to learn from, before the first step: scenes, classes, blocks, values.

Labels are read once, whole, and the scenes where there are any; of training blocks some
values are kept.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tileseg import __version__
from tileseg.cards.card import NODATA, Card
from tileseg.cards.drift import Statistics, known_scenes, statistics_of
from tileseg.errors import UsageError
from tileseg.evaluation.reference import named_classes
from tileseg.scenes.area import pixel_metres
from tileseg.scenes.identity import Identities, identify
from tileseg.scenes.scene import Band, Scene, open_scene
from tileseg.stores.storage import Storage
from tileseg.training.split import PARTS, TRAINING, Counts, Split, split
from tileseg.training.train_ground import (
    Ground,
    Place,
    View,
    check_scales,
    count_classes,
)
from tileseg.training.train_overlap import boxes_in
from tileseg.training.train_settings import Settled, with_colors
from tileseg.training.train_tiles import Samples

__all__ = ["Survey", "survey"]

logger = logging.getLogger(__name__)

_BLOCKS = 256  # whose values are looked at, at most
_VALUES = 1 << 21  # pixels whose values are kept for the quantiles, at most
_LOOK = 3  # what random numbers are for


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What was found."""

    samples: Samples
    """How tiles are drawn."""
    classes: tuple[tuple[str, str], ...]
    """Name and colour, in the order of their values."""
    bands: tuple[str, ...]
    """In the network's order."""
    statistics: tuple[Statistics, ...]
    """Of each band, of the training blocks."""
    scenes: tuple[tuple[Statistics, ...], ...]
    """The same of each scene by itself; none where there is but one."""
    gsd: float | None
    """Metres of a pixel of the scene in the middle; None where none says."""
    gsd_range: tuple[float, float] | None
    """The same of the finest and the coarsest scene; None where they are alike."""
    base: Card | None
    """Of the model to go on from."""
    files: Identities
    """What the bytes of scenes and labels are."""
    key: str
    """Tells trainings apart that would not end alike."""

    def labelled(self) -> dict[str, dict[str, int]]:
        """Return labelled pixels by part and class."""
        samples, names = self.samples, [name for name, _ in self.classes]
        return {
            name: dict(zip(names, pixels.tolist(), strict=True))
            for part, name in enumerate(PARTS)
            for pixels in [samples.split.labelled(part, samples.counts)]
        }


def survey(training: Settled, base: Card | None, work: Storage) -> Survey:
    """Look at all scenes and labels.

    Args:
        training: what is asked for.
        base: the card of the model to go on from.
        work: where an earlier run may have left what it knew of the files.

    Raises:
        InputError: a file cannot be read.
        UsageError: scenes, labels, classes and base do not fit together.
    """
    scenes = [open_scene(path) for path in training.scenes]
    paths = [file.path for scene in scenes for file in scene.files]
    files = identify((*paths, *training.labels), work)
    bands = training.bands or (base.bands if base else _band_names(scenes[0]))
    classes = _classes(training, base)
    names = tuple(name for name, _ in classes)
    places = _places(training, scenes, bands)
    renamed = tuple(training.renaming.items())
    ground = Ground(places, names, renamed, training.column, training.unit)
    with ground.open() as view:
        counts = _counts(view, places, training.block, names)
        cut = _cut(training, places, counts)
        _check_room(view, cut, counts, names, training.tile)
        values = _values(view, cut, counts, training.seed)
    statistics = _statistics(bands, values)
    each = tuple(tuple(map(statistics_of, some)) for some in values if some.size)
    mean, std = _scaling(training, base, statistics, each)
    samples = Samples(
        ground, cut, counts, training.tile, training.halo, mean, std,
        training.jitter, training.weights, training.seed,
    )  # fmt: skip
    facts = {
        **_training_facts(training),
        "files": files.facts(),
        "classes": classes,
        "bands": bands,
        "base": base and asdict(base),
        "statistics": [asdict(band) for band in statistics],
    }
    sides = _sides(scenes)
    return Survey(
        samples=samples,
        classes=classes,
        bands=bands,
        statistics=statistics,
        scenes=known_scenes(each),
        gsd=median_low(sides) if sides else None,
        gsd_range=(sides[0], sides[-1]) if len(set(sides)) > 1 else None,
        base=base,
        files=files,
        key=_key(facts, counts),
    )


def _places(
    training: Settled, scenes: Sequence[Scene], bands: tuple[str, ...]
) -> tuple[Place, ...]:
    """Return each scene with its labels and scaled bands."""
    places = tuple(
        Place(scene, _scaled(scene.select(bands), training, scene.href), labels)
        for scene, labels in zip(scenes, training.labels, strict=True)
    )
    if training.unit == "reflectance" and training.scale is None:
        for place in places:
            check_scales(place)
    return places


def _cut(training: Settled, places: Sequence[Place], counts: Sequence[Counts]) -> Split:
    """Return which blocks are for what."""
    parts = split(
        [_grid(place.scene) for place in places],
        counts,
        (training.validation, training.test),
        training.seed,
    )
    closed = _closed(places, parts, training.block)
    return Split(training.block, training.keep, tuple(parts), closed)


def _key(facts: dict[str, Any], counts: Sequence[Counts]) -> str:
    """Return a digest of what decides the weights."""
    text = json.dumps([__version__, facts])
    digest = hashlib.sha256(text.encode())
    for some in counts:
        digest.update(some.tobytes())
    return digest.hexdigest()


def _training_facts(training: Settled) -> dict[str, Any]:
    """Return what can change a weight, as plain values; files' names do not."""
    aside = {"scenes", "labels", "to", "base", "overwrite"}
    aside |= {"device", "engine", "workers"}  # decide its last bits only
    return {key: value for key, value in asdict(training).items() if key not in aside}


def _scaled(bands: tuple[Band, ...], training: Settled, href: str) -> tuple[Band, ...]:
    """Return bands with the scale and offset that are asked for, if any are."""
    if training.scale is None:
        return bands
    asked = training.scale, training.offset or 0.0
    for band in bands:
        says = band.scale, band.offset
        if says not in ((1.0, 0.0), asked):
            text = "%s: band %d says scale %g and offset %g, but %g and %g are given"
            logger.warning(text, href, band.index, *says, *asked)
    return tuple(replace(it, scale=asked[0], offset=asked[1]) for it in bands)


def _grid(scene: Scene) -> tuple[Any, ...]:
    box = scene.geobox
    return box.crs, tuple(box.transform), box.height, box.width


def _sides(scenes: Sequence[Scene]) -> list[float]:
    """Return how many metres a pixel has in each scene that says so, in order."""
    sides = (pixel_metres(scene.geobox) for scene in scenes)
    return sorted(side for side in sides if side)


def _closed(
    places: Sequence[Place], parts: Sequence[NDArray[np.uint8]], block: int
) -> tuple[NDArray[np.int64], ...]:
    """Return the boxes of each scene's pixels that scenes on other grids hold back."""
    closed = []
    for place in places:
        boxes = [np.empty((0, 4), np.int64)]
        here = place.scene.geobox
        for other, part in zip(places, parts, strict=True):
            if _grid(other.scene) == _grid(place.scene):
                continue
            held = np.argwhere(part != TRAINING)
            boxes.append(boxes_in(here, other.scene.geobox, held, block))
            if found := len(boxes[-1]):
                text = (
                    "%s: %d blocks of %s for validation or test lie in it, on another "
                    "grid; nothing near them is trained on. Scenes on one grid are cut "
                    "alike, which leaves more"
                )
                logger.warning(text, place.scene.href, found, other.scene.href)
        closed.append(np.concatenate(boxes))
    return tuple(closed)


def _band_names(scene: Scene) -> tuple[str, ...]:
    names = [band.name for band in scene.bands]
    found = tuple(name for name in names if name)
    if len(found) < len(names):
        msg = f"{scene.href}: not every band has a name; describe them in the file"
        raise UsageError(msg)
    return found


def _classes(training: Settled, base: Card | None) -> tuple[tuple[str, str], ...]:
    """Return name and colour of each class: as asked for, the base's, or the labels'.

    Raises:
        UsageError: nobody names any.
    """
    if training.classes:
        return training.names_and_colors
    if base:
        return tuple((item.name, item.color) for item in base.classes)
    found: list[str] = []
    for path in training.labels:
        own = named_classes(path, training.column)
        named = [training.renaming.get(name, name) for name in own]
        found += [name for name in named if name not in (*found, str(NODATA))]
    found = list(dict.fromkeys(found))  # two may have got one name
    if len(found) < 2:  # noqa: PLR2004
        msg = (
            f"{', '.join(training.labels)}: names {len(found)} classes, wanted 2 or "
            "more; name them in the order of their values: --classes water,trees"
        )
        raise UsageError(msg)
    return with_colors(tuple(found))


def _counts(
    view: View, places: Sequence[Place], block: int, names: Sequence[str]
) -> tuple[Counts, ...]:
    """Return how much of each class is in each block of each scene.

    Raises:
        UsageError: there is nothing of a scene, or of a class.
    """
    counts = tuple(
        _counted(view, at, place, block, len(names)) for at, place in enumerate(places)
    )
    total = np.sum([some.sum(axis=(0, 1)) for some in counts], axis=0)
    for name, pixels in zip(names, total.tolist(), strict=True):
        if not pixels:
            msg = (
                f"no labels of class {name!r} where a scene has data; label some, or "
                "leave the class out"
            )
            raise UsageError(msg)
    return counts


def _counted(view: View, at: int, place: Place, block: int, classes: int) -> Counts:
    """Return how much of each class is in each block, telling how far it is."""
    href, total, seen = place.scene.href, place.scene.geobox.window.size, 0

    def tick(pixels: int) -> None:
        nonlocal seen
        tenths, seen = 10 * seen // total, seen + pixels
        if 10 * seen // total > tenths and total > 1 << 28:
            logger.info("%s: labels counted, %d %%", href, 100 * seen / total)

    counts = count_classes(view, at, classes, block, tick)
    if not counts.any():
        msg = f"{place.labels}: says nothing of any pixel of {href} that has data"
        raise UsageError(msg)
    return counts


def _check_room(
    view: View, cut: Split, counts: Sequence[Counts], names: Sequence[str], tile: int
) -> None:
    """Refuse a class of which no training tile could ever show a label.

    Raises:
        UsageError: there is one.
    """
    blocks = cut.blocks(TRAINING, counts).tolist()
    for value, name in enumerate(names):
        some = (at for at in blocks if counts[at[0]][at[1], at[2], value])
        if not any(_has_room(view, cut, at, value, tile) for at in some):
            msg = (
                f"class {name!r}: all its labels for training lie on ground that is "
                f"kept for validation or test, or within {cut.margin} pixels of it, so "
                "it would never be seen; label more of it, or cut other blocks "
                "(--block, --seed)"
            )
            raise UsageError(msg)


def _has_room(view: View, cut: Split, at: Sequence[int], value: int, tile: int) -> bool:
    """Return whether a free tile has a pixel of a class, of those in a block."""
    place, row, col = at
    is_class = view.learnable(place, cut.window(row, col)) == value
    return bool((is_class & cut.room(place, row, col, tile)).any())


def _values(
    view: View, cut: Split, counts: Sequence[Counts], seed: int
) -> list[NDArray[np.float32]]:
    """Return the valid values of each scene's training blocks, (bands, n).

    Of all such blocks, or of some by chance, as many of each scene; and of these all
    pixels, or some.
    """
    random = np.random.default_rng((seed, _LOOK))
    blocks = random.permutation(cut.blocks(TRAINING, counts))
    scenes = [blocks[blocks[:, 0] == scene] for scene in np.unique(blocks[:, 0])]
    few = max(1, _BLOCKS // len(scenes))
    most = _VALUES // min(len(blocks), _BLOCKS)
    return [
        np.concatenate(
            [_block_values(view, cut, at, most, random) for at in some[:few].tolist()],
            axis=1,
        )
        for some in scenes
    ]


def _block_values(
    view: View, cut: Split, at: Sequence[int], most: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Return valid values of a block, (bands, n); some by chance if there are more."""
    place, row, col = at
    window = cut.window(row, col).intersect(view.box(place).window)
    pixels, valid = view.pixels(place, window)
    values: NDArray[np.float32] = pixels[:, valid]
    if values.shape[1] > most:
        values = values[:, random.choice(values.shape[1], most, replace=False)]
    return values


def _statistics(
    bands: tuple[str, ...], values: Sequence[NDArray[np.float32]]
) -> tuple[Statistics, ...]:
    """Return the statistics of all scenes together.

    Raises:
        UsageError: no value is valid, or a band has one only.
    """
    together = np.concatenate(values, axis=1)
    if not together.size:
        msg = "no pixel of the labelled training blocks is valid"
        raise UsageError(msg)
    statistics = tuple(map(statistics_of, together))
    for name, band in zip(bands, statistics, strict=True):
        if not band.std > 0:
            msg = f"band {name!r}: every training pixel is {band.mean}; leave it out"
            raise UsageError(msg)
    return statistics


def _scaling(
    training: Settled,
    base: Card | None,
    statistics: Sequence[Statistics],
    scenes: Sequence[Sequence[Statistics]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per band: the base's, unless told otherwise.

    Else those of the scene in the middle: together, scenes of several sensors differ by
    more than what there is to see in one of them.
    """
    if base and not training.own_scaling:
        return base.mean, base.std
    mean, std = [], []
    for all_of_it, *band in zip(statistics, *scenes, strict=True):
        mean.append(float(np.median([one.mean for one in band])))
        spreads = [one.std for one in band if one.std > 0] or [all_of_it.std]
        std.append(float(np.median(spreads)))
    return tuple(mean), tuple(std)
