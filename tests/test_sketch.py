"""What a person looks at was put by shard by shard: the scene's own pixels, thinned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_scene, random_pixels
from strategies import cuts

from tileseg.grid import Grid, Run, Shard
from tileseg.job import run
from tileseg.outputs import glance
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene
from tileseg.scenes.sketch import Collage, Sampling, Sketch, shown
from tileseg.settings import Job
from tileseg.window import Window

HEIGHT, WIDTH = 1310, 740  # every third pixel is shown


@pytest.fixture(scope="module", autouse=True)
def _small_sketches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tileseg.scenes.sketch._SIDE", 600)
        yield


@pytest.fixture(scope="module")
def pixels():
    return random_pixels(HEIGHT, WIDTH, bands=4)


@pytest.fixture(scope="module")
def scene(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("sketch") / "scene.tif"
    make_scene(path, pixels, blockxsize=256, blockysize=256)
    return open_scene(str(path))


def put_by(scene, grid, runs, *, ring=0):
    """Read runs as a worker does; return what is put together of their sketches."""
    bands = scene.bands[:3]
    sketch, collage = Sketch(grid, scene, bands), Collage(grid)
    reader = Reader(scene, bands, grid)
    for part in runs:
        for strip in reader.strips(part, ring=ring):
            sketch.add(part, strip)
        for shard in part:
            collage.add(shard, sketch.take(shard))
    return collage.picture()


@settings(max_examples=8)
@given(data=st.data())
def test_however_a_scene_is_read_its_sketch_is_the_same(scene, pixels, data):
    part = data.draw(st.sampled_from([None, Window(101, 37, 1201, 653)]))
    grid = Grid(height=HEIGHT, width=WIDTH, tile=32, halo=4, shard=408, part=part)
    ring = data.draw(st.integers(0, 1))

    picture = put_by(scene, grid, data.draw(cuts(grid)), ring=ring)

    step = 3
    expected = pixels[[2, 1, 0]][:, *grid.area.slices][:, ::step, ::step]
    assert expected.shape[1:] == Sampling(grid).shape
    np.testing.assert_array_equal(picture, expected)


def test_bands_that_are_not_read_are_in_no_sketch(scene):
    grid = Grid(height=HEIGHT, width=WIDTH, tile=32, halo=4, shard=408)
    (whole,) = grid.runs(set(Run(grid.shape)), band=9, rows=9)
    bands = scene.bands[2:]
    sketch, collage = Sketch(grid, scene, bands), Collage(grid)

    for strip in Reader(scene, bands, grid).strips(whole):
        sketch.add(whole, strip)
    collage.add(Shard(0, 0), sketch.take(Shard(0, 0)))

    assert collage.picture() is None


def test_red_green_and_blue_are_shown_or_what_there_is(scene):
    assert [band.name for band in shown(scene, ())] == ["red", "green", "blue"]


def test_a_scene_is_not_read_again_to_be_shown(tmp_path, model_path, monkeypatch):
    path = make_scene(tmp_path / "scene.tif", random_pixels(410, 300))
    monkeypatch.setattr(glance, "glance", None)  # whoever called it would fail

    job = Job(input=str(path), model=str(model_path), output=str(tmp_path / "out"))

    assert run(job).error is None
