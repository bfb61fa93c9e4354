"""A scene that came again: only what changed is computed, and nobody can tell."""

import json

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from making import job_maker, make_model, make_scene, random_pixels, read, snapshot
from rasterio.warp import transform_bounds
from strategies import cuts

from tileseg.errors import ExitCode
from tileseg.grid import Grid, Run
from tileseg.job import run
from tileseg.scenes.prints import Prints
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene
from tileseg.window import Window

HEIGHT, WIDTH = 500, 430  # 6 x 5 shards of 96 pixels, the last ones cut
SHARDS = 30
DIFFERS = {"run.json", "report.html", "shards.json"}
"""What says how a result was made."""


def prints_of(path, grid, runs, *, ring):
    """Read runs as a worker does; return the digest of each shard."""
    scene = open_scene(str(path))
    reader, prints = Reader(scene, scene.bands, grid), Prints(grid, ring=ring)
    found = {}
    for part in runs:
        for strip in reader.strips(part, ring=ring):
            prints.add(part, strip)
        found |= {shard: prints.take(shard) for shard in part}
    return found


def mirrored(index, size):
    """Return which pixels a range of them shows, beyond the scene too."""
    return {min(at % (2 * size), 2 * size - 1 - at % (2 * size)) for at in index}


@settings(max_examples=15)
@given(data=st.data())
def test_digests_tell_what_the_network_saw_however_it_was_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("prints")
    height, width = data.draw(st.tuples(*[st.integers(30, 130)] * 2))
    pixels = random_pixels(height, width, bands=2)
    grid = Grid(height=height, width=width, tile=16, halo=3, shard=40)
    ring, block = data.draw(st.integers(0, 1)), data.draw(st.sampled_from([16, 48]))
    row, col = (
        data.draw(st.integers(0, height - 1)),
        data.draw(st.integers(0, width - 1)),
    )
    pixels[:, row, col] = 5000
    before = make_scene(folder / "a.tif", pixels, blockxsize=block, blockysize=32)
    pixels[1, row, col] += 7
    after = make_scene(folder / "b.tif", pixels, blockxsize=16, blockysize=16)

    first = prints_of(before, grid, data.draw(cuts(grid)), ring=ring)
    again = prints_of(before, grid, data.draw(cuts(grid)), ring=ring)
    other = prints_of(after, grid, data.draw(cuts(grid)), ring=ring)

    touched = {
        shard
        for shard in Run(grid.shape)
        for seen in [
            grid.cores(Run(Window(*shard, 1, 1)), ring=ring)
            .scale(grid.stride)
            .pad(grid.halo)
        ]
        if row in mirrored(range(seen.row, seen.row_stop), height)
        and col in mirrored(range(seen.col, seen.col_stop), width)
    }
    assert first == again
    assert touched == {shard for shard in first if first[shard] != other[shard]}
    assert touched


@pytest.fixture
def pixels():
    return random_pixels(HEIGHT, WIDTH, seed=3)


@pytest.fixture
def make(tmp_path, model_path):
    return job_maker(
        tmp_path,
        tmp_path / "scene.tif",
        model_path,
        shard=96,
        incremental=True,
        confidence=True,
        probabilities=True,
        polygons="gpkg",
    )


def box(scene):
    """Return the bounds of a scene without its last shards."""
    with rasterio.open(scene) as dataset:
        left, bottom, right, top = dataset.bounds
        return left, bottom + (top - bottom) / 4, right - (right - left) / 4, top


def done(job):
    record = run(job)
    assert record.error is None, record.error
    return record.values


def products(job):
    """Return the bytes of what a result shows."""
    files = {item.name: item for item in job.output_path.iterdir()}
    return {k: path.read_bytes() for k, path in files.items() if k not in DIFFERS}


@pytest.mark.parametrize(
    "blend", ["crop", pytest.param("cosine", marks=pytest.mark.slow)]
)
def test_only_what_changed_is_computed_and_all_is_as_of_a_full_run(
    blend, make, pixels, tmp_path
):
    scene = make_scene(tmp_path / "scene.tif", pixels)
    full = done(make(blend=blend))
    pixels[:, 100:160, 200:250] = 4321  # of shards in rows 1 and columns 2
    pixels[:, 0:96, 400:430] = 0  # all of a shard's, some of another's
    make_scene(scene, pixels)

    again = done(make(blend=blend))
    other = done(make("other", blend=blend))

    counts = again["counts"]
    assert 0 < SHARDS - counts["shards_unchanged"] <= 12
    assert counts["tiles"] + counts["tiles_skipped"] <= 0.55 * full["counts"]["tiles"]
    assert other["counts"]["shards_unchanged"] == 0
    assert again["pixels"] == other["pixels"]
    assert again["hectares"] == other["hectares"]
    assert again["seams"] == other["seams"]
    assert products(make()) == products(make("other"))
    shards = [
        json.loads((make(name).output_path / "shards.json").read_text())
        for name in ("out", "other")
    ]
    assert shards[0] == shards[1]


def test_a_small_change_costs_a_small_part_of_the_network(make, pixels, tmp_path):
    scene = make_scene(tmp_path / "scene.tif", pixels)
    full = done(make())
    pixels[:, 106:170, 106:170] += 5  # a block's worth, 2 % of the scene
    make_scene(scene, pixels)

    again = done(make())

    assert again["counts"]["shards_unchanged"] == SHARDS - 1
    assert again["counts"]["tiles"] <= 0.1 * full["counts"]["tiles"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed", ["model", "option", "nothing", "mask", "list", "gone"]
)
def test_what_else_decides_a_pixel_makes_all_of_it_new(
    changed, make, pixels, tmp_path, caplog
):
    scene = make_scene(tmp_path / "scene.tif", pixels)
    done(make())
    pixels[:, 130:194, 130:194] += 5
    make_scene(scene, pixels)
    options = {
        "model": {"model": str(make_model(tmp_path / "model", seed=9))},
        "option": {"scale": 3e-4},
    }.get(changed, {})
    for kind, name in (("mask", "mask.tif"), ("list", "shards.json")):
        if changed == kind:
            path = tmp_path / "out" / name
            path.write_bytes(path.read_bytes()[:-1] + b"\n\n")
    if changed == "gone":
        (tmp_path / "out" / "mask.tif").unlink()

    again = done(make(**options))

    spoilt = changed in ("mask", "list", "gone")
    assert spoilt == ("of no use to --incremental" in caplog.text)
    assert (again["counts"]["shards_unchanged"] > 0) == (changed == "nothing")
    other = make("other", **options)
    done(other)
    assert products(make()) == products(other)


def test_what_is_only_said_of_labels_makes_none_of_them_new(make, pixels, tmp_path):
    """Another date, a part of a scene, other polygons: all still fit together."""
    scene = make_scene(tmp_path / "scene.tif", pixels)
    west, south, east, north = transform_bounds("EPSG:32631", "OGC:CRS84", *box(scene))
    corners = [(west, south), (east, south), (west, north), (west, south)]
    area = {"type": "Polygon", "coordinates": [corners]}
    (tmp_path / "area.geojson").write_text(json.dumps(area))
    part = {"aoi": str(tmp_path / "area.geojson"), "entropy": True}
    done(make(**part))
    pixels[:, 300:310, 20:30] = 4321
    make_scene(scene, pixels)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2026-05-17")
    part |= {"entropy": False, "min_area": 0.05, "simplify": 9.0, "polygons": "fgb"}

    again = done(make(**part))

    other = done(make("other", **part))
    assert again["counts"]["shards_unchanged"] == again["counts"]["shards"] - 1
    assert 0 < again["pixels"]["outside"] == other["pixels"]["outside"]
    assert products(make()) == products(make("other"))


def test_without_the_option_another_version_is_refused(make, pixels, tmp_path):
    scene = make_scene(tmp_path / "scene.tif", pixels)
    done(make())
    before = snapshot(tmp_path / "out")
    make_scene(scene, pixels + 1)

    record = run(make(incremental=False))

    assert record.values["exit_code"] == ExitCode.BUSY
    assert snapshot(tmp_path / "out") == before


@pytest.mark.slow
def test_a_stopped_update_goes_on(make, pixels, tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "scene.tif", pixels)
    done(make())
    pixels[:, 100:400, 100:300] = 4321
    make_scene(scene, pixels)
    with monkeypatch.context() as patch:
        patch.setattr("tileseg.steps.products.build", lambda *_args: 1 / 0)
        patch.setattr("tileseg.job.build", lambda *_args: 1 / 0)
        assert run(make()).error

    again = done(make())

    assert again["counts"]["shards_reused"] == SHARDS
    assert again["counts"]["shards_unchanged"] == 0
    other = make("other")
    done(other)
    assert products(make()) == products(other)


def test_a_scene_with_a_mask_from_outside_counts_its_pixels_again(
    make, pixels, tmp_path
):
    make_scene(tmp_path / "scene.tif", pixels)
    clouds = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    clouds[:, 20:150, 30:200] = 1
    mask = make_scene(tmp_path / "clouds.tif", clouds, names=(), scale=None)
    rules = {"mask": (f"{mask} in 1",)}
    first = done(make(**rules))
    clouds[:, 300:310, 300:310] = 1
    make_scene(tmp_path / "clouds.tif", clouds, names=(), scale=None)

    again = done(make(**rules))

    assert first["pixels"]["masked"] > 0
    assert again["counts"]["shards_unchanged"] == SHARDS - 1
    assert again["pixels"]["masked"] > first["pixels"]["masked"]
    assert (read(tmp_path / "out" / "mask.tif")[300:310, 300:310] == 255).all()
    other = done(make("other", **rules))
    assert again["pixels"] == other["pixels"]
