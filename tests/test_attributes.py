"""What each feature says of where it comes from, and what somebody wants it to say."""

import datetime as dt
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from making import NORTH_UP, make_model, make_scene, random_pixels
from pyproj import CRS
from test_features import small_polygons
from test_polygonize import write

from tileseg.base.attributes import COLUMNS, Origin, fault
from tileseg.cli import main
from tileseg.commands.intake import read_job
from tileseg.errors import ExitCode, UsageError
from tileseg.job import run
from tileseg.plans.task import prepare
from tileseg.polygons.features import write_features
from tileseg.settings import Job

TAKEN = dt.datetime(2024, 5, 17, 10, 30, 15, tzinfo=dt.UTC)
ORIGIN = Origin(scene="S2A_x", taken=TAKEN, model="fields 1.0")
GIVEN = {"farm": "Grünhof, 3", "year": 2024, "share": 0.5, "is_known": True}
UTM = CRS.from_epsg(32631).to_wkt()
POLYGONIZE = ["polygonize", "--workers", "1"]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet", "fgb", "geojson"])
def test_every_row_says_where_it_comes_from_and_what_was_given(tmp_path, suffix):
    polygons, meaning = small_polygons(NORTH_UP, UTM)
    path = tmp_path / f"polygons.{suffix}"

    write_features(polygons, replace(meaning, origin=ORIGIN, attributes=GIVEN), path)

    is_parquet = suffix == "parquet"
    table = pq.read_table(path) if is_parquet else pyogrio.read_arrow(path)[1]
    if suffix == "fgb":  # has no word for a date: midnight
        assert table["date"].unique().to_pylist() == [dt.datetime(2024, 5, 17)]  # noqa: DTZ001
        dates = table["date"].cast(pa.date32())
        table = table.set_column(table.schema.names.index("date"), "date", dates)
    rows = table.select(["scene", "date", "model", *GIVEN]).to_pylist()
    expected = {"scene": "S2A_x", "date": TAKEN.date(), "model": "fields 1.0", **GIVEN}
    assert [expected] * 3 == rows
    if suffix == "geojson":  # as RFC 3339 has a date
        properties = json.loads(path.read_bytes())["features"][0]["properties"]
        assert properties["date"] == "2024-05-17"


def test_what_is_not_known_is_null(tmp_path):
    polygons, meaning = small_polygons(NORTH_UP, UTM)
    for suffix in ("gpkg", "parquet"):
        path = tmp_path / f"polygons.{suffix}"
        write_features(polygons, replace(meaning, origin=Origin(scene="it")), path)

    parquet = pq.read_table(path)
    assert parquet.schema.field("date").type == pa.date32()
    assert parquet.schema.field("model").type == pa.string()
    for table in (parquet, pyogrio.read_arrow(tmp_path / "polygons.gpkg")[1]):
        assert (
            table.select(["scene", "date", "model"]).to_pylist()
            == [{"scene": "it", "date": None, "model": None}] * 3
        )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ID": 1}, "is a column already"),
        ({"Fid": 1}, "is a column already"),
        ({"date": "today"}, "is a column already"),
        ({"a": 1, "A": 2}, "is a column already"),
        ({"2x": 1}, "is no name of a column"),
        ({"": 1}, "is no name of a column"),
        ({"a b": 1}, "is no name of a column"),
        ({'a"; drop table': 1}, "is no name of a column"),
        ({"a" * 64: 1}, "is no name of a column"),
        ({"a": 2**63}, "wanted a number of 64 bits"),
        ({"a": float("inf")}, "wanted a finite number"),
    ],
)
def test_a_column_that_cannot_be_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        Job(input="scene.tif", polygons="gpkg", attributes=given)


@pytest.mark.parametrize("value", [None, [1], {"b": 1}, dt.date(2024, 5, 1)])
def test_values_are_texts_numbers_or_booleans(value):
    with pytest.raises(UsageError, match="attributes: got"):
        Job(input="scene.tif", polygons="gpkg", attributes={"a": value})


def test_attributes_without_polygons_are_refused():
    with pytest.raises(UsageError, match="attributes: mean nothing without polygons"):
        Job(input="scene.tif", attributes={"a": 1})


def test_every_column_of_ours_is_taken(tmp_path):
    polygons, meaning = small_polygons(NORTH_UP, UTM)
    path = tmp_path / "polygons.parquet"
    texts = {name: dict.fromkeys(meaning.names, "it") for name in ("from", "to")}
    full = replace(meaning, origin=ORIGIN, texts=texts, are_fields=True)

    write_features(polygons, full, path)

    found = set(pq.read_schema(path).names)
    assert found | {"mean_confidence", "min_confidence"} == COLUMNS
    assert all(fault({name.upper(): 1}) for name in COLUMNS)


# Of a run


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene that says when it was taken."""
    path = tmp_path_factory.mktemp("scene") / "itaipu.tif"
    make_scene(path, random_pixels(53, 101))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2024-05-17")
    return path


def job_of(scene, model, folder, **more):
    return Job(
        input=str(scene), model=str(model), output=str(folder / "out"), trusted=True,
        precision="fp32", **{"polygons": "parquet", **more},
    )  # fmt: skip


def test_a_run_says_item_date_and_model_and_polygonize_says_the_same(
    tmp_path, scene, model_path
):
    job = job_of(scene, model_path, tmp_path, attributes={"year": 2024})
    assert run(job).error is None
    out = tmp_path / "out"
    item = json.loads((out / "item.json").read_bytes())
    record = json.loads((out / "run.json").read_bytes())
    words = [*POLYGONIZE, str(out / "mask.tif"), "--attribute", "year=2024"]
    again = tmp_path / "new" / "folder" / "again.parquet"

    result = CliRunner().invoke(main, [*words, "--output", str(again)])

    assert result.exit_code == ExitCode.OK, result.stderr
    rows = pq.read_table(out / "polygons.parquet").to_pylist()
    (card,) = item["properties"]["tileseg:models"]
    for row in rows:
        assert row["scene"] == item["id"] == "itaipu"
        assert row["date"] == dt.date(2024, 5, 17)
        assert row["model"] == f"{card['name']} {card['version']}"
        assert row["year"] == 2024
    assert (out / "polygons.parquet").read_bytes() == again.read_bytes()
    assert record["job"]["attributes"] == {"year": 2024}
    assert read_job(str(out / "run.json"))["attributes"] == {"year": 2024}


def test_columns_belong_to_what_is_asked_for(tmp_path, scene, model_path):
    """With polygons alone: a mask is the same whatever its scene is called."""
    renamed = tmp_path / "other.tif"
    renamed.write_bytes(scene.read_bytes())

    def ids(**more):
        jobs = [job_of(it, model_path, tmp_path, **more) for it in (scene, renamed)]
        return [prepare(job).request_id for job in jobs]

    one, other = ids(polygons="")
    assert one == other
    given = {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2.0}
    found = [*ids(), *(it for some in given for it in ids(attributes=some))]
    assert len({*found, one}) == 9


def test_a_raster_of_somebody_else_says_nothing(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (20, 31), np.uint8)
    path = tmp_path / "mask.tif"
    write(path, mask)
    (tmp_path / "item.json").write_text("[]")
    words = [*POLYGONIZE, str(path), "--output", str(tmp_path / "it.parquet")]

    result = CliRunner().invoke(main, [*words, "--attribute", "note=007"])

    assert result.exit_code == ExitCode.OK, result.stderr
    table = pq.read_table(tmp_path / "it.parquet")
    assert {"scene", "date", "model"}.isdisjoint(table.schema.names)
    assert table["note"].unique().to_pylist() == ["007"]


def test_tags_say_where_any_raster_comes_from(tmp_path):
    tags = {"SCENE": "a", "MODEL": "b 2", "ACQUISITIONDATETIME": "2024-05-17T10:30:15Z"}
    tags["FIELDS"] = "north, south"  # somebody's word for something else
    write(tmp_path / "it.tif", np.zeros((4, 5), np.uint8), tags=tags)
    output = tmp_path / "it.parquet"
    words = [*POLYGONIZE, str(tmp_path / "it.tif"), "--output", str(output)]

    assert CliRunner().invoke(main, words).exit_code == ExitCode.OK

    (row,) = pq.read_table(output).select(["scene", "date", "model"]).to_pylist()
    assert row == {"scene": "a", "date": TAKEN.date(), "model": "b 2"}


@pytest.mark.parametrize(
    ("text", "says"), [("=1", "KEY=VALUE"), ("id=1", "is a column already")]
)
def test_a_bad_option_is_one_line(tmp_path, text, says):
    write(tmp_path / "it.tif", np.zeros((4, 5), np.uint8))
    words = [*POLYGONIZE, str(tmp_path / "it.tif"), "--attribute", text]

    result = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "it.gpkg")])

    assert result.exit_code == ExitCode.USAGE
    assert says in result.stderr
    assert not (tmp_path / "it.gpkg").exists()


def test_a_table_of_a_job_file_is_the_attributes(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('polygons = "fgb"\n[attributes]\nfarm = "a"\nyear = 2024\n')

    assert read_job(str(path))["attributes"] == {"farm": "a", "year": 2024}


# fiboa


def fields_of(tmp_path, **more):
    """Write polygons of fields; return the table."""
    polygons, meaning = small_polygons(NORTH_UP @ Affine.scale(3), UTM)
    facts = {"origin": ORIGIN, "are_fields": True, **more}
    write_features(polygons, replace(meaning, **facts), tmp_path / "polygons.parquet")
    return pq.read_table(tmp_path / "polygons.parquet")


def test_a_file_of_fields_is_in_the_words_of_fiboa(tmp_path):
    """Version 0.3: names, types and nullness by its schema and Vecorel's."""
    table = fields_of(tmp_path)

    schema, facts = table.schema, json.loads(table.schema.metadata[b"collection"])
    assert facts == {
        "schemas": {
            "S2A_x": [
                "https://vecorel.org/specification/v0.1.0/schema.yaml",
                "https://fiboa.org/specification/v0.3.0/schema.yaml",
            ]
        }
    }
    kinds = {
        "id": (pa.string(), False),
        "collection": (pa.string(), False),
        "geometry": (pa.binary(), False),
        "metrics:area": (pa.float32(), True),
        "metrics:perimeter": (pa.float32(), True),
        "determination:method": (pa.string(), True),
        "determination:datetime": (pa.timestamp("ms", tz="UTC"), True),
        "determination:details": (pa.string(), True),
    }
    found = {name: schema.field(name) for name in kinds}
    assert {name: (it.type, it.nullable) for name, it in found.items()} == kinds
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert row["metrics:area"] == pytest.approx(row["area_ha"] * 10_000)
        assert row["metrics:perimeter"] == pytest.approx(row["perimeter_m"])
        assert row["collection"] == "S2A_x"
        assert row["determination:method"] == "auto-imagery"
        assert row["determination:datetime"] == TAKEN
        assert row["determination:details"] == "fields 1.0"


def test_fields_without_a_place_or_a_date_are_fields(tmp_path):
    polygons, meaning = small_polygons(Affine.identity(), None)
    for suffix in ("parquet", "fgb"):
        path = tmp_path / f"polygons.{suffix}"
        write_features(polygons, replace(meaning, are_fields=True), path)

    table = pq.read_table(tmp_path / "polygons.parquet")
    for name in ("metrics:area", "metrics:perimeter", "determination:datetime"):
        assert table[name].null_count == 3
    assert set(table["collection"].to_pylist()) == {"polygons"}
    assert pyogrio.read_info(tmp_path / "polygons.fgb")["features"] == 3


def test_of_a_model_of_fields_these_alone_are_polygons(tmp_path, scene):
    """In the mask all classes are, and polygonize makes the same file of it."""
    folder = make_model(tmp_path / "model", outputs=3, seed=2)
    card = json.loads((folder / "card.json").read_bytes())
    names = [
        it.get("title", it["name"])
        for it in card["properties"]["mlm:output"][0]["classification:classes"]
    ]
    card["properties"]["tileseg:fields"] = [names[1]]
    (folder / "card.json").write_text(json.dumps(card))

    record = run(job_of(scene, folder, tmp_path))

    assert record.error is None
    out, again = tmp_path / "out", tmp_path / "again.parquet"
    table = pq.read_table(out / "polygons.parquet")
    assert table["class_name"].unique().to_pylist() == [names[1]]
    assert table["metrics:area"].null_count == 0
    hectares = record.values["hectares"]
    assert sum(table["area_ha"].to_pylist()) == pytest.approx(hectares[names[1]])
    assert sum(map(bool, hectares.values())) > 1
    words = [*POLYGONIZE, str(out / "mask.tif"), "--output", str(again)]
    every = CliRunner().invoke(main, words)
    assert every.exit_code == ExitCode.OK, every.stderr
    assert "collection" not in pq.read_schema(again).names
    words += ["--without", "0", "--without", "2", "--overwrite"]
    assert CliRunner().invoke(main, words).exit_code == ExitCode.OK
    assert again.read_bytes() == (out / "polygons.parquet").read_bytes()


@pytest.mark.parametrize(
    ("fields", "says"),
    [(["forest"], "has no class 'forest'"), (["class 1", "class 1"], "each once")],
)
def test_a_card_that_calls_something_else_a_field_is_broken(tmp_path, fields, says):
    folder = make_model(tmp_path / "model", outputs=3)
    card = json.loads((folder / "card.json").read_bytes())
    card["properties"]["tileseg:fields"] = fields
    (folder / "card.json").write_text(json.dumps(card))

    record = run(Job(input="scene.tif", model=str(folder), output=str(tmp_path / "o")))

    assert record.values["exit_code"] == ExitCode.MODEL
    assert re.search(says, record.values["error"])
