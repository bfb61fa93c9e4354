"""Check points against masks."""

import json

import numpy as np
import pytest
import rasterio
from making import NORTH_UP
from rasterio.warp import transform

from tileseg.errors import InputError, UsageError
from tileseg.evaluate import check_points

LABELS = np.array([[0, 0, 1, 1, 255], [0, 1, 1, 0, 255], [1, 1, 0, 0, 255]], np.uint8)


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=3, width=5, dtype="uint8",
        nodata=255, crs="EPSG:32631", transform=NORTH_UP,
    ) as dataset:  # fmt: skip
        dataset.write(LABELS, 1)
        dataset.update_tags(CLASS_0="water", CLASS_1="land")
    return path


def write_points(path, places):
    """Write (row, column, class) as GeoJSON points at pixel centres."""
    xs, ys = zip(*[NORTH_UP @ (c + 0.5, r + 0.5) for r, c, _ in places], strict=True)
    longitudes, latitudes = transform("EPSG:32631", "EPSG:4326", xs, ys)
    features = [
        {
            "type": "Feature",
            "properties": {"class": place[2]},
            "geometry": {"type": "Point", "coordinates": [x, y]},
        }
        for place, x, y in zip(places, longitudes, latitudes, strict=True)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_every_point_is_counted_once_in_its_row_and_column(mask, tmp_path):
    """The table is the one counted by hand; nodata is never right."""
    places = [
        (0, 0, "water"), (0, 2, "water"), (0, 4, "water"),
        (2, 0, "land"), (1, 1, "land"), (1, 3, "land"),
    ]  # fmt: skip
    found = check_points(mask, write_points(tmp_path / "points.json", places))

    np.testing.assert_array_equal([[1, 1, 1], [1, 2, 0]], found.counts)
    assert found.accuracy == pytest.approx(3 / 6)
    np.testing.assert_allclose([2 * 1 / (3 + 2), 2 * 2 / (3 + 3)], found.f1)
    assert "accuracy 0.500 at 6 points" in str(found)


@pytest.mark.parametrize("place", [(0, 0, "sky"), (3, 0, "water"), (0, -1, "land")])
def test_a_point_that_fits_nothing_is_refused(mask, tmp_path, place):
    points = write_points(tmp_path / "points.json", [place])

    with pytest.raises(UsageError, match=r"points\.json"):
        check_points(mask, points)


def test_files_that_are_not_what_they_should_be_are_refused(mask, tmp_path):
    text = tmp_path / "text"
    text.write_text("no")

    with pytest.raises(InputError, match="GeoJSON"):
        check_points(mask, text)
    with pytest.raises(InputError, match="cannot be read"):
        check_points(text, write_points(tmp_path / "points.json", [(0, 0, "water")]))
