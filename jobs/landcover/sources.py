"""What the land-cover models learn from: scenes, labels, and how they are trained.

The example scene is in the repository. The others are in a folder that whoever trains
has to bring; docs/models.md says what is in it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tileseg.training.train_settings import Training

__all__ = [
    "BANDS",
    "EXAMPLE",
    "INFRARED",
    "POINTS",
    "Source",
    "sources",
    "training",
    "trainings",
]

BANDS = "blue", "green", "red"
INFRARED = *BANDS, "nir"

POINTS = "examples/itaipu_checkpoints.geojson"
_CLASSES = (
    "water=2b7bba",
    "trees=1b7837",
    "low vegetation=a6d96a",
    "bare soil=d8b365",
    "built-up=d7301f",
)
_ALONE: dict[str, Any] = {"test": 0.0, "epochs": 6}  # the check points are the test
_TOGETHER: dict[str, Any] = {
    "block": 160,  # the least: the Sentinel-2 scenes are 400 pixels wide
    "test": 0.2,
    "seed": 1,  # the first with each source's classes in its test blocks
    "jitter": 0.7,
    "steps": 400,
    "epochs": 14,
    "patience": 14,
}
_AT_LAST: dict[str, Any] = {
    "steps": 250,
    "epochs": 4,
    "patience": 4,
}


@dataclass(frozen=True, slots=True)
class Source:
    """A place, seen once or more by one sensor."""

    name: str
    title: str
    pairs: tuple[tuple[str, str], ...]
    """Scene and labels, of each date."""
    bands: tuple[str, ...] = INFRARED
    weight: float = 1.0
    """How often its tiles are drawn at last: labels drawn by eye are better than a
    network's, and these than an older map."""


EXAMPLE = Source(
    "itaipu",
    "Landsat 8, Foz do Iguaçu, polygons drawn by eye",
    (("examples/itaipu.tif", "examples/itaipu_training.geojson"),),
    BANDS,
    weight=4.0,
)


def sources(data: Path | None, bands: tuple[str, ...] = BANDS) -> tuple[Source, ...]:
    """Return the example, and what is in a folder besides; if it has the bands."""
    if data is None:
        return (EXAMPLE,)

    def sentinel(place: str, title: str, *dates: str) -> Source:
        names = [f"{data}/s2/{place}_{date}" for date in dates]
        pairs = tuple((f"{name}.tif", f"{name}_labels_dense.tif") for name in names)
        return Source(place, f"Sentinel-2, {title}, made by Dynamic World", pairs)

    zion = ((f"{data}/zion/scene.tif", f"{data}/zion/labels.tif"),)
    found = (
        EXAMPLE,
        Source("zion", "Landsat 8, Zion in Utah, NLCD 2011", zion, weight=0.5),
        # Of autumn and winter the labels take bare trees for crops, crops for soil.
        sentinel("strzegom", "Lower Silesia", "20210619", "20220619", "20220719"),
        sentinel("boadella", "Catalonia", "20200113", "20200128"),
    )
    return tuple(source for source in found if set(bands) <= set(source.bands))


def trainings(
    data: Path | None,
    to: str,
    bands: tuple[str, ...] = BANDS,
    *,
    overwrite: bool = False,
) -> tuple[Training, ...]:
    """Return how a model is trained on the example, or on all sources.

    One after the other, each from what the one before left; the last makes the model.
    """
    alone = training(data, to, bands, overwrite=overwrite)
    if data is None:
        return (alone,)
    first = replace(alone, to=f"{to}.first")
    weights = [s.weight for s in sources(data, bands) for _ in s.pairs]
    return first, replace(alone, base=first.to, weights=tuple(weights), **_AT_LAST)


def training(
    data: Path | None,
    to: str,
    bands: tuple[str, ...] = BANDS,
    *,
    overwrite: bool = False,
) -> Training:
    """Return how a model is trained first."""
    pairs = [pair for source in sources(data, bands) for pair in source.pairs]
    return Training(
        scenes=tuple(scene for scene, _ in pairs),
        labels=tuple(labels for _, labels in pairs),
        classes=_CLASSES,
        bands=bands,
        to=to,
        overwrite=overwrite,
        **(_TOGETHER if data else _ALONE),
    )
