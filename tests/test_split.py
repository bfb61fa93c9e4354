"""Which blocks are for what: fixed by a seed, fair to every class, and kept apart."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tileseg.errors import UsageError
from tileseg.training.split import PARTS, TEST, TRAINING, VALIDATION, Split, split
from tileseg.window import Window

SHARES = 0.15, 0.15


def patchy(rows, cols, classes=3, seed=0):
    """Return counts of blocks, each with some of its classes; some have none."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 500, (rows, cols, classes))
    return counts * (random.random(counts.shape) < 0.6)


def cut(counts, *, block=64, margin=8, seed=0):
    parts = split(["grid"], [counts], SHARES, seed)
    return Split(block, margin, tuple(parts), (np.empty((0, 4), int),))


def test_each_class_gets_its_share_of_every_part():
    counts = patchy(12, 9)
    parts = cut(counts)

    total = counts.sum(axis=(0, 1))
    for part, share in ((VALIDATION, 0.15), (TEST, 0.15), (TRAINING, 0.7)):
        given_ = parts.labelled(part, [counts]) / total
        np.testing.assert_allclose(given_, share, atol=0.06, err_msg=PARTS[part])


def test_the_seed_decides():
    counts = patchy(12, 9)

    np.testing.assert_array_equal(cut(counts).parts[0], cut(counts).parts[0])
    assert (cut(counts).parts[0] != cut(counts, seed=1).parts[0]).any()


def test_scenes_of_one_grid_are_cut_alike():
    """Two dates of one place: no block is learnt on one and judged on the other."""
    one, two, far = patchy(7, 5, seed=1), patchy(7, 5, seed=2), patchy(7, 5, seed=3)

    first, other, third = split(["a", "a", "b"], [one, two, far], SHARES, 0)

    np.testing.assert_array_equal(first, other)
    assert (first != third).any()


def test_each_place_gets_its_share_of_every_part():
    """However small it is beside others: 4 % of the pixels here."""
    large, small = patchy(20, 18, seed=1), patchy(5, 3, seed=2)

    for counts, parts in zip(
        (large, small), split("ab", [large, small], SHARES, 0), strict=True
    ):
        mass = (counts / counts.sum(axis=(0, 1))).sum(axis=2)
        for part, share in ((VALIDATION, 0.15), (TEST, 0.15), (TRAINING, 0.7)):
            given_ = mass[parts == part].sum() / mass.sum()
            assert given_ == pytest.approx(share, abs=0.1), PARTS[part]


def test_places_of_one_block_are_judged_as_often_as_the_shares_say():
    counts = [np.full((1, 1, 2), 100 + n) for n in range(100)]

    parts = np.concatenate(split(range(100), counts, SHARES, 0), axis=None)

    np.testing.assert_allclose(np.bincount(parts) / 100, (0.7, 0.15, 0.15), atol=0.05)


def test_a_class_in_one_block_is_trained_on():
    counts = patchy(8, 8)
    counts[..., 2] = 0
    counts[3, 4, 2] = 20

    assert cut(counts).labelled(TRAINING, [counts])[2] == 20


def test_too_few_blocks_are_refused():
    with pytest.raises(UsageError, match=r"2 blocks, too few.*--block"):
        split(["grid"], [np.ones((1, 2, 2), int)], SHARES, 0)


def test_without_shares_all_is_for_training():
    (parts,) = split(["grid"], [np.ones((1, 2, 2), int)], (0.0, 0.0), 0)

    assert (parts == TRAINING).all()


@given(
    seed=st.integers(0, 99),
    margin=st.integers(0, 16),
    tile=st.sampled_from([16, 32]),
    row=st.integers(0, 7 * 64 - 1),
    col=st.integers(0, 5 * 64 - 1),
)
def test_a_training_tile_keeps_its_distance_from_every_other_block(
    seed, margin, tile, row, col
):
    """And it has the pixel that it was drawn for, or there is none."""
    parts = cut(patchy(7, 5, seed=seed), margin=margin, seed=seed)
    if parts.parts[0][row // 64, col // 64] != TRAINING:
        return

    window = parts.draw(0, (row, col), tile, np.random.default_rng(seed))

    if window is None:
        near = Window(row, col, 1, 1).pad(margin).coarsen(64)
        there = near.intersect(Window(0, 0, 7, 5))
        assert (parts.parts[0][there.slices] != TRAINING).any()
        return
    assert window.intersect(Window(row, col, 1, 1)).size == 1
    pixels = parts.parts[0].repeat(64, axis=0).repeat(64, axis=1)
    seen = window.pad(margin).intersect(Window(0, 0, *pixels.shape))
    assert (pixels[seen.slices] == TRAINING).all()


@given(
    seed=st.integers(0, 99), margin=st.integers(0, 5), tile=st.sampled_from([1, 4, 7])
)
@settings(max_examples=15, deadline=None)
def test_a_block_has_room_where_some_free_tile_lies(seed, margin, tile):
    """Other scenes keep boxes, too; the last row and column lie beside the scene."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 70, (4, 2))
    boxes = np.hstack((corners, corners + random.integers(1, 9, (4, 2))))
    parts = cut(patchy(5, 4, seed=seed), block=17, margin=margin, seed=seed)
    parts = replace(parts, closed=(boxes,))
    row, col = random.permutation(np.argwhere(parts.parts[0] == TRAINING))[0].tolist()
    block = parts.window(row, col)

    expected = np.zeros((17 + 2 * tile, 17 + 2 * tile), bool)
    around = block.pad(tile)
    for top in range(around.row, block.row_stop):
        for left in range(around.col, block.col_stop):
            window = Window(top, left, tile, tile)
            if parts.is_free(0, window):
                expected[window.relative_to(around).slices] = True

    room = parts.room(0, row, col, tile)
    np.testing.assert_array_equal(room, expected[block.relative_to(around).slices])
