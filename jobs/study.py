"""How good a model that comes with tileseg is, where, and with which settings.

python jobs/study.py --data DATA --write docs/models.md
python jobs/study.py --data DATA --write docs/models.md --model landcover-bgrn

Each source is judged on blocks that training never saw, beside random forests that
learnt from pixels of the same training blocks; then all scenes are segmented with other
halos and blends, in fp32, and a few tiles of each in bf16 too. The tables, and pictures
beside them, are written into the page, under the names of the model.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import click
import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from sklearn.ensemble import RandomForestClassifier

import tileseg
from landcover.page import (
    NETWORK,
    SIDE,
    Failure,
    Score,
    Setting,
    as_both,
    as_classes,
    as_kept,
    as_scores,
    as_settings,
    draw_calibration,
    draw_failures,
    write_between,
)
from landcover.sources import BANDS, EXAMPLE, POINTS, sources, training
from tileseg.base.builtin import MODELS, default_model, model_folder
from tileseg.base.classes import LandClass
from tileseg.cards.card import NODATA, Card
from tileseg.cards.item import read_card, write_card
from tileseg.commands.console import one_line_errors
from tileseg.evaluation.evaluate import Evaluation, Question, evaluate
from tileseg.evaluation.reference import Points, open_reference
from tileseg.evaluation.scores import Calibration, Confusion, count_pairs
from tileseg.plans.seams import add_up, look_at
from tileseg.scenes.scene import open_scene
from tileseg.stores.storage import Disk
from tileseg.training.split import TEST, TRAINING
from tileseg.training.survey import survey
from tileseg.window import Window

HALOS = 8, 16, 24, 32
BLENDS = "crop", "cosine"
TREES = 100
MOST = 40_000  # pixels of a scene that a forest learns from
FAILURES = 7  # are shown
AROUND = 5  # pixels: side of the square that a forest sees
CHECKS = "itaipu, check points"
PICTURES = "calibration", "failures"

Labels = NDArray[np.uint8]
"""(height, width), of a whole scene; 255 where nothing is known."""
Features = NDArray[np.float32]
"""(features, height, width)"""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A scene of a source, whole."""

    source: str
    href: str
    learnt: Labels
    """In training blocks."""
    known: Labels
    """In test blocks, or at check points."""
    reflectance: Features
    """0 where invalid."""

    def features(self, *, is_wide: bool) -> Features:
        """Return what a forest sees of each pixel: its bands, or its surroundings too.

        Those are mean and standard deviation of each band in a square.
        """
        if not is_wide:
            return self.reflectance
        size = 1, AROUND, AROUND
        mean = uniform_filter(self.reflectance, size)
        square = uniform_filter(self.reflectance**2, size)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return np.concatenate((self.reflectance, mean, deviation))


@click.command()
@click.option("--model", default=MODELS[0], show_default=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--write", "page", type=click.Path(path_type=Path), required=True)
def main(model: str, data: Path, page: Path) -> None:
    """Judge a model that `jobs/train.py --data` made; write tables into a page."""
    folder = model_folder(model)
    card = read_card(folder)
    names = tuple(item.name for item in card.classes)
    with one_line_errors():
        places = find_places(data, card)
        with mapped(places, folder) as maps:
            found = [by_network(place, maps[place.href], names) for place in places]
            failures = find_failures(places, maps, card.classes)
            kept = kept_by_bf16(places, maps, folder)
        scores = by_source([*found, *by_forests(places, names)])
        settings = [
            by_setting(places, folder, names, blend, halo)
            for blend in BLENDS
            for halo in HALOS
        ]
    tables = {
        "scores": as_scores(scores),
        "classes": as_classes(scores, names),
        "settings": as_settings(settings),
        "bf16": as_kept(kept),
    }
    if card.bands != BANDS:
        tables["both"] = as_both(by_models(places, data, names), names)
    for name, table in tables.items():
        click.echo(f"{table}\n")
        write_between(page, f"{name} of {card.name}", table)
    pictures = {kind: page.with_name(f"{card.name}_{kind}.png") for kind in PICTURES}
    draw_calibration(scores, pictures["calibration"])
    draw_failures(failures, card.classes, pictures["failures"])


def find_places(data: Path, card: Card) -> list[Place]:
    """Return every scene, divided as it was for training, and the check points."""
    wanted = training(data, "unused", card.bands).settled()
    samples = survey(wanted, None, Disk(Path(wanted.to))).samples
    of = [source.name for source in sources(data, card.bands) for _ in source.pairs]
    found = []
    with samples.ground.open() as view:
        for n, name in enumerate(of):
            whole = view.box(n).window
            pixels, is_valid = view.pixels(n, whole)
            labels = np.where(is_valid, view.labels(n, whole), np.uint8(NODATA))
            parts = samples.split.parts[n].repeat(wanted.block, axis=0)
            parts = parts.repeat(wanted.block, axis=1)[whole.slices]
            learnt, known = (
                np.where(parts == part, labels, np.uint8(NODATA))
                for part in (TRAINING, TEST)
            )
            found.append(Place(name, wanted.scenes[n], learnt, known, pixels))
    names = tuple(item.name for item in card.classes)
    checks = [
        replace(place, source=CHECKS, known=check_points(place, names))
        for place in found
        if place.source == EXAMPLE.name
    ]
    return found + checks


def check_points(example: Place, names: tuple[str, ...]) -> Labels:
    """Return the classes of the example's check points."""
    box = open_scene(example.href).geobox
    labels = np.full((box.height, box.width), NODATA, np.uint8)
    with open_reference(POINTS, box, names, {}, "class") as points:
        assert isinstance(points, Points), "the file has points"
        rows, cols, classes = points.within(box.window)
    labels[rows, cols] = classes
    return labels


@dataclass(frozen=True, slots=True)
class Map:
    """What was made of a scene."""

    folder: Path
    """With the products."""
    tiles: int
    """Forwarded."""

    @property
    def mask(self) -> Labels:
        """The class of each pixel."""
        with rasterio.open(self.folder / "mask.tif") as raster:
            labels: Labels = raster.read(1)
        return labels


@contextmanager
def mapped(
    places: Iterable[Place],
    model: Path,
    blend: str = "crop",
    precision: str = "fp32",  # whatever the machine has
) -> Iterator[dict[str, Map]]:
    """Map each place's scene once; the maps go again."""
    with TemporaryDirectory() as home:
        maps = {}
        for n, href in enumerate(dict.fromkeys(place.href for place in places)):
            made = Path(home) / f"{n}"
            record = tileseg.segment(
                href,
                model=model,
                output=str(made),
                blend=blend,
                confidence=True,
                precision=precision,
            )
            maps[href] = Map(made, record["counts"]["tiles"])
        yield maps


def by_network(place: Place, made: Map, names: tuple[str, ...]) -> Score:
    """Say how right the network is at a place, and how right it thinks it is."""
    found = compared(place, made, names)
    return Score(place.source, NETWORK, found.confusion, found.calibration)


def compared(place: Place, made: Map, names: tuple[str, ...]) -> Evaluation:
    """Evaluate a mask and its confidence where the truth is known."""
    mask, truth, sure = (
        str(made.folder / f"{name}.tif") for name in ("mask", "known", "confidence")
    )
    with rasterio.open(mask) as raster:
        profile = {**raster.profile, "driver": "GTiff"}
    with rasterio.open(truth, "w", **profile) as raster:
        raster.write(place.known, 1)
        raster.update_tags(**{f"CLASS_{n}": name for n, name in enumerate(names)})
    return evaluate(Question(mask=mask, reference=truth, confidence=sure))


def by_setting(
    places: Sequence[Place], folder: Path, names: tuple[str, ...], blend: str, halo: int
) -> Setting:
    """Say what a blend and a halo give."""
    card = replace(read_card(folder), halo=halo)
    stride = card.tile - 2 * halo
    scores, seams, tiles = [], [], 0
    with TemporaryDirectory() as parent:
        variant = Path(parent) / folder.name
        copytree(folder, variant)
        write_card(variant, card)
        with mapped(places, variant, blend) as maps:
            for place in places:
                found = compared(place, maps[place.href], names)
                scores.append(Score(place.source, NETWORK, found.confusion))
            for made in maps.values():
                labels = made.mask
                seams.append(look_at(labels, Window(0, 0, *labels.shape), stride))
                tiles += made.tiles
    by_place = by_source(scores).values()
    macro_f1 = float(np.mean([score.confusion.macro_f1 for score in by_place]))
    ratio = add_up(seams).ratio or math.nan
    return Setting(blend, halo, ratio, macro_f1, tiles)


def kept_by_bf16(
    places: Iterable[Place], maps: Mapping[str, Map], model: Path
) -> dict[str, float]:
    """Return the share of each scene's labels that bf16 leaves as they are."""
    with mapped(places, model, precision="bf16") as fast:
        pairs = {href: (maps[href].mask, made.mask) for href, made in fast.items()}
    return {
        href: float((other == labels)[labels != NODATA].mean())
        for href, (labels, other) in pairs.items()
    }


def find_failures(
    places: Sequence[Place], maps: Mapping[str, Map], classes: Sequence[LandClass]
) -> list[Failure]:
    """Return some check points, or test pixels, that are mapped wrong."""
    judged = [place for place in places if place.source == CHECKS] or places
    count = max(1, FAILURES // len(judged))
    return [
        failure
        for place in judged
        for failure in failures_of(place, maps[place.href].mask, classes, count)
    ]


def failures_of(
    place: Place, labels: Labels, classes: Sequence[LandClass], count: int
) -> list[Failure]:
    """Return so many known pixels that are mapped wrong, and what is around."""
    colors = place.reflectance[2::-1]  # red, green, blue
    low, high = np.percentile(colors[:, place.reflectance[0] > 0], (1, 99), axis=1)
    pixels = ((colors.T - low) / (high - low)).clip(0, 1).transpose(1, 0, 2)
    wrong = np.argwhere((place.known != NODATA) & (labels != place.known))
    found = []
    for row, col in wrong[((np.arange(count) + 0.5) / count * len(wrong)).astype(int)]:
        around = Window(row - SIDE // 2, col - SIDE // 2, SIDE, SIDE)
        inner = around.intersect(Window(0, 0, *labels.shape))
        at = inner.relative_to(around).slices
        seen = np.ones((SIDE, SIDE, 3)), np.full((SIDE, SIDE), NODATA, np.uint8)
        seen[0][at], seen[1][at] = pixels[inner.slices], labels[inner.slices]
        true, mapped = place.known[row, col], labels[row, col]
        found.append(Failure(classes[true], classes[mapped], *seen))
    return found


def by_models(
    places: Sequence[Place], data: Path, names: tuple[str, ...]
) -> dict[tuple[str, str], Score]:
    """Say how right each model of ours is where none was trained: see `trainings`."""
    kept = {it.href: it.known for it in find_places(data, read_card(default_model()))}
    common = [
        replace(place, known=np.where(kept[place.href] == NODATA, NODATA, place.known))
        for place in places
    ]
    common = [place for place in common if (place.known != NODATA).any()]
    scores = []
    for name in MODELS:
        with mapped(common, model_folder(name)) as maps:
            found = [by_network(place, maps[place.href], names) for place in common]
        scores += [replace(score, way=name) for score in found]
    return by_source(scores)


def by_forests(places: Sequence[Place], names: tuple[str, ...]) -> Iterator[Score]:
    """Yield how right random forests are: of a source, or all; seeing a square or not.

    The check points' forest is the example's.
    """
    scenes = [place for place in places if place.source != CHECKS]
    for is_wide, seen in ((False, "pixel"), (True, f"{AROUND} × {AROUND}")):
        of_all = forest(scenes, is_wide=is_wide)
        for source in dict.fromkeys(place.source for place in places):
            judged = [place for place in places if place.source == source]
            hrefs = {place.href for place in judged}
            alone = forest([p for p in scenes if p.href in hrefs], is_wide=is_wide)
            for place in judged:
                for way, trees in (("all", of_all), ("own", alone)):
                    found = by_forest(place, trees, names, is_wide=is_wide)
                    yield Score(source, f"forest, {seen}, {way}", found)


def forest(places: Iterable[Place], *, is_wide: bool) -> RandomForestClassifier:
    """Return a forest that learnt from some pixels of each place, by chance."""
    random, pixels, labels = np.random.default_rng(0), [], []
    for place in places:
        rows, cols = (place.learnt != NODATA).nonzero()
        some = random.permutation(len(rows))[:MOST]
        at = rows[some], cols[some]
        pixels.append(place.features(is_wide=is_wide)[:, *at].T)
        labels.append(place.learnt[at])
    trees = RandomForestClassifier(TREES, min_samples_leaf=2, n_jobs=-1, random_state=0)
    return trees.fit(np.concatenate(pixels), np.concatenate(labels))


def by_forest(
    place: Place,
    trees: RandomForestClassifier,
    names: tuple[str, ...],
    *,
    is_wide: bool,
) -> Confusion:
    """Say how right a forest is at a place."""
    at = place.known != NODATA
    said = trees.predict(place.features(is_wide=is_wide)[:, at].T)
    return Confusion(names, count_pairs(place.known[at], said, len(names)))


def by_source(scores: Iterable[Score]) -> dict[tuple[str, str], Score]:
    """Return scores by source and way, the dates of a source taken together."""
    found: dict[tuple[str, str], Score] = {}
    for score in scores:
        key = score.source, score.way
        found[key] = together(found[key], score) if key in found else score
    return found


def together(one: Score, other: Score) -> Score:
    """Return the score of two places as of one."""
    counts = one.confusion.counts + other.confusion.counts
    calibration = None
    if one.calibration and other.calibration:
        calibration = Calibration(
            one.calibration.right + other.calibration.right,
            one.calibration.total + other.calibration.total,
        )
    return replace(
        one,
        confusion=replace(one.confusion, counts=counts),
        calibration=calibration,
    )


if __name__ == "__main__":
    main()
