"""What counts of true and mapped classes say: scores, and areas with intervals.

Knows arrays of counts only: no files, no rasters. Shape letters: K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Areas",
    "Boundary",
    "Calibration",
    "Confusion",
    "count_pairs",
    "estimate_areas",
    "few_places",
    "plain",
]

_Z95 = 1.959963984540054  # of the normal distribution, both sides together 5 %
_BINS = 15  # of a calibration curve, as Guo et al. have it
_FEWEST = 2  # samples of a stratum that has a variance

Scores = NDArray[np.float64]
"""(K,), 0 to 1; NaN where there is nothing to score."""
Amounts = NDArray[np.float64]
"""(K,), in the unit of the mapped areas."""


def count_pairs(
    truth: NDArray[np.integer[Any]], mapped: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Return counts of places by true class and class in the mask, (K, K + 1).

    Args:
        truth: (n,), 0 to K - 1.
        mapped: (n,), likewise, or 255, which goes into the last column.
        classes: K.
    """
    columns = classes + 1
    cells = truth.astype(np.int64) * columns + np.minimum(mapped, classes)
    counts = np.bincount(cells, minlength=classes * columns)
    return counts.reshape(classes, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Counts of (true class, class in the mask)."""

    names: tuple[str, ...]
    """Classes, in the order of their mask values."""
    counts: NDArray[np.int64]
    """(K, K + 1): true by mapped; the last column is nodata, which is never right."""

    @property
    def total(self) -> int:
        """How many places were looked at."""
        return int(self.counts.sum())

    @property
    def known(self) -> NDArray[np.int64]:
        """Places by true class, (K,)."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def mapped(self) -> NDArray[np.int64]:
        """Places by mapped class, (K,)."""
        return np.asarray(self.counts[:, :-1].sum(axis=0))

    @property
    def accuracy(self) -> float:
        """Share of places that the mask gets right; NaN of none."""
        return float(np.trace(self.counts) / self.total) if self.total else np.nan

    @property
    def precision(self) -> Scores:
        """Of what is mapped as a class, the share that is it."""
        return self._share(self.mapped)

    @property
    def recall(self) -> Scores:
        """Of what is a class, the share that is mapped as it."""
        return self._share(self.known)

    @property
    def f1(self) -> Scores:
        """Harmonic mean of precision and recall."""
        return 2 * self._share(self.known + self.mapped)

    @property
    def iou(self) -> Scores:
        """Right over all that is or is mapped as a class."""
        return self._share(self.known + self.mapped - np.diag(self.counts))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that are there or mapped."""
        return _mean(self.f1)

    @property
    def macro_iou(self) -> float:
        """Mean IoU of the classes that are there or mapped."""
        return _mean(self.iou)

    @property
    def weighted_f1(self) -> float:
        """Mean F1, each class as heavy as it is common."""
        return _mean(self.f1, self.known)

    @property
    def macro(self) -> dict[str, float]:
        """Means of each score, over the classes that are there or mapped."""
        return {name: _mean(scores) for name, scores in self._scores()}

    @property
    def weighted(self) -> dict[str, float]:
        """The same, each class as heavy as it is common."""
        return {name: _mean(scores, self.known) for name, scores in self._scores()}

    def _scores(self) -> Iterator[tuple[str, Scores]]:
        yield "precision", self.precision
        yield "recall", self.recall
        yield "f1", self.f1
        yield "iou", self.iou

    def _share(self, of: NDArray[np.int64]) -> Scores:
        """Return what is right as a share; 0 of nothing, NaN of a class not there."""
        is_there = self.known + self.mapped > 0
        shares = np.diag(self.counts) / np.maximum(of, 1)
        return np.where(is_there, shares, np.nan)


def _mean(scores: Scores, weights: NDArray[np.int64] | None = None) -> float:
    """Return the mean of what is not NaN; NaN of nothing."""
    is_there = ~np.isnan(scores)
    heavy = np.ones(len(scores)) if weights is None else weights
    total = heavy[is_there].sum()
    return float(scores[is_there] @ heavy[is_there] / total) if total else np.nan


@dataclass(frozen=True, slots=True, eq=False)
class Areas:
    """Estimates from a sample of places, each with half of its 95 % interval.

    All are NaN where the sample says nothing: see `estimate_areas`.
    """

    area: Amounts
    """As estimated, (K,)."""
    area_error: Amounts
    """(K,): the interval is area - area_error to area + area_error."""
    users: Scores
    """User's accuracy, (K,): of what is mapped as a class, the share that is it."""
    users_error: Scores
    """(K,)."""
    producers: Scores
    """Producer's accuracy, (K,): of what is a class, the share that is mapped so."""
    producers_error: Scores
    """(K,)."""
    overall: float
    """Share of the area that is mapped right."""
    overall_error: float
    """Half of its interval."""


def few_places(sample: NDArray[np.int64], mapped: Amounts) -> NDArray[np.bool_]:
    """Return which mapped classes have too few places for `estimate_areas`, (K,)."""
    few: NDArray[np.bool_] = (mapped > 0) & (sample.sum(axis=1) < _FEWEST)
    return few


def estimate_areas(sample: NDArray[np.int64], mapped: Amounts) -> Areas:
    """Estimate true areas from a sample that was drawn within each mapped class.

    Olofsson et al., Good practices for estimating area and assessing accuracy of land
    change, Remote Sensing of Environment 148 (2014) 42-57, equations 1 to 11. Counting
    pixels of a class gives its mapped area, which mistakes make too large or too small;
    the sample says by how much. A random sample of the whole is a good one too, its
    mapped classes being strata after the fact.

    Args:
        sample: (K, K), mapped class by true class: numbers of places.
        mapped: (K,), area that is mapped as each class.

    Returns:
        The estimates; NaN in all of them if a class with area has fewer than two
        places, since then nothing is known of that part of the map.
    """
    places = sample.sum(axis=1)
    has_area = mapped > 0
    if not has_area.any() or few_places(sample, mapped).any():
        no = np.full(len(mapped), np.nan)
        return Areas(no, no, no, no, no, no, np.nan, np.nan)
    weight = np.where(has_area, mapped, 0) / mapped[has_area].sum()
    count = np.maximum(places, _FEWEST)  # of a class without area nothing is used
    share = sample / count[:, None]  # (K, K)
    portion = weight[:, None] * share  # of the whole area, mapped i and truly j
    spread = share * (1 - share) / (count[:, None] - 1)
    true = portion.sum(axis=0)
    right = np.diag(share)
    errors = np.sqrt((weight[:, None] ** 2 * spread).sum(axis=0))
    users = np.where(has_area, right, np.nan)
    own = np.diag(spread)
    producers = np.divide(
        np.diag(portion), true, where=true > 0, out=np.full(len(true), np.nan)
    )
    others = (mapped[:, None] ** 2 * spread * ~np.eye(len(true), dtype=bool)).sum(
        axis=0
    )
    total = mapped[has_area].sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (mapped**2 * (1 - producers) ** 2 * own + producers**2 * others) / (
            true * total
        ) ** 2
    return Areas(
        area=true * total,
        area_error=_Z95 * errors * total,
        users=users,
        users_error=np.where(has_area, _Z95 * np.sqrt(own), np.nan),
        producers=producers,
        producers_error=_Z95 * np.sqrt(variance),
        overall=float(np.trace(portion)),
        overall_error=_Z95 * sqrt(float(weight**2 @ own)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How often the mask is right where it says that it is so sure."""

    right: NDArray[np.int64]
    """Places that are right, by confidence, (steps + 1,): of 0, 1/steps ... 1."""
    total: NDArray[np.int64]
    """All places, likewise."""

    def curve(self) -> tuple[Scores, Scores, NDArray[np.int64]]:
        """Return mean confidence, share that is right, and places, of 15 bins each.

        Bins are equally wide in confidence; NaN where there is no place.
        """
        said = np.linspace(0, 1, len(self.total))
        at = np.minimum((said * _BINS).astype(int), _BINS - 1)
        total, right, sure = (
            np.bincount(at, weights, _BINS)
            for weights in (self.total, self.right, said * self.total)
        )
        with np.errstate(invalid="ignore"):
            return sure / total, right / total, total.astype(np.int64)

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1; NaN of no place.

        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
        """
        sure, right, total = self.curve()
        gaps = np.nan_to_num(np.abs(sure - right))
        return float(gaps @ total / total.sum()) if total.any() else np.nan


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """How well the borders of classes lie, within a tolerance.

    Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC
    2013: F1 of border pixels, each right if the other map has one of its class nearby.
    """

    mapped: NDArray[np.int64]
    """Border pixels of each class in the mask, (K,)."""
    mapped_right: NDArray[np.int64]
    """Those with a true one nearby, (K,)."""
    known: NDArray[np.int64]
    """True border pixels of each class, (K,)."""
    known_right: NDArray[np.int64]
    """Those with a mapped one nearby, (K,)."""

    @property
    def f1(self) -> Scores:
        """Per class; NaN where the truth has no border: fields that do not touch."""
        precision = self.mapped_right / np.maximum(self.mapped, 1)
        recall = self.known_right / np.maximum(self.known, 1)
        both = precision + recall
        f1 = 2 * precision * recall / np.where(both > 0, both, 1)
        return np.where(self.known > 0, f1, np.nan)

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that have a border."""
        return _mean(self.f1)


def plain(value: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return scores as JSON has them: null in the place of what is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not isfinite(value) else value
