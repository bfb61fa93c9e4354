"""The values that a model knows, and how far those of a scene are from them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LARGE",
    "PERCENTS",
    "Statistics",
    "drift",
    "known_scenes",
    "nearest",
    "outside",
    "powers_of_ten",
    "statistics_of",
]

PERCENTS = (1, 5, 25, 50, 75, 95, 99)
"""At which the quantiles of a band are kept."""

LARGE = 0.5
"""Drift from which a person should know.

Of two normal distributions of one width the population stability index is the square
of their distance in standard deviations: its usual bound for a large shift, 0.25, is
half of one.
"""

_QUANTILES = "tileseg:quantiles"
_DIGITS = 6
_SCENES = 64  # that a card says something of, at most
_MIDDLE = PERCENTS.index(50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The values of one band, in the unit of the model's card."""

    count: int
    """Pixels that were looked at."""
    minimum: float
    """The least of them."""
    maximum: float
    """The greatest."""
    mean: float
    """Their mean."""
    std: float
    """Their standard deviation."""
    quantiles: tuple[float, ...]
    """At `PERCENTS`, in that order."""

    @property
    def median(self) -> float:
        """Half of the values are below it."""
        return self.quantiles[_MIDDLE]

    def __str__(self) -> str:
        """Say the middle and what most of them lie between."""
        low, high = self.quantiles[0], self.quantiles[-1]
        return f"median {self.median:g}, 98 % from {low:g} to {high:g}"

    def faults(self) -> list[str]:
        """Say what no values could give, each in words that go on after "it"."""
        if len(self.quantiles) != len(PERCENTS):
            return [f"has {len(self.quantiles)} quantiles, wanted {len(PERCENTS)}"]
        spread = (self.minimum, *self.quantiles, self.maximum)
        if not all(map(isfinite, (*spread, self.mean, self.std))):
            return ["has statistics that are not finite"]
        checks = {
            "has statistics of no pixel": self.count > 0,
            "has a stddev in its statistics that is not > 0": self.std > 0,
            "has quantiles that do not grow from minimum to maximum": (
                list(spread) == sorted(spread)
            ),
        }
        return [fault for fault, is_good in checks.items() if not is_good]

    def as_json(self) -> dict[str, Any]:
        """Return what STAC has words for, and the quantiles by their percent."""
        return {
            "statistics": {
                "minimum": self.minimum,
                "maximum": self.maximum,
                "mean": self.mean,
                "stddev": self.std,
                "count": self.count,
            },
            _QUANTILES: dict(zip(map(str, PERCENTS), self.quantiles, strict=True)),
        }

    @classmethod
    def from_json(cls, band: Mapping[str, Any]) -> "Statistics | None":
        """Return what `as_json` gave; None where a band says no quantiles."""
        if _QUANTILES not in band:
            return None
        says, quantiles = band["statistics"], band[_QUANTILES]
        return cls(
            count=int(says["count"]),
            minimum=float(says["minimum"]),
            maximum=float(says["maximum"]),
            mean=float(says["mean"]),
            std=float(says["stddev"]),
            quantiles=tuple(float(quantiles[str(percent)]) for percent in PERCENTS),
        )


def statistics_of(values: NDArray[np.floating[Any]]) -> Statistics:
    """Return the statistics of one band, to six digits.

    Args:
        values: (N,), finite, at least one.
    """
    exact = values.astype(np.float64)
    return Statistics(
        count=len(exact),
        minimum=_plain(exact.min()),
        maximum=_plain(exact.max()),
        mean=_plain(exact.mean()),
        std=_plain(exact.std()),
        quantiles=tuple(map(_plain, np.percentile(exact, PERCENTS))),
    )


def drift(known: Statistics, seen: Statistics) -> float:
    """Return how far the values seen are from those known, in the known ones' std.

    The first Wasserstein distance: how far a value has to be moved on average to make
    one distribution of the other. Both are taken between their first and last quantile
    and linear between the others, so that a few odd pixels count for little. A shift
    of all values by one std is 1, no shift is 0, and there is no greatest drift.
    """
    gaps = np.subtract(seen.quantiles, known.quantiles)
    left, right = gaps[:-1], gaps[1:]
    size = np.abs(left) + np.abs(right)
    # Where the gap changes its sign on the way, it is two triangles.
    crossed = np.divide(
        left**2 + right**2, size, out=np.zeros_like(size), where=size > 0
    )
    mean = np.where(left * right < 0, crossed, size) / 2
    return float(np.average(mean, weights=np.diff(PERCENTS)) / known.std)


def known_scenes(
    scenes: Sequence[tuple[Statistics, ...]],
) -> tuple[tuple[Statistics, ...], ...]:
    """Return what a card says of scenes, each by itself.

    Of those that vary in every band; of very many, of some; nothing of one alone, which
    the statistics of all are those of.
    """
    found = [bands for bands in scenes if all(band.std > 0 for band in bands)]
    if len(found) < 2:  # noqa: PLR2004
        return ()
    some = np.linspace(0, len(found) - 1, min(len(found), _SCENES)).round().astype(int)
    return tuple(found[at] for at in some.tolist())


def nearest(
    scenes: Sequence[Sequence[Statistics]], seen: Sequence[Statistics]
) -> Sequence[Statistics]:
    """Return the statistics, per band, of the scene from which those seen drift least.

    A model of several sensors knows each of them, and nothing in between: together
    their values would spread so far that even they themselves seem to have drifted.

    Args:
        scenes: at least one.
        seen: of the same bands.
    """
    return min(scenes, key=lambda known: max(map(drift, known, seen)))


def outside(known: Sequence[Statistics], values: NDArray[np.floating[Any]]) -> float:
    """Return the share of values beyond the known ones' outermost quantiles.

    Args:
        known: of the same band in one scene or several; of the values of each, 2 % at
            most are.
        values: (N,), at least one.
    """
    low = min(item.quantiles[0] for item in known)
    high = max(item.quantiles[-1] for item in known)
    return float(((values < low) | (values > high)).mean())


def powers_of_ten(known: float, seen: float) -> int:
    """Return by how many powers of ten a median is too large; 0 of one not > 0."""
    return round(log10(seen / known)) if known > 0 and seen > 0 else 0


def _plain(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
