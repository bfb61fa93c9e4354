"""A result with holes says where they are, and the next run makes only these."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from making import job_maker, make_scene, random_pixels, read
from pyproj import Transformer

from tileseg.cards.card import NODATA
from tileseg.errors import ExitCode
from tileseg.geobox import GeoBox
from tileseg.job import run
from tileseg.network.unet import UNet
from tileseg.polygons.features import write_failures
from tileseg.publishing.publish import file_sha256

FORWARD = UNet.forward
SHARDS = 6  # 3 x 2 of 96 pixels, in 230 x 170
HOLES = {(1, 0): [96, 0, 96, 96], (2, 1): [192, 96, 38, 74]}  # the last one is cut


@pytest.fixture
def job(tmp_path, model_path):
    pixels = random_pixels(230, 170, seed=1)
    for row, col in HOLES:
        pixels[:, row * 96 + 20, col * 96 + 30] = 60_000
    scene = make_scene(tmp_path / "scene.tif", pixels)

    return job_maker(
        tmp_path,
        scene,
        model_path,
        shard=96,
        precision="fp32",
        network="plain",  # whose forward is replaced
        polygons="gpkg",
        confidence=True,
        allow_partial=True,
    )


@pytest.fixture
def blinded(monkeypatch):
    """A network that does not know what to say about bright tiles, until `undo`."""

    def forward(self, tiles):
        logits = FORWARD(self, tiles)
        logits[tiles.amax(dim=(1, 2, 3)) > 20] = torch.nan
        return logits

    monkeypatch.setattr(UNet, "forward", forward)
    return monkeypatch


def files(folder):
    """Return the digest of every product but the report, which says times."""
    return {
        item.name: file_sha256(item)
        for item in folder.iterdir()
        if item.name not in ("run.json", "report.html")
    }


def failures_of(folder):
    return json.loads((folder / "failures.geojson").read_text())


def test_what_is_parked_with_holes_is_made_whole_when_it_can_be(job, blinded):
    """Else the holes would keep it from passing for ever."""
    wish = job(gates={"nodata": 0.1}, polygons="")
    parked = run(wish).values
    blinded.undo()

    record = run(wish)

    assert (parked["status"], len(parked["failures"])) == ("parked", len(HOLES))
    assert record.error is None
    assert record.values["counts"]["shards_reused"] == SHARDS - len(HOLES)
    assert not wish.output_path.with_name("out.parked").exists()


def test_holes_are_listed_and_the_next_run_makes_only_these(job, tmp_path, blinded):
    """And the result is then that of a run that nothing happened to."""
    first = run(job()).values
    listed = {item["path"]: item["sha256"] for item in first["outputs"]}
    del listed["report.html"]
    there = files(tmp_path / "out")
    features = failures_of(tmp_path / "out")["features"]
    mask = read(tmp_path / "out/mask.tif")
    again = run(job()).values
    blinded.undo()
    healed = run(job()).values
    assert run(job("expected")).values["exit_code"] == ExitCode.OK

    for values in (first, again):
        assert values["exit_code"] == ExitCode.PARTIAL
        counts = values["counts"]
        assert (counts["shards_done"], counts["shards_failed"]) == (4, 2)
    assert there == listed
    properties = [item["properties"] for item in features]
    told = sorted(first["failures"], key=lambda item: item["shard"])
    assert sorted(properties, key=lambda item: item["shard"]) == told
    assert {tuple(item["shard"]): item["window"] for item in told} == HOLES
    for row, col, height, width in HOLES.values():
        assert {NODATA} == set(mask[row : row + height, col : col + width].flat)
    assert again["counts"]["shards_reused"] == 4
    assert healed["counts"]["shards_reused"] == 4
    assert healed["counts"]["shards_done"] == SHARDS
    assert healed["failures"] == []
    assert "failures.geojson" in listed
    assert "failures.geojson" not in files(tmp_path / "out")
    assert files(tmp_path / "expected") == files(tmp_path / "out")


# Footprints


def failure(shard, window):
    return {"shard": shard, "window": window, "reason": 'tile "1": NaN, or Inf'}


FAILURES = [
    failure([0, 1], [0, 1536, 1536, 1536]),
    failure([3, 2], [4608, 3072, 100, 77]),
]
UTM = (32633, Affine(10, 0, 700_000, 0, -10, 7_600_000))
PLACES = {
    "utm": UTM,
    "rotated": (32633, UTM[1] @ Affine.rotation(31.7)),
    "south-up": (32733, Affine(10, 0, 700_000, 0, 10, 7_600_000)),
    "polar": (3413, Affine(25, 0, -900_000, 0, -25, -800_000)),
    "feet": (2263, Affine(3, 0, 900_000, 0, -3, 300_000)),
    "geographic": (4326, Affine(1e-4, 0, 10, 0, -1e-4, 50)),
}


def written(tmp_path, crs, transform, failures=FAILURES):
    path = tmp_path / "failures.geojson"
    wkt = crs and rasterio.CRS.from_epsg(crs).to_wkt(version="WKT2_2019")
    write_failures(failures, GeoBox(5000, 5000, transform, wkt), path)
    return path


@pytest.mark.parametrize(("crs", "transform"), PLACES.values(), ids=PLACES)
def test_a_footprint_is_the_window_in_longitude_and_latitude(tmp_path, crs, transform):
    """Its sides, straight on the scene's map, are followed to a tenth of a pixel."""
    features = json.loads(written(tmp_path, crs, transform).read_text())["features"]
    to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)

    assert len(features) == len(FAILURES)
    for item, feature in zip(FAILURES, features, strict=True):
        row, col, height, width = item["window"]
        along = np.linspace(0, 1, 97)
        box = shapely.box(col, row, col + width, row + height)
        pixels = shapely.line_interpolate_point(box.exterior, along, normalized=True)
        x, y = shapely.get_coordinates(pixels).T
        a, b, c, d, e, f = transform[:6]
        ground = x * a + y * b + c, x * d + y * e + f
        outline = shapely.from_geojson(json.dumps(feature["geometry"]))
        east, north = to_lonlat.transform(*ground)
        pixel = np.sqrt(outline.area / width / height)
        off = shapely.distance(outline.exterior, shapely.points(east, north))

        assert off.max() < pixel / 10
        assert outline.exterior.is_ccw
        assert feature["properties"] == item


def test_a_footprint_is_cut_at_the_antimeridian(tmp_path):
    path = written(tmp_path, 4326, Affine(1e-4, 0, 179.8, 0, -1e-4, 50), FAILURES[:1])

    (feature,) = json.loads(path.read_text())["features"]
    shape = shapely.from_geojson(json.dumps(feature["geometry"]))
    assert shape.geom_type == "MultiPolygon"
    assert shape.bounds[::2] == (-180, 180)
    assert shape.area == pytest.approx(0.1536**2)


@pytest.mark.parametrize("crs", [None, 32633])
def test_where_no_longitude_is_known_the_footprint_is_null(tmp_path, crs):
    """Without a CRS, or off the map of one."""
    far = Affine(1e9, 0, 0, 0, -1e9, 0)

    features = json.loads(written(tmp_path, crs, far).read_text())["features"]

    assert [item["geometry"] for item in features] == [None, None]
    assert [item["properties"] for item in features] == FAILURES


def test_a_reader_of_geojson_finds_it_on_the_map(tmp_path):
    meta, table = pyogrio.read_arrow(written(tmp_path, *UTM))

    assert meta["crs"] == "EPSG:4326"
    assert meta["geometry_type"] == "Polygon"
    assert {"shard", "window", "reason"} <= set(table.column_names)
