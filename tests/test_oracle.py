"""Reader, Predictor and Fold together against an oracle in integers."""

from dataclasses import dataclass, replace

import numpy as np
import oracle
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import lively, make_card, make_plain
from strategies import cuts, grids

from tileseg.errors import ModelError
from tileseg.grid import Grid, Run
from tileseg.network.blend import Blend
from tileseg.network.device import resolve_device
from tileseg.network.model import Network
from tileseg.network.predict import Predictor, Scaling
from tileseg.network.unet import UNet
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene

NODATA_LAYOUTS = ("none", "all", "rectangles", "checker", "stripes", "pixels")
# dtype, nodata tag, (least, greatest) measurement
STORED = (
    ("uint8", 0, (1, 7)),
    ("int16", -9, (-3, 4)),
    ("float32", -9.0, (-3, 4)),
    ("float32", None, (-3, 4)),
    ("float32", float("nan"), (-3, 4)),
)
BLOCKS = (
    {"tiled": True, "blockxsize": 16, "blockysize": 16},
    {"tiled": True, "blockxsize": 32, "blockysize": 16},
    {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band"},
    {"blockysize": 1},
    {"blockysize": 7, "interleave": "band"},
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scene, a network and everything the oracle says about them."""

    grid: Grid
    blend: str
    pixels: np.ndarray
    """(bands, height, width) as stored."""
    nodata: float | None
    valid: np.ndarray
    scaling: Scaling
    weights: dict
    sums: np.ndarray
    totals: np.ndarray

    @property
    def labels(self):
        return oracle.labels(self.sums, self.valid)

    @property
    def confidence(self):
        return oracle.confidence(self.sums, self.totals, self.valid)

    @property
    def scaled(self):
        """The network's integer input, (bands, height, width), 0 where invalid."""
        return scaled(self.pixels, self.valid, self.scaling)


def scaled(pixels, valid, scaling):
    values = np.where(valid, pixels, 0).astype(np.int64)
    gain, bias = (
        np.array(part, dtype=np.int64)[:, None, None]
        for part in (scaling.gain, scaling.bias)
    )
    return np.where(valid, values * gain + bias, 0)


def invalid_pixels(layout, random, height, width):
    """Return True, (height, width), where a scene shall hold nodata."""
    invalid = np.zeros((height, width), dtype=bool)
    rows, cols = np.indices(invalid.shape)
    period = int(random.integers(1, 9))
    if layout == "all":
        invalid[:] = True
    elif layout == "rectangles":
        for _ in range(int(random.integers(1, 7))):
            row, col = random.integers(0, (height, width))
            high, wide = random.integers(1, (height + 1, width + 1))
            invalid[row : row + high, col : col + wide] = True
    elif layout == "checker":
        invalid = (rows // period + cols // period) % 2 == 0
    elif layout == "stripes":
        along = rows if random.random() < 0.5 else cols
        invalid = along // period % 2 == 0
    elif layout == "pixels":
        invalid = random.random(invalid.shape) < random.random()
    return invalid


def make_case(grid, seed, *, blend="crop", layout="none", bands=1, outputs=3, width=1):
    """Draw pixels and weights; ask the oracle."""
    random = np.random.default_rng(seed)
    dtype, nodata, (least, greatest) = STORED[random.integers(len(STORED))]
    shape = (bands, grid.height, grid.width)
    pixels = random.integers(least, greatest, shape).astype(dtype)
    invalid = invalid_pixels(layout, random, grid.height, grid.width)
    where = invalid & (random.random(shape) < 0.5)
    where[random.integers(bands)] |= invalid & ~where.any(axis=0)
    if dtype == "float32":
        ways = [np.nan, np.inf, -np.inf] + [nodata] * (nodata is not None)
        pixels[where] = random.choice(ways, int(where.sum()))
    else:
        pixels[where] = nodata
    scaling = Scaling(
        tuple(random.choice([1.0, 1.0, 2.0, -1.0], bands).tolist()),
        tuple(random.choice([0.0, 0.0, 1.0, -2.0], bands).tolist()),
    )
    tiles = oracle.cut_tiles(scaled(pixels, ~invalid, scaling), grid.tile, grid.halo)
    weights, logits = tame_network(random, tiles, outputs, width)
    profile = oracle.profile(blend, grid.tile, grid.halo)
    sums, totals = oracle.blended(logits, shape[1:], profile, grid.halo)
    return Case(
        grid=grid,
        blend=blend,
        pixels=pixels,
        nodata=nodata,
        valid=~invalid,
        scaling=scaling,
        weights=weights,
        sums=sums,
        totals=totals,
    )


def tame_network(random, tiles, outputs, width):
    """Draw integer weights whose logits stay below 256, and return both.

    Biases put the logits about 0, and dull networks are drawn again, so that in most
    scenes of more than a few pixels several classes win somewhere.
    """
    rows, columns, bands = tiles.shape[:3]
    flat = tiles.reshape(rows * columns, *tiles.shape[2:])
    for fan in (4, 4, 3, 3, 2, 2, 1, 0):
        weights = oracle.integer_weights(
            random, bands=bands, outputs=outputs, width=width, fan=fan
        )
        logits = oracle.unet(weights, flat)
        center = np.quantile(logits, random.random(), axis=(0, 2, 3)).astype(np.int64)
        weights["final_conv.bias"] -= center
        logits -= center[:, None, None]
        is_lively = len(np.unique(oracle.labels(logits.swapaxes(0, 1), True))) > 1
        if abs(logits).max() < 256 and is_lively:
            break
    assert abs(logits).max() < 256, "fp32 sums are exact"
    return weights, logits.reshape(rows, columns, *logits.shape[1:])


def make_network(case, kind=Network):
    """Return the real network that carries the case's integer weights."""
    outputs, width = case.weights["final_conv.weight"].shape[:2]
    bands = len(case.pixels)
    card = make_card(
        outputs=outputs,
        bands=[f"band {index}" for index in range(bands)],
        tile=case.grid.tile,
        halo=case.grid.halo,
        width=width,
        depth=1,
    )
    module = UNet(bands, outputs, width=width, depth=1)
    module.load_state_dict(
        {name: torch.tensor(value).float() for name, value in case.weights.items()}
    )
    return kind(card, module, resolve_device("cpu", "fp32"))


def make_predictor(case, *, batch=3, network=None):
    blend = Blend(case.grid.stride, case.grid.halo, case.blend)
    network = network or make_network(case)
    return Predictor(network, case.grid, blend, case.scaling, batch=batch)


def segment(case, path, predictor, runs):
    """Return labels and confidence of the whole scene, put together from runs."""
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, case.grid)
    shape = (case.grid.height, case.grid.width)
    labels, confidence = (np.full(shape, 254, dtype=np.uint8) for _ in range(2))
    times_seen = np.zeros(shape, dtype=int)
    ring = Blend(case.grid.stride, case.grid.halo, case.blend).ring
    for run in runs:
        window = case.grid.pixels(run)
        row = window.row
        strips = reader.strips(run, ring=ring)
        for part in predictor.rows(run, strips, layers=("confidence",)):
            box = replace(window, row=row, height=len(part.labels))
            labels[box.slices], confidence[box.slices] = part.labels, part.confidence
            times_seen[box.slices] += 1
            row = box.row_stop
    np.testing.assert_array_equal(np.ones(shape), times_seen)
    return labels, confidence


class CountingNetwork(Network):
    """Keeps what it was asked: every batch of tiles."""

    def __init__(self, *facts):
        super().__init__(*facts)
        self.batches = []

    def __call__(self, tiles_NBTT):
        self.batches.append(tiles_NBTT.numpy().copy())
        return super().__call__(tiles_NBTT)


def whole(grid):
    """Return one run that covers the scene."""
    return [Run(grid.shape)]


def assert_as_the_oracle_says(case, labels, confidence):
    """Labels are equal; confidence is within one step, and 255 in the same places."""
    np.testing.assert_array_equal(case.labels, labels)
    np.testing.assert_array_equal(case.confidence == 255, confidence == 255)
    assert np.abs(case.confidence.astype(int) - confidence).max() <= 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Keep torch from waking threads for tiles of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("oracle")


def scenes(count):
    """Let a test be about so many scenes, the same ones each time."""
    slow = [HealthCheck.too_slow, HealthCheck.large_base_example]
    return settings(max_examples=count, derandomize=True, suppress_health_check=slow)


def check_scene(data, folder):
    grid = data.draw(grids())
    case = make_case(
        grid,
        data.draw(st.integers(0, 1 << 32), label="seed"),
        blend=data.draw(st.sampled_from(["crop", "cosine"]), label="blend"),
        layout=data.draw(st.sampled_from(NODATA_LAYOUTS), label="nodata"),
        bands=data.draw(st.integers(1, 2), label="bands"),
        outputs=data.draw(st.sampled_from([1, 3]), label="outputs"),
        width=data.draw(st.integers(1, 2), label="width"),
    )
    blocks = data.draw(st.sampled_from(BLOCKS), label="blocks")
    path = make_plain(folder / "scene.tif", case.pixels, nodata=case.nodata, **blocks)
    predictor = make_predictor(case, batch=data.draw(st.integers(1, 7), label="batch"))

    labels, confidence = segment(case, path, predictor, data.draw(cuts(grid)))

    assert_as_the_oracle_says(case, labels, confidence)


@given(data=st.data())
@scenes(250)
def test_labels_are_the_oracles_however_the_scene_is_cut(data, folder):
    """Runs, their order, batches, blocks and nodata change no label."""
    check_scene(data, folder)


@pytest.mark.slow
@given(data=st.data())
@scenes(750)
def test_labels_of_many_more_scenes_are_the_oracles(data, folder):
    check_scene(data, folder)


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 300), (127, 129), (128, 127), (129, 128), (1537, 140)],
)
def test_real_tiles_give_the_oracles_labels_and_confidence(
    height, width, blend, folder
):
    """Tile 128, halo 16, shards of 1536: sizes round one tile and round one shard."""
    grid = Grid(height=height, width=width, tile=128, halo=16, shard=1536)
    case = make_case(grid, height, blend=blend, layout="rectangles", bands=2, width=2)
    path = make_plain(
        folder / "scene.tif",
        case.pixels,
        nodata=case.nodata,
        tiled=True,
        blockxsize=512,
        blockysize=512,
    )

    labels, confidence = segment(case, path, make_predictor(case), whole(grid))

    assert_as_the_oracle_says(case, labels, confidence)
    by_shard = [
        run for row in whole(grid) for run in grid.runs(set(row), band=1, rows=1)
    ]
    again, _ = segment(case, path, make_predictor(case, batch=5), reversed(by_shard))
    np.testing.assert_array_equal(case.labels, again)


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("layout", NODATA_LAYOUTS)
@pytest.mark.parametrize(("height", "width"), [(61, 45), (1, 70), (37, 12)])
def test_only_needed_tiles_are_forwarded(height, width, layout, blend, folder):
    """The network sees, row by row, just the tiles with a valid pixel at weight > 0."""
    grid = Grid(height=height, width=width, tile=16, halo=4, shard=16)
    case = make_case(grid, 7 * height, blend=blend, layout=layout, bands=2)
    path = make_plain(folder / "scene.tif", case.pixels, nodata=case.nodata)
    network = make_network(case, CountingNetwork)
    predictor = make_predictor(case, batch=1, network=network)
    profile = oracle.profile(blend, grid.tile, grid.halo)
    needed = oracle.needed(case.valid, profile, grid.halo)
    tiles = oracle.cut_tiles(case.scaled, grid.tile, grid.halo)

    labels, _ = segment(case, path, predictor, whole(grid))

    forwarded = np.concatenate([tiles[:0, 0], *network.batches])
    np.testing.assert_array_equal(tiles[needed], forwarded)
    np.testing.assert_array_equal(case.labels, labels)
    assert needed.sum() == predictor.tiles
    assert (~needed).sum() == predictor.tiles_skipped


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_every_batch_has_the_same_shape(batch, folder):
    """The last batch of a run is filled with zeros."""
    grid = Grid(height=61, width=45, tile=16, halo=4, shard=16)
    case = make_case(grid, 3, layout="rectangles")
    path = make_plain(folder / "scene.tif", case.pixels, nodata=case.nodata)
    network = make_network(case, CountingNetwork)
    predictor = make_predictor(case, batch=batch, network=network)

    segment(case, path, predictor, whole(grid))

    assert {(batch, 1, 16, 16)} == {tiles.shape for tiles in network.batches}
    assert -(-predictor.tiles // batch) == len(network.batches)
    assert np.abs(network.batches[-1][predictor.tiles % batch or batch :]).sum() == 0


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("layout", ["rectangles", "checker", "pixels"])
def test_values_under_nan_change_nothing(layout, blend, folder):
    """NaN, Inf and nodata are one and the same hole."""
    grid = Grid(height=53, width=31, tile=16, halo=4, shard=24)
    case = make_case(grid, 5, blend=blend, layout=layout, outputs=1)
    answers = []
    for hole in (np.nan, np.inf, -np.inf, -9999.0, 3e38):
        pixels = np.where(case.valid, case.pixels, hole).astype("float32")
        nodata = hole if np.isfinite(hole) else None
        path = make_plain(folder / "scene.tif", pixels, nodata=nodata)
        answers.append(segment(case, path, make_predictor(case), whole(grid)))

    for labels, confidence in answers:
        assert_as_the_oracle_says(case, labels, confidence)
        np.testing.assert_array_equal(answers[0][1], confidence)


@pytest.mark.parametrize("layout", ["rectangles", "checker", "pixels"])
def test_values_under_an_internal_mask_change_nothing(layout, folder):
    """Where the mask says 0, the stored pixels could be anything."""
    grid = Grid(height=53, width=31, tile=16, halo=4, shard=24)
    case = make_case(grid, 11, blend="cosine", layout=layout, bands=2)
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, case.pixels.shape)
    answers = []
    for hidden in (np.zeros_like(noise), noise):
        pixels = np.where(case.valid, np.nan_to_num(case.pixels), hidden)
        path = make_plain(folder / "scene.tif", pixels.astype("int16"))
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "r+") as dataset,
        ):
            dataset.write_mask(case.valid)
        answers.append(segment(case, path, make_predictor(case), whole(grid)))

    for labels, confidence in answers:
        assert_as_the_oracle_says(case, labels, confidence)
        np.testing.assert_array_equal(answers[0][1], confidence)


def test_a_network_that_gives_nan_is_refused_by_tile(folder):
    """Exit 7, naming the first tile; nothing is labelled from NaN."""
    grid = Grid(height=20, width=40, tile=16, halo=4, shard=24)
    case = make_case(grid, 2)
    path = make_plain(folder / "scene.tif", case.pixels)
    case.weights["final_conv.bias"] = np.array([0, np.nan, 0])

    with pytest.raises(
        ModelError, match=r"NaN or Inf for tile \(row 0, column 0\)"
    ) as caught:
        segment(case, path, make_predictor(case), whole(grid))

    assert caught.value.exit_code == 7


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("seed", range(3))
def test_cutting_changes_no_bit_of_a_real_networks_answer(seed, blend, folder):
    """fp32 sums run in row-major tile order, whatever the runs and batches."""
    grid = Grid(height=141, width=97, tile=32, halo=8, shard=32)
    case = make_case(grid, seed, blend=blend, layout="rectangles", bands=2, width=4)
    path = make_plain(folder / "scene.tif", case.pixels, nodata=case.nodata)
    network = make_network(case)
    torch.manual_seed(seed)
    lively(network._forward)  # plain: the module itself
    shards = list(Run(grid.shape))
    np.random.default_rng(seed).shuffle(shards)
    parts = [run for shard in shards for run in grid.runs([shard], band=1, rows=1)]

    labels, confidence = segment(
        case, path, make_predictor(case, batch=4, network=network), whole(grid)
    )
    again = segment(case, path, make_predictor(case, batch=4, network=network), parts)

    assert len(np.unique(labels)) == 4
    np.testing.assert_array_equal(labels, again[0])
    np.testing.assert_array_equal(confidence, again[1])


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("first_valid", [960, 800])
def test_rows_without_data_come_out_while_the_scene_is_read(
    first_valid, blend, folder, monkeypatch
):
    """What is held must not grow with a stretch of nodata, at its end or inside."""
    monkeypatch.setattr("tileseg.scenes.raster._STRIP_ROWS", 16)
    grid = Grid(height=960, width=40, tile=32, halo=8, shard=32)
    pixels = np.zeros((1, grid.height, grid.width), dtype="uint8")
    pixels[:, first_valid:] = 1
    case = replace(make_case(grid, 0), blend=blend)
    path = make_plain(folder / "scene.tif", pixels, nodata=0, **BLOCKS[0])
    scene = open_scene(str(path))
    (run,) = whole(grid)
    strips = list(Reader(scene, scene.bands, grid).strips(run, ring=1))
    read = []

    rows = make_predictor(case, batch=2).rows(run, map_noting(strips, read))
    next(rows)

    assert len(strips) > 40
    assert len(read) <= 4


def map_noting(items, noted):
    """Pass items on and note each."""
    for item in items:
        noted.append(item)
        yield item
