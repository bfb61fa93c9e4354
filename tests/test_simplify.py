"""Simplified polygons cover what the mask covers, with neither gaps nor overlaps."""

import json
from itertools import groupby

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP, random_pixels
from numpy.testing import assert_array_equal
from pyproj import CRS
from test_features import GLOBE, a_job, in_order, table_of
from test_polygonize import TRANSFORMS, write
from test_products import SYSTEMS
from test_vectorize import joined as joined_as_traced
from test_vectorize import masks, shapes_of, whole

from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run
from tileseg.job import run
from tileseg.polygons.features import write_features
from tileseg.polygons.join import join
from tileseg.polygons.simplify import Manner, polygonise_simply, tolerance_of
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import Areas
from tileseg.scenes.area import pixel_lean
from tileseg.settings import Job
from tileseg.steps.polygonize import Wish, polygonize
from tileseg.window import Window

UTM = CRS.from_epsg(32631).to_wkt()
LEANING = NORTH_UP @ Affine.shear(20, 0)
TOLERANCES = st.sampled_from([0.5, 1, 2, 50])


def cut(mask, size, tolerance, left_out=()):
    """Return the pieces of every shard of `size` pixels."""
    height, width = mask.shape
    grid = Grid(height=height, width=width, tile=size, halo=0, shard=size)
    return {
        shard: polygonise_simply(
            mask[window.slices],
            None,
            window,
            Manner(nodata=(255,), left_out=left_out, tolerance=tolerance),
        )
        for shard in Run(grid.shape)
        for window in [grid.pixels(shard)]
    }


def simply(mask, size, tolerance, left_out=()):
    """Return the areas that simplified pieces make, all of them."""
    pieces = cut(mask, size, tolerance, left_out)
    rows = groupby(sorted(pieces), lambda shard: shard.row)
    parts = join(([pieces[shard] for shard in row] for _, row in rows), is_noded=True)
    nothing = next(iter(pieces.values())).areas.take(np.arange(0))
    return Areas.joined([nothing, *parts])


def smooth_mask(height, width, classes):
    """Return a mask of wide patches with wound borders, as a network makes them."""
    random = np.random.default_rng(7)
    noise = np.fft.fft2(random.normal(size=(classes, height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    total = np.zeros(noise.shape)
    for scale, share in ((24, 1), (6, 0.3)):
        low = np.exp(-2 * (np.pi * scale) ** 2 * (y**2 + x**2))
        layer = np.fft.ifft2(noise * low).real
        total += share * layer / layer.std()
    return total.argmax(axis=0).astype(np.uint8)


# What they cover


@settings(max_examples=60)
@given(mask=masks(), size=st.integers(2, 17), tolerance=TOLERANCES)
def test_they_cover_what_the_mask_covers_and_no_place_twice(mask, size, tolerance):
    """However a mask is cut, with holes of nodata and pieces that touch at corners."""
    got = simply(mask, size, tolerance)
    outlines = shapes_of(got.outlines)
    traced = [polygon for polygon, _ in whole(mask)]

    assert shapely.is_valid(outlines).all()
    assert not len(got) or shapely.coverage_is_valid(outlines)
    assert shapely.equals(shapely.union_all(traced), shapely.union_all(outlines))
    assert_array_equal(shapely.area(outlines), got.outlines.pixels)
    assert (mask < 255).sum() == got.outlines.pixels.sum()
    assert set(shapely.get_coordinates(outlines).ravel() % 1) <= {0}


@settings(max_examples=30)
@given(mask=masks(), size=st.integers(2, 17), tolerance=TOLERANCES)
def test_they_are_the_same_features_in_the_same_order(mask, size, tolerance):
    """Of the same class and pixels, of which confidence is counted."""
    traced = joined_as_traced(cut(mask, size, None))

    got = simply(mask, size, tolerance)

    assert_array_equal(traced.classes, got.classes)
    assert_array_equal(traced.outlines.pixels, got.pixels)
    assert_array_equal(traced.last, got.last)
    assert_array_equal(traced.outlines.last_pixels, got.last)


@settings(max_examples=20)
@given(mask=masks(), size=st.integers(2, 17))
def test_what_is_left_out_is_a_neighbour_all_the_same(mask, size):
    """Borders to it are simplified, those to nodata are not."""
    every, some = (simply(mask, size, 1, left_out) for left_out in ((), (0,)))

    expected = every.take(every.classes > 0)
    assert_array_equal(expected.classes, some.classes)
    pairs = shapes_of(expected.outlines), shapes_of(some.outlines)
    assert shapely.equals(*pairs).all()


def test_a_staircase_becomes_a_slope():
    """But for what is next to the scene's border, or to nodata."""
    mask = np.tri(30, dtype=np.uint8)
    mask[:, 28:] = 255

    got = simply(mask, 99, 1)

    assert sorted(np.diff(got.outlines.rings).tolist()) == [4, 6]


@pytest.mark.parametrize("size", [64, 1000])
def test_classes_keep_their_area(size):
    """To half a percent at a tolerance of one pixel, with half as many corners."""
    mask = smooth_mask(300, 421, 4)
    traced = simply(mask, size, None)

    got = simply(mask, size, 1)

    before = np.bincount(mask.ravel())
    after = np.bincount(got.classes, got.outlines.pixels)
    assert (abs(after - before) <= 0.005 * before).all()
    assert len(got.outlines.vertices) < 0.45 * len(traced.outlines.vertices)


# Measured on the ground


def features_of(folder, mask, geobox, tolerance):
    """Return columns and polygons of a file of a mask cut into shards of 16 pixels."""
    areas = simply(mask, 16, tolerance)
    meaning = Meaning(dict(enumerate("abcd")), geobox, simplified=tolerance)
    write_features([areas], meaning, folder / "it.parquet")
    columns, outlines, _ = table_of(folder / "it.parquet")
    return columns, outlines


@pytest.mark.parametrize("name", [*TRANSFORMS, "leaning"])
def test_numbers_are_those_of_the_polygon_on_the_ground(tmp_path, name):
    transform = {**TRANSFORMS, "leaning": LEANING}[name]
    mask = smooth_mask(43, 61, 4)

    columns, outlines = features_of(
        tmp_path, mask, GeoBox(*mask.shape, transform, UTM), 1
    )

    hectares, metres = shapely.area(outlines) / 1e4, shapely.length(outlines)
    assert columns["area_ha"] == pytest.approx(hectares.tolist(), rel=1e-6)
    assert columns["perimeter_m"] == pytest.approx(metres.tolist(), rel=1e-6)
    assert shapely.is_ccw(shapely.get_exterior_ring(outlines)).all()


def test_areas_in_degrees_add_up_to_those_of_the_pixels(tmp_path):
    """No border gives to one side what it does not take from the other."""
    mask = smooth_mask(43, 61, 4)
    box = GeoBox(*mask.shape, GLOBE, CRS.from_epsg(4326).to_wkt())

    traced, _ = features_of(tmp_path, mask, box, None)
    columns, _ = features_of(tmp_path, mask, box, 2)

    total = sum(traced["area_ha"])
    assert total == pytest.approx(sum(columns["area_ha"]), rel=1e-12)
    assert sum(traced["perimeter_m"]) > sum(columns["perimeter_m"])


def test_a_metre_is_one_on_the_ground():
    """In feet and in degrees, there by the latitude of the shard."""
    feet = GeoBox(9, 9, NORTH_UP, CRS.from_epsg(2225).to_wkt())
    globe = GeoBox(20_000, 9, GLOBE, CRS.from_epsg(4326).to_wkt())
    north, south = (globe.crop(Window(row, 0, 9, 9)) for row in (0, 19_000))

    assert tolerance_of(None, feet) is None
    assert tolerance_of(10, feet) == pytest.approx(1 / 0.3048, rel=1e-5)
    assert tolerance_of(10, north) > 1.1 * tolerance_of(10, south)
    assert pixel_lean(GeoBox(9, 9, LEANING, UTM)) == pytest.approx(
        np.sin(np.radians(20))
    )


# Files


@pytest.mark.parametrize("kind", ["gpkg", "parquet", "fgb", "geojson"])
def test_files_say_so(tmp_path, kind):
    mask = smooth_mask(43, 61, 4)
    path, box = tmp_path / f"it.{kind}", GeoBox(*mask.shape, NORTH_UP, UTM)
    meaning = Meaning(dict(enumerate("abcd")), box, simplified=12.5)

    write_features([simply(mask, 99, 1.25)], meaning, path)

    columns, outlines, _ = table_of(path)
    outlines = in_order(columns, outlines, path)
    assert kind == "geojson" or shapely.coverage_is_valid(outlines)
    assert shapely.is_valid(outlines).all()
    if kind == "parquet":
        said = pq.read_schema(path).metadata[b"description"].decode()
    elif kind == "geojson":
        said = json.loads(path.read_text())["description"]
    elif kind == "gpkg":
        sql = "SELECT description FROM gpkg_contents"
        said = pyogrio.raw.read(path, sql=sql)[3][0][0]
    else:
        said = path.read_bytes()[:2000].decode("latin-1")
    assert "tolerance 12.5 m" in said


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_file_does_not_depend_on_how_the_mask_is_stored(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("tileseg.steps.polygonize._SIDE", 48)
    mask = smooth_mask(130, 171, 4)
    stored = {
        "strips": {"blockysize": 7},
        "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 64},
    }
    made = []
    for name, profile in stored.items():
        path = write(tmp_path / f"{name}.tif", mask, **profile)
        output = tmp_path / f"{name}.parquet"
        wish = Wish(mask=path, output=output, simplify=10)
        polygonize(wish)
        made.append(output.read_bytes())
    if workers > 1:
        polygonize(
            Wish(mask=path, output=output, simplify=10, workers=2, overwrite=True)
        )
        made.append(output.read_bytes())

    _, outlines, _ = table_of(output)
    assert {made[0]} == set(made)
    assert shapely.coverage_is_valid(outlines)
    assert shapely.area(outlines).sum() == mask.size * 100


def test_a_job_makes_simplified_polygons(tmp_path, model_path):
    """Another plan than the one without: its shards hold other pieces."""
    pixels = random_pixels(130, 171)
    plans = []
    for options in ({}, {"simplify": 15.0, "overwrite": True}):
        job = a_job(tmp_path, model_path, pixels, "parquet", options=options)
        record = run(job)
        assert record.error is None
        plans.append(record.values["plan_id"])
    columns, outlines, _ = table_of(job.output_path / "polygons.parquet")

    assert plans[0] != plans[1]
    assert record.values["job"]["simplify"] == 15
    assert shapely.coverage_is_valid(outlines)
    total = sum(record.values["hectares"].values())
    assert total == pytest.approx(sum(columns["area_ha"]))


# What cannot be


def test_metres_without_a_crs_that_has_some_are_refused(tmp_path, model_path):
    for name in ("none", "engineering"):
        crs = SYSTEMS[name]
        options = {"simplify": 10.0}
        pixels = random_pixels(53, 101)
        job = a_job(tmp_path, model_path, pixels, "fgb", options=options, crs=crs)
        mask = write(tmp_path / "mask.tif", pixels[0].astype(np.uint8), crs=crs)

        error = run(job).error
        assert isinstance(error, UsageError)
        assert "--simplify" in str(error)
        with pytest.raises(UsageError, match="--simplify"):
            polygonize(Wish(mask=mask, output=tmp_path / "it.fgb", simplify=10))


@pytest.mark.parametrize("metres", [0, -1, np.nan, np.inf])
def test_tolerances_that_mean_nothing_are_refused(tmp_path, metres):
    mask = write(tmp_path / "mask.tif", np.zeros((9, 9), np.uint8))

    with pytest.raises(UsageError, match="simplify"):
        Job(input="scene.tif", polygons="gpkg", simplify=float(metres))
    with pytest.raises(UsageError, match="--simplify"):
        polygonize(Wish(mask=mask, output=tmp_path / "it.fgb", simplify=metres))


def test_to_simplify_no_polygons_is_refused():
    with pytest.raises(UsageError, match="polygons"):
        Job(input="scene.tif", simplify=10.0)
