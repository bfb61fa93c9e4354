"""The pieces of shards, joined, are the polygons of the whole mask."""

from itertools import groupby

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from rasterio.features import rasterize, shapes
from shapely.geometry import shape

from tileseg.grid import Grid, Run, Shard
from tileseg.polygons.join import join
from tileseg.polygons.trace import components
from tileseg.polygons.vectorize import Areas, Pieces, polygonise

BORDERS = "top", "bottom", "left", "right"


def cut(mask, size, *, confidence=None, left_out=(255,)):
    """Return the pieces of every shard of `size` pixels."""
    height, width = mask.shape
    grid = Grid(height=height, width=width, tile=size, halo=0, shard=size)
    pieces = {}
    for shard in Run(grid.shape):
        window = grid.pixels(shard)
        pieces[shard] = polygonise(
            mask[window.slices],
            None if confidence is None else confidence[window.slices],
            window,
            left_out=left_out,
        )
    return pieces


def joined(pieces):
    """Return the areas that the pieces of shards make, all of them."""
    rows = groupby(sorted(pieces), lambda shard: shard.row)
    parts = join([pieces[shard] for shard in row] for _, row in rows)
    nothing = next(iter(pieces.values())).areas.take(np.arange(0))
    return Areas.joined([nothing, *parts])


def shapes_of(outlines):
    """Return them as shapely has polygons."""
    ends = outlines.rings[1:] - 1
    closed = np.insert(
        outlines.vertices, ends + 1, outlines.vertices[outlines.after[ends]], axis=0
    )
    rings = outlines.rings + np.arange(len(outlines.rings))
    return shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, closed.astype(float), (rings, outlines.polygons)
    )


def last_pixel(polygon):
    return max((y, x) for x, y in polygon.exterior.coords)


def whole(mask, left_out=(255,)):
    """Return (polygon, class) of the whole mask: what GDAL makes of it."""
    wanted = np.isin(mask, left_out, invert=True)
    found = [(shape(g), value) for g, value in shapes(mask, wanted, connectivity=4)]
    found.sort(key=lambda item: last_pixel(item[0]))
    return [(shapely.normalize(item), int(value)) for item, value in found]


def drawn(outlines, values, like):
    """Return the polygons as a mask, 255 where there is none."""
    if not len(outlines):
        return np.full_like(like, 255)
    pairs = list(zip(shapes_of(outlines), values, strict=True))
    return rasterize(pairs, like.shape, fill=255, dtype="uint8")


def assert_same(mask, got, left_out=(255,)):
    expected = whole(mask, left_out)
    outlines = shapes_of(got.outlines)

    assert [value for _, value in expected] == got.classes.tolist()
    for (outline, _), other in zip(expected, outlines, strict=True):
        assert shapely.equals_exact(outline, shapely.normalize(other))
    assert shapely.is_valid(outlines).all()


def numbers(areas):
    """Return all that areas are."""
    outlines, sure = areas.outlines, areas.sureness
    shape = outlines.vertices, outlines.rings, outlines.polygons
    return *shape, areas.classes, *((sure.total, sure.least) if sure else ())


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
    got = joined(cut(mask, size))

    assert_same(mask, got)
    assert_array_equal(mask, drawn(got.outlines, got.classes, mask))


@given(mask=masks(), size=st.integers(2, 17))
def test_every_pixel_is_in_one_piece_and_no_sum_is_lost(mask, size):
    """Pieces pass through a file; the numbers of the joined are those of the pixels."""
    confidence = np.where(mask == 255, 255, np.arange(mask.size).reshape(mask.shape))
    confidence = (confidence % 255).astype(np.uint8)
    pieces = cut(mask, size, confidence=confidence)
    got = joined(pieces)

    pixels = got.outlines.pixels
    assert (mask < 255).sum() == pixels.sum()
    assert (mask < 255).sum() == sum(
        item.areas.outlines.pixels.sum() for item in pieces.values()
    )
    outlines = shapes_of(got.outlines)
    assert_array_equal(shapely.area(outlines), pixels)
    lengths = got.outlines.perimeter(np.ones(99), np.arange(99.0))
    assert_array_equal(shapely.length(outlines), lengths)
    ids = drawn(got.outlines, np.arange(len(got)) % 251, mask)
    for n in range(len(got) if len(got) <= 251 else 0):
        assert got.sureness.total[n] == confidence[ids == n].sum()
        assert got.sureness.least[n] == confidence[ids == n].min()


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

    assert_same(mask, joined(cut(mask, size)))


def test_what_is_left_out_has_no_polygon():
    mask = np.array([[0, 0, 1, 255], [1, 0, 1, 1], [1, 255, 0, 1]], np.uint8)
    got = joined(cut(mask, 2, left_out=(255, 0)))

    assert_same(mask, got, (255, 0))
    assert {1} == set(got.classes.tolist())


def test_missing_shards_are_nodata():
    mask = np.zeros((30, 20), np.uint8)
    pieces = cut(mask, 10)
    for shard in (Shard(0, 1), Shard(2, 0)):
        del pieces[shard]
    mask[:10, 10:] = mask[20:, :10] = 255

    assert_same(mask, joined(pieces))


@settings(max_examples=40)
@given(mask=masks(), sizes=st.tuples(st.integers(2, 17), st.integers(2, 17)))
def test_the_cut_does_not_show(mask, sizes):
    """Not in the order, not in where a ring begins, not in a number."""
    confidence = (mask * 3 % 255).astype(np.uint8)
    one, two = (joined(cut(mask, size, confidence=confidence)) for size in sizes)

    for this, other in zip(numbers(one), numbers(two), strict=True):
        assert_array_equal(this, other)


@given(mask=masks(), size=st.integers(2, 17))
def test_an_area_is_handed_on_when_no_row_below_meets_it(mask, size):
    """What is held while rows come is what goes on."""
    pieces = cut(mask, size)
    rows = [
        [pieces[shard] for shard in row]
        for _, row in groupby(sorted(pieces), lambda shard: shard.row)
    ]
    given = []
    for areas in join(_counted(rows, given)):
        row_stop = rows[len(given) - 1][0].window.row_stop
        last = areas.outlines.last_pixels >> 32
        assert (last <= row_stop).all()
        assert (last > row_stop - rows[0][0].window.height - 1).all()


def _counted(rows, given):
    for row in rows:
        given.append(row)
        yield row


@given(mask=masks())
def test_pieces_survive_their_file(mask):
    pieces = cut(mask, 99, confidence=mask)[Shard(0, 0)]
    data = pieces.to_bytes()

    again = Pieces.from_bytes(data)

    assert data == again.to_bytes()
    assert pieces.window == again.window
    for this, other in zip(numbers(pieces.areas), numbers(again.areas), strict=True):
        assert_array_equal(this, other)
    for side in BORDERS:
        assert_array_equal(getattr(pieces, side), getattr(again, side))


@given(mask=masks(), size=st.integers(2, 40))
def test_pieces_know_their_pixels(mask, size):
    for item in cut(mask, size).values():
        at = item.numbers

        labels = np.append(item.areas.classes, np.uint8(255))[at]
        assert_array_equal(mask[item.window.slices], labels)
        rims = zip((at[0], at[-1], at[:, 0], at[:, -1]), BORDERS, strict=True)
        for rim, side in rims:
            assert_array_equal(getattr(item, side), rim)


def test_pieces_without_confidence_survive_their_file():
    pieces = cut(np.eye(3, dtype=np.uint8), 9)[Shard(0, 0)]

    assert Pieces.from_bytes(pieces.to_bytes()).areas.sureness is None


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_value_may_be_a_class(dtype):
    """Also the greatest and the least, where no value says that there is none."""
    most = np.iinfo(dtype).max
    mask = np.array([[0, most, most], [0, 7, most]], dtype)

    got = joined(cut(mask, 2, left_out=()))

    assert_same(mask, got, ())
    assert {0, 7, most} == set(got.classes.tolist())


@given(st.data())
def test_components_are_those_of_a_slow_search(data):
    count = data.draw(st.integers(1, 12))
    things = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(things, things)))
    expected = list(range(count))
    for _ in range(count):
        for one, two in pairs:
            expected[one] = expected[two] = min(expected[one], expected[two])

    got = components(count, np.array(pairs, np.int64).reshape(-1, 2).T)

    assert expected == got.tolist()
