"""Pixels that stand for a scene: valid ones, in its unit, from all over it, few."""

import time
import tracemalloc

import numpy as np
import pytest
import rasterio
from making import NORTH_UP, make_scene, random_pixels

from tileseg.scenes.raster import Scene
from tileseg.scenes.sample import _place, _windows, affordable, sample
from tileseg.scenes.scene import open_scene
from tileseg.window import Window


def taken(scene, names=("blue", "green", "red"), **options):
    bands = scene.select(names)
    return sample(
        scene, bands, [(band.scale, band.offset) for band in bands], **options
    )


def test_of_a_small_scene_every_valid_pixel_is_seen_in_its_unit(tmp_path):
    pixels = random_pixels(100, 70)
    path = make_scene(tmp_path / "s.tif", pixels, scale=0.5, offset=-3.0)

    found = taken(open_scene(str(path)), ("red", "blue"))

    valid = (pixels > 0).all(axis=0)
    expected = np.float32(pixels[[2, 0]][:, valid] * 0.5 - 3)
    assert found.looked_at == 7000
    assert found.unreadable == 0
    order = np.lexsort(expected), np.lexsort(found.pixels)
    np.testing.assert_array_equal(expected[:, order[0]], found.pixels[:, order[1]])


def test_the_same_places_are_looked_at_every_time(tmp_path):
    scene = open_scene(str(make_scene(tmp_path / "s.tif", random_pixels(900, 1300))))

    first, second = taken(scene, places=3), taken(scene, places=3)

    assert 0 < first.looked_at < 900 * 1300 / 4
    np.testing.assert_array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("shape", [(1, 9000), (9000, 1), (3000, 2100), (130, 5000)])
@pytest.mark.parametrize("count", [1, 5, 64])
def test_places_are_apart_in_the_area_and_no_more_than_asked_for(shape, count):
    area = Window(37, 410, *shape)

    found = list(_windows(area, (128, 256), count))

    assert 0 < len(found) <= count
    seen = np.zeros((area.row_stop, area.col_stop), np.uint8)
    for window in found:
        assert window.size > 0
        assert window == window.intersect(area)
        seen[window.slices] += 1
    assert seen.max() == 1


def test_only_the_area_counts(tmp_path):
    pixels = np.full((3, 300, 520), 7, np.uint16)
    pixels[:, 100:160, 300:420] = 9
    scene = open_scene(str(make_scene(tmp_path / "s.tif", pixels)))

    found = taken(scene, area=Window(100, 300, 60, 120))

    np.testing.assert_allclose(found.pixels, 9e-4, rtol=1e-6)
    assert found.looked_at == 60 * 120


def test_what_cannot_be_read_is_counted(tmp_path):
    path = make_scene(
        tmp_path / "s.tif", random_pixels(600, 520), blockxsize=256, blockysize=256
    )
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 200)

    found = taken(open_scene(str(path)))

    assert found.unreadable == 1
    assert found.pixels.shape[1] > 0


def test_a_vast_scene_costs_no_more(tmp_path):
    """2 × 10^12 pixels in blocks of 8192 × 8192: neither time nor memory."""
    path = tmp_path / "vast.tif"
    shape = {"height": 1_000_000, "width": 2_000_000, "count": 3, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": 1 << 13, "blockysize": 1 << 13}
    place = {"crs": "EPSG:32631", "transform": NORTH_UP, "nodata": 0}
    facts = {"SPARSE_OK": True, "BIGTIFF": "YES", "INTERLEAVE": "BAND"}
    with rasterio.open(path, "w", **facts, **shape, **blocks, **place) as dataset:
        dataset.descriptions = ("blue", "green", "red")
    scene = open_scene(str(path))

    start = time.perf_counter()
    tracemalloc.start()
    found = taken(scene)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found.looked_at > 0
    assert time.perf_counter() - start < 20
    assert peak < 100e6


@pytest.mark.parametrize(
    ("block", "size", "places"),
    [
        ((256, 256), (1860, 2041), 16),
        ((512, 512), (1860, 2041), 4),
        ((512, 512), (100_000, 80_000), 64),
        ((512, 512), (30_000, 20_000), 22),
        ((20_000, 30_000), (20_000, 30_000), 0),
        ((1, 30_000), (20_000, 30_000), 64),
    ],
)
def test_a_job_pays_for_a_hundredth_of_its_pixels_or_one_million(block, size, places):
    """Rows of 30,000 pixels are read two at a time; what is one block, not at all."""
    scene = facts_of(block, size)

    found = affordable(scene, scene.geobox.window)

    high, wide = _place(scene)
    assert found == places
    assert found * high * wide <= max(size[0] * size[1] / 100, 1 << 20)


def facts_of(block, size):
    """Return a scene of which only this is asked."""
    from tileseg.geobox import GeoBox
    from tileseg.scenes.raster import File

    file = File(
        href="s.tif",
        path="/s.tif",
        size=1,
        has_mask=False,
        alpha=None,
        is_palette=False,
    )
    return Scene(
        href="s.tif",
        geobox=GeoBox(*size, NORTH_UP, None),
        dtype="uint8",
        bands=(),
        block=block,
        point=False,
        origin=file,
    )
