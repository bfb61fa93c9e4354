"""A class may be called anything: to every format its name is a text, and no more."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
from making import NORTH_UP, make_model, make_scene, random_pixels

from tileseg.geobox import GeoBox
from tileseg.job import run
from tileseg.polygons.features import write_features
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import polygonise
from tileseg.settings import Job
from tileseg.window import Window

PARTS = [
    "'; DROP TABLE polygons; --",
    '"',
    "' OR '1'='1",
    "=HYPERLINK(1)",
    "@SUM(A1)",
    "<script>alert(1)</script>",
    "</MDI><MDI>",
    "&lt;",
    "%s%n",
    "${HOME}",
    "$x_$",
    "$(touch ran)",
    "../..",
    "\\",
    "]]>",
    "NULL",
    "\u202e",
    "é",
    "\U0001f6f0",
    ",",
    ";",
    "{}",
]


def hostile_names(count):
    """Return names put together from what means something somewhere, seeded."""
    chosen = random.Random(7)
    made = {"".join(chosen.choices(PARTS, k=chosen.randint(1, 4))) for _ in range(999)}
    return sorted(made)[:count]


def written(names, path):
    """Write a square of each class; return the names as they are read back."""
    count = len(names)
    mask = np.full((1, 2 * count), 255, np.uint8)
    mask[0, ::2] = np.arange(count)
    pieces = polygonise(mask, None, Window(0, 0, 1, 2 * count), left_out=(255,))
    crs = rasterio.CRS.from_epsg(32631).to_wkt(version="WKT2_2019")
    box = GeoBox(1, 2 * count, NORTH_UP, crs)
    write_features([pieces.areas], Meaning(dict(enumerate(names)), box), path)
    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        table = pyogrio.read_arrow(path)[1]
    return table.sort_by("id")["class_name"].to_pylist()


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "geojson", "parquet"])
def test_two_hundred_hostile_names_come_back_as_they_were(suffix, tmp_path):
    names = hostile_names(200)

    assert len(names) == 200
    assert written(names, tmp_path / f"polygons.{suffix}") == names


def test_a_map_of_hostile_classes_is_made(tmp_path, monkeypatch):
    """The raster's tags, the record and the quicklook, too."""
    monkeypatch.chdir(tmp_path)
    names = [name for name in hostile_names(200) if name.isprintable()][:2]
    names.append("$x_$")  # no formula
    model = make_model(tmp_path / "model")
    card = json.loads((model / "card.json").read_text())
    for entry, name in zip(_classes(card), names, strict=True):
        entry["title"] = name
    (model / "card.json").write_text(json.dumps(card))
    scene = make_scene(tmp_path / "$a_$.tif", random_pixels(100, 110))

    job = Job(input=str(scene), model=str(model), shard=96, polygons="gpkg")
    values = run(job).values

    assert values["exit_code"] == 0, values["error"]
    assert list(values["model"]["classes"].values()) == names
    assert list(values["pixels"]["by_class"]) == names
    with rasterio.open(job.output_path / "mask.tif") as dataset:
        tags = dataset.tags()
    assert [tags[f"CLASS_{value}"] for value in range(3)] == names
    assert not (tmp_path / "ran").exists()


def _classes(card):
    return card["properties"]["mlm:output"][0]["classification:classes"]
