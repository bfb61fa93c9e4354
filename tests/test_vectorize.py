"""The pieces of shards, joined, are the polygons of the whole mask."""

from dataclasses import fields

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP
from numpy.testing import assert_array_equal
from pyproj import CRS
from rasterio.features import rasterize, shapes
from shapely.geometry import shape

from tileseg.area import row_hectares
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run, Shard
from tileseg.vectorize import Pieces, _components, join, polygonise

PLANE, GLOBE = (CRS.from_epsg(code).to_wkt() for code in (32631, 4326))


def boxed(mask, crs=None):
    return GeoBox(*mask.shape, NORTH_UP, crs)


def cut(mask, size, *, crs=None, confidence=None, left_out=(255,)):
    """Return the pieces of every shard of `size` pixels."""
    height, width = mask.shape
    grid = Grid(height=height, width=width, tile=size, halo=0, shard=size)
    pieces = {}
    for shard in Run(grid.shape):
        window = grid.pixels(shard)
        pieces[shard] = polygonise(
            mask[window.slices],
            None if confidence is None else confidence[window.slices],
            boxed(mask, crs).crop(window),
            window,
            left_out=left_out,
        )
    return pieces


def whole(mask, left_out=(255,)):
    """Return (polygon, class) of the whole mask, row-major: what GDAL makes of it."""
    wanted = np.isin(mask, left_out, invert=True)
    found = [(shape(g), value) for g, value in shapes(mask, wanted, connectivity=4)]
    found.sort(key=lambda item: min((y, x) for x, y in item[0].exterior.coords))
    return [(shapely.normalize(item), int(value)) for item, value in found]


def drawn(outlines, values, like):
    """Return the polygons as a mask, 255 where there is none."""
    if not len(outlines):
        return np.full_like(like, 255)
    pairs = list(zip(outlines, values, strict=True))
    return rasterize(pairs, like.shape, fill=255, dtype="uint8")


def assert_same(mask, got, left_out=(255,)):
    expected = whole(mask, left_out)

    assert [value for _, value in expected] == got.classes.tolist()
    for (outline, _), other in zip(expected, got.outlines, strict=True):
        assert shapely.equals_exact(outline, other)
    assert shapely.is_valid(got.outlines).all()


@st.composite
def masks(draw):
    """Draw a mask of blobs, from single pixels to larger than a shard."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    side, classes = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    coarse = random.integers(0, classes, (height // side + 1, width // side + 1))
    mask = coarse.repeat(side, 0).repeat(side, 1)[:height, :width]
    for share, value in ((draw(st.sampled_from([0, 0.1])), 255), (0.05, 0)):
        mask[random.random(mask.shape) < share] = value
    return mask.astype(np.uint8)


@settings(max_examples=200)
@given(mask=masks(), size=st.integers(2, 17))
def test_joined_pieces_are_the_polygons_of_the_whole(mask, size):
    got = join(cut(mask, size), boxed(mask))

    assert_same(mask, got)
    assert_array_equal(mask, drawn(got.outlines, got.classes, mask))


@given(mask=masks(), size=st.integers(2, 17))
def test_every_pixel_is_in_one_piece_and_no_sum_is_lost(mask, size):
    """Pieces pass through a file; the numbers of the joined are those of the pixels."""
    confidence = np.where(mask == 255, 255, np.arange(mask.size).reshape(mask.shape))
    confidence = (confidence % 255).astype(np.uint8)
    pieces = cut(mask, size, crs=PLANE, confidence=confidence)
    got = join(pieces, boxed(mask, PLANE))

    areas = shapely.area(got.outlines)
    assert (mask < 255).sum() == areas.sum()
    assert (mask < 255).sum() == sum(item.pixels.sum() for item in pieces.values())
    assert_array_equal(areas * row_hectares(boxed(mask, PLANE))[0], got.hectares)
    ids = drawn(got.outlines, np.arange(len(got.outlines)) % 251, mask)
    for n, mean in enumerate(got.confidence[:251]):
        if len(got.outlines) <= 251:
            assert mean == confidence[ids == n].sum() / ((ids == n).sum() * 254)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7])
@pytest.mark.parametrize(
    "rows",
    [
        ["ab", "ba"],
        ["aabb", "aabb", "bbaa", "bbaa"],
        ["abab", "baba", "abab", "baba"],
        ["aaaaa", "abbba", "abaca", "abbba", "aaaaa"],
        ["aaaaaaa", "abbbbba", "abaaaba", "ababaca", "abaaaba", "abbbcba", "aaaaaaa"],
        ["aaaa", "a.ba", "ab.a", "aaaa"],
        ["abbbbbb", "abababa", "aaaaaaa"],
        ["...", "..."],
        ["a"],
        ["aaaaaaaaaaa"],
        [*"abbbaab"],
    ],
)
def test_hard_seams(rows, size):
    """Corners that meet at seams, rings round holes, combs, spirals, nothing."""
    table = {"a": 0, "b": 1, "c": 7, ".": 255}
    mask = np.array([[table[letter] for letter in row] for row in rows], np.uint8)

    assert_same(mask, join(cut(mask, size), boxed(mask)))


def test_what_is_left_out_has_no_polygon():
    mask = np.array([[0, 0, 1, 255], [1, 0, 1, 1], [1, 255, 0, 1]], np.uint8)
    got = join(cut(mask, 2, left_out=(255, 0)), boxed(mask))

    assert_same(mask, got, (255, 0))
    assert {1} == set(got.classes.tolist())


def test_missing_shards_are_nodata():
    mask = np.zeros((30, 20), np.uint8)
    pieces = cut(mask, 10)
    for shard in (Shard(0, 1), Shard(2, 0)):
        del pieces[shard]
    mask[:10, 10:] = mask[20:, :10] = 255

    assert_same(mask, join(pieces, boxed(mask)))


@settings(max_examples=40)
@given(mask=masks(), sizes=st.tuples(st.integers(2, 17), st.integers(2, 17)))
def test_the_cut_does_not_show(mask, sizes):
    """In a plane not even in the last bit of a number, on the globe by rounding."""
    confidence = (mask * 3 % 255).astype(np.uint8)
    for crs, digits in ((PLANE, 0), (GLOBE, 1e-9)):
        one, two = (
            join(cut(mask, size, crs=crs, confidence=confidence), boxed(mask, crs))
            for size in sizes
        )
        assert_array_equal(shapely.to_wkb(one.outlines), shapely.to_wkb(two.outlines))
        assert_array_equal(one.confidence, two.confidence)
        np.testing.assert_allclose(one.hectares, two.hectares, rtol=digits)


@given(mask=masks())
def test_pieces_survive_their_file(mask):
    pieces = cut(mask, 99, crs=PLANE, confidence=mask)[Shard(0, 0)]
    data = pieces.to_bytes()

    again = Pieces.from_bytes(data)

    assert data == again.to_bytes()
    for item in fields(Pieces):
        assert_array_equal(getattr(pieces, item.name), getattr(again, item.name))


def test_pieces_without_metres_or_confidence_survive_their_file():
    pieces = cut(np.eye(3, dtype=np.uint8), 9)[Shard(0, 0)]

    again = Pieces.from_bytes(pieces.to_bytes())

    assert (again.hectares, again.confidence) == (None, None)


@given(st.data())
def test_components_are_those_of_a_slow_search(data):
    count = data.draw(st.integers(1, 12))
    things = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(things, things)))
    expected = list(range(count))
    for _ in range(count):
        for one, two in pairs:
            expected[one] = expected[two] = min(expected[one], expected[two])

    got = _components(count, np.array(pairs, np.int64).reshape(-1, 2).T)

    assert expected == got.tolist()
