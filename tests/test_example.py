"""The example scene, its labels and the model that comes with tileseg."""

import json
from collections import Counter
from pathlib import Path

import pytest
import rasterio
from rasterio.warp import transform

import tileseg
from tileseg.base.builtin import default_model
from tileseg.cards.item import read_card
from tileseg.evaluation.evaluate import Question, evaluate
from tileseg.evaluation.reference import open_reference
from tileseg.scenes.scene import open_scene

EXAMPLES = Path(__file__).parents[1] / "examples"
SCENE = EXAMPLES / "itaipu.tif"
POINTS = EXAMPLES / "itaipu_checkpoints.geojson"
POLYGONS = EXAMPLES / "itaipu_training.geojson"


def point_rows_and_columns():
    features = json.loads(POINTS.read_text())["features"]
    places = [item["geometry"]["coordinates"] for item in features]
    with rasterio.open(SCENE) as dataset:
        xs, ys = transform("EPSG:4326", dataset.crs, *zip(*places, strict=True))
        return [dataset.index(x, y) for x, y in zip(xs, ys, strict=True)]


def test_the_scene_says_how_its_numbers_become_reflectance():
    bands = open_scene(str(SCENE)).select(("blue", "green", "red"))

    assert [(b.scale, b.offset) for b in bands] == [(3.3623e-05, -0.168117)] * 3


def test_there_are_enough_check_points_of_every_class():
    """200 or more in all, 25 or more of each class of the model."""
    features = json.loads(POINTS.read_text())["features"]
    counts = Counter(item["properties"]["class"] for item in features)

    assert {item.name for item in read_card(default_model()).classes} == set(counts)
    assert min(counts.values()) >= 25
    assert counts.total() >= 200


def test_no_training_polygon_touches_a_check_block():
    """A block of 128 x 128 pixels is for checking if (row + 2 column) % 5 is 0 or 2."""
    names = tuple(item.name for item in read_card(default_model()).classes)
    box = open_scene(str(SCENE)).geobox
    with open_reference(str(POLYGONS), box, names, {}, "class") as polygons:
        known = polygons.labels(box.window) != 255
    places = point_rows_and_columns()

    def is_check(row, column):
        return (row // 128 + 2 * (column // 128)) % 5 in (0, 2)

    assert all(is_check(row, column) for row, column in places)
    assert not any(is_check(*place) for place in zip(*known.nonzero(), strict=True))


@pytest.mark.slow
def test_the_map_is_right_at_the_check_points(tmp_path):
    """Accuracy 0.85 or more, as the card says; nodata where the scene has none."""
    record = tileseg.segment(str(SCENE), output=str(tmp_path / "out"))
    mask = str(tmp_path / "out" / "mask.tif")
    found = evaluate(Question(mask=mask, reference=str(POINTS))).confusion

    assert found.accuracy >= 0.85
    _, said, *_ = read_card(default_model()).about["score"].split()
    assert found.accuracy == pytest.approx(float(said.rstrip(",")), abs=0.01)
    assert 0.16 < record["pixels"]["nodata"] / record["pixels"]["total"] < 0.17


@pytest.mark.slow
def test_batch_sizes_agree_on_the_example_scene(tmp_path):
    """In fp32, 99.99 % of the labels or more are those of the usual batch."""
    masks = {}
    for batch in (16, 5, 32):
        output = tmp_path / str(batch)
        tileseg.segment(SCENE, output=output, batch_size=batch, precision="fp32")
        with rasterio.open(output / "mask.tif") as dataset:
            masks[batch] = dataset.read(1)

    for batch in (5, 32):
        share = float((masks[batch] == masks[16]).mean())
        print(f"batch {batch} against 16: {share:.6f} of the labels agree")  # noqa: T201
        assert share >= 0.9999
