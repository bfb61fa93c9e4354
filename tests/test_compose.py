"""Scenes of several files: stacked, side by side, on another grid; the whole is the
oracle for the parts."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from making import NORTH_UP, make_plain, make_scene, random_pixels
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject
from strategies import cuts, grids
from test_scene import assert_strips_show, noise, whole

from tileseg.base.rules import Rule
from tileseg.errors import UsageError
from tileseg.geobox import GeoBox
from tileseg.grid import Grid
from tileseg.scenes.compose import Target, Wish, compose
from tileseg.scenes.layer import BandFacts, Layer
from tileseg.scenes.raster import Resampled
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene
from tileseg.scenes.warp import resample
from tileseg.window import Window

ZONE = {"crs": "EPSG:32631"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


def layer(path, *facts):
    return Layer(href=str(path), bands=facts)


def stack(*paths):
    return (tuple(map(layer, paths)),)


def beside(*paths):
    return tuple((layer(path),) for path in paths)


def moved(window, transform=NORTH_UP):
    return transform @ Affine.translation(window.col, window.row)


def cut_out(folder, name, pixels, window, **profile):
    """Write a rectangle of `pixels` as a file that lies where it was."""
    part = pixels[:, *window.slices]
    return make_plain(
        folder / f"{name}.tif", part, transform=moved(window), **{**ZONE, **profile}
    )


def read_all(scene, bands=None, *, threads=1, block=None):
    """Return (pixels, validity) of a scene, read in one strip, or in small ones."""
    box = scene.geobox
    side = block or max(box.height, box.width)
    grid = Grid(height=box.height, width=box.width, tile=side, halo=0, shard=side)
    reader = Reader(scene, bands or scene.bands, grid, threads=threads)
    pixels = np.zeros((len(bands or scene.bands), box.height, box.width), reader._dtype)
    valid = np.zeros((box.height, box.width), np.bool_)
    runs = grid.runs(list(whole(grid)), band=1, rows=1)
    for run in runs:
        at = grid.pixels(run)
        for strip in reader.strips(run):
            row = strip.tiles.row * side
            into = Window(row, at.col, strip.tiles.height * side, at.width)
            into = into.intersect(box.window)
            pixels[:, *into.slices] = strip.pixels[:, : into.height, : into.width]
            valid[into.slices] = strip.valid[: into.height, : into.width]
    return pixels, valid


# Side by side


@pytest.mark.parametrize(
    "turn",
    [
        Affine.scale(1.0000001),
        Affine.scale(1, -1),
        Affine.rotation(30) @ Affine.scale(0.3, 0.7),
        Affine(0, 1, 0, 1, 0, 0),
    ],
    ids=["awkward", "south-up", "rotated", "transposed"],
)
def test_a_scene_that_was_cut_is_whole_again(turn, tmp_path):
    """Its grid to the last bit, its pixels under nodata too, wherever the cuts are."""
    pixels = random_pixels(211, 173)
    place = NORTH_UP @ Affine.translation(0.1, 0.3) @ turn
    uncut = make_plain(
        tmp_path / "whole.tif", pixels, transform=place, nodata=0, **ZONE
    )
    columns, rows = (0, 64, 70, 173), (0, 1, 130, 211)
    windows = [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    paths = [
        make_plain(
            tmp_path / f"{index}.tif",
            pixels[:, *window.slices],
            transform=moved(window, place),
            nodata=0,
            **ZONE,
        )
        for index, window in enumerate(windows)
    ]

    scene = open_scene(beside(*reversed(paths)))

    assert scene.geobox == open_scene(str(uncut)).geobox
    got, wanted = read_all(scene, block=48), read_all(open_scene(str(uncut)))
    np.testing.assert_array_equal(wanted[0], got[0])
    np.testing.assert_array_equal(wanted[1], got[1])
    assert not scene.is_resampled
    assert [str(path) for path in reversed(paths)] == [f.path for f in scene.files]


def test_the_first_that_has_data_counts_and_gaps_are_nodata(tmp_path):
    ones, twos = np.full((2, 1, 6, 8), 1, "uint8") * [[[[1]]], [[[2]]]]
    ones[0, 2:4, 2:7] = 0
    ones, twos = ones.astype("uint8"), twos.astype("uint8")
    first = cut_out(tmp_path, "first", np.pad(ones, ((0, 0), (4, 0), (4, 0))),
                    Window(4, 4, 6, 8), nodata=0)  # fmt: skip
    second = make_plain(
        tmp_path / "second.tif", twos, transform=NORTH_UP, nodata=9, **ZONE
    )

    pixels, valid = read_all(open_scene(beside(first, second)))

    expected = np.zeros((10, 12), "uint8")
    expected[:6, :8] = 2
    expected[4:, 4:] = np.where(ones[0], 1, expected[4:, 4:])
    np.testing.assert_array_equal(expected, np.where(valid, pixels[0], 0))
    assert not valid[6:, :4].any()
    assert not valid[:4, 8:].any()


def test_many_files_stay_closed_and_travel_light(tmp_path):
    """Of a thousand files those are opened that a window meets, few at a time."""
    pixels = noise("uint8", 1, 8, 8 * 200)
    paths = [
        cut_out(tmp_path, f"{col}", pixels, Window(0, 8 * col, 8, 8))
        for col in range(200)
    ]
    scene = open_scene(beside(*paths))
    for path in paths[2:]:
        path.unlink()
    grid = Grid(height=8, width=1600, tile=8, halo=0, shard=8)
    reader = Reader(scene, scene.bands, grid)

    (strip,) = reader.strips(grid.runs([(0, 1)], band=1, rows=1)[0])

    np.testing.assert_array_equal(pixels[:, :, 8:16], strip.pixels)
    assert len(pickle.dumps(scene)) < 200 * 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crs": "EPSG:32632"}, "crs = 'EPSG:32631'"),
        ({"transform": NORTH_UP @ Affine.translation(20.5, 0)}, "resolution = 10"),
        ({"transform": NORTH_UP @ Affine.scale(2)}, "one grid"),
        ({"transform": NORTH_UP @ Affine.rotation(1)}, "one grid"),
        ({"names": ("blue", "red", "green")}, "bands"),
        ({"scale": 1e-3}, "scale and offset"),
        ({"offset": -0.1}, "scale and offset"),
        ({"dtype": "int32"}, "uint16 and int32"),
    ],
    ids=str,
)
def test_files_that_are_not_one_picture_are_named(change, words, tmp_path):
    first = make_scene(tmp_path / "first.tif", random_pixels(20, 20))
    second = make_scene(tmp_path / "second.tif", random_pixels(20, 20), **change)

    with pytest.raises(UsageError) as caught:
        open_scene(beside(first, second))

    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) == 1
    for word in (str(first), str(second), words):
        assert word in message


# Stacked


def test_bands_of_several_files_are_one_scene(tmp_path):
    """In their order and their own nodata; types meet in one that holds them all."""
    first = make_scene(
        tmp_path / "a.tif", noise("uint8", 2, 30, 40), nodata=7, names=("blue", "green")
    )
    second = make_scene(
        tmp_path / "b.tif", noise("uint16", 1, 30, 40, seed=1), nodata=8, names=("red",)
    )
    scene = open_scene(stack(first, second))
    bands = scene.select(("red", "green"))

    pixels, valid = read_all(scene, bands, block=16)

    assert ([band.index for band in scene.bands], scene.dtype) == ([1, 2, 3], "uint16")
    red, green = noise("uint16", 1, 30, 40, seed=1)[0], noise("uint8", 2, 30, 40)[1]
    np.testing.assert_array_equal([red, green], pixels)
    np.testing.assert_array_equal((red != 8) & (green != 7), valid)


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        (("uint8", "uint16"), "uint16"),
        (("uint8", "int8"), "int16"),
        (("int16", "uint16"), "int32"),
        (("uint16", "float32"), "float32"),
        (("int32", "int32"), "int32"),
        (("int32", "uint8"), None),
        (("float64", "float32"), None),
    ],
)
def test_types_meet_exactly_or_not_at_all(dtypes, common, tmp_path):
    paths = [
        make_plain(tmp_path / f"{at}.tif", noise(dtype, 1, 5, 6), **ZONE)
        for at, dtype in enumerate(dtypes)
    ]
    if common:
        scene = open_scene(stack(*paths))
        assert common == scene.dtype
        np.testing.assert_array_equal(noise("uint8", 1, 5, 6)[0], read_all(scene)[0][1])
    else:
        with pytest.raises(UsageError, match=" and ".join(dtypes)):
            open_scene(stack(*paths))


def test_files_that_are_shown_alike_are_several(tmp_path):
    """As addresses are that differ in their query only."""
    red, blue = (
        open_scene(
            str(make_scene(tmp_path / name, noise(dtype, 1, 5, 6), names=(name,)))
        )
        for name, dtype in (("red", "uint16"), ("blue", "uint8"))
    )

    scene = compose(((red, replace(blue, href=red.href)),), Wish(bands=("red", "blue")))

    assert scene.dtype == "uint16"


@pytest.mark.parametrize(
    ("blocks", "rows"),
    [
        ({"blockysize": 1}, 512),
        ({"blockysize": 3}, 510),
        ({"tiled": True, "blockxsize": 16, "blockysize": 48}, 480),
        ({"tiled": True, "blockxsize": 16, "blockysize": 640}, 640),
    ],
    ids=str,
)
def test_low_blocks_are_read_many_at_a_time(blocks, rows, tmp_path):
    """Of a file, and of files side by side: whole blocks."""
    pixels = noise("uint8", 1, 650, 60)
    halves = (Window(0, 0, 650, 30), Window(0, 30, 650, 30))
    parts = [
        cut_out(tmp_path, f"{at.col}", pixels, at, **blocks, interleave="pixel")
        for at in halves
    ]

    assert open_scene(str(parts[0])).strip_rows == rows
    assert open_scene(beside(*parts)).strip_rows == rows


def test_files_of_several_grids_are_stacked_only_when_asked(tmp_path):
    fine = make_plain(tmp_path / "fine.tif", noise("uint8", 1, 40, 60), **ZONE)
    coarse = make_plain(
        tmp_path / "coarse.tif",
        noise("uint8", 1, 20, 30),
        transform=NORTH_UP @ Affine.scale(2),
        **ZONE,
    )

    with pytest.raises(UsageError, match=r"fine\.tif and .*coarse\.tif.*resolution"):
        open_scene(stack(fine, coarse))

    scene = open_scene(stack(coarse, fine), Wish(resample=True))
    assert open_scene(str(fine)).geobox == scene.geobox
    scene = open_scene(stack(coarse, fine), Wish(bands=(1,), resample=True))
    assert open_scene(str(coarse)).geobox == scene.geobox


def test_files_that_the_model_does_not_need_may_be_as_they_like(tmp_path):
    """Of another grid and type, and with a palette; nobody asks for resampling."""
    red, blue = (
        make_scene(tmp_path / f"{name}.tif", noise("uint8", 1, 40, 60), names=(name,))
        for name in ("red", "blue")
    )
    other = make_scene(
        tmp_path / "other.tif",
        noise("float64", 1, 20, 30),
        transform=NORTH_UP @ Affine.scale(2.1),
        names=("other",),
    )
    palette = make_scene(tmp_path / "p.tif", noise("uint8", 1, 40, 60), names=("p",))
    with rasterio.open(palette, "r+") as dataset:
        dataset.write_colormap(1, {0: (0, 0, 0, 255)})
    names = ("blue", "red")

    scene = open_scene(stack(red, other, palette, blue), Wish(bands=names))

    assert scene.dtype == "uint8"
    bands = scene.select(names)
    assert [band.index for band in bands] == [4, 1]
    pixels, _ = read_all(scene, bands)
    np.testing.assert_array_equal(noise("uint8", 1, 40, 60)[[0, 0]], pixels)
    with pytest.raises(UsageError, match="one grid"):
        open_scene(stack(red, other), Wish(bands=("other", "red")))


def test_a_catalog_may_say_more_than_the_file(tmp_path):
    path = make_plain(tmp_path / "b04.tif", np.array([[[0, 5, 9]]], "uint16"), **ZONE)
    facts = BandFacts(name="red", nodata=9, scale=1e-4, offset=-0.1)

    scene = open_scene(((layer(path, facts),),))

    (band,) = scene.select(("red",))
    assert (band.scale, band.offset) == (1e-4, -0.1)
    np.testing.assert_array_equal([[True, True, False]], read_all(scene)[1])
    with pytest.raises(UsageError, match="1 bands, and the catalog speaks of 2"):
        open_scene(((layer(path, facts, facts),),))


# On another grid


def naive_doubling(values, valid):
    """Bilinear to half the pixel size; valid if all that has a weight is."""
    height, width = values.shape
    rows, cols = ((np.arange(2 * size) + 0.5) / 2 - 0.5 for size in (height, width))
    out, good = (
        np.zeros((2 * height, 2 * width)),
        np.ones((2 * height, 2 * width), bool),
    )
    for i, y in enumerate(rows):
        for j, x in enumerate(cols):
            total = weight = 0.0
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                for col in (int(np.floor(x)), int(np.floor(x)) + 1):
                    w = (1 - abs(y - row)) * (1 - abs(x - col))
                    if not (0 <= row < height and 0 <= col < width) or not w:
                        continue
                    good[i, j] &= valid[row, col]
                    total, weight = total + w * values[row, col], weight + w
            out[i, j] = total / weight
    return out, good


def test_bilinear_is_what_it_says_and_nodata_spreads_no_further(tmp_path):
    pixels = random_pixels(23, 31, bands=2, dtype="float32")
    path = make_plain(tmp_path / "coarse.tif", pixels, nodata=0, **ZONE)

    scene = open_scene(str(path), Wish(target=Target(resolution=5)))

    assert (scene.geobox.height, scene.geobox.width) == (46, 62)
    assert NORTH_UP @ Affine.scale(0.5) == scene.geobox.transform
    got, valid = read_all(scene)
    source_valid = (pixels != 0).all(axis=0)
    for values, source in zip(got, pixels, strict=True):
        expected, expected_valid = naive_doubling(source, source_valid)
        np.testing.assert_array_equal(expected_valid, valid)
        np.testing.assert_allclose(values[valid], expected[valid], rtol=1e-5)


def test_bilinear_to_coarser_pixels_is_a_mean_without_holes(tmp_path):
    """Of all pixels within a new pixel's side, by distance: no picture of needles."""
    pixels = random_pixels(96, 64, bands=1, dtype="float32", nodata=0)
    pixels[:, 40, 20] = 0
    path = make_plain(tmp_path / "fine.tif", pixels, nodata=0, **ZONE)
    scene = open_scene(str(path), Wish(target=Target(resolution=40)))

    got, valid = read_all(scene)

    kernel = 1 - np.abs(np.arange(-3.5, 4)) / 4
    expected, holes = np.zeros((24, 16)), np.zeros((24, 16), bool)
    for row, col in np.ndindex(24, 16):
        rows, cols = (np.arange(4 * at - 2, 4 * at + 6) for at in (row, col))
        inner = [(i >= 0) & (i < n) for i, n in ((rows, 96), (cols, 64))]
        weights = np.outer(kernel[inner[0]], kernel[inner[1]])
        part = pixels[0][np.ix_(rows[inner[0]], cols[inner[1]])]
        expected[row, col] = (weights * part).sum() / weights.sum()
        holes[row, col] = (part == 0).any()
    np.testing.assert_array_equal(~holes, valid)
    np.testing.assert_allclose(got[0][valid], expected[valid], rtol=1e-4)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize(
    "target", [("", 8.0), ("", 33.0), ("EPSG:3857", 13.0)], ids=str
)
def test_no_pixel_depends_on_the_window_it_is_read_in(method, target, tmp_path):
    """In strips of any height, from any column, with any threads: the same bits."""
    pixels = random_pixels(570, 540, bands=1)
    path = make_plain(tmp_path / "scene.tif", pixels, nodata=0, tiled=True, **ZONE)
    scene = open_scene(str(path), Wish(target=Target(*target, method)))

    first = read_all(scene)

    assert first[1].any()
    for block, threads in ((200, 1), (390, 3)):
        again = read_all(scene, block=block, threads=threads)
        np.testing.assert_array_equal(first[1], again[1])
        np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_another_crs_is_what_gdal_makes_of_the_whole(method, tmp_path):
    """To a hundredth of a pixel, but for the edges."""
    y, x = np.mgrid[:300, :400]
    pixels = (1000 + 7 * x + 3 * y)[None].astype("float32")
    path = make_plain(tmp_path / "scene.tif", pixels, **ZONE)
    scene = open_scene(str(path), Wish(target=Target("EPSG:32630", 10, method)))
    box = scene.geobox
    expected = np.zeros((box.height, box.width), "float32")
    reproject(
        pixels[0], expected, src_transform=NORTH_UP, src_crs="EPSG:32631",
        dst_transform=box.transform, dst_crs=box.crs, tolerance=0,
        resampling=Resampling[method],
    )  # fmt: skip

    got, valid = read_all(scene)

    assert 0.6 < valid.mean() < 1
    assert ((expected > 0) != valid).sum() <= 5  # whose centres are on the edge
    close = np.abs(got[0] - expected)[valid] <= (0.2 if method == "bilinear" else 10)
    assert close.mean() > 0.99
    assert box.transform.c % 10 == box.transform.f % 10 == 0


def test_a_cut_scene_is_resampled_as_a_whole(tmp_path):
    """Not file by file: no seam."""
    pixels = random_pixels(120, 90, nodata=0)
    uncut = make_plain(tmp_path / "whole.tif", pixels, **ZONE)
    parts = [
        cut_out(tmp_path, f"{row}", pixels, Window(row, 0, 60, 90)) for row in (0, 60)
    ]
    target = Target(resolution=6)

    got, valid = read_all(open_scene(beside(*parts), Wish(target=target)))

    expected, _ = read_all(open_scene(str(uncut), Wish(target=target)))
    np.testing.assert_array_equal(expected, got)
    assert valid.all()


def test_scenes_of_two_zones_meet_on_one_grid(tmp_path):
    """Each covers its place; the first one counts where both do."""
    first = make_plain(tmp_path / "a.tif", np.full((1, 80, 100), 3, "uint8"), **ZONE)
    with rasterio.open(first) as dataset:
        left = dataset.bounds.left
    second = make_plain(
        tmp_path / "b.tif",
        np.full((1, 80, 60), 5, "uint8"),
        transform=replaced(NORTH_UP, c=left + 500),
        crs="EPSG:32631",
    )
    place = Target("EPSG:32632", 10, "nearest")
    one, other = (open_scene(str(path), Wish(target=place)) for path in (first, second))
    with rasterio.open(second, "r+") as dataset:
        dataset.transform = replaced(NORTH_UP, c=left + 503)  # no grid in common

    scene = open_scene(beside(first, second), Wish(target=place))

    pixels, valid = read_all(scene)
    assert scene.geobox.width > max(one.geobox.width, other.geobox.width)
    count = int((pixels[0][valid] == 3).sum())
    assert abs(count - int(read_all(one)[1].sum())) == 0
    assert (pixels[0][valid] == 5).sum() > 0
    assert set(np.unique(pixels[0][valid])) == {3, 5}


def test_a_block_that_needs_half_the_earth_is_refused_unread(tmp_path):
    """Across 180 degrees; beside it all is well."""
    path = make_plain(tmp_path / "world.tif", noise("uint8", 1, 2, 3), **ZONE)
    place = Affine(1e-3, 0, -180, 0, -1e-3, 10)
    world = GeoBox(20_000, 360_000, place, CRS.from_epsg(4326).to_wkt())
    how = Resampled(replace(open_scene(str(path)), geobox=world), "bilinear", (1, 1))
    seen = []

    def read(window):
        seen.append(window)
        shape = window.height, window.width
        return np.zeros((1, *shape), "uint8"), np.zeros(shape, np.bool_)

    def zone(x):
        wkt = CRS.from_epsg(32601).to_wkt()
        return GeoBox(500, 400, Affine(100, 0, x, 0, -100, 200_000), wkt)

    with pytest.raises(UsageError, match=r"world\.tif: 500 x 400 .* x 359987 of it"):
        resample(read, world, zone(150_000), how)
    assert not seen

    _, valid = resample(read, world, zone(250_000), how)

    assert valid.shape == (500, 400)
    assert seen[0].width < 1000


def replaced(transform, **terms):
    values = dict(zip("abcdef", transform, strict=False))
    return Affine(**{**values, **terms})


def test_the_grid_that_is_there_already_is_not_resampled(tmp_path):
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 30, 20), **ZONE)

    for target in (Target(), Target(resolution=10), Target(crs="EPSG:32631")):
        assert open_scene(str(path)) == open_scene(str(path), Wish(target=target))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("EPSG:0"), "EPSG:0"),
        (Target("nonsense"), "nonsense"),
        (Target(resolution=1e-9), "pixels"),
    ],
)
def test_a_grid_that_cannot_be_is_a_usage_error(target, words, tmp_path):
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 30, 20), **ZONE)

    with pytest.raises(UsageError, match=words):
        open_scene(str(path), Wish(target=target))


# Everything at once


@st.composite
def scenes(draw, folder):
    """Draw a scene of files; return it with its (pixels, validity), by a naive rule."""
    grid = draw(grids(most_pixels=70))
    shape, seed = (grid.height, grid.width), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    groups = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    places = draw(st.lists(windows_in(*shape), min_size=1, max_size=4))
    if draw(st.booleans()) or len(places) == 1:
        places = [Window(0, 0, *shape), *places[1:]]
    dtypes = [draw(st.sampled_from(MIXED)) for _ in groups]
    nodata = draw(st.sampled_from([None, 0, 3]))
    pixels = np.zeros((sum(groups), *shape), np.float64)
    valid, covered = np.zeros(shape, bool), np.zeros(shape, bool)
    mosaic = []
    for number, place in enumerate(places):
        layers, parts, good = [], [], np.ones((place.height, place.width), bool)
        for index, (count, dtype) in enumerate(zip(groups, dtypes, strict=True)):
            part = random.integers(0, 5, (count, place.height, place.width))
            part = part.astype(dtype)
            if dtype == "float32":
                part[random.random(part.shape) < 0.1] = np.nan
            path = folder / f"{number}_{index}.tif"
            make_plain(
                path, part, transform=moved(place), nodata=nodata, **ZONE,
                **draw(st.sampled_from(BLOCKS)),
            )  # fmt: skip
            layers.append(layer(path))
            parts.append(part)
            good &= (np.isfinite(part) & (part != nodata)).all(axis=0)
            if draw(st.booleans()):
                shown = random.random(good.shape) < 0.7
                write_mask(path, shown)
                good &= shown
        at = place.slices
        take = ~covered[at] | (good & ~valid[at])
        pixels[:, *at] = np.where(take, np.concatenate(parts), pixels[:, *at])
        valid[at] |= good
        covered[at] = True
        mosaic.append(tuple(layers))
    top, left = (min(getattr(p, side) for p in places) for side in ("row", "col"))
    bottom, right = (
        max(getattr(p, side) for p in places) for side in ("row_stop", "col_stop")
    )
    at = slice(top, bottom), slice(left, right)
    grid = replace(grid, height=bottom - top, width=right - left)
    hidden, rules = np.zeros(shape, bool), ()
    if draw(st.booleans()):
        codes = random.integers(0, 4, (1, *shape)).astype("uint8")
        path = folder / "mask.tif"
        make_plain(path, codes, transform=moved(Window(0, 0, *shape)), nodata=2, **ZONE)
        hidden, rules = codes[0] % 2 == 1, (Rule(str(path), "in", (1.0, 3.0)),)
    scene = open_scene(tuple(mosaic), Wish(rules=rules))
    return grid, scene, pixels[:, *at], valid[at], hidden[at]


def write_mask(path, shown):
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(shown)


MIXED = ("uint8", "int8", "uint16", "int16", "float32")
BLOCKS = (
    {"blockysize": 1},
    {"blockysize": 5, "interleave": "pixel"},
    {"tiled": True, "blockxsize": 16, "blockysize": 32},
)


@st.composite
def windows_in(draw, height, width):
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    high = draw(st.integers(1, height - row))
    return Window(row, col, high, draw(st.integers(1, width - col)))


def check_scene(data, folder, *, ways):
    """Any bands, tiles, runs and ring: what the naive rule says of the whole."""
    first, scene, pixels, valid, hidden = data.draw(scenes(folder))
    runs = 0
    for _ in range(ways):
        grid = replace(data.draw(grids()), height=first.height, width=first.width)
        runs += check_reading(data, grid, scene, pixels, valid, hidden)
    return runs


def check_reading(data, grid, scene, pixels, valid, hidden):
    chosen = tuple(data.draw(st.permutations(scene.bands)))
    reader, ring = Reader(scene, chosen, grid), data.draw(st.integers(0, 2))
    pixels = pixels[[band.index - 1 for band in chosen]]
    assert (grid.height, grid.width) == (scene.geobox.height, scene.geobox.width)
    runs = data.draw(cuts(grid))
    for run in runs:
        strips = list(reader.strips(run, ring=ring))
        assert_strips_show(pixels, valid & ~hidden, grid, run, strips, ring=ring)
        if scene.is_masked:
            seen = [replace(strip, valid=strip.masked) for strip in strips]
            assert_strips_show(pixels, valid & hidden, grid, run, seen, ring=ring)
    return len(runs)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scenes_of_files_show_what_the_naive_rule_says(data, folder):
    check_scene(data, folder, ways=1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_thousands_of_runs_show_what_the_naive_rule_says(folder):
    """At least 5,000, of 620 scenes, each cut in three ways."""
    runs = 0

    @given(data=st.data())
    @settings(max_examples=620, deadline=None, derandomize=True)
    def check(data):
        nonlocal runs
        runs += check_scene(data, folder, ways=3)

    check()

    assert runs >= 5000
