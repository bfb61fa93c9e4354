"""One grid: shards and cores partition the scene, and runs partition what is to do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, grids, todos

from tileseg.grid import Grid, Run, Shard, shard_size
from tileseg.window import Window

GOOD = {"height": 41, "width": 30, "tile": 8, "halo": 2, "shard": 12}


@given(grids())
def test_every_pixel_lies_in_exactly_one_shard(grid):
    count = np.zeros((grid.height, grid.width), dtype=int)
    for shard in Run(grid.shape):
        window = grid.pixels(shard)
        assert window == window.intersect(grid.scene)
        count[window.slices] += 1

    np.testing.assert_array_equal(1, count)


@given(grids())
def test_every_pixel_lies_in_exactly_one_core_and_every_core_has_some(grid):
    count = np.zeros((grid.height, grid.width), dtype=int)
    for core in unit_windows(grid.tiles):
        window = core.scale(grid.stride).intersect(grid.scene)
        assert window.size > 0
        count[window.slices] += 1

    np.testing.assert_array_equal(1, count)


@given(grids())
def test_every_core_lies_in_exactly_one_shard(grid):
    """A shard is whole cores: no tile belongs to two shards, none to no shard."""
    count = np.zeros((grid.tiles.height, grid.tiles.width), dtype=int)
    for shard in Run(grid.shape):
        cores = grid.cores(Run(Window(*shard, 1, 1)))
        pixels = cores.scale(grid.stride).intersect(grid.scene)
        assert grid.pixels(shard) == pixels
        count[cores.slices] += 1

    np.testing.assert_array_equal(1, count)


def unit_windows(box):
    rows = range(box.row, box.row_stop)
    return [Window(r, c, 1, 1) for r in rows for c in range(box.col, box.col_stop)]


@given(st.data())
def test_runs_cover_what_is_to_do_exactly_once(data):
    grid = data.draw(grids(most_shards=7))
    todo = data.draw(todos(grid))
    band, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))

    runs = grid.runs(todo, band=band, rows=rows)

    covered = [shard for run in runs for shard in run]
    assert sorted(todo) == sorted(covered)
    for run in runs:
        box = run.shards
        assert 1 <= box.height <= rows
        assert 1 <= box.width <= band
        assert box.col // band == (box.col_stop - 1) // band


@given(st.data())
def test_runs_of_everything_follow_each_other_down_each_band(data):
    grid = data.draw(grids(most_shards=7))
    band, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))

    runs = grid.runs(list(Run(grid.shape)), band=band, rows=rows)

    places = [(run.shards.col, run.shards.row) for run in runs]
    shape = grid.shape
    assert sorted(places) == places
    assert -(-shape.height // rows) * -(-shape.width // band) == len(runs)


@given(grids())
def test_a_run_covers_the_pixels_of_its_shards(grid):
    for run in grid.runs(list(Run(grid.shape)), band=2, rows=2):
        pixels = grid.pixels(run)

        assert pixels.size == sum(grid.pixels(shard).size for shard in run)
        for shard in run:
            assert grid.pixels(shard) == grid.pixels(shard).intersect(pixels)


@given(grids(), st.integers(0, 2))
def test_a_ring_adds_the_neighbouring_cores_of_the_scene(grid, ring):
    for run in grid.runs(list(Run(grid.shape)), band=1, rows=1):
        with_ring = grid.cores(run, ring=ring)

        assert grid.cores(run).pad(ring).intersect(grid.tiles) == with_ring


def test_a_run_lists_its_shards_in_row_major_order():
    run = Run(Window(2, 5, 2, 3))

    assert list(run) == [(2, 5), (2, 6), (2, 7), (3, 5), (3, 6), (3, 7)]


def test_a_shard_is_named_by_row_and_column():
    assert Shard(row=3, col=12).name == "3_12"


@pytest.mark.parametrize(
    ("tile", "halo", "shard", "block"),
    [
        (128, 16, 1536, 512),
        (128, 8, 3584, 512),
        (256, 32, 1536, 512),
        (512, 16, 3840, 256),
        (512, 64, 1536, 512),
        (512, 0, 1536, 512),
        (32, 4, 1536, 512),
    ],
)
def test_the_default_shard_is_whole_tiles_and_whole_blocks(tile, halo, shard, block):
    assert (shard, block) == shard_size(tile, halo)


@given(geometries(least=16, most=512, depth=4))
def test_a_default_shard_fits_or_is_refused(geometry):
    """The least common multiple of stride and block that is 1536 to 4096."""
    tile, halo = geometry
    stride = tile - 2 * halo
    fits = {
        block: [
            size
            for size in range(block, 4097, block)
            if size % stride == 0 and size >= 1536
        ]
        for block in (512, 256)
    }
    block = next((block for block, sizes in fits.items() if sizes), None)
    if block is None:
        with pytest.raises(ValueError, match=f"tile {tile} with halo {halo}"):
            shard_size(tile, halo)
        return

    assert (fits[block][0], block) == shard_size(tile, halo)


def test_a_geometry_without_a_shard_is_refused():
    """Stride 13 x 16 fits 13 blocks of 256; 17 x 16 would need 17 of them, 4352."""
    assert shard_size(240, 16) == (3328, 256)
    with pytest.raises(ValueError, match="stride 272"):
        shard_size(288, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "0 x 30"),
        ({"width": -3}, "41 x -3"),
        ({"halo": -1}, "halo -1"),
        ({"halo": 3}, "halo 3"),
        ({"tile": 0, "halo": 0}, "tile 0"),
        ({"tile": -8}, "tile -8"),
        ({"shard": 0}, "got 0"),
        ({"shard": 10}, "multiple of 4, got 10"),
        ({"shard": -12}, "got -12"),
    ],
)
def test_a_bad_geometry_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Grid(**{**GOOD, **change})
