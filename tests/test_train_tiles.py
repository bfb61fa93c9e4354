"""Tiles drawn by window: what is in them, where they come from, and what they spare.

Scenes whose bands are row and column (from 1) say of every pixel where it lies.
"""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from making import NORTH_UP, make_scene
from rasterio.warp import calculate_default_transform, reproject
from test_evaluate import UTM, patchy, write, write_points

from tileseg.cards.drift import statistics_of
from tileseg.errors import InputError, UsageError
from tileseg.stores.storage import Disk
from tileseg.training.split import TRAINING, VALIDATION, Split
from tileseg.training.survey import _scaling, _statistics, survey
from tileseg.training.team import Team
from tileseg.training.train_ground import count_classes
from tileseg.training.train_settings import Training
from tileseg.training.train_tiles import _Lots
from tileseg.window import Window

SHAPE = 211, 170
HOLE = slice(90, 99), slice(20, 60)
CLASSES = ("water", "land", "rock")


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path / "labels.tif", patchy(0, SHAPE))


def looked_at(training):
    return survey(training.settled(), None, Disk(training.work))


def make_map(path, shape=SHAPE, dtype="uint16", **more):
    """Write a scene of rows and columns, with a hole of nodata."""
    pixels = np.indices(shape).astype(dtype) + 1
    pixels[:, *HOLE] = 0
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
    samples = looked_at(training).samples

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
    found = looked_at(
        Training(
            scenes=tuple(scenes), labels=tuple(labels), to="unused", unit="dn", tile=16,
            halo=4, block=32, validation=0.0, test=0.0,
        ),
    )  # fmt: skip

    tiles = np.concatenate([x for x, _ in found.samples.batches(range(100), 8)])

    is_dark = tiles.mean(axis=(1, 2, 3)) < 0
    assert is_dark.mean() == pytest.approx(0.2, abs=0.05)


def test_a_team_shares_out_the_batches_of_one_process(training):
    """Of each step some tiles of the batch, of what is judged some of the batches."""
    samples = looked_at(training).samples
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
    found = looked_at(training)
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


def test_tiles_are_drawn_where_the_scene_has_data(training, tmp_path):
    """Labels that cover the file's empty half too would give tiles of nothing."""
    pixels = np.indices(SHAPE).astype("uint16") + 1
    pixels[:, :, 80:] = 0
    scene = str(make_scene(tmp_path / "half.tif", pixels, names=("row", "col")))
    changed = Training(**{**facts(training), "scenes": (scene,)})

    ((tiles, labels),) = looked_at(changed).samples.batches(range(1), 60)

    assert (tiles != 0).any(axis=(1, 2, 3)).all()
    assert (labels != 255).any(axis=(1, 2)).all()


def test_labels_where_the_scene_has_no_data_count_for_no_share(training, tmp_path):
    """Else the half of a file that a swath leaves empty might be all that is judged."""
    pixels = np.indices(SHAPE).astype("uint16") + 1
    pixels[:, :, 64:] = 0  # a border of blocks
    scene = str(make_scene(tmp_path / "half.tif", pixels, names=("row", "col")))
    known = patchy(0, SHAPE)
    known[:, 64:] = 255
    labels = write(tmp_path / "known.tif", known)

    all_of_it, what_has_data = (
        looked_at(replace(training, scenes=(scene,), labels=(it,)))
        for it in (*training.labels, labels)
    )

    assert all_of_it.labelled() == what_has_data.labelled()
    np.testing.assert_array_equal(
        all_of_it.samples.split.parts, what_has_data.samples.split.parts
    )


def test_a_class_without_data_is_refused(training, tmp_path):
    pixels = np.indices(SHAPE).astype("uint16") + 1
    pixels[:, patchy(0, SHAPE) == CLASSES.index("rock")] = 0
    scene = str(make_scene(tmp_path / "bare.tif", pixels, names=("row", "col")))

    with pytest.raises(UsageError, match="no labels of class 'rock' where a scene has"):
        looked_at(replace(training, scenes=(scene,)))


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

    samples = looked_at(Training(**{**facts(training), **pair})).samples

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


def test_a_class_that_could_never_be_drawn_is_refused(training, tmp_path):
    """All of it lies in one block of a scene on another grid, held back or not."""
    truth, there = patchy(0, SHAPE), patchy(1, (96, 96))
    truth[truth == 2], there[there == 2] = 0, 0
    truth[76:86, 76:86] = 2
    place = NORTH_UP @ Affine.translation(40.5, 40.5)
    other = make_map(tmp_path / "other.tif", (96, 96), transform=place)
    labels = (
        write(tmp_path / "rock.tif", truth),
        write(tmp_path / "none.tif", there, place=place),
    )
    pair = {**facts(training), "scenes": (*training.scenes, other), "labels": labels}
    refused = []

    for seed in range(9):
        try:
            samples = looked_at(Training(**{**pair, "seed": seed})).samples
        except UsageError as err:
            refused.append(str(err))
        else:
            ((_, drawn),) = samples.batches(range(1), 40)
            assert (drawn == 2).any()

    assert 0 < len(refused) < 9
    for text in refused:
        assert "class 'rock': all its labels" in text
        assert "--seed" in text


def test_the_card_knows_the_pixels_of_the_scene_in_the_middle_and_the_range(
    training, tmp_path
):
    scenes, labels = [], []
    for side in (6, 1, 3):
        place = NORTH_UP @ Affine.scale(side)
        scenes.append(make_map(tmp_path / f"{side}.tif", (64, 70), transform=place))
        known = patchy(side, (64, 70))
        labels.append(write(tmp_path / f"{side}_labels.tif", known, place=place))
    several = {"scenes": tuple(scenes), "labels": tuple(labels), "test": 0.0}

    found = looked_at(Training(**{**facts(training), **several}))

    assert (found.gsd, found.gsd_range) == (30, (10, 60))
    assert looked_at(training).gsd_range is None


def test_classes_are_sought_equally_often(training, tmp_path):
    """However rare: here one in a hundred pixels is of the third class."""
    rare = np.random.default_rng(0).random(SHAPE)
    values = np.where(rare < 0.01, 2, rare < 0.4).astype(np.uint8)
    rows, _ = np.indices(SHAPE)
    values[rows % 3 > 0] = 255
    path = write(tmp_path / "rare.tif", values)
    changed = Training(**{**facts(training), "labels": (path,), "tile": 4, "halo": 0})
    samples = looked_at(changed).samples

    (batch,) = samples.batches(range(1), 300)

    has_any = [(batch[1] == value).any(axis=(1, 2)).mean() for value in range(3)]
    assert has_any[2] > 0.3


def facts(training):
    return {name: getattr(training, name) for name in Training.__slots__}


def test_each_label_of_the_other_blocks_is_judged_once(training, labels):
    found = looked_at(training)
    parts = found.samples.split.parts[0].repeat(32, axis=0).repeat(32, axis=1)
    truth = rasterio.open(labels).read(1)
    truth[HOLE] = 255
    asked = (parts[: SHAPE[0], : SHAPE[1]] == VALIDATION) & (truth != 255)

    counts = np.zeros(SHAPE, int)
    for tiles, answers in found.samples.judged(VALIDATION, 5, 10_000):
        rows, cols, said = places(found, tiles, answers)
        np.add.at(counts, (rows, cols), 1)
        np.testing.assert_array_equal(said, truth[rows, cols])

    np.testing.assert_array_equal(counts, asked)


def test_so_many_tiles_are_judged_at_most_and_always_the_same(training):
    samples = looked_at(training).samples

    first, again = (list(samples.judged(VALIDATION, 4, 7)) for _ in range(2))

    assert [len(tiles) for tiles, _ in first] == [4, 3]
    np.testing.assert_array_equal(first[0][0], again[0][0])


@pytest.mark.parametrize("block", [16, 48, 1500])
def test_classes_are_counted_as_in_the_whole(training, labels, block):
    """Where the scene has data: nothing else can be learnt from or judged."""
    truth = rasterio.open(labels).read(1)
    truth[HOLE] = 255
    with looked_at(training).samples.ground.open() as view:
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
    found = looked_at(training)
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


def test_a_scale_that_is_given_goes_before_the_tags(training, tmp_path, caplog):
    """What the files say otherwise is told; values are as if they had said it."""
    tagged, plain, other = (
        make_map(tmp_path / f"{name}.tif", scale=scale, offset=offset)
        for name, scale, offset in (
            ("tagged", 2e-3, 0.5), ("plain", None, 0.0), ("other", 1e-4, 0.0),
        )
    )  # fmt: skip
    asked = replace(training, unit="reflectance", scenes=(tagged,))

    found = looked_at(asked)
    assert not caplog.messages
    given = [
        looked_at(replace(asked, scenes=(scene,), scale=2e-3, offset=0.5))
        for scene in (plain, tagged, other)
    ]

    for one in given:
        assert one.statistics == found.statistics
        assert one.samples.mean == found.samples.mean
    assert len({found.key, *(one.key for one in given)}) == 4
    words = "band 1 says scale 0.0001 and offset 0, but 0.002 and 0.5 are given"
    assert [words in text for text in caplog.messages] == [True, False]


def test_values_that_are_reflectance_need_a_scale_of_one(training):
    stored = looked_at(training)

    found = looked_at(replace(training, unit="reflectance", scale=1.0))

    assert found.statistics == stored.statistics


def test_statistics_are_those_of_the_training_blocks(training):
    found = looked_at(training)
    parts, counts = found.samples.split.parts[0], found.samples.counts[0]
    is_used = (parts == TRAINING) & (counts.sum(axis=2) > 0)
    pixels = is_used.repeat(32, axis=0).repeat(32, axis=1)[: SHAPE[0], : SHAPE[1]]
    pixels = pixels.copy()
    pixels[HOLE] = False

    for band, values in zip(found.statistics, np.indices(SHAPE) + 1, strict=True):
        seen = values[pixels]
        assert band.count == pixels.sum()
        assert band.mean == pytest.approx(seen.mean(), rel=1e-5)
        assert band.std == pytest.approx(seen.std(), rel=1e-5)
        expected = np.percentile(seen, [1, 5, 25, 50, 75, 95, 99])
        np.testing.assert_allclose(band.quantiles, expected, 1e-5)


def test_values_are_scaled_as_the_scene_in_the_middle_asks(training):
    """A scene in which a band is flat says nothing of how far that spreads."""
    scenes = [
        np.array([[0, 2], [5, 5]], np.float32),
        np.array([[100, 104], [0, 6]], np.float32),
        np.array([[10, 16], [7, 7]], np.float32),
    ]

    each = [tuple(map(statistics_of, some)) for some in scenes]
    mean, std = _scaling(training, None, _statistics(("a", "b"), scenes), each)

    assert mean == (13, 5)
    assert std == (2, 3)


def test_tiles_are_drawn_of_a_scene_as_often_as_its_weight_says():
    """Of each class; without weights alike."""
    counts = (np.full((2, 3, 2), 50), np.full((3, 1, 2), 100))
    parts = tuple(np.full(some.shape[:2], TRAINING, np.uint8) for some in counts)
    closed = (np.empty((0, 4), np.int64),) * 2
    split = Split(32, 0, parts, closed)

    def shares(weights):
        lots, random = _Lots(split, counts, weights), np.random.default_rng(0)
        drawn = [lots.draw(random) for _ in range(4_000)]
        scenes = np.array([[value, place] for value, (place, _, _) in drawn])
        return [scenes[scenes[:, 0] == value, 1].mean() for value in (0, 1)]

    assert shares(()) == pytest.approx([0.5, 0.5], abs=0.05)
    assert shares((1.0, 3.0)) == pytest.approx([0.75, 0.75], abs=0.05)


def test_classes_are_those_that_the_labels_name(training):
    assert tuple(name for name, _ in looked_at(training).classes) == CLASSES


def test_labels_may_be_points(training, tmp_path):
    random = np.random.default_rng(0)
    at = {tuple(random.integers(SHAPE)) for _ in range(300)}
    hole = np.zeros(SHAPE, bool)
    hole[HOLE] = True
    at = {place for place in at if not hole[place]}
    named = [(row, col, CLASSES[(row + col) % 3]) for row, col in at]
    points = write_points(tmp_path / "points.json", named)
    changed = Training(**{**facts(training), "labels": (points,), "classes": CLASSES})

    samples = looked_at(changed).samples

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
        ({"unit": "reflectance", "scale": 0.0}, "scale 0 and offset 0 .* tags"),
        ({"unit": "reflectance", "scale": np.inf}, "scale inf and offset 0 .* tags"),
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
        looked_at(changed)


def test_a_missing_scene_or_label_is_an_input_error(training, tmp_path):
    for name in ("scenes", "labels"):
        lost = {**facts(training), name: (str(tmp_path / "no.tif"),)}
        with pytest.raises(InputError, match=r"no\.tif"):
            looked_at(Training(**lost))


def test_labels_that_are_numbers_only_need_names(training, tmp_path):
    """255 is nothing, on the scene's grid; the names are in the values' order."""
    truth = patchy(0, SHAPE)
    path = write(tmp_path / "plain.tif", truth, tags=(), nodata=None)
    plain = {**facts(training), "labels": (path,)}

    with pytest.raises(UsageError, match=r"names 0 classes.*--classes"):
        looked_at(Training(**plain))
    found = looked_at(Training(**{**plain, "classes": ("a=ff0000", "b", "c")}))

    assert found.classes[0] == ("a", "ff0000")
    truth[HOLE] = 255
    counts = found.samples.counts[0].sum(axis=(0, 1))
    np.testing.assert_array_equal(counts, [(truth == n).sum() for n in range(3)])


def test_classes_may_be_called_otherwise(training):
    """Two become one, a third counts for nothing."""
    renamed = ("rock=land", "water=255")
    changed = Training(
        **{**facts(training), "renamed": renamed, "classes": ("ice=ffffff", "land")}
    )

    with pytest.raises(UsageError, match="no labels of class 'ice'"):
        looked_at(changed)


def test_labels_elsewhere_are_refused(training, tmp_path):
    far = write(
        tmp_path / "far.tif", patchy(0, SHAPE), place=NORTH_UP.translation(9e6, 0)
    )

    with pytest.raises(UsageError, match="says nothing of any pixel"):
        looked_at(Training(**{**facts(training), "labels": (far,)}))
