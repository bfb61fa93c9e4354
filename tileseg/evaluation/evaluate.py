"""How right a mask is where the truth is known, and how large its classes then are.

Streamed: memory does not grow with the mask.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import CRSError

from tileseg.cards.card import CONFIDENCE_STEPS, NODATA
from tileseg.errors import InputError, UsageError
from tileseg.evaluation.reference import Points, class_tags, open_reference
from tileseg.evaluation.scores import (
    Areas,
    Boundary,
    Calibration,
    Confusion,
    count_pairs,
    estimate_areas,
    few_places,
    plain,
)
from tileseg.geobox import GeoBox
from tileseg.scenes.area import row_hectares
from tileseg.scenes.gdal import GDAL_ERRORS, gdal_env, hidden, open_dataset
from tileseg.window import Window

__all__ = ["Evaluation", "Question", "check_labels", "evaluate", "mask_classes"]

_SIDE = 1024  # pixels of a window

Labels = NDArray[np.uint8]
"""Classes; 255 for none."""
Places = NDArray[np.int64]
"""Rows, or columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is compared with what."""

    mask: str
    """A GeoTIFF of uint8 classes with CLASS_<value> tags, as tileseg makes it."""
    reference: str
    """Raster, polygons or points: see `open_reference`."""
    confidence: str | None = None
    """A confidence raster of the mask's grid."""
    column: str = "class"
    """Of polygons or points: which one says the class."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Values or names of the reference -> of the mask."""
    is_sample: bool | None = None
    """Whether the known places were drawn at random, so that areas can be estimated
    from them; None: points were, and nothing else."""
    tolerance: int = 2
    """Pixels that a border may be off."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The answer."""

    question: Question
    """What was compared."""
    confusion: Confusion
    """True by mapped."""
    mapped: NDArray[np.float64]
    """(K,), what is mapped as each class, in `unit`."""
    unit: str
    """`ha`, or `px` where the mask does not say how large a pixel is."""
    areas: Areas | None
    """Estimates of the same, in `unit`; None where the places are no sample."""
    calibration: Calibration | None
    """None without a confidence raster."""
    boundary: Boundary | None
    """None where there is no border to compare: of points, say."""

    @property
    def unsampled(self) -> tuple[str, ...]:
        """Classes because of which no areas are estimated from a sample; else none."""
        if self.areas is None:
            return ()
        few = few_places(self.confusion.counts[:, :-1].T, self.mapped)
        names = zip(self.confusion.names, few.tolist(), strict=True)
        return tuple(name for name, is_few in names if is_few)

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain values; null for what is NaN or was not asked."""
        found = self.confusion
        values: dict[str, Any] = {
            "mask": self.question.mask,
            "reference": self.question.reference,
            "places": found.total,
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "weighted_f1": found.weighted_f1,
            "macro_iou": found.macro_iou,
            "macro": found.macro,
            "weighted": found.weighted,
            "boundary_macro_f1": self.boundary and self.boundary.macro_f1,
            "calibration_error": self.calibration and self.calibration.error,
            "overall": self.areas and self.areas.overall,
            "overall_error": self.areas and self.areas.overall_error,
            "unit": self.unit,
            "classes": list(self._classes()),
            "confusion": found.counts.tolist(),
        }
        return {key: plain(value) for key, value in values.items()}

    def _classes(self) -> Iterator[dict[str, Any]]:
        found, areas = self.confusion, self.areas
        for at, name in enumerate(found.names):
            yield {
                "name": name,
                "known": found.known[at],
                "precision": found.precision[at],
                "recall": found.recall[at],
                "f1": found.f1[at],
                "iou": found.iou[at],
                "boundary_f1": self.boundary and self.boundary.f1[at],
                "mapped": self.mapped[at],
                "estimated": areas and areas.area[at],
                "estimated_error": areas and areas.area_error[at],
                "users": areas and areas.users[at],
                "users_error": areas and areas.users_error[at],
                "producers": areas and areas.producers[at],
                "producers_error": areas and areas.producers_error[at],
            }


def evaluate(question: Question) -> Evaluation:
    """Compare a mask with what is known of the ground.

    Raises:
        InputError: a file cannot be read.
        UsageError: the mask does not name its classes, a class is not in it, a point
            lies outside it, or the two have no pixel in common.
    """
    try:
        with gdal_env(), open_dataset(question.mask) as mask:
            return _compare(question, mask)
    except (*GDAL_ERRORS, CRSError) as err:
        msg = f"{question.mask}: cannot be read as a mask: {err}"
        raise InputError(msg) from err


def _compare(question: Question, mask: Any) -> Evaluation:  # noqa: ANN401  (rasterio is untyped)
    names = mask_classes(question.mask, mask)
    crs = mask.crs.to_wkt() if mask.crs else None
    box = GeoBox(mask.height, mask.width, mask.transform, crs)
    with (
        _confidence(question, box) as confidence,
        open_reference(
            question.reference, box, names, question.renamed, question.column
        ) as reference,
    ):
        tally = _Tally(box, len(names), question.tolerance)
        for window in _windows(box):
            seen = window.pad(question.tolerance + 1).intersect(box.window)
            labels, own = mask.read(1, window=seen.slices), window.relative_to(seen)
            if (unseen := hidden(mask, seen)) is not None:
                labels[unseen] = NODATA
            check_labels(question.mask, labels, len(names))
            tally.measure(labels[own.slices], window)
            sure = confidence and confidence.read(1, window=window.slices)
            if isinstance(reference, Points):
                tally.look(*reference.within(window), labels[own.slices], sure)
            else:
                _look_around(tally, reference.labels(seen), labels, own, sure)
    if not tally.counts.any():
        msg = f"{question.reference}: says nothing of any pixel of {question.mask}"
        raise UsageError(msg)
    return tally.answer(question, names, is_sample=isinstance(reference, Points))


def mask_classes(path: str, mask: Any) -> tuple[str, ...]:  # noqa: ANN401  (rasterio is untyped)
    """Return the classes that a mask names, in the order of their values.

    Raises:
        UsageError: it names none, or others than 0, 1, 2 ...
    """
    named = class_tags(mask.tags())
    if not named or mask.dtypes[0] != "uint8":
        msg = f"{path}: has no CLASS_<value> tags; wanted a mask of tileseg"
        raise UsageError(msg)
    if sorted(named) != list(range(len(named))):
        got = ", ".join(map(str, sorted(named)))
        msg = f"{path}: its CLASS_<value> tags name {got}; wanted 0, 1, 2 ..."
        raise UsageError(msg)
    return tuple(named[value] for value in range(len(named)))


def check_labels(path: str, labels: Labels, classes: int) -> None:
    """Refuse a value that no tag names: nothing is known of what it is.

    Raises:
        UsageError: there is one.
    """
    strange = labels[(labels >= classes) & (labels != NODATA)]
    if strange.size:
        msg = f"{path}: holds {strange[0]}, which no CLASS_<value> tag names"
        raise UsageError(msg)


def _windows(box: GeoBox) -> Iterator[Window]:
    for cell in box.window.coarsen(_SIDE).cells():
        yield cell.scale(_SIDE).intersect(box.window)


@contextmanager
def _confidence(question: Question, box: GeoBox) -> Iterator[Any]:
    """Yield the confidence raster; None where there is none."""
    if question.confidence is None:
        yield None
        return
    try:
        with open_dataset(question.confidence) as dataset:
            grid = dataset.transform, dataset.shape, dataset.dtypes[0]
            if grid != (box.transform, (box.height, box.width), "uint8"):
                msg = f"{question.confidence}: is not a confidence raster of the mask"
                raise UsageError(msg)
            yield dataset
    except (*GDAL_ERRORS, CRSError) as err:
        msg = f"{question.confidence}: cannot be read: {err}"
        raise InputError(msg) from err


def _look_around(
    tally: "_Tally",
    truth: Labels,
    labels: Labels,
    own: Window,
    sure: Labels | None,
) -> None:
    """Count a window, of which more is seen than is counted."""
    is_known = truth != NODATA
    tally.border(truth, np.where(is_known, labels, NODATA), own)
    inside = is_known[own.slices]
    rows, cols = inside.nonzero()
    tally.look(rows, cols, truth[own.slices][inside], labels[own.slices], sure)


class _Tally:
    """What was counted so far."""

    def __init__(self, box: GeoBox, classes: int, tolerance: int) -> None:
        self._box, self._classes, self._tolerance = box, classes, tolerance
        self.counts = np.zeros((classes, classes + 1), np.int64)
        self._rows = np.zeros((box.height, classes), np.int64)
        self._sure = np.zeros((2, CONFIDENCE_STEPS + 1), np.int64)
        self._borders = np.zeros((4, classes), np.int64)

    def measure(self, labels: Labels, at: Window) -> None:
        """Add to what is mapped as each class."""
        for row, line in enumerate(labels, start=at.row):
            count = np.bincount(line, minlength=NODATA + 1)
            self._rows[row] += count[: self._classes]

    def look(
        self,
        rows: Places,
        cols: Places,
        truth: Labels,
        labels: Labels,
        sure: Labels | None,
    ) -> None:
        """Compare labels with the true classes at some places."""
        mapped = labels[rows, cols]
        self.counts += count_pairs(truth, mapped, self._classes)
        if sure is not None:
            said = sure[rows, cols]
            has_answer = said <= CONFIDENCE_STEPS
            is_right = (mapped == truth)[has_answer]
            for row, some in enumerate((said[has_answer][is_right], said[has_answer])):
                self._sure[row] += np.bincount(some, minlength=CONFIDENCE_STEPS + 1)

    def border(self, truth: Labels, labels: Labels, own: Window) -> None:
        """Compare where classes meet, in a window of what is seen."""
        lines = _borders(labels), _borders(truth)
        for value in range(self._classes):
            mapped, known = (
                line & (what == value)
                for line, what in zip(lines, (labels, truth), strict=True)
            )
            if not (mapped.any() or known.any()):
                continue
            near = _near(mapped, self._tolerance), _near(known, self._tolerance)
            found = mapped, mapped & near[1], known, known & near[0]
            self._borders[:, value] += [int(some[own.slices].sum()) for some in found]

    def answer(
        self, question: Question, names: tuple[str, ...], *, is_sample: bool
    ) -> Evaluation:
        """Return what all that says."""
        areas, hectares = None, row_hectares(self._box)
        unit = "px" if hectares is None else "ha"
        mapped = self._rows.sum(axis=0) if hectares is None else hectares @ self._rows
        if is_sample if question.is_sample is None else question.is_sample:
            areas = estimate_areas(self.counts[:, :-1].T, mapped)
        has_borders = self._borders.any()
        return Evaluation(
            question=question,
            confusion=Confusion(names, self.counts),
            mapped=mapped,
            unit=unit,
            areas=areas,
            calibration=Calibration(*self._sure) if self._sure.any() else None,
            boundary=Boundary(*self._borders) if has_borders else None,
        )


def _borders(labels: Labels) -> NDArray[np.bool_]:
    """Return where a pixel has a neighbour (of four) of another class, nodata apart."""
    found = np.zeros(labels.shape, np.bool_)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        one, other = labels[here], labels[there]
        differ = (one != other) & (one != NODATA) & (other != NODATA)
        found[here] |= differ
        found[there] |= differ
    return found


def _near(places: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return where a place is at most `reach` rows and columns away."""
    for _ in ("rows", "columns"):
        grown = places.copy()
        for step in range(1, reach + 1):
            grown[step:] |= places[:-step]
            grown[:-step] |= places[step:]
        places = grown.T
    return places
