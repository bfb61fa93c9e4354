"""Weights sum to one, and a picture does not depend on how its tiles arrive."""

from itertools import pairwise
from math import pi, sin

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries

from tileseg.network.blend import Blend, Fold

KINDS = st.sampled_from(["crop", "cosine"])


@st.composite
def blends(draw, **limits):
    tile, halo = draw(geometries(**limits))
    return Blend(tile - 2 * halo, halo, draw(KINDS))


def fold_of(blend, columns, outputs=2):
    return Fold(blend, outputs=outputs, columns=columns, device="cpu")


def picture(blend, tiles, parts):
    """Fold tiles, (rows, columns, K, T, T), with one call to add for each part."""
    rows, columns, outputs = tiles.shape[:3]
    fold = fold_of(blend, columns, outputs)
    done = []
    for row in range(rows):
        for part in parts:
            fold.add(part[0], fold.weigh(tiles[row, part]))
        done.append(fold.next_row().clone())
    return torch.cat([*done, fold.next_row().clone()], dim=1)


@given(blends(most=600))
def test_weights_are_whole_256ths_from_0_to_1(blend):
    weights = blend.weights()

    assert weights.dtype == torch.float32
    assert (blend.stride + 2 * blend.overlap,) == weights.shape
    torch.testing.assert_close(weights * 256, (weights * 256).round(), rtol=0, atol=0)
    assert weights.min() >= 0
    assert weights.max() <= 1


@given(geometries(most=600))
def test_ramps_follow_the_formula(geometry):
    """round(256 sin^2(pi (i + 1/2) / (4 halo))) / 256 for i = 0 ... 2 halo - 1."""
    tile, halo = geometry
    weights = Blend(tile - 2 * halo, halo, "cosine").weights().tolist()
    ramp = [
        round(256 * sin(pi * (i + 0.5) / (4 * halo)) ** 2) / 256
        for i in range(2 * halo)
    ]

    assert ramp == weights[: 2 * halo]
    assert ramp[::-1] == weights[len(weights) - 2 * halo :]
    assert {1.0} >= set(weights[2 * halo : len(weights) - 2 * halo])


@given(geometries(most=600))
def test_a_ramp_and_its_mirror_sum_to_exactly_one(geometry):
    tile, halo = geometry
    ramp = Blend(tile - 2 * halo, halo, "cosine").weights()[: 2 * halo]

    assert [1.0] * (2 * halo) == (ramp + ramp.flip(0)).tolist()


def rows_kept(blend, tile):
    """Return the rows of a tile that are its core, trimmed or not."""
    rows = torch.arange(tile)[:, None].expand(1, 1, tile, tile)
    trim = blend.trim
    inner = rows[..., trim : tile - trim, trim : tile - trim]

    torch.testing.assert_close(blend.core(inner), blend.core(rows))
    return blend.core(rows)[0, 0, :, 0].tolist()


@given(geometries())
def test_crop_keeps_the_core_and_nothing_else(geometry):
    tile, halo = geometry
    blend = Blend(tile - 2 * halo, halo, "crop")

    assert rows_kept(blend, tile) == list(range(halo, tile - halo))
    assert [1.0] * blend.stride == blend.weights().tolist()
    assert (blend.ring, blend.support()) == (0, 0)


@given(geometries())
def test_cosine_uses_the_whole_tile(geometry):
    tile, halo = geometry
    blend = Blend(tile - 2 * halo, halo, "cosine")

    assert rows_kept(blend, tile) == list(range(tile))
    assert blend.ring == (halo > 0)


@given(blends(most=256))
def test_support_reaches_just_the_weights_above_zero(blend):
    """A tile counts from `support` pixels before its core to as many after it."""
    support, overlap = blend.support(), blend.overlap
    is_used = (blend.weights() > 0).tolist()

    assert 0 <= support <= overlap
    assert [
        overlap - support <= at < overlap + blend.stride + support
        for at in range(len(is_used))
    ] == is_used


@given(blends(), st.integers(1, 5))
def test_weight_sum_is_one_wherever_neighbours_meet(blend, tiles):
    """Less than 1 at the ends, where a neighbour is missing; never 0 in a core."""
    total, ends = fold_of(blend, tiles).weight_sum(tiles), 2 * blend.overlap
    weights = blend.weights()
    cores = total[blend.overlap : len(total) - blend.overlap]

    assert (tiles * blend.stride + ends,) == total.shape
    assert {1.0} >= set(total[ends : len(total) - ends].tolist())
    assert total[:ends].tolist() == weights[:ends].tolist()
    assert (
        total[len(total) - ends :].tolist() == weights[len(weights) - ends :].tolist()
    )
    assert (tiles * blend.stride,) == cores.shape
    assert cores.min() >= 0.5


@given(blends(), st.integers(1, 4), st.integers(1, 4))
def test_constant_tiles_make_a_constant_picture(blend, rows, columns):
    """sum(w p) / sum(w) of p = 3 is 3, exactly, also at the scene's edge."""
    tile = blend.stride + 2 * blend.halo
    tiles = torch.full((rows, columns, 2, tile, tile), 3.0)
    fold = fold_of(blend, columns)
    weights = torch.outer(fold.weight_sum(rows), fold.weight_sum(columns))

    sums = picture(blend, tiles, [list(range(columns))])[:, : len(weights)]

    np.testing.assert_array_equal((3 * weights).expand(2, -1, -1), sums)


@given(st.data(), blends(), st.integers(1, 3), st.integers(1, 6))
def test_the_picture_does_not_depend_on_the_calls_to_add(data, blend, rows, columns):
    """One tile a call or all at once: the fp32 sums are the same to the last bit."""
    borders = data.draw(st.sets(st.integers(1, columns)))
    parts = [list(range(*pair)) for pair in pairwise(sorted({0, columns} | borders))]
    tile = blend.stride + 2 * blend.halo
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    tiles = torch.randn(rows, columns, 2, tile, tile, generator=random)

    at_once = picture(blend, tiles, [list(range(columns))])

    np.testing.assert_array_equal(at_once, picture(blend, tiles, parts))


@given(st.data(), blends(), st.integers(1, 3), st.integers(2, 6))
def test_the_picture_does_not_depend_on_where_it_is_cut(data, blend, rows, columns):
    """A run's own columns, with a ring beside them, are those of the whole."""
    left = data.draw(st.integers(0, columns - 1))
    right = data.draw(st.integers(left + 1, columns))
    tile, stride = blend.stride + 2 * blend.halo, blend.stride
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    tiles = torch.randn(rows, columns, 2, tile, tile, generator=random)
    first, last = max(0, left - blend.ring), min(columns, right + blend.ring)

    whole = picture(blend, tiles, [list(range(columns))])
    part = picture(blend, tiles[:, first:last], [list(range(last - first))])

    begin = left * stride + blend.overlap
    size = (right - left) * stride
    here = begin - first * stride
    np.testing.assert_array_equal(
        whole[..., begin : begin + size], part[..., here : here + size]
    )


@given(blends(), st.integers(1, 3), st.integers(1, 3))
def test_a_missing_tile_is_a_hole_of_its_own_weights(blend, rows, columns):
    """Tiles that are never added leave 0 where no neighbour reaches."""
    tile = blend.stride + 2 * blend.halo
    tiles = torch.ones(rows, columns, 1, tile, tile)

    sums = picture(blend, tiles, [[column] for column in range(1, columns)])

    assert sums[..., : blend.stride].abs().sum() == 0


@pytest.mark.parametrize("kind", ["crop", "cosine"])
def test_a_halo_of_nothing_is_a_mosaic(kind):
    blend = Blend(4, 0, kind)
    tiles = torch.arange(2 * 3 * 16.0).reshape(2, 3, 1, 4, 4)

    sums = picture(blend, tiles, [[0, 1, 2]])[0, :8]

    expected = tiles[:, :, 0].permute(0, 2, 1, 3).reshape(8, 12)
    np.testing.assert_array_equal(expected, sums)
