"""Training: polygons to labels, labels to a model folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
from making import NORTH_UP, make_scene
from rasterio.warp import transform

import tileseg
from tileseg.card import read_card
from tileseg.errors import InputError, UsageError
from tileseg.scene import open_scene
from tileseg.train import Training, burn_polygons, read_reflectance, train

TRAINING = Training(
    classes=(("dark", "000000"), ("bright", "ffffff")),
    bands=("blue", "green", "red"),
    tile=32, halo=4, width=4, depth=2, steps=60, batch=4, learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture
def scene(tmp_path):
    """130 x 90 pixels: dark on the left, bright on the right, nodata below."""
    pixels = np.full((3, 130, 90), 1000, "uint16")
    pixels[:, :, 40:] = 6000
    pixels += np.random.default_rng(0).integers(0, 500, pixels.shape, "uint16")
    pixels[:, 120:] = 0
    return open_scene(str(make_scene(tmp_path / "scene.tif", pixels)))


def write_polygons(path, boxes):
    """Write (row, column, height, width, class) as GeoJSON."""
    features = []
    for row, column, height, width, name in boxes:
        corners = [
            (column, row), (column, row + height), (column + width, row + height),
            (column + width, row), (column, row),
        ]  # fmt: skip
        places = zip(*[NORTH_UP @ corner for corner in corners], strict=True)
        ring = zip(*transform("EPSG:32631", "EPSG:4326", *places), strict=True)
        geometry = {"type": "Polygon", "coordinates": [list(ring)]}
        features.append(
            {"type": "Feature", "properties": {"class": name}, "geometry": geometry}
        )
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture
def polygons(tmp_path):
    boxes = [(10, 5, 30, 20, "dark"), (50, 50, 40, 30, "bright")]
    return write_polygons(tmp_path / "polygons.json", boxes)


def test_polygons_are_burnt_where_they_lie(scene, polygons):
    expected = np.full((130, 90), 255, np.uint8)
    expected[10:40, 5:25] = 0
    expected[50:90, 50:80] = 1

    actual = burn_polygons(polygons, scene, ("dark", "bright")).values

    np.testing.assert_array_equal(expected, actual)


def test_unknown_absent_or_unreadable_classes_are_refused(scene, polygons, tmp_path):
    with pytest.raises(UsageError, match="unknown class"):
        burn_polygons(polygons, scene, ("dark", "light"))
    with pytest.raises(UsageError, match="no pixel of class 'grey'"):
        burn_polygons(polygons, scene, ("dark", "bright", "grey"))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match="GeoJSON"):
        burn_polygons(tmp_path / "no.json", scene, ("dark", "bright"))


def test_reflectance_is_nan_where_invalid(scene):
    pixels = read_reflectance(scene, ("red", "blue"))

    assert pixels.shape == (2, 130, 90)
    assert np.isnan(pixels[:, 120:]).all()
    assert 0.1 <= pixels[:, :120, :40].min() <= pixels[:, :120, :40].max() < 0.16


def test_a_network_learns_what_the_polygons_show(scene, polygons, tmp_path):
    """The folder works as a model, and gives back the two halves of the scene."""
    labels = burn_polygons(polygons, scene, ("dark", "bright"))
    pixels = read_reflectance(scene, TRAINING.bands)
    card = train(TRAINING, pixels, labels, tmp_path / "model")

    assert read_card(tmp_path / "model") == card
    record = tileseg.segment(
        scene.href, model=str(tmp_path / "model"), output=str(tmp_path / "out")
    )
    counts = record["pixels"]
    assert counts["nodata"] == 10 * 90
    assert counts["by_class"]["dark"] == pytest.approx(120 * 40, rel=0.05)


def test_training_again_gives_the_same_weights(scene, polygons, tmp_path):
    """Same inputs and seed, same network, to the numbers' last digits."""
    labels = burn_polygons(polygons, scene, ("dark", "bright"))
    pixels = read_reflectance(scene, TRAINING.bands)
    short = replace(TRAINING, steps=5)
    one, two = (train(short, pixels, labels, tmp_path / name) for name in "ab")

    assert one.sha256 == two.sha256
