"""The seam measure against a count of single pairs; what it says of masks one knows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_scene, random_pixels, read
from strategies import grids

from tileseg.cards.card import NODATA
from tileseg.grid import Run
from tileseg.job import run
from tileseg.plans.seams import Seams, add_up, look_at
from tileseg.settings import Job
from tileseg.window import Window


def pair_by_pair(labels, stride, shard):
    """Count what the measure counts of a scene's mask, one pair of pixels at a time."""
    inside = {stride * quarter // 4 for quarter in (1, 2, 3)} - {0}
    found = np.zeros(4, int)
    for axis in (0, 1):
        lines = np.moveaxis(labels, axis, 0)
        for below in range(1, len(lines)):
            if below % shard == 0 or below % stride not in {0, *inside}:
                continue
            for first, second in zip(lines[below - 1], lines[below], strict=True):
                if NODATA not in (first, second):
                    at = 2 * (below % stride != 0)
                    found[at] += 1
                    found[at + 1] += first != second
    return Seams(*found.tolist())


@st.composite
def parts(draw, grid):
    """Draw a part of a scene."""
    row = draw(st.integers(0, grid.height - 1))
    col = draw(st.integers(0, grid.width - 1))
    height = draw(st.integers(1, grid.height - row))
    return Window(row, col, height, draw(st.integers(1, grid.width - col)))


@given(st.data())
def test_the_parts_are_counted_as_the_pairs(data):
    """Of shards that the area asked for cuts anywhere, nodata in between."""
    whole = data.draw(grids())
    part = data.draw(parts(whole))
    grid = replace(whole, part=part)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.array([0, 1, 7, NODATA], np.uint8)
    labels = np.full((grid.height, grid.width), NODATA, np.uint8)
    labels[part.slices] = random.choice(values, (part.height, part.width))

    windows = map(grid.pixels, Run(grid.shape))
    found = add_up(
        look_at(labels[window.slices], window, grid.stride) for window in windows
    )

    assert found == pair_by_pair(labels, grid.stride, grid.shard)


@pytest.mark.parametrize("first", [(0, 0), (32, 64), (5, 17)])
def test_cores_that_know_nothing_of_each_other_show(first):
    """A class for each core: every change is at a border."""
    rows, cols = (np.arange(begin, begin + 96) // 32 for begin in first)
    labels = (5 * rows[:, None] + cols).astype(np.uint8)

    found = look_at(labels, Window(*first, 96, 96), 32)

    assert (found.border, found.inside, found.ratio) == (1, 0, None)


def test_noise_has_no_seams():
    labels = np.random.default_rng(0).integers(0, 3, (960, 480), np.uint8)

    found = look_at(labels, Window(0, 0, 960, 480), 24)

    assert found.border == pytest.approx(2 / 3, abs=0.01)
    assert found.ratio == pytest.approx(1, abs=0.02)


def test_a_run_says_it_of_its_mask(model_path, tmp_path):
    """Of the area asked for; the shards' parts added up."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(310, 250))
    job = Job(
        input=str(scene),
        model=str(model_path),
        trusted=True,
        output=str(tmp_path / "out"),
        shard=96,
    )

    record = run(job)

    assert record.error is None
    mask = read(tmp_path / "out" / "mask.tif")
    expected = pair_by_pair(mask, 24, 96)
    assert expected.border_changes
    assert record.values["seams"] == {
        "border": expected.border,
        "inside": expected.inside,
        "ratio": expected.ratio,
    }
