"""A part of a scene is the crop of the whole; outside its polygons is nodata."""

import json
from dataclasses import replace

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from making import make_scene, random_pixels, read
from pyproj import Transformer
from strategies import grids

from tileseg.cli import main
from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.geobox import GeoBox
from tileseg.grid import Grid, Run
from tileseg.job import run
from tileseg.scenes.region import Stencil, _surfaces, region_of_bbox, region_of_file
from tileseg.settings import Job
from tileseg.window import Window

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)
SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 4_600_000)
ROTATED = Affine(8, 5, 500_000, 6, -9, 4_600_000)
DEGREES = Affine(1e-4, 0, 3, 0, -1e-4, 41.5)
PLACES = {
    "north-up": (NORTH_UP, "EPSG:32631"),
    "south-up": (SOUTH_UP, "EPSG:32631"),
    "rotated": (ROTATED, "EPSG:32631"),
    "degrees": (DEGREES, "EPSG:4326"),
}


def geobox_of(transform, crs, height=130, width=171):
    return GeoBox(height, width, transform, rasterio.CRS.from_user_input(crs).to_wkt())


def lonlat(geobox, columns, rows):
    """Return longitudes and latitudes of places in pixels."""
    a, b, c, d, e, f = geobox.transform[:6]
    x, y = np.asarray(columns), np.asarray(rows)
    to_lonlat = Transformer.from_crs(geobox.crs, "OGC:CRS84", always_xy=True)
    return to_lonlat.transform(x * a + y * b + c, x * d + y * e + f)


def bbox_round(geobox, col, row, width, height):
    """Return a box of degrees that holds a rectangle of pixels, just about."""
    corners = [(col, row), (col + width, row), (col, row + height)]
    x, y = lonlat(geobox, *zip(*corners, (col + width, row + height), strict=True))
    return float(min(x)), float(min(y)), float(max(x)), float(max(y))


def window_of(hits):
    """Return the least window that holds every True."""
    rows, cols = hits.any(axis=1).nonzero()[0], hits.any(axis=0).nonzero()[0]
    return Window(
        int(rows[0]), int(cols[0]), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
    )


def contains(one, other):
    return one.intersect(other) == other


@st.composite
def windows(draw, height, width):
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    tall, wide = draw(st.integers(1, height - row)), draw(st.integers(1, width - col))
    return Window(row, col, tall, wide)


@given(st.data())
def test_every_pixel_of_the_area_lies_in_exactly_one_shard_and_core(data):
    grid = data.draw(grids())
    part = data.draw(windows(grid.height, grid.width))
    part = replace(grid, part=part)

    in_shards = np.zeros((grid.height, grid.width), dtype=int)
    in_cores = in_shards.copy()
    for shard in Run(part.shape):
        window = part.pixels(shard)
        assert window.size
        in_shards[window.slices] += 1
        cores = part.cores(Run(Window(*shard, 1, 1))).scale(part.stride)
        in_cores[cores.intersect(part.area).slices] += 1

    for count in (in_shards, in_cores):
        np.testing.assert_array_equal(1, count[part.area.slices])
        assert count.sum() == part.area.size


@given(st.data())
def test_shards_of_a_part_are_those_of_the_whole_cut_to_it(data):
    grid = data.draw(grids())
    part = replace(grid, part=data.draw(windows(grid.height, grid.width)))

    for shard in Run(part.shape):
        assert part.pixels(shard) == grid.pixels(shard).intersect(part.area)
    met = [s for s in Run(grid.shape) if grid.pixels(s).intersect(part.area).size]
    assert list(Run(part.shape)) == met


@given(st.data())
def test_runs_of_a_part_cover_it_exactly_once(data):
    grid = data.draw(grids(most_shards=6))
    part = replace(grid, part=data.draw(windows(grid.height, grid.width)))
    band, rows = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))

    runs = part.runs(list(Run(part.shape)), band=band, rows=rows)

    assert sorted(s for each in runs for s in each) == list(Run(part.shape))


@pytest.mark.parametrize("part", [Window(0, 0, 0, 3), Window(0, 28, 3, 3)])
def test_a_part_has_pixels_of_the_scene_only(part):
    with pytest.raises(ValueError, match="part must be pixels"):
        Grid(height=41, width=30, tile=8, halo=2, shard=12, part=part)


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=15)
@given(
    at=st.tuples(st.floats(-20, 160), st.floats(-20, 120)),
    size=st.tuples(st.floats(0.2, 90), st.floats(0.2, 90)),
)
def test_the_window_of_a_box_is_the_least_that_meets_it(place, at, size):
    """By the places of a lattice within every pixel; a quarter pixel is its mesh."""
    geobox = geobox_of(*PLACES[place])
    west, south, east, north = box = bbox_round(geobox, *at, *size)
    steps = np.arange(geobox.width * 4 + 1) / 4, np.arange(geobox.height * 4 + 1) / 4
    x, y = lonlat(geobox, *np.meshgrid(*steps))

    def hits(grow):
        wide, tall = grow * np.abs(np.diff(x)).max(), grow * np.abs(np.diff(y.T)).max()
        is_in = (x > west - wide) & (x < east + wide)
        is_in &= (y > south - tall) & (y < north + tall)
        cells = np.zeros((geobox.height, geobox.width), bool)
        for down in range(5):
            for right in range(5):
                rows = slice(down, down + 4 * geobox.height - 3, 4)
                cells |= is_in[rows, right : right + 4 * geobox.width - 3 : 4]
        return cells

    least, most = hits(-0.1), hits(1.5)
    assume(least.any())

    window = region_of_bbox(box, geobox, "scene.tif").window

    assert contains(window, window_of(least))
    assert contains(window_of(most), window)


def test_a_box_along_pixel_edges_takes_no_pixel_more():
    """Though the projection's last bits lie beside the edge."""
    geobox = geobox_of(*PLACES["degrees"])
    for col, row, width, height in [(10, 20, 30, 40), (33, 7, 1, 1), (0, 0, 171, 130)]:
        box = bbox_round(geobox, col, row, width, height)

        window = region_of_bbox(box, geobox, "scene.tif").window

        assert window == Window(row, col, height, width)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4272", "EPSG:3832", "EPSG:32660"])
@pytest.mark.parametrize("west", [-180.5, 179.5])
def test_a_box_across_the_antimeridian_is_one_window(crs, west):
    """However the scene counts its longitudes, and where its own datum changes them."""
    to_scene = Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    is_degrees = rasterio.CRS.from_user_input(crs).is_geographic
    size = 0.01 if is_degrees else 1100
    x, y = (west, -10) if is_degrees else to_scene.transform(179.5, -10)
    geobox = geobox_of(Affine(size, 0, x, 0, -size, y), crs, height=60, width=100)

    across = region_of_bbox((179.8, -10.3, -179.9, -10.2), geobox, "scene.tif").window
    before = region_of_bbox((179.8, -10.3, 180, -10.2), geobox, "scene.tif").window
    behind = region_of_bbox((-180, -10.3, -179.9, -10.2), geobox, "scene.tif").window

    assert across.col == before.col
    assert across.col_stop == behind.col_stop
    assert abs(behind.col - before.col_stop) <= 1
    assert abs(across.width - 30) <= 2


def test_a_scene_with_the_pole_in_it_has_every_longitude():
    geobox = geobox_of(
        Affine(1000, 0, -50_000, 0, -1000, 50_000), "EPSG:3413", 100, 100
    )

    window = region_of_bbox((-180, 89.9, 180, 90), geobox, "pole.tif").window

    assert abs(window.width - 22) <= 2
    assert abs(window.row_stop + window.row - 100) <= 1


def test_a_scene_of_the_whole_earth_is_cut_where_its_projection_is():
    """Though it is some meters wider than that."""
    edge = -20_037_508, 20_037_508
    geobox = geobox_of(
        Affine(10_000, 0, edge[0], 0, -10_000, edge[1]), "EPSG:3857", 4008, 4008
    )

    def window(*box):
        return region_of_bbox(box, geobox, "earth.tif").window

    assert window(-180, -90, 180, 90) == geobox.window
    part = window(-10, 40, 20, 50)
    assert abs(part.col - (1 - 10 / 180) * 2004) < 2
    assert abs(part.width - 30 / 360 * 4008) < 3


def test_an_area_that_reaches_beyond_what_a_scene_can_see_is_named():
    """A satellite's full disk: some of the box is behind the horizon."""
    crs = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"
    corner = Affine(3000, 0, -5_567_248, 0, -3000, 5_570_248)
    geobox = geobox_of(corner, crs, 3712, 3712)

    assert region_of_bbox((2, 48, 3, 49), geobox, "disk.tif").window.size > 100
    with pytest.raises(UsageError, match="has no place in its CRS"):
        region_of_bbox((-90, -90, 90, 90), geobox, "disk.tif")


@pytest.mark.parametrize(
    ("box", "crs"),
    [((20, 40, 21, 41), "EPSG:32631"), ((-177, -42, -176, -41), "EPSG:32631")],
)
def test_a_box_beside_the_scene_is_named(box, crs):
    with pytest.raises(UsageError, match=r"scene.tif: lies outside --bbox"):
        region_of_bbox(box, geobox_of(NORTH_UP, crs), "scene.tif")


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site",UNIT["metre",1]]'])
def test_a_scene_that_is_nowhere_has_no_box(crs):
    geobox = GeoBox(10, 10, NORTH_UP, crs and rasterio.CRS.from_wkt(crs).to_wkt())

    with pytest.raises(UsageError, match=r"scene.tif: "):
        region_of_bbox((3, 41, 4, 42), geobox, "scene.tif")


@pytest.mark.parametrize(
    "box",
    [
        (1, 2, 3),
        (1, 5, 3, 4),
        (1, 2, 1, 4),
        (-181, 2, 3, 4),
        (1, 2, 3, 91),
        (5, 2, float("nan"), 4),
        ("1", 2, 3, 4),
    ],
)
def test_what_is_no_box_is_refused(box):
    with pytest.raises(UsageError, match="bbox"):
        Job(input="a.tif", bbox=box)


@st.composite
def outlines(draw):
    """Draw polygons, overlapping, with holes, and with vertices as files have them."""
    side = st.integers(-5 * 997, 45 * 997).map(lambda number: number / 997)
    places = st.tuples(side, side)
    parts = [
        shapely.Polygon(draw(st.lists(places, min_size=3, max_size=7)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return _surfaces(shapely.union_all(shapely.make_valid(parts)))


@settings(max_examples=25)
@given(outline=outlines(), cut=st.integers(1, 39))
def test_a_pixel_is_inside_by_its_centre_whatever_window_is_asked_for(outline, cut):
    assume(not outline.is_empty)
    grain = shapely.transform(outline, lambda at: np.round(at * 256) / 256)
    stencil = Stencil(shapely.to_wkb(grain))

    whole = stencil.inside(Window(0, 0, 40, 40))

    rows, cols = np.mgrid[:40, :40] + 0.5
    points = shapely.points(cols, rows)
    is_clear = shapely.distance(shapely.boundary(outline), points) > 1 / 64
    expected = shapely.covers(outline, points)
    np.testing.assert_array_equal(expected[is_clear], whole[is_clear])
    parts = [
        [
            stencil.inside(Window(0, 0, cut, cut)),
            stencil.inside(Window(0, cut, cut, 40 - cut)),
        ],
        [
            stencil.inside(Window(cut, 0, 40 - cut, cut)),
            stencil.inside(Window(cut, cut, 40 - cut, 40 - cut)),
        ],
    ]
    np.testing.assert_array_equal(whole, np.block(parts))


def write_area(path, polygons, crs="EPSG:4326"):
    """Write polygons as a vector file of the kind that its suffix says."""
    wkb = shapely.to_wkb(np.array(polygons, object))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyproj import CRS

        column = {
            "encoding": "WKB",
            "geometry_types": [],
            "crs": CRS(crs).to_json_dict(),
        }
        facts = {
            "version": "1.1.0",
            "primary_column": "shape",
            "columns": {"shape": column},
        }
        table = pa.table({"shape": pa.array(wkb, pa.binary())})
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(facts)}), path)
        return path
    drivers = {".geojson": "GeoJSON", ".gpkg": "GPKG", ".fgb": "FlatGeobuf"}
    pyogrio.raw.write(
        path,
        wkb,
        [np.arange(len(wkb))],
        ["id"],
        driver=drivers[path.suffix],
        geometry_type="Polygon",
        crs=crs,
    )
    return path


def on_ground(geobox, polygon):
    """Return a polygon in pixels in longitude and latitude."""
    return shapely.transform(
        polygon, lambda at: np.stack(lonlat(geobox, *at.T), axis=1)
    )


TRIANGLE = shapely.Polygon([(20.2, 30.1), (140.7, 50.3), (60.4, 120.6)])
SQUARE = shapely.box(100.25, 70.5, 150.5, 118.75)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".parquet"])
def test_every_format_says_the_same_area(tmp_path, suffix):
    geobox = geobox_of(*PLACES["rotated"])
    polygons = [on_ground(geobox, item) for item in (TRIANGLE, SQUARE)]

    region = region_of_file(
        str(write_area(tmp_path / f"a{suffix}", polygons)), geobox, "scene.tif"
    )

    assert region.window == Window(30, 20, 91, 131)
    drawn = shapely.from_wkb(region.outline)
    union = shapely.union_all([TRIANGLE, SQUARE])
    assert shapely.symmetric_difference(drawn, union).area < 2


def test_an_area_in_the_scenes_own_crs_needs_no_longitude(tmp_path):
    geobox = geobox_of(*PLACES["north-up"])
    ground = shapely.transform(SQUARE, lambda at: at * (10, -10) + (500_000, 4_600_000))
    path = write_area(tmp_path / "a.gpkg", [ground], "EPSG:32631")

    region = region_of_file(str(path), geobox, "scene.tif")

    assert shapely.from_wkb(region.outline).equals(SQUARE)
    assert region.window == Window(70, 100, 49, 51)


def test_what_is_no_area_is_named(tmp_path):
    geobox = geobox_of(*PLACES["north-up"])

    def area(name, data):
        (tmp_path / name).write_bytes(data)
        return region_of_file(str(tmp_path / name), geobox, "scene.tif")

    with pytest.raises(InputError, match="nowhere"):
        region_of_file(str(tmp_path / "nowhere.gpkg"), geobox, "scene.tif")
    with pytest.raises(RefusedError, match="wanted one of"):
        area("a.geojson", b"<OGRVRTDataSource/>")
    with pytest.raises(RefusedError, match="wanted one of"):
        area("empty.gpkg", b"")
    for name, data in {
        "half.geojson": b'{"type": "FeatureCollection", "features": [',
        "bad.gpkg": b"SQLite format 3\0" + bytes(200),
        "bad.fgb": b"fgb\x03fgb\x00" + bytes(200),
        "bad.parquet": b"PAR1" + bytes(200),
    }.items():
        with pytest.raises(InputError, match=name):
            area(name, data)
    with pytest.raises(UsageError, match="wanted polygons"):
        area("point.geojson", b'{"type": "Point", "coordinates": [3, 41]}')


@pytest.fixture
def segment(model_path, tmp_path):
    """Segment a scene; return its record and the folder of its products."""

    def call(name, scene, **options):
        out = tmp_path / name
        options = {"shard": 48, "device": "cpu", "engine": "local", **options}
        record = run(
            Job(
                input=str(scene),
                model=str(model_path),
                output=str(out),
                trusted=True,
                **options,
            )
        )
        assert record.values["exit_code"] == 0, record.values["error"]
        return record.values, out

    return call


@pytest.fixture
def scene_at(tmp_path):
    def make(place):
        transform, crs = PLACES[place]
        pixels = random_pixels(130, 171)
        return make_scene(tmp_path / "scene.tif", pixels, transform=transform, crs=crs)

    return make


@pytest.mark.parametrize(
    ("place", "blend", "precision"),
    [
        ("rotated", "crop", "fp32"),
        ("degrees", "cosine", "bf16"),
        *(
            pytest.param(*facts, marks=pytest.mark.slow)
            for facts in [
                ("north-up", "crop", "bf16"),
                ("north-up", "cosine", "fp32"),
                ("south-up", "crop", "fp32"),
                ("rotated", "cosine", "bf16"),
            ]
        ),
    ],
)
def test_a_part_is_the_crop_of_the_whole(segment, scene_at, place, blend, precision):
    scene, geobox = scene_at(place), geobox_of(*PLACES[place])
    box = bbox_round(geobox, 31.3, 57.2, 61, 30)
    options = {"blend": blend, "confidence": True, "precision": precision}

    _, whole = segment("whole", scene, **options)
    values, part = segment("part", scene, bbox=box, **options)

    window = Window(*values["grid"]["area"])
    assert (window.height, window.width) < (130, 171)
    for name in ("mask.tif", "confidence.tif"):
        np.testing.assert_array_equal(
            read(whole / name)[window.slices], read(part / name)
        )
    with rasterio.open(part / "mask.tif") as dataset:
        assert dataset.transform == geobox.crop(window).transform
        assert dataset.crs == geobox.crs
    assert values["pixels"]["total"] == window.size
    assert values["counts"]["shards"] < 12


def test_only_what_is_asked_for_is_computed(segment, scene_at):
    scene = scene_at("north-up")
    box = bbox_round(geobox_of(*PLACES["north-up"]), 80, 50, 40, 10)

    values, _ = segment("part", scene, bbox=box)

    counts, estimate = values["counts"], values["estimate"]
    row, col, height, width = values["grid"]["area"]
    rows = -(-(row + height) // 24) - row // 24
    cols = -(-(col + width) // 24) - col // 24
    assert counts["tiles"] + counts["tiles_skipped"] == rows * cols
    assert estimate["tiles"] == rows * cols
    assert counts["shards"] == estimate["shards"] == 2


@pytest.mark.parametrize(
    "place",
    [
        "south-up",
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in ("rotated", "degrees")
        ),
    ],
)
def test_outside_the_polygons_is_nodata_and_inside_is_the_whole(
    segment, scene_at, tmp_path, place
):
    scene, geobox = scene_at(place), geobox_of(*PLACES[place])
    polygons = [on_ground(geobox, item) for item in (TRIANGLE, SQUARE)]
    aoi = str(write_area(tmp_path / "area.geojson", polygons))
    options = {"confidence": True, "polygons": "gpkg"}

    _, whole = segment("whole", scene, **options)
    values, part = segment("part", scene, aoi=aoi, **options)
    _, other = segment("other", scene, aoi=aoi, **{**options, "shard": 96})

    region = region_of_file(aoi, geobox, "scene.tif")
    inside = Stencil(region.outline).inside(region.window)
    for name in ("mask.tif", "confidence.tif"):
        crop = read(whole / name)[region.window.slices]
        np.testing.assert_array_equal(np.where(inside, crop, 255), read(part / name))
        np.testing.assert_array_equal(read(part / name), read(other / name))
    pixels, mask = values["pixels"], read(part / "mask.tif")
    assert pixels["outside"] == (~inside).sum()
    assert pixels["nodata"] == (mask == 255).sum() >= pixels["outside"]
    assert pixels["total"] == pixels["nodata"] + sum(pixels["by_class"].values())
    areas = pyogrio.raw.read(part / "polygons.gpkg", columns=["area_ha"])[3][0]
    assert sum(areas) == pytest.approx(sum(values["hectares"].values()), rel=1e-9)


def test_tiles_with_nothing_asked_for_are_not_forwarded(segment, scene_at, tmp_path):
    geobox = geobox_of(*PLACES["north-up"])
    corners = [shapely.box(1, 1, 4, 4), shapely.box(160, 120, 163, 123)]
    polygons = [on_ground(geobox, item) for item in corners]
    aoi = str(write_area(tmp_path / "area.geojson", polygons))

    values, _ = segment("part", scene_at("north-up"), aoi=aoi)

    assert values["counts"]["tiles"] <= 2
    assert values["counts"]["tiles_skipped"] >= 40


def test_the_same_part_again_is_nothing_to_do_another_is_another(
    segment, scene_at, tmp_path, model_path
):
    geobox = geobox_of(*PLACES["north-up"])
    scene, aoi = scene_at("north-up"), tmp_path / "area.geojson"
    write_area(aoi, [on_ground(geobox, TRIANGLE)])
    first, _ = segment("part", scene, aoi=str(aoi))

    again, _ = segment("part", scene, aoi=str(aoi))
    write_area(aoi, [on_ground(geobox, SQUARE)])
    facts = {"input": str(scene), "output": str(tmp_path / "part"), "shard": 48}
    changed = run(Job(**facts, model=str(model_path), aoi=str(aoi)))

    assert again["started"] == first["started"]
    assert changed.values["exit_code"] == 8


def test_the_command_line_takes_a_box(scene_at, model_path, tmp_path):
    scene = scene_at("north-up")
    box = bbox_round(geobox_of(*PLACES["north-up"]), 31.3, 57.2, 61, 30)

    def call(box, *more):
        words = ["segment", "--input", scene, "--model", model_path, "--bbox", box]
        words += ["--output", tmp_path / "out", *more]
        return CliRunner().invoke(main, [str(word) for word in words])

    good = call(",".join(map(str, box)))
    assert good.exit_code == 0
    values = json.loads(good.stdout)
    assert tuple(values["job"]["bbox"]) == pytest.approx(box)
    again = CliRunner().invoke(
        main, ["segment", "--config", str(tmp_path / "out" / "run.json")]
    )
    assert json.loads(again.stdout)["request_id"] == values["request_id"]
    for bad in ("1,2,3", "here", "-60,-10,-59,-9"):
        result = call(bad, "--overwrite")
        assert result.exit_code == 2, bad
        assert "Traceback" not in result.stderr
