"""Integer rectangles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import WINDOWS

from tileseg.window import Window


@given(WINDOWS, st.integers(0, 30))
def test_pad_then_shrink_is_identity(window, cells):
    assert window == window.pad(cells).pad(-cells)


@given(WINDOWS, st.integers(0, 30))
def test_pad_adds_a_frame_of_cells(window, cells):
    padded = window.pad(cells)

    assert window == padded.intersect(window)
    assert padded.height * padded.width == padded.size
    assert 2 * cells == padded.height - window.height == padded.width - window.width
    assert cells == window.row - padded.row == window.col - padded.col
    assert cells == padded.row_stop - window.row_stop
    assert cells == padded.col_stop - window.col_stop


@pytest.mark.parametrize(("height", "width"), [(-1, 3), (3, -1), (-2, -2)])
def test_a_negative_size_is_refused(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        Window(0, 0, height, width)


def test_shrinking_below_nothing_is_refused():
    with pytest.raises(ValueError, match="-1 x 3"):
        Window(0, 0, 3, 7).pad(-2)


@given(WINDOWS, WINDOWS)
def test_intersect_holds_just_the_common_cells(one, other):
    """Each cell lies in the intersection if and only if it lies in both."""
    common = one.intersect(other)

    assert cells(one) & cells(other) == cells(common)


def cells(window):
    rows = range(window.row, window.row_stop)
    return {(row, col) for row in rows for col in range(window.col, window.col_stop)}


@given(WINDOWS, WINDOWS)
def test_intersect_is_commutative_and_idempotent(one, other):
    common = one.intersect(other)

    assert common == other.intersect(one)
    assert common.size == common.intersect(one).size == common.intersect(other).size


@given(WINDOWS, WINDOWS)
def test_a_relative_window_addresses_the_same_cells(window, origin):
    """Its slices of an array that begins at `origin` hold the cells of the window."""
    inside = window.intersect(origin)
    rows, cols = np.indices((origin.height, origin.width))
    at = inside.relative_to(origin).slices

    found = zip(
        rows[at].ravel() + origin.row, cols[at].ravel() + origin.col, strict=True
    )

    assert cells(inside) == set(found)


@given(WINDOWS, st.integers(1, 7))
def test_scale_multiplies_every_number(window, factor):
    scaled = window.scale(factor)

    assert factor**2 * window.size == scaled.size
    assert factor * window.row_stop == scaled.row_stop
    assert factor * window.col_stop == scaled.col_stop
    assert (factor * window.row, factor * window.col) == (scaled.row, scaled.col)


def test_slices_index_an_array():
    array = np.arange(35).reshape(5, 7)

    np.testing.assert_array_equal(
        [[16, 17], [23, 24]], array[Window(2, 2, 2, 2).slices]
    )
