"""Scores against scikit-learn, areas against the paper that they come from."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics

from tileseg.evaluation.scores import (
    Calibration,
    Confusion,
    count_pairs,
    estimate_areas,
)

NODATA = 255


def counted(truth, mapped, classes):
    counts = np.zeros((classes, classes + 1), np.int64)
    np.add.at(counts, (truth, np.where(mapped == NODATA, classes, mapped)), 1)
    return Confusion(tuple(map(str, range(classes))), counts)


@st.composite
def maps(draw):
    """Draw true classes, mapped ones with nodata, and how many classes there are."""
    classes = draw(st.integers(2, 7))
    size = draw(st.integers(1, 200))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth = random.integers(0, classes, size)
    mapped = np.where(
        random.random(size) < 0.6, truth, random.integers(0, classes, size)
    )
    return truth, np.where(random.random(size) < 0.1, NODATA, mapped), classes


@given(maps())
def test_scores_are_scikit_learns(drawn):
    """Nodata is a class that nothing truly is."""
    truth, mapped, classes = drawn
    found = counted(*drawn)
    assert_array_equal(count_pairs(*drawn), found.counts)
    present = sorted(set(truth) | set(mapped) - {NODATA})
    others = {"labels": present, "zero_division": 0}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, known = metrics.precision_recall_fscore_support(
            truth, mapped, **others
        )
        iou = metrics.jaccard_score(truth, mapped, average=None, **others)
        weighted = metrics.f1_score(truth, mapped, average="weighted", **others)
        means = {
            kind: [
                *metrics.precision_recall_fscore_support(
                    truth, mapped, average=kind, **others
                )[:3],
                metrics.jaccard_score(truth, mapped, average=kind, **others),
            ]
            for kind in ("macro", "weighted")
        }

    for own, wanted in (
        (found.precision, precision),
        (found.recall, recall),
        (found.f1, f1),
        (found.iou, iou),
        (found.known, known),
    ):
        assert_allclose(own[present], wanted, atol=1e-12)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, mapped))
    assert found.macro_f1 == pytest.approx(f1.mean())
    assert found.macro_iou == pytest.approx(iou.mean())
    assert found.weighted_f1 == pytest.approx(weighted)
    for kind, wanted in means.items():
        assert list(getattr(found, kind)) == ["precision", "recall", "f1", "iou"]
        assert list(getattr(found, kind).values()) == pytest.approx(wanted)
    absent = sorted(set(range(classes)) - set(present))
    assert np.isnan(found.f1[absent]).all()


# Olofsson et al. 2014, tables 8 and 9, and the figures of their section 5


SAMPLE = np.array(
    [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]], np.int64
)
"""Mapped by true: deforestation, forest gain, stable forest, stable non-forest."""
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
HECTARES = 0.09 * PIXELS


def test_areas_are_those_of_the_paper():
    found = estimate_areas(SAMPLE, HECTARES)

    assert_allclose(found.area, [21_158, 11_686, 285_770, 581_386], rtol=5e-5)
    assert_allclose(found.area_error, [6_158, 3_756, 15_510, 16_282], rtol=1e-4)
    assert_allclose(found.users, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    assert_allclose(found.users_error, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    assert_allclose(found.producers, [0.75, 0.85, 0.93, 0.96], atol=0.006)
    assert_allclose(found.producers_error, [0.21, 0.25, 0.03, 0.02], atol=0.006)
    assert found.overall == pytest.approx(0.95, abs=0.005)
    assert found.overall_error == pytest.approx(0.02, abs=0.005)


def test_areas_add_up_and_a_right_map_has_none_but_its_own():
    found = estimate_areas(SAMPLE, HECTARES)
    assert found.area.sum() == pytest.approx(HECTARES.sum())

    right = estimate_areas(np.diag([5, 9, 2, 7]), HECTARES)
    assert_allclose(right.area, HECTARES)
    assert_allclose(right.area_error, 0, atol=1e-9)
    assert right.overall == pytest.approx(1)


def test_intervals_hold_what_they_promise():
    """Of samples of a map that is known to the last pixel, 95 % have the true areas."""
    random = np.random.default_rng(7)
    confusion = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.3, 0.1, 0.6]])
    mapped = np.array([50.0, 200.0, 750.0])
    true = mapped @ confusion
    hits = []
    for _ in range(2000):
        sample = np.stack([random.multinomial(400, row) for row in confusion])
        found = estimate_areas(sample, mapped)
        hits.append(np.abs(found.area - true) <= found.area_error)

    assert_allclose(np.mean(hits, axis=0), 0.95, atol=0.02)


@pytest.mark.parametrize("places", [0, 1])
def test_a_class_that_was_not_sampled_leaves_nothing_to_say(places):
    sample = SAMPLE.copy()
    sample[1] = [0, places, 0, 0]

    assert np.isnan(estimate_areas(sample, HECTARES).area).all()
    without = np.where(np.arange(4) == 1, 0, HECTARES)
    assert estimate_areas(sample, without).area.sum() == pytest.approx(without.sum())


# Calibration


def test_a_mask_that_is_as_right_as_it_says_is_calibrated():
    total = np.full(255, 1000, np.int64)
    right = np.round(np.linspace(0, 1, 255) * 1000).astype(np.int64)

    assert Calibration(right, total).error < 0.001
    assert Calibration(np.zeros_like(total), total).error == pytest.approx(
        0.5, abs=0.01
    )
    assert np.isnan(Calibration(0 * total, 0 * total).error)
    sure, share, count = Calibration(right, total).curve()
    assert_allclose(sure, share, atol=0.001)
    assert_array_equal(count.sum(), total.sum())
