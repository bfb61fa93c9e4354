"""What is asked of a scene and a model: of what the scene says, and of its values."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tileseg.cards.card import Card
from tileseg.cards.drift import (
    LARGE,
    drift,
    nearest,
    outside,
    powers_of_ten,
    statistics_of,
)
from tileseg.errors import UsageError
from tileseg.plans.task import FAR, scale_of
from tileseg.scenes.area import pixel_metres
from tileseg.scenes.raster import Band, Scene
from tileseg.scenes.sample import Sample
from tileseg.settings import Job

__all__ = [
    "Answer",
    "BandFit",
    "ask_bands",
    "ask_dtype",
    "ask_reading",
    "ask_resolution",
    "ask_scale",
    "ask_values",
    "band_fits",
]

_MUCH = 0.1  # of a band's pixels outside the values that it knows, where 2 % are usual
_COARSE = 0.5  # of a standard deviation: from there a step of whole numbers shows
_FAR_STDS = 3.0  # of a median from the mean, of a card without statistics
_POWERS = 2  # of ten, from where values are on another scale


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to one question."""

    question: str
    """`bands`, `scale`, `dtype`, `resolution`, `values` or `drift`."""
    verdict: str
    """`ok`, `warn`, or `refuse`: a map of it would be worthless."""
    text: str
    """One line; what to do, if anything."""


@dataclass(frozen=True, slots=True)
class BandFit:
    """One band's values beside those that the model knows."""

    name: str
    """As the model calls it."""
    index: int
    """The scene's band, from 1."""
    median: float
    """In the card's unit."""
    outside: float | None
    """Share of its pixels beyond the known 1 and 99 %; None without statistics."""
    drift: float | None
    """See `drift.drift`, from the nearest scene that it knows; None without statistics.
    """


def ask_bands(
    job: Job, card: Card, scene: Scene
) -> tuple[Answer, tuple[Band, ...] | None]:
    """Ask which bands the network would get."""
    wanted = job.bands or card.bands
    names = ", ".join(card.bands)
    if len(wanted) != len(card.bands):
        text = f"the model needs {len(card.bands)} bands ({names}), got {len(wanted)}"
        return Answer("bands", "refuse", text), None
    try:
        bands = scene.select(wanted)
    except UsageError as err:
        text = str(err).removeprefix(f"{scene.href}: ")
        return Answer("bands", "refuse", f"{text}. The model's: {names}"), None
    pairs = list(zip(bands, card.bands, strict=True))
    mapped = ", ".join(f"band {band.index} -> {name}" for band, name in pairs)
    known = {name.casefold() for name in card.bands}
    for band, name in pairs:
        said = (band.name or "").casefold()
        if said != name.casefold() and said in known:
            text = f"{mapped}; but band {band.index} is named {band.name}: look again"
            return Answer("bands", "warn", text), bands
    return Answer("bands", "ok", mapped), bands


def ask_scale(
    job: Job, card: Card, bands: tuple[Band, ...]
) -> tuple[Answer, tuple[tuple[float, float], ...] | None]:
    """Ask how stored numbers become what the model knows."""
    try:
        scale = tuple(scale_of(job, card, band) for band in bands)
    except UsageError as err:
        text = str(err).removeprefix(f"{job.href}: ")
        return Answer("scale", "refuse", text), None
    if card.unit == "dn" and job.scale is None:
        return Answer(
            "scale", "ok", "the model takes numbers as they are stored"
        ), scale
    said = {f"stored * {factor:g} + {offset:g}": None for factor, offset in scale}
    return Answer("scale", "ok", f"{card.unit} = {' or '.join(said)}"), scale


def ask_dtype(
    card: Card, scene: Scene, scale: tuple[tuple[float, float], ...] | None
) -> Answer:
    """Ask whether the stored numbers are fine enough."""
    if scale is None or np.dtype(scene.dtype).kind == "f":
        return Answer("dtype", "ok", scene.dtype)
    steps = [
        abs(factor) / std for (factor, _), std in zip(scale, card.std, strict=True)
    ]
    if max(steps) <= _COARSE:
        return Answer("dtype", "ok", scene.dtype)
    text = (
        f"{scene.dtype}: the least difference that it can store is {max(steps):.2g} of "
        "a standard deviation of the model's; take data in finer steps"
    )
    return Answer("dtype", "warn", text)


def ask_resolution(card: Card, scene: Scene) -> Answer:
    """Ask whether a pixel is as large as those that the model knows."""
    side = pixel_metres(scene.geobox)
    known = card.gsd_near(side or 0)
    if known is None:
        return Answer("resolution", "ok", "the model does not say which it knows")
    if side is None:
        text = f"the scene does not say its own; the model knows {card.gsd:g} m"
        return Answer("resolution", "warn", text)
    factor = side / known
    text = f"{side:.3g} m, {factor:.3g} times the {known:g} m that the model knows"
    if 1 / FAR <= factor <= FAR:
        return Answer("resolution", "ok", text)
    text += ": expect a worse mask, or say resolution = 'card' in a job file"
    return Answer("resolution", "warn", text)


def band_fits(
    card: Card, bands: tuple[Band, ...], found: Sample
) -> tuple[BandFit, ...]:
    """Compare each band's values with those that the model knows; none if none are."""
    if not found.pixels.shape[1]:
        return ()
    seen = tuple(map(statistics_of, found.pixels))
    fits = [
        BandFit(name, band.index, here.median, None, None)
        for name, band, here in zip(card.bands, bands, seen, strict=True)
    ]
    if card.statistics is None:
        return tuple(fits)
    near = nearest(card.scenes or (card.statistics,), seen)
    # A dark scene among bright ones is known too, though few of all values are its.
    known = zip(card.statistics, *card.scenes, strict=True)
    facts = zip(fits, known, near, seen, found.pixels, strict=True)
    return tuple(
        replace(fit, outside=outside(bands, values), drift=drift(close, here))
        for fit, bands, close, here, values in facts
    )


def ask_reading(found: Sample) -> Iterator[Answer]:
    """Ask whether there was anything to look at."""
    if found.unreadable:
        text = f"cannot be read at {found.unreadable} of the places tried"
        yield Answer("values", "warn", text)
    if not found.pixels.shape[1]:
        yield Answer("values", "warn", "no valid pixel at the places looked at")


def ask_values(card: Card, fits: tuple[BandFit, ...]) -> Iterator[Answer]:
    """Ask whether they are on the model's scale, and like those that it knows."""
    if not fits:
        return
    known = [item.median for item in card.statistics or ()] or list(card.mean)
    pairs = list(zip(known, fits, strict=True))
    powers = int(np.median([powers_of_ten(here, fit.median) for here, fit in pairs]))
    if abs(powers) >= _POWERS:
        yield Answer("values", "refuse", _on_another_scale(card, powers, pairs[0]))
        return
    if card.statistics:
        yield _ask_range(fits)
        yield _ask_drift(fits)
    else:
        yield _ask_medians(card, fits)


def _on_another_scale(card: Card, powers: int, first: tuple[float, BandFit]) -> str:
    known, fit = first
    times = "large" if powers > 0 else "small"
    stored = f"numbers as stored where {card.unit} is expected"
    what = stored if powers > 0 and card.unit == "reflectance" else "another scale"
    return (
        f"about 1e{abs(powers)} times too {times} (median of {fit.name} "
        f"{fit.median:.4g}, the model knows {known:.4g}): looks like {what}; say "
        "--scale and --offset, or correct the file's GDAL tags"
    )


def _ask_medians(card: Card, fits: tuple[BandFit, ...]) -> Answer:
    """Ask the little that a card without statistics can tell."""
    far = [
        fit.name
        for fit, mean, std in zip(fits, card.mean, card.std, strict=True)
        if abs(fit.median - mean) > _FAR_STDS * std
    ]
    if far:
        text = (
            f"{', '.join(far)}: far from what the model knows: look at scale and offset"
        )
        return Answer("values", "warn", text)
    text = "medians are near the model's means; its card does not say more"
    return Answer("values", "ok", text)


def _ask_range(fits: tuple[BandFit, ...]) -> Answer:
    said = ", ".join(f"{fit.name} {fit.outside:.1%}" for fit in fits)
    is_much = any((fit.outside or 0) > _MUCH for fit in fits)
    text = f"pixels outside the 1 to 99 % that the model knows: {said} (2 % are usual)"
    return Answer("values", "warn" if is_much else "ok", text)


def _ask_drift(fits: tuple[BandFit, ...]) -> Answer:
    said = ", ".join(f"{fit.name} {fit.drift:.2f}" for fit in fits)
    worst = max(fit.drift or 0 for fit in fits)
    text = f"{worst:.2f} standard deviations from what the model knows ({said})"
    if worst <= LARGE:
        return Answer("drift", "ok", text)
    text += (
        f", more than {LARGE:g}: another season, sensor, level or place; look at the "
        "mask before using it, or train on such scenes too"
    )
    return Answer("drift", "warn", text)
