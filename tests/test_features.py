"""The files of polygons say the same as the mask beside them, on the ground."""

import json
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from making import NORTH_UP, make_model, make_scene, random_pixels, read, stop_after
from pyproj import CRS, Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from shapely.geometry import shape
from test_engine import damage
from test_products import SYSTEMS, TRANSFORMS

from tileseg.base.stopping import StopSignal
from tileseg.errors import OutputError, PreemptedError, UsageError
from tileseg.geobox import GeoBox
from tileseg.job import run
from tileseg.polygons.features import write_features
from tileseg.polygons.join import join
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import polygonise
from tileseg.scenes.area import lonlat_digits
from tileseg.settings import Job

FORMATS = ["gpkg", "parquet", "fgb", "geojson", "geojsonl"]
LONLAT = (".geojson", ".geojsonl")
COLUMNS = ["id", "class_id", "class_name", "area_ha", "perimeter_m"]
SURE = ["mean_confidence", "min_confidence"]
ORIGIN = ["scene", "date", "model"]
GLOBE = Affine(1e-3, 0, 7, 0, -1e-3, 61)


def a_job(folder, model, pixels, polygons, *, name="out", options=(), **profile):
    """Return a job for a scene of these pixels; fp32, which needs no check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = make_scene(folder / f"{name}.tif", pixels, **profile)
    facts = {"shard": 48, "confidence": True, "precision": "fp32", **dict(options)}
    return Job(
        input=str(scene),
        model=str(model),
        trusted=True,
        output=str(folder / name),
        polygons=polygons,
        **facts,
    )


def segment(folder, model, pixels, polygons, **profile):
    """Segment; return the file of polygons and run.json."""
    job = a_job(folder, model, pixels, polygons, **profile)
    record = run(job)

    assert record.error is None
    return job.output_path / f"polygons.{polygons}", record.values


def table_of(path):
    """Return the columns of a file but for its geometry, the geometries, and a CRS."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
        crs = facts["crs"] and CRS.from_json_dict(facts["crs"]).to_wkt()
        name = "geometry"
        table = table.drop_columns("bbox")
    else:
        facts, table = pyogrio.read_arrow(path)
        crs = facts["crs"]
        name = facts["geometry_name"] or "wkb_geometry"
    outlines = shapely.from_wkb(table[name].to_numpy(zero_copy_only=False))
    return table.drop_columns(name).sort_by("id").to_pydict(), outlines, crs


def in_order(columns, outlines, path):
    """Return geometries by id: FlatGeobuf sorts its features by place."""
    if path.suffix != ".fgb":
        return outlines
    ids = pyogrio.read_arrow(path, columns=["id"])[1]["id"].to_numpy()
    assert sorted(ids) == columns["id"]
    return outlines[np.argsort(ids)]


def expected_of(folder, left_out=(255,)):
    """Return the polygons of the whole mask.tif on the ground, and their classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(folder / "mask.tif") as dataset:
            mask, transform = dataset.read(1), dataset.transform
    wanted = np.isin(mask, left_out, invert=True)
    found = [(shape(g), value) for g, value in shapes(mask, wanted, connectivity=4)]
    found.sort(key=lambda item: max((y, x) for x, y in item[0].exterior.coords))
    outlines = shapely.transform(
        [item for item, _ in found],
        lambda xy: np.array([transform @ tuple(place) for place in xy]),
    )
    return outlines, [int(value) for _, value in found]


def assert_counter_clockwise(outlines):
    assert shapely.is_ccw(shapely.get_exterior_ring(outlines)).all()


@pytest.fixture(scope="module", params=FORMATS)
def made(request, tmp_path_factory, model_path):
    """A file of polygons and its run.json."""
    folder = tmp_path_factory.mktemp("made")
    return segment(folder, model_path, random_pixels(130, 171), request.param)


def test_features_are_the_polygons_of_the_mask(made):
    path, _ = made
    columns, outlines, crs = table_of(path)
    outlines = in_order(columns, outlines, path)
    expected, classes = expected_of(path.parent)
    places = 1e-9
    if path.suffix in LONLAT:
        to_lonlat = Transformer.from_crs(32631, 4326, always_xy=True).transform
        expected = shapely.transform(expected, to_lonlat, interleaved=False)
        places = 1e-7

    assert [*COLUMNS, *SURE, *ORIGIN] == list(columns)
    assert list(range(1, len(expected) + 1)) == columns["id"]
    assert classes == columns["class_id"]
    assert [f"class {value}" for value in classes] == columns["class_name"]
    assert CRS(4326 if path.suffix in LONLAT else 32631) == CRS(crs)
    assert shapely.equals_exact(
        shapely.normalize(expected), shapely.normalize(outlines), places
    ).all()
    assert shapely.is_valid(outlines).all()
    assert_counter_clockwise(outlines)


def test_areas_are_the_hectares_of_the_record(made):
    path, values = made
    columns, _, _ = table_of(path)

    got = dict.fromkeys(values["hectares"], 0.0)
    for name, area in zip(columns["class_name"], columns["area_ha"], strict=True):
        got[name] += area
    assert values["hectares"] == pytest.approx(got, rel=1e-12)
    assert values["seconds"]["vectorize"] > 0
    assert path.name in {item["path"] for item in values["outputs"]}


def test_mean_confidence_is_that_of_the_pixels(made):
    path, _ = made
    columns, _, _ = table_of(path)
    confidence = read(path.parent / "confidence.tif")

    means, areas = np.array(columns["mean_confidence"]), np.array(columns["area_ha"])
    pixels = areas / 0.01
    assert confidence[confidence < 255].sum() == pytest.approx(
        (means * 254 * pixels).sum()
    )
    assert means.min() >= 1 / 3
    assert means.max() <= 1


def test_geoparquet_says_what_its_geometry_is(tmp_path, model_path):
    path, _ = segment(tmp_path, model_path, random_pixels(53, 101), "parquet")
    table = pq.read_table(path)
    _, outlines, _ = table_of(path)

    facts = json.loads(table.schema.metadata[b"geo"])
    column = facts["columns"]["geometry"]
    boxes = np.array([list(box.values()) for box in table["bbox"].to_pylist()])
    assert (facts["version"], facts["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert (column["orientation"], column["edges"]) == ("counterclockwise", "planar")
    assert list(shapely.total_bounds(outlines)) == column["bbox"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32631}
    np.testing.assert_array_equal(shapely.bounds(outlines), boxes)


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_a_scene_in_degrees_has_geodesic_areas(tmp_path, model_path, kind):
    pixels = random_pixels(130, 101)
    place = {"transform": GLOBE, "crs": "EPSG:4326"}
    path, values = segment(tmp_path, model_path, pixels, kind, **place)
    columns, outlines, crs = table_of(path)

    assert CRS(4326) == CRS(crs)
    assert sum(values["hectares"].values()) == pytest.approx(sum(columns["area_ha"]))
    assert shapely.total_bounds(outlines) == pytest.approx([7, 60.87, 7.101, 61])
    assert_counter_clockwise(outlines)


def small_polygons(transform, crs):
    """Return polygons, among them a ring and its hole, and where they lie."""
    mask = np.zeros((7, 9), np.uint8)
    mask[1:5, 2:7], mask[2:4, 3:5], mask[6, :4] = 1, 2, 255
    box = GeoBox(*mask.shape, transform, crs)
    pieces = polygonise(mask, None, box.window, left_out=(255,))
    return list(join([[pieces]])), Meaning(NAMES, box)


PIXELS = [4, 16, 39]  # by their last pixels: the hole, the ring, what is round it
NAMES = {0: "a", 1: 'b, "quoted"', 2: "ü"}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_any_way_up_is_valid_and_counter_clockwise(tmp_path, transform):
    polygons, meaning = small_polygons(transform, CRS.from_epsg(32631).to_wkt())
    path = tmp_path / "polygons.fgb"

    write_features(polygons, meaning, path)

    columns, outlines, _ = table_of(path)
    outlines = in_order(columns, outlines, path)
    assert shapely.is_valid(outlines).all()
    assert_counter_clockwise(outlines)
    pixels = shapely.area(outlines) / abs(transform.determinant)
    assert pytest.approx(pixels.tolist()) == PIXELS
    assert list(NAMES.values())[::-1] == columns["class_name"]


@pytest.mark.parametrize("kind", ["gpkg", "parquet", "fgb"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_files_keep_the_crs(tmp_path, name, kind):
    """As the reader's library understands it; what it cannot say is not there."""
    system = SYSTEMS[name]
    wkt = None if system is None else system.to_wkt()
    polygons, meaning = small_polygons(Affine(1e-4, 0, 7, 0, -1e-4, 48), wkt)
    path = tmp_path / f"polygons.{kind}"

    write_features(polygons, meaning, path)

    columns, _, crs = table_of(path)
    if wkt is None:
        assert crs is None or "Undefined" in crs
    elif crs and crs.startswith("EPSG:"):
        assert CRS(crs) == CRS(wkt)
    else:
        assert crs
        assert CRS(crs).name == CRS(wkt).name
    metres = name not in ("none", "engineering", "LOCAL_CS")
    assert metres == (columns["area_ha"][0] is not None)


@pytest.mark.parametrize("name", [None, "engineering", "LOCAL_CS", "moon"])
def test_geojson_of_no_place_on_earth_is_refused_first(tmp_path, model_path, name):
    system = name and SYSTEMS[name]
    job = a_job(tmp_path, model_path, random_pixels(53, 101), "geojson", crs=system)

    record = run(job)

    assert isinstance(record.error, UsageError)
    assert "longitude" in str(record.error)
    assert [item.name for item in tmp_path.iterdir()] == ["out.tif"]


def test_a_scene_without_a_place_has_polygons_in_pixels(tmp_path, model_path):
    place = {"transform": Affine.identity(), "crs": None}
    pixels = random_pixels(53, 101)
    path, values = segment(tmp_path, model_path, pixels, "gpkg", **place)
    columns, outlines, _ = table_of(path)

    assert values["hectares"] is None
    assert {None} == set(columns["area_ha"])
    assert shapely.total_bounds(outlines).tolist() == [0, 0, 101, 53]


@pytest.mark.parametrize("kind", FORMATS)
def test_polygons_of_nothing_are_an_empty_file(tmp_path, model_path, kind):
    pixels = np.zeros((3, 53, 101), np.uint16)
    path, values = segment(tmp_path, model_path, pixels, kind)

    assert values["status"] == "complete"
    if kind == "parquet":
        wanted = [*COLUMNS, *SURE, *ORIGIN, "bbox", "geometry"]
        assert wanted == pq.read_schema(path).names
        assert pq.read_table(path).num_rows == 0
        return
    if kind == "geojsonl":  # no line, and so nothing that GDAL could know it by
        assert path.read_bytes() == b""
        return
    info = pyogrio.read_info(path, force_feature_count=True)
    assert info["features"] == 0
    assert info["geometry_type"] == ("Unknown" if f".{kind}" in LONLAT else "Polygon")
    if f".{kind}" not in LONLAT:  # which has no word for it
        assert [*COLUMNS, *SURE, *ORIGIN] == info["fields"].tolist()


def test_a_class_and_its_background_is_the_class_alone(tmp_path):
    model = make_model(tmp_path / "model", outputs=1, seed=2)
    path, _ = segment(tmp_path, model, random_pixels(130, 171), "gpkg")
    columns, outlines, _ = table_of(path)
    expected, classes = expected_of(path.parent, left_out=(0, 255))

    assert {0, 1, 255} == set(np.unique(read(path.parent / "mask.tif")))
    assert {1} == set(columns["class_id"])
    assert classes == columns["class_id"]
    assert shapely.equals(expected, outlines).all()


def test_shards_that_failed_have_no_polygons(tmp_path, model_path):
    options = {"allow_partial": True, "shard": 96}
    pixels = random_pixels(410, 300)
    job = a_job(tmp_path, model_path, pixels, "gpkg", options=options)
    damage(tmp_path / "out.tif", 2, 2)

    record = run(job)

    path = job.output_path / "polygons.gpkg"
    columns, outlines, _ = table_of(path)
    expected, classes = expected_of(path.parent)
    assert record.values["status"] == "partial"
    assert classes == columns["class_id"]
    assert shapely.equals(expected, outlines).all()
    hectares = record.values["hectares"].values()
    assert sum(hectares) == pytest.approx(sum(columns["area_ha"]))


def test_without_confidence_there_is_no_such_column(tmp_path, model_path):
    options = {"confidence": False}
    pixels = random_pixels(53, 101)
    path, _ = segment(tmp_path, model_path, pixels, "gpkg", options=options)

    assert list(table_of(path)[0]) == [*COLUMNS, *ORIGIN]


# The same, however it came about


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, model_path):
    """The bytes of the polygons of one scene, made in one go."""
    folder = tmp_path_factory.mktemp("uncut")
    path, _ = segment(folder, model_path, random_pixels(130, 171), "gpkg")
    return path.read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"run_shards": (1, 1)}, {"shard": 72}, {"shard": 192, "workers": 2}],
    ids=str,
)
def test_the_cut_does_not_show(tmp_path, model_path, uncut, options):
    pixels = random_pixels(130, 171)
    path, _ = segment(tmp_path, model_path, pixels, "gpkg", options=options)

    assert uncut == path.read_bytes()


@pytest.mark.parametrize("is_tampered", [False, True])
def test_a_resumed_job_has_the_same_polygons(tmp_path, model_path, uncut, is_tampered):
    """What was made before is used again, unless somebody changed it."""
    options = {"run_shards": (1, 1)}
    job = a_job(tmp_path, model_path, random_pixels(130, 171), "gpkg", options=options)
    record = run(job, stop_after(job, 1))
    assert record.values["status"] == "interrupted"
    if is_tampered:
        for file in job.work_path.glob("*/shards/*.polygons.npz"):
            file.write_bytes(b"no archive")

    record = run(job)

    assert record.error is None
    assert is_tampered == (record.values["counts"]["shards_reused"] == 0)
    assert uncut == (job.output_path / "polygons.gpkg").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_features_are_the_same_bytes_a_second_later(tmp_path, kind):
    """Many enough for GeoPackage's index to be built beside its table."""
    random = np.random.default_rng(0)
    mask = random.integers(0, 3, (150, 201), dtype=np.uint8)
    box = GeoBox(*mask.shape, NORTH_UP, CRS.from_epsg(32631).to_wkt())
    pieces = polygonise(mask, None, box.window, left_out=(255,))
    polygons, meaning = list(join([[pieces]])), Meaning(NAMES, box)
    names = [f"one.{kind}", f"two.{kind}"]
    for name in names:
        write_features(polygons, meaning, tmp_path / name)
        time.sleep(1.1 if kind == "gpkg" else 0)  # the one that would tell the time

    one, two = [(tmp_path / name).read_bytes() for name in names]
    assert sum(map(len, polygons)) > 10_000
    assert one == two
    assert names == sorted(item.name for item in tmp_path.iterdir())


# GeoJSON on the round Earth


def test_geojson_is_cut_at_the_antimeridian(tmp_path):
    crs = CRS.from_epsg(32601).to_wkt()  # its west end is 180 degrees
    x, y = Transformer.from_crs(4326, 32601, always_xy=True).transform(180, 60)
    polygons, meaning = small_polygons(Affine(100, 0, x - 450, 0, -100, y), crs)
    path = tmp_path / "polygons.geojson"

    write_features(polygons, meaning, path)

    _, outlines, _ = table_of(path)
    west, _, east, _ = shapely.bounds(shapely.get_parts(outlines)).T
    assert "MultiPolygon" in {item.geom_type for item in outlines}
    assert (east - west).max() < 1
    assert {True, False} == set((west > 0).tolist())


@pytest.mark.parametrize("width", [0.02, 1, 40])
@pytest.mark.parametrize("west", [-360.03, -180.03, -180, -0.03, 0, 20, 179.97, 359.9])
def test_geojson_keeps_every_longitude(tmp_path, west, width):
    """However a scene counts them; 9 x 40 degrees are the whole turn."""
    crs = CRS.from_epsg(4326).to_wkt()
    polygons, meaning = small_polygons(Affine(width, 0, west, 0, -1, 48), crs)
    path = tmp_path / "polygons.geojson"

    write_features(polygons, meaning, path)

    _, outlines, _ = table_of(path)
    assert shapely.is_valid(outlines).all()
    assert pytest.approx((shapely.area(outlines) / width).tolist()) == PIXELS
    west, _, east, _ = shapely.total_bounds(outlines)
    assert -180 <= west < east <= 180


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1, 30, 1000])
def test_geojson_is_valid_however_small_the_pixels(tmp_path, size):
    crs = CRS.from_epsg(32631).to_wkt()
    polygons, meaning = small_polygons(NORTH_UP @ Affine.scale(size / 10), crs)
    path = tmp_path / "polygons.geojson"

    write_features(polygons, meaning, path)

    _, outlines, _ = table_of(path)
    assert shapely.is_valid(outlines).all()
    shares = shapely.area(outlines) / shapely.area(outlines).sum() * 59
    assert pytest.approx(shares.tolist(), rel=0.02) == PIXELS


def test_digits_grow_as_pixels_shrink():
    crs = CRS.from_epsg(32631).to_wkt()
    boxes = [
        GeoBox(50, 70, NORTH_UP @ Affine.scale(s / 10), crs) for s in (30, 10, 1, 0.1)
    ]

    assert [lonlat_digits(box) for box in boxes] == [7, 7, 8, 9]


# What goes wrong


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_written_is_an_output_error(tmp_path, kind):
    polygons, meaning = small_polygons(NORTH_UP, CRS.from_epsg(32631).to_wkt())

    with pytest.raises(OutputError, match="cannot be written"):
        write_features(polygons, meaning, tmp_path / "no" / f"polygons.{kind}")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_signal_while_areas_come_is_no_fault_of_the_file(tmp_path, kind):
    polygons, meaning = small_polygons(NORTH_UP, CRS.from_epsg(32631).to_wkt())

    def stopped():
        yield from polygons
        raise StopSignal(PreemptedError("stopped"))

    with pytest.raises(StopSignal, match="stopped"):
        write_features(stopped(), meaning, tmp_path / f"polygons.{kind}")


def test_the_settings_of_gdal_are_as_before(tmp_path):
    polygons, meaning = small_polygons(NORTH_UP, CRS.from_epsg(32631).to_wkt())
    write_features(polygons, meaning, tmp_path / "polygons.gpkg")

    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


@pytest.mark.parametrize("value", ["shp", "GPKG", 1])
def test_other_formats_are_refused(value):
    with pytest.raises(UsageError, match="polygons"):
        Job(input="scene.tif", polygons=value)


def test_ids_and_names_have_plain_types(tmp_path):
    polygons, meaning = small_polygons(NORTH_UP, CRS.from_epsg(32631).to_wkt())
    write_features(polygons, meaning, tmp_path / "polygons.parquet")

    schema = pq.read_schema(tmp_path / "polygons.parquet")
    types = [schema.field(name).type for name in COLUMNS]
    assert types == [pa.int64(), pa.int32(), pa.string(), pa.float64(), pa.float64()]
