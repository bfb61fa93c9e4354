"""A result's STAC Item and a series' Collection: valid, true, and read by others."""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pystac
import pytest
import rasterio
import stac
from affine import Affine
from making import NORTH_UP, make_model, make_scene, random_pixels
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from stac_schemas import faults

from tileseg.base.redact import HIDDEN
from tileseg.cards.item import read_card
from tileseg.errors import OutputError
from tileseg.job import run
from tileseg.nights.series import COLLECTION, update
from tileseg.outputs.stac import item
from tileseg.plans.task import prepare
from tileseg.publishing.publish import file_sha256, list_outputs
from tileseg.settings import Job
from tileseg.stores.storage import Disk

HEIGHT, WIDTH = 130, 171
TAKEN = {"TIFFTAG_DATETIME": "2024:06:01 10:50:31"}
TYPES = {"mask": "tif", "confidence": "tif", "polygons": "gpkg", "quicklook": "png"}
FORMATS = ("gpkg", "parquet", "fgb", "geojson")


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_path):
    """A folder of results with everything in it, moved after it was made."""
    folder = tmp_path_factory.mktemp("a scene")
    scene = make_scene(folder / "scene 1.tif", random_pixels(HEIGHT, WIDTH))
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(**TAKEN)
    record = run(job_of(scene, model_path, folder / "out", polygons="gpkg"))
    assert record.error is None
    shutil.move(folder / "out", folder / "moved")
    return folder / "moved", record.values


def job_of(scene, model, output, **options):
    facts = {"trusted": True, "shard": 96, "precision": "fp32", "confidence": True}
    scene = scene if isinstance(scene, tuple) else str(scene)
    facts |= {"input": scene, "model": str(model), "output": str(output)}
    return Job(**{**facts, **options})


@pytest.fixture
def described(tmp_path, model_path):
    """Say of a scene what its Item would, with products that hold nothing."""

    def make(scene, *, polygons="gpkg", **options):
        options = {"model": model_path, "polygons": polygons, **options}
        job = job_of(scene, options.pop("model"), tmp_path / "out", **options)
        folder = tmp_path / "products"
        folder.mkdir(exist_ok=True)
        for name, suffix in {**TYPES, "polygons": polygons}.items():
            (folder / f"{name}.{suffix}").write_text(name)
        found = json.loads(item(prepare(job), list_outputs(folder)))
        shutil.rmtree(folder)
        return found

    return make


@pytest.fixture
def scene(tmp_path):
    def make(name="scene", tags=TAKEN, **profile):
        pixels = random_pixels(40, 50)
        path = make_scene(tmp_path / f"{name}.tif", pixels, **profile)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(**tags)
        return path

    return make


def test_the_item_of_a_result_is_valid_and_names_its_files(made):
    folder, values = made
    found = json.loads((folder / "item.json").read_text())

    assert faults(found) == []
    files = {Path(asset["href"]).name for asset in found["assets"].values()}
    beside = {path.name for path in folder.iterdir()}
    assert files == beside - {"run.json", "item.json"}
    sums = {
        it["path"]: (it["bytes"], "1220" + it["sha256"]) for it in values["outputs"]
    }
    said = {
        name: (asset["file:size"], asset["file:checksum"])
        for name, asset in found["assets"].items()
        if name != "report"  # which holds times
    }
    assert said == {name: sums[f"{name}.{suffix}"] for name, suffix in TYPES.items()}
    assert "item.json" in sums


def test_each_file_of_a_result_is_hashed_once(tmp_path, model_path, scene, monkeypatch):
    """For the Item and the record together."""
    hashed = []

    def noted(path):
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("tileseg.publishing.publish.file_sha256", noted)
    record = run(job_of(scene(), model_path, tmp_path / "out", polygons="gpkg"))

    assert sorted(hashed) == [item["path"] for item in record.values["outputs"]]


def test_others_find_the_files_and_what_is_said_of_them_is_so(made, model_path):
    """Wherever the folder is, and whatever the working directory."""
    folder, _ = made

    found = pystac.Item.from_file(str(folder / "item.json"))

    assert found.datetime.isoformat() == "2024-06-01T10:50:31+00:00"
    for name in ("mask", "confidence"):
        asset = found.assets[name]
        place = ProjectionExtension.ext(asset)
        (band,) = asset.extra_fields["bands"]
        with rasterio.open(asset.get_absolute_href()) as dataset:
            assert dataset.crs.to_string() == found.properties["proj:code"]
            assert list(dataset.shape) == place.shape
            assert list(dataset.transform)[:6] == place.transform
            assert dataset.dtypes[0] == band["data_type"]
            assert dataset.nodata == band["nodata"]
            assert dataset.scales[0] == band.get("raster:scale", 1)
            tags = dataset.tags()
        path = Path(asset.get_absolute_href())
        assert FileExtension.ext(asset).size == path.stat().st_size
    classes = found.assets["mask"].extra_fields["classification:classes"]
    card = read_card(model_path)
    assert [(it["value"], it.get("title")) for it in classes[:-1]] == [
        (it.value, it.name) for it in card.classes
    ]
    assert [(it["value"], it["nodata"]) for it in classes[-1:]] == [(255, True)]
    assert tags["MODEL_SHA256"] == found.properties["tileseg:models"][0]["sha256"]


def test_it_says_what_it_comes_from(made, model_path):
    """The scene, by its bytes, and the Item of the model."""
    folder, values = made
    found = pystac.Item.from_file(str(folder / "item.json"))

    scene, model = found.get_links("derived_from")
    paths = [Path(unquote(urlsplit(it.href).path)) for it in (scene, model)]

    assert paths[0].name == "scene 1.tif"
    assert file_sha256(paths[0]) == values["scene"]["sha256"]
    assert scene.extra_fields["file:checksum"] == f"1220{values['scene']['sha256']}"
    assert paths[1] == model_path / "card.json"
    assert pystac.Item.from_file(str(paths[1])).properties["mlm:name"] == "test"


def test_the_same_run_gives_the_same_item(made, model_path, tmp_path):
    folder, _ = made
    scene = folder.parent / "scene 1.tif"

    again = run(job_of(scene, model_path, tmp_path / "other", polygons="gpkg"))

    assert again.error is None
    other = tmp_path / "other" / "item.json"
    assert other.read_bytes() == (folder / "item.json").read_bytes()


SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 4_590_000)
TURNED = NORTH_UP @ Affine.rotation(30)
WITHOUT_CODE = "+proj=laea +lat_0=3 +lon_0=7 +datum=WGS84 +units=m"


@pytest.mark.parametrize(
    ("crs", "transform", "kind"),
    [
        ("EPSG:32631", SOUTH_UP, "Polygon"),
        ("EPSG:32631", TURNED, "Polygon"),
        ("EPSG:4326", Affine(0.1, 0, 177.5, 0, -0.1, 2), "MultiPolygon"),
        ("EPSG:32601", Affine(1000, 0, 160_000, 0, -1000, 10_000), "MultiPolygon"),
        (WITHOUT_CODE, Affine(10, 0, 0, 0, -10, 0), "Polygon"),
        (None, NORTH_UP, None),
    ],
    ids=["south up", "turned", "degrees", "zone 1", "no code", "nowhere"],
)
def test_a_scene_of_any_place_has_a_valid_item(described, scene, crs, transform, kind):
    found = described(scene(crs=crs, transform=transform))

    assert faults(found) == []
    assert (found["geometry"] or {}).get("type") == kind
    mask = found["assets"]["mask"]
    assert mask["proj:transform"] == list(transform)[:6]
    if kind is None:  # then nothing says where it lies, and STAC allows that
        assert "bbox" not in found
    if crs == WITHOUT_CODE:
        assert found["properties"]["proj:code"] is None
        same = rasterio.CRS.from_wkt(found["properties"]["proj:wkt2"])
        assert same == rasterio.CRS.from_string(crs)


def test_of_a_part_the_item_is_about_the_part(described, scene):
    whole, part = (
        described(scene(), **area)
        for area in ({}, {"bbox": (3.001, 41.549, 3.003, 42)})
    )

    assert faults(part) == []
    shape = part["assets"]["mask"]["proj:shape"]
    assert 0 < shape[0] * shape[1] < 40 * 50
    assert whole["bbox"][0] < part["bbox"][0] < part["bbox"][2] < whole["bbox"][2]


@pytest.mark.parametrize("polygons", FORMATS)
def test_every_format_of_polygons_has_its_media_type(described, scene, polygons):
    found = described(scene(), polygons=polygons)

    assert faults(found) == []
    assert found["assets"]["polygons"]["href"] == f"./polygons.{polygons}"


def test_a_scene_that_says_no_date_has_a_period_that_holds_any(described, scene):
    found = described(scene(tags={}))

    assert faults(found) == []
    assert found["properties"]["datetime"] is None
    assert found["properties"]["start_datetime"] < "1950"
    assert found["properties"]["end_datetime"] > "2099"


def test_a_scene_of_several_days_has_a_period(described, scene):
    west = scene("west")
    days = {"TIFFTAG_DATETIME": "2024:06:03 00:00:00"}
    east = scene("east", days, transform=NORTH_UP @ Affine.translation(50, 0))

    found = described((str(west), str(east)), join="mosaic")

    assert faults(found) == []
    assert found["properties"]["start_datetime"] == "2024-06-01T10:50:31Z"
    assert found["properties"]["end_datetime"] == "2024-06-03T00:00:00Z"
    titles = [it["title"] for it in found["links"]]
    assert titles == ["west", "east", "test 1"]


def test_of_a_scene_in_a_catalog_the_item_says_what_the_catalog_says(
    described, scene, tmp_path
):
    """Its id and its date, not the file's; and it comes from that Item."""
    scene("B")
    bands = [{"name": name} for name in ("blue", "green", "red")]
    asset = {"href": "./B.tif", "type": stac.GEOTIFF, "bands": bands}
    said = stac.make_item({"image": asset}, name="of a day", version="1.1.0")
    document = tmp_path / "found.json"
    both = {"type": "FeatureCollection", "features": [said]}
    document.write_text(json.dumps(both))

    found = described(f"{document}#of a day")

    assert faults(found) == []
    assert found["id"] == "of a day"
    assert found["properties"]["datetime"] == said["properties"]["datetime"]
    assert found["links"][0]["href"] == f"{document.as_uri()}#of%20a%20day"
    assert found["links"][0]["type"] == "application/geo+json"


def test_an_item_tells_no_secret(described, scene, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse")
    path = scene("of correct-horse")

    text = json.dumps(described(path))

    assert "correct-horse" not in text
    assert HIDDEN in text


def test_hostile_names_are_data(described, scene, tmp_path):
    name = 'a "<b>" & été'
    model = make_model(tmp_path / "model", name="</script>\n", version="1 & 2")

    found = described(scene(name), model=model)

    assert faults(found) == []
    assert found["id"] == name
    assert unquote(urlsplit(found["links"][0]["href"]).path).endswith(f"/{name}.tif")


@pytest.fixture
def series(described, scene, tmp_path):
    """Put an Item of a scene below `maps`; return where."""

    def add(name, **profile):
        found = described(scene(name, **profile))
        (tmp_path / "maps" / name).mkdir(parents=True)
        path = tmp_path / "maps" / name / "item.json"
        path.write_text(json.dumps(found))
        return {name: "item.json"}

    return add


@pytest.fixture
def collected(tmp_path):
    """Write the Collection of `maps`; return it."""

    def make(fresh):
        update(Disk(tmp_path / "maps"), "maps", fresh)
        return json.loads((tmp_path / "maps" / COLLECTION).read_text())

    return make


EAST = Affine(0.1, 0, 178, 0, -0.1, 2)  # to 183 degrees
WEST = Affine(0.1, 0, -176, 0, -0.1, 4)  # to -171


def test_a_collection_is_valid_and_leads_to_its_items(series, collected, tmp_path):
    fresh = series("b 2", crs="EPSG:4326", transform=EAST)
    fresh |= series("a 1", crs="EPSG:4326", transform=WEST)

    found = collected(fresh)

    assert faults(found) == []
    assert found["extent"]["spatial"]["bbox"] == [[178, -2, -171, 4]]
    moment = "2024-06-01T10:50:31Z"
    assert found["extent"]["temporal"]["interval"] == [[moment, moment]]
    assert found["summaries"]["proj:code"] == ["EPSG:4326"]
    classes = found["item_assets"]["mask"]["classification:classes"]
    assert [it["value"] for it in classes] == [0, 1, 2, 255]
    assert "file:checksum" not in found["item_assets"]["mask"]
    shutil.move(tmp_path / "maps", tmp_path / "moved")
    read = pystac.Collection.from_file(str(tmp_path / "moved" / COLLECTION))
    assert [it.id for it in read.get_items()] == ["a 1", "b 2"]
    for it in read.get_items():
        assert Path(it.assets["mask"].get_absolute_href()).parent.name == it.id


def test_a_collection_of_scenes_of_no_place_or_date_is_valid(series, collected):
    found = collected(series("a", crs=None, tags={}) | series("b"))

    assert faults(found) == []
    assert found["extent"]["temporal"]["interval"] == [[None, None]]
    assert found["summaries"]["proj:code"] == [None, "EPSG:32631"]


def test_what_was_counted_in_one_file_is_said_of_no_other(series, collected, tmp_path):
    """Nor does it keep a Collection from saying what the classes are."""
    fresh = series("a") | series("b")
    for number, name in enumerate(fresh):
        path = tmp_path / "maps" / name / "item.json"
        found = json.loads(path.read_text())
        mask, sure = (found["assets"][it] for it in ("mask", "confidence"))
        mask["classification:classes"][0]["count"] = number
        sure["bands"][0]["statistics"] = {"mean": number}
        path.write_text(json.dumps(found))

    assets = collected(fresh)["item_assets"]

    names = [it["name"] for it in assets["mask"]["classification:classes"]]
    assert names == ["class-0", "class-1", "class-2", "nodata"]
    assert "count" not in assets["mask"]["classification:classes"][0]
    assert "statistics" not in assets["confidence"]["bands"][0]
    assert assets["confidence"]["bands"][0]["raster:scale"] == 1 / 254


def test_what_a_collection_holds_stays_as_long_as_it_is_there(
    series, collected, tmp_path
):
    """A night need not name the scenes of the nights before."""
    collected(series("a"))
    before = (tmp_path / "maps" / COLLECTION).stat()

    collected({})
    assert before == (tmp_path / "maps" / COLLECTION).stat()
    both = collected(series("b"))
    shutil.rmtree(tmp_path / "maps" / "a")
    one = collected({})

    assert [it["href"] for it in both["links"]] == ["./a/item.json", "./b/item.json"]
    assert [it["href"] for it in one["links"]] == ["./b/item.json"]


def test_a_collection_of_somebody_else_stays(series, collected, tmp_path, caplog):
    fresh = series("a")
    for theirs in ({"type": "Collection", "id": "mine", "links": []}, [1, 2]):
        (tmp_path / "maps" / COLLECTION).write_text(json.dumps(theirs))

        assert collected(fresh) == theirs
        assert caplog.text.count("is not ours") == 1
        caplog.clear()


def test_an_item_that_cannot_be_read_now_is_not_forgotten(series, collected, tmp_path):
    before = collected(series("a"))
    path = tmp_path / "maps" / "a" / "item.json"
    path.unlink()
    path.mkdir()  # as a share that is away: there, and not to be read

    with pytest.raises(OutputError, match="cannot be read"):
        collected(series("b"))

    assert json.loads((tmp_path / "maps" / COLLECTION).read_text()) == before
