"""No polygon below an area has a neighbour, and what became of it shows no seam."""

from itertools import groupby

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP, random_pixels
from numpy.testing import assert_array_equal
from pyproj import CRS
from test_features import GLOBE, a_job, table_of
from test_polygonize import TRANSFORMS, random_mask, write
from test_products import SYSTEMS
from test_simplify import simply
from test_vectorize import assert_same, masks, numbers, shapes_of, whole
from test_vectorize import cut as traced

from tileseg.cli import main
from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.job import run
from tileseg.polygons.borders import Gauge, borders_of
from tileseg.polygons.eliminate import eliminate, eliminate_within, settled
from tileseg.polygons.join import join
from tileseg.polygons.simplify import Manner
from tileseg.polygons.vectorize import Areas, polygonise
from tileseg.scenes.area import row_hectares, row_metres
from tileseg.settings import Job
from tileseg.steps.polygonize import Wish, polygonize
from tileseg.window import Window

UTM = CRS.from_epsg(32631).to_wkt()
WGS84 = CRS.from_epsg(4326).to_wkt()
PLACES = {
    **{name: (transform, UTM) for name, transform in TRANSFORMS.items()},
    "leaning": (NORTH_UP @ Affine.shear(20, 0), UTM),
    "globe": (GLOBE @ Affine.scale(30, 300), WGS84),
}
ANYWHERE = st.sampled_from(list(PLACES))
PIXELS = st.sampled_from([2, 5, 12, 40])


def box_of(mask, place="north-up"):
    return GeoBox(*mask.shape, *PLACES[place])


def hectares_of(box, pixels):
    """Return the area of some pixels of the scene's middle."""
    return pixels * float(row_hectares(box)[box.height // 2])


def in_rows(pieces):
    """Yield the shards of each row."""
    for _, row in groupby(sorted(pieces), lambda shard: shard.row):
        yield [pieces[shard] for shard in row]


def merged(pieces, box, hectares, **manner):
    """Return the areas of a mask cut into shards, and what was eliminated."""
    gauge, manner = Gauge.of(box, hectares), Manner(nodata=(255,), **manner)
    rows = (
        [borders_of(item, gauge.crop(item.window)) for item in row]
        for row in in_rows(pieces)
    )
    found = eliminate(rows, gauge)
    changed = (
        [settled(item, found.of(item.window), manner) for item in row]
        for row in in_rows(pieces)
    )
    parts = join(changed, is_noded=manner.tolerance is not None)
    nothing = next(iter(pieces.values())).areas.take(np.arange(0))
    return Areas.joined([nothing, *parts]), found


# Step by step, of the whole mask


def slowly(mask, box, hectares):
    """Return the mask of merged polygons, and how many small ones are left."""
    mask, areas, (across, down) = mask.copy(), row_hectares(box), row_metres(box)
    sides = down[:, None], across[1:-1, None]
    while True:
        ids = polygonise(mask, None, box.window, left_out=(255,)).numbers
        there = ids >= 0
        sizes = np.bincount(ids[there], np.where(there, areas[:, None], 0)[there])
        last = dict(zip(ids.ravel().tolist(), range(ids.size), strict=True))
        rank = [(round(size, 7), last[it]) for it, size in enumerate(sizes.tolist())]
        small = [it for it in range(len(rank)) if sizes[it] < hectares * (1 - 1e-7)]
        for number in sorted(small, key=rank.__getitem__):
            borders = borders_on(ids, number, sides)
            if borders:
                into = max(
                    borders,
                    key=lambda it: (round(borders[it], 4), rank[it][0], -last[it]),
                )
                mask[ids == number] = mask[ids == into][0]
                break
        else:
            return mask, len(small)


def borders_on(ids, number, sides):
    """Return how long one polygon borders on each of its neighbours."""
    borders = {}
    for turned, lengths in zip((ids, ids.T), (sides[0], sides[1].T), strict=True):
        near, far = turned[:, :-1], turned[:, 1:]
        for one, other in ((near, far), (far, near)):
            meets = (one == number) & (other >= 0) & (other != number)
            long = np.broadcast_to(lengths, one.shape)[meets].tolist()
            for it, length in zip(other[meets].tolist(), long, strict=True):
                borders[it] = borders.get(it, 0) + length
    return borders


@settings(max_examples=60)
@given(mask=masks(), size=st.integers(2, 17), place=ANYWHERE, pixels=PIXELS)
def test_they_are_those_of_the_whole_merged_step_by_step(mask, size, place, pixels):
    """South-up, rotated, of pixels that are not square, of rows that are not alike."""
    box = box_of(mask, place)
    hectares = hectares_of(box, pixels)
    expected, left = slowly(mask, box, hectares)

    got, found = merged(traced(mask, size), box, hectares)

    assert_same(expected, got)
    assert found.alone == left
    sizes = [polygon.area for polygon, _ in whole(mask)]
    if place != "globe":
        assert found.small == sum(size < pixels - 0.5 for size in sizes)


@settings(max_examples=30)
@given(mask=masks(), sizes=st.tuples(st.integers(2, 17), st.integers(2, 99)))
def test_the_cut_does_not_show(mask, sizes):
    """Not in the order, not in where a ring begins, not in a number."""
    confidence = (mask * 3 % 255).astype(np.uint8)
    box = box_of(mask, "oblong")
    hectares = hectares_of(box, 9)

    (one, this), (two, other) = (
        merged(traced(mask, size, confidence=confidence), box, hectares)
        for size in sizes
    )

    for got, again in zip(numbers(one), numbers(two), strict=True):
        assert_array_equal(got, again)
    assert this.told(hectares) == other.told(hectares)
    assert (mask < 255).sum() == one.pixels.sum() == one.outlines.pixels.sum()
    assert confidence[mask < 255].sum() == one.sureness.total.sum()


@settings(max_examples=25)
@given(mask=masks(), size=st.integers(2, 17), tolerance=st.sampled_from([0.5, 1, 50]))
def test_simplified_they_are_the_same_without_gaps(mask, size, tolerance):
    box, pieces = box_of(mask), traced(mask, size)
    plain, _ = merged(pieces, box, 0.09)

    got, _ = merged(pieces, box, 0.09, tolerance=tolerance)

    assert_array_equal(plain.classes, got.classes)
    assert_array_equal(plain.pixels, got.pixels)
    assert_array_equal(plain.last, got.last)
    outlines = shapes_of(got.outlines)
    assert shapely.is_valid(outlines).all()
    assert not len(got) or shapely.coverage_is_valid(outlines)
    covered = shapely.union_all([polygon for polygon, _ in whole(mask)])
    assert shapely.equals(covered, shapely.union_all(outlines))


def placed(outlines, box):
    """Return polygons in pixels on the ground."""
    a, b, c, d, e, f = box.transform[:6]
    turn = np.array([[a, d], [b, e]])
    return shapely.transform(outlines, lambda at: at @ turn + np.array([c, f]))


@pytest.mark.slow
def test_a_thousand_simplified_masks_have_no_gaps():
    """On the ground, wherever up is; every second one without its small polygons."""
    random = np.random.default_rng(4)
    for number in range(1_000):
        mask = random_mask(random)
        size, tolerance = random.integers(13, 64), random.choice([0.5, 1, 3, 50])
        box = box_of(mask, [*TRANSFORMS, "leaning"][number % 5])
        if number % 2:
            pieces = traced(mask, size)
            got, _ = merged(pieces, box, hectares_of(box, 9), tolerance=tolerance)
        else:
            got = simply(mask, size, tolerance)
        outlines = placed(shapes_of(got.outlines), box)

        assert (mask < 255).sum() == got.outlines.pixels.sum() == got.pixels.sum()
        assert shapely.is_valid(outlines).all()
        assert not len(got) or shapely.coverage_is_valid(outlines)


def test_what_is_left_out_is_a_neighbour_all_the_same():
    """What is merged into it has no polygon any more; small ones of it are filled."""
    mask = np.zeros((20, 30), np.uint8)
    mask[3:13, 3:13], mask[6, 6], mask[17, 20] = 1, 0, 1

    got, found = merged(traced(mask, 7), box_of(mask), 0.02, left_out=(0,))

    assert (found.small, found.alone) == (2, 0)
    assert got.classes.tolist() == [1]
    assert got.outlines.pixels.tolist() == [100]


# Which neighbour

CORNER = [".aaaaaaa", "cbb.....", "cbb.....", "c.......", "cccccccc"]
TABLE = {"a": 0, "b": 1, "c": 7, ".": 255}


@pytest.mark.parametrize("size", [2, 3, 99])
@pytest.mark.parametrize(
    ("rows", "pixels", "expected", "place"),
    [
        # The longest border, not the largest neighbour.
        (
            ["aaaaaa", "aacccc", "bbcccc", "bbcccc"],
            5,
            ["aaaaaa", "aacccc", "cccccc", "cccccc"],
            "north-up",
        ),
        # Of equally long ones the largest; of equally large ones the upper.
        (["aabccc"], 2, ["aacccc"], "north-up"),
        (["aabcc"], 2, ["aaacc"], "north-up"),
        # On the ground: two pixels wide are longer than two high, or as long.
        (CORNER, 5, [".aaaaaaa", "caa.....", "caa.....", *CORNER[3:]], "oblong"),
        (CORNER, 5, [".aaaaaaa", "ccc.....", "ccc.....", *CORNER[3:]], "rotated"),
        # One after the other: a, then what it has become is the larger neighbour.
        (["abcbca"], 2, ["bbbbbb"], "north-up"),
        # What parted two of a class makes them one, which is no island now.
        (["bbbabbb"], 4, ["bbbbbbb"], "north-up"),
        # An island stays, one of two polygons becomes one.
        (["a..bb", ".....", "ac.bb"], 4, ["a..bb", ".....", "cc.bb"], "north-up"),
    ],
)
def test_into_which_they_are_merged(rows, pixels, expected, place, size):
    mask, wanted = (
        np.array([[TABLE[letter] for letter in row] for row in picture], np.uint8)
        for picture in (rows, expected)
    )
    box = box_of(mask, place)

    got, _ = merged(traced(mask, size), box, hectares_of(box, pixels))

    assert_same(wanted, got)


def test_as_large_as_asked_for_is_not_small():
    """However an area in hectares is rounded."""
    for count in range(1, 60):
        mask = np.zeros((3, 70), np.uint8)
        mask[1, 3 : 3 + count] = 1
        box = GeoBox(*mask.shape, NORTH_UP @ Affine.rotation(31.7), UTM)

        _, found = merged(traced(mask, 16), box, round(count * 0.01, 2))

        assert found.small == 0


def test_a_chain_of_many_ends():
    """All small, in every merge; each of the whole is as large as asked for."""
    mask = np.random.default_rng(3).integers(0, 7, (210, 190), np.uint8)
    box = box_of(mask)

    got, found = merged(traced(mask, 64), box, 2.0)

    assert (found.alone, got.pixels.sum()) == (0, mask.size)
    assert got.pixels.min() >= 200
    assert len(got) > 20


def test_in_a_window_what_is_cut_off_is_not_small():
    mask = np.zeros((12, 19), np.uint8)
    mask[:2, 4], mask[6, 6], mask[11, 18] = 1, 2, 3
    window = Window(40, 70, *mask.shape)
    pieces = polygonise(mask, None, window, left_out=(255,))

    gauge, manner = Gauge.of(box_of(mask), 0.09), Manner(nodata=(255,))
    got = eliminate_within(pieces, gauge, manner)

    assert {0, 1, 3} == set(got.areas.classes.tolist())


# Files


@pytest.fixture(scope="module")
def a_mask(tmp_path_factory):
    """A mask of several windows of 48 pixels, with a confidence and holes."""
    folder = tmp_path_factory.mktemp("mask")
    random = np.random.default_rng(5)
    mask = random.integers(0, 4, (33, 43), np.uint8).repeat(4, 0).repeat(4, 1)
    mask[random.random(mask.shape) < 0.1] = 1
    mask[60:90, 100:120] = 255
    mask = np.ascontiguousarray(mask[:130, :171])
    sure = np.where(mask == 255, 255, random.integers(85, 255, mask.shape))
    write(folder / "confidence.tif", sure.astype(np.uint8))
    return write(folder / "mask.tif", mask), mask


@pytest.mark.parametrize(
    ("workers", "simplify"),
    [(1, None), (1, 10.0), pytest.param(2, 10.0, marks=pytest.mark.slow)],
)
def test_the_file_does_not_depend_on_windows_or_workers(
    tmp_path, monkeypatch, a_mask, workers, simplify
):
    path, mask = a_mask
    confidence = path.replace("mask.tif", "confidence.tif")
    monkeypatch.setattr("tileseg.steps.polygonize._SIDE", 48)
    wish = {"min_area": 0.15, "simplify": simplify, "confidence": confidence}
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 32}
    made = []
    for stored, crew in (({"blockysize": 7}, 1), (tiles, workers)):
        source = write(tmp_path / "mask.tif", mask, **stored)
        output = tmp_path / f"{len(made)}.parquet"
        polygonize(Wish(mask=source, output=output, workers=crew, **wish))
        made.append(output.read_bytes())

    columns, outlines, _ = table_of(output)
    said = pq.read_schema(output).metadata[b"description"].decode()
    assert made[0] == made[1]
    assert shapely.area(outlines).sum() == (mask < 255).sum() * 100
    assert shapely.is_valid(outlines).all()
    if simplify:
        assert shapely.coverage_is_valid(outlines)
    else:
        assert min(columns["area_ha"]) >= 0.15
    assert said.startswith("Polygons smaller than 0.15 ha are merged")
    assert ("tolerance 10 m" in said) == (simplify is not None)


def test_the_command_takes_hectares(tmp_path, a_mask):
    output = tmp_path / "it.gpkg"
    args = ["polygonize", a_mask[0], "--output", str(output), "--workers", "1"]

    result = CliRunner().invoke(main, [*args, "--min-area", "100"])

    columns, _, _ = table_of(output)
    assert (result.exit_code, result.stdout) == (0, f"{output}: 1 polygons\n")
    assert columns["area_ha"] == [(a_mask[1] < 255).sum() / 100]


def test_a_job_makes_the_polygons_of_its_mask_merged(tmp_path, model_path):
    """Whatever its shards are; the mask is what it is without, the plan is another."""
    pixels, made, plans = random_pixels(130, 171), [], set()
    for options in ({}, {"min_area": 0.5}, {"min_area": 0.5, "shard": 72}):
        job = a_job(tmp_path, model_path, pixels, "parquet",
                    options={**options, "overwrite": True})  # fmt: skip
        record = run(job)
        assert record.error is None
        plans.add(record.values["plan_id"])
        made.append(
            [(job.output_path / name).read_bytes()
             for name in ("mask.tif", "polygons.parquet")]
        )  # fmt: skip
    beside = tmp_path / "beside.parquet"
    mask, sure = (str(job.output_path / f"{it}.tif") for it in ("mask", "confidence"))
    polygonize(Wish(mask=mask, confidence=sure, output=beside, min_area=0.5))

    assert record.values["job"]["min_area"] == 0.5
    assert len(plans) == 3
    assert [made[0][0]] * 3 == [mask for mask, _ in made]
    assert made[0][1] != made[1][1] == made[2][1]
    (columns, outlines, _), (others, same, _) = map(
        table_of, (job.output_path / "polygons.parquet", beside)
    )
    assert columns == others
    assert shapely.equals_exact(outlines, same).all()
    total = sum(record.values["hectares"].values())
    assert total == pytest.approx(sum(columns["area_ha"]))
    assert shapely.is_valid(outlines).all()


# What cannot be


def test_hectares_without_a_crs_that_has_some_are_refused(tmp_path, model_path):
    crs, pixels = SYSTEMS["engineering"], random_pixels(53, 101)
    options = {"min_area": 1.0}
    job = a_job(tmp_path, model_path, pixels, "fgb", options=options, crs=crs)
    mask = write(tmp_path / "mask.tif", pixels[0].astype(np.uint8), crs=crs)

    error = run(job).error
    assert isinstance(error, UsageError)
    assert "--min-area" in str(error)
    with pytest.raises(UsageError, match="--min-area"):
        polygonize(Wish(mask=mask, output=tmp_path / "it.fgb", min_area=1))


@pytest.mark.parametrize("hectares", [0, -1, np.nan, np.inf])
def test_areas_that_mean_nothing_are_refused(tmp_path, hectares):
    mask = write(tmp_path / "mask.tif", np.zeros((9, 9), np.uint8))

    with pytest.raises(UsageError, match="min_area"):
        Job(input="scene.tif", polygons="gpkg", min_area=float(hectares))
    with pytest.raises(UsageError, match="--min-area"):
        polygonize(Wish(mask=mask, output=tmp_path / "it.fgb", min_area=hectares))


def test_to_merge_no_polygons_is_refused():
    with pytest.raises(UsageError, match="polygons"):
        Job(input="scene.tif", min_area=1.0)
