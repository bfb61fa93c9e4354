"""Whether a model was made for pixels like a scene's: question by question.

Asks what a job would ask, by the same functions, and goes on where a job would end.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tileseg.cards.card import Card
from tileseg.cards.drift import known_scenes, statistics_of
from tileseg.errors import UsageError
from tileseg.plans.questions import (
    Answer,
    BandFit,
    ask_bands,
    ask_dtype,
    ask_reading,
    ask_resolution,
    ask_scale,
    ask_values,
    band_fits,
)
from tileseg.plans.task import Task, meet, region_of, scale_of
from tileseg.scenes.raster import Scene
from tileseg.scenes.sample import Sample, affordable, sample
from tileseg.settings import Job
from tileseg.window import Window

__all__ = ["Fit", "compare", "doubts", "doubts_of", "with_statistics"]

_VERDICTS = ("ok", "warn", "refuse")


@dataclass(frozen=True, slots=True)
class Fit:
    """All that is said of a scene and a model."""

    card: Card
    """The model's."""
    scene: Scene
    """What was asked about."""
    answers: tuple[Answer, ...]
    """To every question that could be asked, in the order of asking."""
    bands: tuple[BandFit, ...]
    """In the model's order; none where their values were not looked at."""

    @property
    def verdict(self) -> str:
        """The worst of the answers'."""
        return max((item.verdict for item in self.answers), key=_VERDICTS.index)

    @property
    def drift(self) -> float | None:
        """The largest of the bands'; None where it is not known."""
        found = [item.drift for item in self.bands if item.drift is not None]
        return max(found, default=None)

    def __str__(self) -> str:
        """Say the scene, and an answer a line."""
        lines = [
            f"  {item.question:<10} {item.verdict:<6} {item.text}"
            for item in self.answers
        ]
        return "\n".join([self.scene.href, *lines])

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        names = "name", "version", "sha256"
        return {
            "scene": self.scene.href,
            "model": {name: getattr(self.card, name) for name in names},
            "verdict": self.verdict,
            "drift": self.drift,
            "answers": [asdict(item) for item in self.answers],
            "bands": [asdict(item) for item in self.bands],
        }


def compare(job: Job) -> Fit:
    """Compare a job's scene, or what is asked for of it, with its model.

    Blocks in 64 places are read at most.

    Raises:
        TilesegError: one of them cannot be opened.
    """
    ensemble, scene = meet(job)
    card = ensemble.card
    answer, bands = ask_bands(job, card, scene)
    answers = [answer]
    scale = None
    if bands:
        answer, scale = ask_scale(job, card, bands)
        answers.append(answer)
    answers += [ask_dtype(card, scene, scale), ask_resolution(card, scene)]
    fits: tuple[BandFit, ...] = ()
    if bands and scale:
        found = sample(scene, bands, scale, _area(job, scene))
        fits = band_fits(card, bands, found)
        answers += [*ask_reading(found), *ask_values(card, fits)]
    return Fit(card, scene, tuple(answers), fits)


def with_statistics(jobs: Sequence[Job]) -> Card:
    """Return the card of the jobs' model, which knows the values of all their scenes.

    Each scene counts by as many pixels as were looked at.

    Raises:
        UsageError: a scene lacks what the model needs, or has no valid pixel.
        TilesegError: one cannot be opened.
    """
    found = []
    for job in jobs:
        ensemble, scene = meet(job)
        card = ensemble.card
        bands = scene.select(job.bands or card.bands)
        scale = tuple(scale_of(job, card, band) for band in bands)
        found.append(sample(scene, bands, scale, _area(job, scene)).pixels)
        if not found[-1].shape[1]:
            msg = f"{job.href}: no valid pixel at the places looked at"
            raise UsageError(msg)
    together = tuple(map(statistics_of, np.concatenate(found, axis=1)))
    scenes = [tuple(map(statistics_of, values)) for values in found]
    return replace(card, statistics=together, scenes=known_scenes(scenes))


def _area(job: Job, scene: Scene) -> Window | None:
    """Return the part of the scene that is asked for; None for all."""
    region = region_of(job, scene)
    return region.window if region else None


def doubts(task: Task) -> tuple[list[str], float | None]:
    """Return what a person should know of a scene's values before they are mapped.

    Reads a hundredth of what the task does, and nothing for a model that does not say
    what values it knows.

    Returns:
        a line each, and the largest drift of a band; None where it is not known.
    """
    ensemble, area = task.ensemble, task.grid.area
    cards = [card for card in ensemble.cards if card.statistics]
    places = affordable(task.scene, area)
    if not (cards and places):
        return [], None
    found = sample(task.scene, task.bands, task.scale, area, places=places)
    return doubts_of(task, found, cards)


def doubts_of(
    task: Task, found: Sample, cards: Sequence[Card]
) -> tuple[list[str], float | None]:
    """Return the same of values that were found, asking some of the models."""
    ensemble, texts, drifts = task.ensemble, list[str](), list[float]()
    for card in cards:
        own = ensemble.places(card)
        bands = tuple(task.bands[place] for place in own)
        fits = band_fits(card, bands, replace(found, pixels=found.pixels[own]))
        answers = ask_values(card, fits)
        who = f"{card.name}: " if len(ensemble.cards) > 1 else ""
        texts += [who + item.text for item in answers if item.verdict != "ok"]
        drifts += [fit.drift for fit in fits if fit.drift is not None]
    return texts, max(drifts, default=None)
