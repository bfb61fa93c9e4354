"""Blocks of a scene are found in another one, whatever both are projected by."""

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS

from tileseg.geobox import GeoBox
from tileseg.training.train_overlap import boxes_in

LONLAT = CRS.from_epsg(4326).to_wkt()
BARCELONA = GeoBox(
    1_000, 1_000, Affine(10, 0, 400_000, 0, -10, 4_600_000),
    CRS.from_epsg(32631).to_wkt(),
)  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [(4_000, 6_000, -20, 70, 0.01), (9_000, 18_000, -180, 90, 0.02)],
    ids=["continent", "globe"],
)
def test_a_block_is_found_from_however_large_a_scene(place):
    """UTM knows nothing of the other side of the Earth."""
    height, width, west, north, side = place
    there = GeoBox(height, width, Affine(side, 0, west, 0, -side, north), LONLAT)
    lon, lat = 1.85, 41.5  # in it
    block = np.array([[(north - lat) / side // 64, (lon - west) / side // 64]], int)

    ((top, left, bottom, right),) = boxes_in(BARCELONA, there, block, 64)

    assert top < 600 < bottom
    assert left < 400 < right
    far = np.array([[block[0, 0], block[0, 1] + 10]])
    assert not len(boxes_in(BARCELONA, there, far, 64))
