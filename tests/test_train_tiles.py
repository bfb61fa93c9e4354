"""Tiles drawn by window: what is in them, where they come from, and what they spare.

Scenes whose bands are row and column (from 1) say of every pixel where it lies.
"""

import numpy as np
import pytest
import rasterio
from making import NORTH_UP, make_scene
from rasterio.warp import calculate_default_transform, reproject
from test_evaluate import UTM, patchy, write, write_points

from tileseg.errors import InputError, UsageError
from tileseg.split import TRAINING, VALIDATION
from tileseg.survey import survey
from tileseg.team import Team
from tileseg.train_settings import Training
from tileseg.train_tiles import count_classes
from tileseg.window import Window

SHAPE = 211, 170
CLASSES = ("water", "land", "rock")


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path / "labels.tif", patchy(0, SHAPE))


def make_map(path, shape=SHAPE, dtype="uint16", **more):
    """Write a scene of rows and columns, with a hole of nodata."""
    pixels = np.indices(shape).astype(dtype) + 1
    pixels[:, 90:99, 20:60] = 0
    return str(make_scene(path, pixels, names=("row", "col"), **more))


@pytest.fixture
def training(tmp_path, labels):
    return Training(
        scenes=(make_map(tmp_path / "map.tif"),), labels=(labels,), unit="dn",
        to=str(tmp_path / "model"), tile=16, halo=4, block=32, jitter=0.0, depth=2,
    )  # fmt: skip


def places(found, tiles, labels):
    """Return rows, columns and labels of all labelled pixels of tiles."""
    mean, std = (np.array(x)[:, None] for x in (found.samples.mean, found.samples.std))
    is_known = labels != 255
    values = tiles.transpose(1, 0, 2, 3)[:, is_known] * std + mean
    rows, cols = np.rint(values).astype(int) - 1
    return rows, cols, labels[is_known]


def test_a_step_always_draws_the_same(training):
    """Whichever step was drawn before it: so a training can go on anywhere."""
    samples = survey(training, None).samples

    all_of_them = list(samples.batches(range(6), 3))

    for (tiles, labels), (again, same) in zip(
        all_of_them[4:], samples.batches(range(4, 6), 3), strict=True
    ):
        np.testing.assert_array_equal(tiles, again)
        np.testing.assert_array_equal(labels, same)
    assert (all_of_them[0][0] != all_of_them[1][0]).any()


def test_a_large_scene_does_not_drown_a_small_one(tmp_path):
    """Sixteen times the labels are drawn four times as often."""
    scenes, labels = [], []
    for name, side, value in (("dark", 66, 100), ("bright", 264, 900)):
        cols = np.indices((side, side))[1]
        pixels = np.stack([value + cols % 7] * 2).astype("uint16")
        scenes.append(str(make_scene(tmp_path / name, pixels, names=("a", "b"))))
        classes = (cols // 3 % 2).astype(np.uint8)
        labels.append(write(tmp_path / f"{name}.tif", classes, tags=("x", "y")))
    found = survey(
        Training(
            scenes=tuple(scenes), labels=tuple(labels), to="unused", unit="dn", tile=16,
            halo=4, block=32, validation=0.0, test=0.0,
        ),
        None,
    )  # fmt: skip

    tiles = np.concatenate([x for x, _ in found.samples.batches(range(100), 8)])

    is_dark = tiles.mean(axis=(1, 2, 3)) < 0
    assert is_dark.mean() == pytest.approx(0.2, abs=0.05)


def test_a_team_shares_out_the_batches_of_one_process(training):
    """Of each step some tiles of the batch, of what is judged some of the batches."""
    samples = survey(training, None).samples
    team = [Team(rank, 3) for rank in range(3)]

    (whole,) = samples.batches(range(7, 8), 5)
    parts = [next(samples.batches(range(7, 8), 5, one)) for one in team]

    for rank, part in enumerate(parts):
        for tiles, mine in zip(whole, part, strict=True):
            np.testing.assert_array_equal(tiles[rank::3], mine)
    batches = list(samples.judged(VALIDATION, 2, 11))
    assert len(batches) == 6
    for rank, one in enumerate(team):
        part = list(samples.judged(VALIDATION, 2, 11, one))
        for batch, mine in zip(batches[rank::3], part, strict=True):
            np.testing.assert_array_equal(batch[0], mine[0])
            np.testing.assert_array_equal(batch[1], mine[1])


def test_training_tiles_see_no_pixel_near_another_block_and_know_what_lies_there(
    training, labels
):
    """Turned, mirrored, at the edges of the scene too."""
    found = survey(training, None)
    parts = found.samples.split.parts[0].repeat(32, axis=0).repeat(32, axis=1)
    apart = {(-4, 0), (4, 0), (0, -4), (0, 4), (4, 4), (-4, -4)}
    truth = rasterio.open(labels).read(1)
    mean, std = (np.array(x)[:, None] for x in (found.samples.mean, found.samples.std))

    seen = 0
    for tiles, answers in found.samples.batches(range(40), 4):
        is_data = (tiles != 0).any(axis=1)
        values = tiles.transpose(1, 0, 2, 3)[:, is_data] * std + mean
        rows, cols = np.rint(values).astype(int) - 1
        for down, right in apart:
            there = (
                np.clip(rows + down, 0, SHAPE[0] - 1),
                np.clip(cols + right, 0, SHAPE[1] - 1),
            )
            assert (parts[there] == TRAINING).all()
        rows, cols, said = places(found, tiles, answers)
        np.testing.assert_array_equal(said, truth[rows, cols])
        seen += len(said)
    assert seen > 10_000


def test_ground_that_another_scene_keeps_is_not_trained_on(training, tmp_path, caplog):
    """A scene over it on another grid: rasterio says where its blocks lie."""
    height, width = SHAPE
    bounds = rasterio.transform.array_bounds(height, width, NORTH_UP)
    place, cols, rows = calculate_default_transform(
        UTM, "EPSG:4326", width, height, *bounds
    )
    turned = {"crs": "EPSG:4326", "transform": place}
    other = make_map(tmp_path / "other.tif", (rows, cols), **turned)
    known = write(
        tmp_path / "other_labels.tif", patchy(3, (rows, cols)), place=place,
        crs="EPSG:4326",
    )  # fmt: skip
    pair = {"scenes": (*training.scenes, other), "labels": (*training.labels, known)}

    samples = survey(Training(**{**facts(training), **pair}), None).samples

    assert caplog.text.count("on another grid") == 2
    boxes = [item.scene.geobox for item in samples.ground.places]
    lots, random = samples.split, np.random.default_rng(0)
    for here, there in ((0, 1), (1, 0)):
        held = np.kron(lots.parts[there] != TRAINING, np.ones((32, 32), np.uint8))
        kept = np.zeros((boxes[here].height, boxes[here].width), np.uint8)
        reproject(
            held[: boxes[there].height, : boxes[there].width], kept,
            src_transform=boxes[there].transform, src_crs=boxes[there].crs,
            dst_transform=boxes[here].transform, dst_crs=boxes[here].crs,
        )  # fmt: skip
        pixels = np.argwhere(kept == 0)[random.integers((kept == 0).sum(), size=300)]
        drawn = [lots.draw(here, tuple(at), 16, random) for at in pixels.tolist()]
        found = [window for window in drawn if window]
        assert len(found) > 20
        for window in found:
            near = window.pad(4).intersect(boxes[here].window)
            assert not kept[near.slices].any()
    assert len(list(samples.batches(range(2), 4))) == 2


def test_classes_are_sought_equally_often(training, tmp_path):
    """However rare: here one in a hundred pixels is of the third class."""
    rare = np.random.default_rng(0).random(SHAPE)
    values = np.where(rare < 0.01, 2, rare < 0.4).astype(np.uint8)
    rows, _ = np.indices(SHAPE)
    values[rows % 3 > 0] = 255
    path = write(tmp_path / "rare.tif", values)
    changed = Training(**{**facts(training), "labels": (path,), "tile": 4, "halo": 0})
    samples = survey(changed, None).samples

    (batch,) = samples.batches(range(1), 300)

    has_any = [(batch[1] == value).any(axis=(1, 2)).mean() for value in range(3)]
    assert has_any[2] > 0.3


def facts(training):
    return {name: getattr(training, name) for name in Training.__slots__}


def test_each_label_of_the_other_blocks_is_judged_once(training, labels):
    found = survey(training, None)
    parts = found.samples.split.parts[0].repeat(32, axis=0).repeat(32, axis=1)
    truth = rasterio.open(labels).read(1)
    hole = np.zeros(SHAPE, bool)
    hole[90:99, 20:60] = True
    asked = (parts[: SHAPE[0], : SHAPE[1]] == VALIDATION) & (truth != 255) & ~hole

    counts = np.zeros(SHAPE, int)
    for tiles, answers in found.samples.judged(VALIDATION, 5, 10_000):
        rows, cols, said = places(found, tiles, answers)
        np.add.at(counts, (rows, cols), 1)
        np.testing.assert_array_equal(said, truth[rows, cols])

    np.testing.assert_array_equal(counts, asked)


def test_so_many_tiles_are_judged_at_most_and_always_the_same(training):
    samples = survey(training, None).samples

    first, again = (list(samples.judged(VALIDATION, 4, 7)) for _ in range(2))

    assert [len(tiles) for tiles, _ in first] == [4, 3]
    np.testing.assert_array_equal(first[0][0], again[0][0])


@pytest.mark.parametrize("block", [16, 48, 1500])
def test_classes_are_counted_as_in_the_whole(training, labels, block):
    truth = rasterio.open(labels).read(1)
    with survey(training, None).samples.ground.open() as view:
        pixels = []
        counts = count_classes(view, 0, 3, block, pixels.append)

    assert sum(pixels) == truth.size
    for (row, col, value), count in np.ndenumerate(counts):
        at = Window(row, col, 1, 1).scale(block).slices
        assert count == (truth[at] == value).sum()


def test_values_of_several_sensors_meet_in_reflectance(tmp_path, labels):
    """Each by its own scale and offset; beyond the edge they are mirrored."""
    random = np.random.default_rng(0)
    stored = random.integers(1, 10_000, (1, *SHAPE)).astype("uint16")
    one = make_scene(tmp_path / "a.tif", stored, names=("red",), offset=-0.1)
    other = (stored * 1e-4 - 0.1 - 0.5) / 2e-3
    two = make_scene(
        tmp_path / "b.tif", other.astype("float32"), names=("red",), scale=2e-3,
        offset=0.5, nodata=None,
    )  # fmt: skip
    training = Training(
        scenes=(str(one), str(two)), labels=(labels, labels), to=str(tmp_path / "m"),
        tile=16, halo=4, block=32,
    )  # fmt: skip
    found = survey(training, None)
    window = Window(-5, 160, 20, 24)

    with found.samples.ground.open() as view:
        (first, valid), (second, also) = (view.pixels(n, window) for n in (0, 1))

    expected = stored[:, :15, 160:170] * 1e-4 - 0.1
    np.testing.assert_allclose(first[:, 5:, :10], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_array_equal(first[:, 4::-1], first[:, 5:10])
    np.testing.assert_array_equal(first[:, :, 19:9:-1], first[:, :, :10])
    assert valid.all()
    assert also.all()
    np.testing.assert_array_equal(*found.samples.split.parts)


def test_statistics_are_those_of_the_training_blocks(training):
    found = survey(training, None)
    parts, counts = found.samples.split.parts[0], found.samples.counts[0]
    is_used = (parts == TRAINING) & (counts.sum(axis=2) > 0)
    pixels = is_used.repeat(32, axis=0).repeat(32, axis=1)[: SHAPE[0], : SHAPE[1]]
    pixels = pixels.copy()
    pixels[90:99, 20:60] = False

    for band, values in zip(found.statistics, np.indices(SHAPE) + 1, strict=True):
        seen = values[pixels]
        assert band.count == pixels.sum()
        assert band.mean == pytest.approx(seen.mean(), rel=1e-5)
        assert band.std == pytest.approx(seen.std(), rel=1e-5)
        expected = np.percentile(seen, [1, 5, 25, 50, 75, 95, 99])
        np.testing.assert_allclose(band.quantiles, expected, 1e-5)


def test_classes_are_those_that_the_labels_name(training):
    assert tuple(name for name, _ in survey(training, None).classes) == CLASSES


def test_labels_may_be_points(training, tmp_path):
    random = np.random.default_rng(0)
    at = {tuple(random.integers(SHAPE)) for _ in range(300)}
    named = [(row, col, CLASSES[(row + col) % 3]) for row, col in at]
    points = write_points(tmp_path / "points.json", named)
    changed = Training(**{**facts(training), "labels": (points,), "classes": CLASSES})

    samples = survey(changed, None).samples

    assert sum(some.sum() for some in samples.counts) == len(at)
    with samples.ground.open() as view:
        labels = view.labels(0, Window(-3, 0, SHAPE[0] + 3, SHAPE[1]))
    expected = np.full(SHAPE, 255)
    for row, col, name in named:
        expected[row, col] = CLASSES.index(name)
    np.testing.assert_array_equal(labels[3:], expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "reflectance", "scale": None}, "scale and offset tags"),
        ({"classes": ("water", "land")}, "class 'rock' is not"),
        ({"classes": (*CLASSES, "ice")}, "no labels of class 'ice'"),
        ({"bands": ("row", "nir")}, "no band 'nir'"),
        ({"block": 512}, "1 blocks, too few"),
    ],
)
def test_what_does_not_fit_is_said(training, tmp_path, changes, words):
    scale = changes.pop("scale", 1e-4)
    scene = make_map(tmp_path / "other.tif", scale=scale)
    changed = Training(**{**facts(training), "scenes": (scene,), **changes})

    with pytest.raises(UsageError, match=words):
        survey(changed, None)


def test_a_missing_scene_or_label_is_an_input_error(training, tmp_path):
    for name in ("scenes", "labels"):
        lost = {**facts(training), name: (str(tmp_path / "no.tif"),)}
        with pytest.raises(InputError, match=r"no\.tif"):
            survey(Training(**lost), None)


def test_labels_that_are_numbers_only_need_names(training, tmp_path):
    """255 is nothing, on the scene's grid; the names are in the values' order."""
    truth = patchy(0, SHAPE)
    path = write(tmp_path / "plain.tif", truth, tags=(), nodata=None)
    plain = {**facts(training), "labels": (path,)}

    with pytest.raises(UsageError, match=r"names 0 classes.*--classes"):
        survey(Training(**plain), None)
    found = survey(Training(**{**plain, "classes": ("a=ff0000", "b", "c")}), None)

    assert found.classes[0] == ("a", "ff0000")
    counts = found.samples.counts[0].sum(axis=(0, 1))
    np.testing.assert_array_equal(counts, [(truth == n).sum() for n in range(3)])


def test_classes_may_be_called_otherwise(training):
    """Two become one, a third counts for nothing."""
    renamed = ("rock=land", "water=255")
    changed = Training(
        **{**facts(training), "renamed": renamed, "classes": ("ice=ffffff", "land")}
    )

    with pytest.raises(UsageError, match="no labels of class 'ice'"):
        survey(changed, None)


def test_labels_elsewhere_are_refused(training, tmp_path):
    far = write(
        tmp_path / "far.tif", patchy(0, SHAPE), place=NORTH_UP.translation(9e6, 0)
    )

    with pytest.raises(UsageError, match="says nothing of any pixel"):
        survey(Training(**{**facts(training), "labels": (far,)}), None)
