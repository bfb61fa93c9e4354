"""An overview's rule, against one that counts pixel by pixel."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tileseg.masks.overview import halved, level_shapes, mean, mode, nearest

PIXELS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 254, 255]),
)


def commonest(values):
    """The lowest of the commonest classes; nodata where there is no class."""
    votes = Counter(value for value in values.ravel().tolist() if value != 255)
    most = max(votes.values(), default=0)
    return min((value for value in votes if votes[value] == most), default=255)


def rounded(values):
    """The mean of what is no nodata, halves up."""
    known = [Fraction(value) for value in values.ravel().tolist() if value != 255]
    return floor(sum(known) / len(known) + Fraction(1, 2)) if known else 255


def two_by_two(pixels, rule):
    """Ask a rule for every 2 x 2 pixels."""
    height, width = halved(*pixels.shape)
    made = [
        [
            rule(pixels[2 * row : 2 * row + 2, 2 * col : 2 * col + 2])
            for col in range(width)
        ]
        for row in range(height)
    ]
    return np.array(made, np.uint8)


@given(PIXELS)
def test_mode_is_the_lowest_of_the_commonest_classes(pixels):
    np.testing.assert_array_equal(mode(pixels), two_by_two(pixels, commonest))


@given(PIXELS)
def test_mean_is_that_of_what_is_known(pixels):
    np.testing.assert_array_equal(mean(pixels), two_by_two(pixels, rounded))


@given(PIXELS)
def test_bands_are_made_smaller_each_for_itself(pixels):
    bands = np.stack((pixels, pixels[::-1, ::-1]))

    for shrink in (mode, mean):
        expected = np.stack([shrink(band) for band in bands])
        np.testing.assert_array_equal(shrink(bands), expected)


@given(PIXELS)
def test_mode_does_not_depend_on_how_pixels_lie_in_memory(pixels):
    wide = np.repeat(pixels, 2, axis=1)[:, ::2]

    np.testing.assert_array_equal(mode(wide), mode(pixels))


@given(PIXELS)
def test_nearest_is_one_of_the_pixels(pixels):
    assert nearest(pixels).shape == halved(*pixels.shape)
    np.testing.assert_array_equal(nearest(pixels), pixels[::2, ::2])


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_levels_halve_until_they_are_small(height, width):
    shapes = level_shapes(height, width)

    assert shapes[0] == (height, width)
    assert all(after == halved(*before) for before, after in pairwise(shapes))
    assert width == 1 or max(shapes[-1]) <= 512
    assert all(max(shape) > 512 for shape in shapes[:-1])


@pytest.mark.parametrize("shape", [(512, 512), (1, 1), (100_000, 1)])
def test_what_is_small_or_one_column_has_no_overview(shape):
    assert level_shapes(*shape) == [shape]
