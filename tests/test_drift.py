"""Drift: none of what is the same, the size of any shift, and no end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wasserstein_distance

from tileseg.cards.drift import (
    PERCENTS,
    drift,
    known_scenes,
    nearest,
    outside,
    powers_of_ten,
    statistics_of,
)

VALUES = arrays(np.float64, st.integers(2, 60), elements=st.floats(0.01, 10)).filter(
    lambda values: np.ptp(values) > 1e-3
)
SHIFTS = st.floats(-20, 20)


def fine(known, seen):
    """Return the mean distance between 1 and 99 %, by many narrow strips."""
    at = np.linspace(PERCENTS[0], PERCENTS[-1], 200_001)
    there, here = (np.interp(at, PERCENTS, item.quantiles) for item in (known, seen))
    return np.abs(here - there).mean() / known.std


@given(VALUES, VALUES)
def test_it_is_the_mean_distance_between_the_quantiles(first, second):
    known, seen = statistics_of(first), statistics_of(second)

    assert drift(known, seen) == pytest.approx(fine(known, seen), rel=1e-3, abs=1e-3)


@given(VALUES)
def test_there_is_none_of_the_same_values(values):
    known = statistics_of(values)

    assert (
        drift(known, statistics_of(np.random.default_rng(0).permutation(values))) == 0
    )


@given(VALUES, SHIFTS)
def test_a_haze_is_as_large_as_it_is(values, haze):
    known = statistics_of(values)

    found = drift(known, statistics_of(values + haze * known.std))

    assert found == pytest.approx(abs(haze), abs=1e-2 * (1 + known.maximum / known.std))


@given(VALUES, st.lists(st.floats(1, 50), min_size=2, max_size=5, unique=True))
def test_it_grows_with_a_gain(values, gains):
    known = statistics_of(values)

    found = [drift(known, statistics_of(values * gain)) for gain in sorted(gains)]

    assert found == sorted(found)
    assert found[-1] > 0


@given(VALUES, VALUES, st.sampled_from([1e-4, 0.5, 1e4]))
def test_it_does_not_depend_on_the_unit(first, second, unit):
    plain = drift(statistics_of(first), statistics_of(second))

    other = drift(statistics_of(first * unit), statistics_of(second * unit))

    assert other == pytest.approx(plain, rel=1e-2, abs=1e-2)


def test_it_is_what_is_known_as_wassersteins_distance():
    random = np.random.default_rng(0)
    known, seen = random.normal(3, 2, 20_000), random.gamma(2, 2, 20_000)

    whole = wasserstein_distance(known, seen) / known.std()

    assert drift(statistics_of(known), statistics_of(seen)) == pytest.approx(
        whole, rel=0.1
    )


def test_a_few_odd_pixels_count_for_little():
    values = np.linspace(0, 1, 1001)
    odd = values.copy()
    odd[-5:] = 1e6

    assert drift(statistics_of(values), statistics_of(odd)) < 0.01


def test_half_of_one_deviation_is_a_large_shift_by_the_usual_index():
    """The population stability index over ten bins of two normal distributions."""
    random = np.random.default_rng(0)
    values = random.normal(size=200_000)
    edges = np.percentile(values, range(10, 100, 10))
    expected = np.full(10, 0.1)
    found = np.bincount(np.digitize(values + 0.5, edges), minlength=10) / len(values)

    index = np.sum((found - expected) * np.log(found / expected))

    assert index == pytest.approx(0.25, abs=0.03)


@given(VALUES)
def test_quantiles_lie_between_the_least_and_the_greatest(values):
    assert statistics_of(values).faults() == []


def test_two_percent_of_a_band_are_outside_its_own_range():
    values = np.linspace(0, 1, 10_001)

    known = statistics_of(values)

    assert outside([known], values) == pytest.approx(0.02, abs=1e-3)
    assert outside([known], values + 2) == 1
    assert outside([statistics_of(values + 2), known], values) < 0.011


@pytest.mark.parametrize(
    ("known", "seen", "powers"),
    [(0.09, 850, 4), (0.09, 0.1, 0), (0.5, 0.004, -2), (0, 5, 0), (-1, 5, 0)],
)
def test_another_scale_is_told_in_powers_of_ten(known, seen, powers):
    assert powers_of_ten(known, seen) == powers


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5), st.data())
def test_a_scene_that_is_known_is_the_nearest(scenes, data):
    """All bands have to be those of one scene."""
    known = [tuple(map(statistics_of, bands)) for bands in scenes]
    seen = data.draw(st.sampled_from(known))

    assert [drift(*pair) for pair in zip(nearest(known, seen), seen, strict=True)] == [
        0,
        0,
    ]


def test_a_card_knows_some_of_very_many_scenes_and_none_that_is_flat():
    flat = (statistics_of(np.ones(9)),)
    scenes = [(statistics_of(np.arange(9.0) + n),) for n in range(1_000)]

    assert known_scenes([flat, scenes[0], flat]) == ()
    assert known_scenes([*scenes[:2], flat]) == tuple(scenes[:2])
    some = known_scenes(scenes)
    assert (some[0], some[-1], len(some)) == (scenes[0], scenes[-1], 64)
