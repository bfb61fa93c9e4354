"""The only reader of scenes: what it opens and refuses, what its strips hold."""

import pickle
import re
import struct
from dataclasses import replace

import numpy as np
import oracle
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_plain, make_scene, random_pixels
from rasterio.control import GroundControlPoint
from strategies import cuts, grids

from tileseg.errors import InputError, RefusedError, UsageError
from tileseg.grid import Grid, Run
from tileseg.scenes.pixels import Pixels
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene

TILED = [
    {"tiled": True, "blockxsize": side, "blockysize": side}
    for side in (64, 128, 256, 512)
]
STRIPED = [{"blockysize": rows} for rows in (1, 16)]
DTYPES = ("uint8", "int16", "uint16", "float32", "int32", "float64")
ON_THE_BUS = {"int32": "float32", "float64": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def noise(dtype, *shape, seed=0):
    """Return random pixels, 1 to 119, which every type holds exactly."""
    return np.random.default_rng(seed).integers(1, 120, shape).astype(dtype)


def strips_of(path, grid, run, *, ring=0, bands=None):
    scene = open_scene(str(path))
    reader = Reader(scene, bands or scene.bands, grid)
    return list(reader.strips(run, ring=ring))


def whole(grid):
    return Run(grid.shape)


def assert_strips_show(pixels, valid, grid, run, strips, *, ring=0):
    """Strips follow each other down the run; each is a slice of the padded whole."""
    margin = 2 * grid.tile
    edge = ((margin, margin), (margin, margin))
    pixels = np.pad(pixels, ((0, 0), *edge), mode="symmetric")
    valid = np.pad(valid, edge, mode="symmetric")
    cores = grid.cores(run, ring=ring)
    row = cores.row
    for strip in strips:
        assert (row, cores.col) == (strip.tiles.row, strip.tiles.col)
        assert strip.tiles.width == cores.width
        seen = strip.tiles.scale(grid.stride).pad(grid.halo)
        at = replace(seen, row=seen.row + margin, col=seen.col + margin).slices
        np.testing.assert_array_equal(valid[at], strip.valid)
        np.testing.assert_array_equal(pixels[:, *at], strip.pixels)
        row = strip.tiles.row_stop
    assert cores.row_stop == row


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", TILED + STRIPED, ids=str)
def test_strips_are_slices_of_the_padded_whole(blocks, dtype, interleave, folder):
    """Whatever the blocks, the type and the order of the bytes in the file."""
    grid = Grid(height=541, width=613, tile=64, halo=12, shard=160)
    pixels = noise(dtype, 2, grid.height, grid.width)
    profile = {"nodata": 7, "interleave": interleave, **blocks}
    path = make_plain(folder / "scene.tif", pixels, **profile)
    valid = (pixels != 7).all(axis=0)

    strips = strips_of(path, grid, whole(grid))

    assert {ON_THE_BUS.get(dtype, dtype)} == {
        strip.pixels.dtype.name for strip in strips
    }
    assert_strips_show(pixels, valid, grid, whole(grid), strips)


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 90), (90, 1), (2, 3), (5, 47), (31, 33), (32, 32), (33, 24), (25, 70)],
)
@pytest.mark.parametrize("halo", [0, 8])
def test_scenes_smaller_than_a_tile_are_mirrored_without_end(
    height, width, halo, folder
):
    """Pixel i outside the scene is read at its symmetric index, period 2n."""
    grid = Grid(height=height, width=width, tile=32, halo=halo, shard=32 - 2 * halo)
    pixels = noise("uint16", 1, height, width)
    path = make_plain(folder / "scene.tif", pixels, nodata=3)

    strips = strips_of(path, grid, whole(grid))

    assert_strips_show(pixels, pixels[0] != 3, grid, whole(grid), strips)
    tiles = oracle.cut_tiles(pixels, 32, halo)[:, 0, 0]
    first = np.concatenate([strip.pixels[0, :32, :32] for strip in strips[:1]])
    np.testing.assert_array_equal(tiles[0], first)


@given(data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_runs_of_every_kind_read_what_they_should(data, folder):
    """Any rectangle of shards, with any ring, in any order, from one reader."""
    grid = data.draw(grids())
    pixels = noise("int16", 2, grid.height, grid.width)
    blocks = data.draw(
        st.sampled_from(
            [
                {"blockysize": 1},
                {"blockysize": 5, "interleave": "band"},
                {"tiled": True, "blockxsize": 16, "blockysize": 16},
                {"tiled": True, "blockxsize": 16, "blockysize": 48},
            ]
        )
    )
    path = make_plain(folder / "scene.tif", pixels, nodata=5, **blocks)
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, grid)
    ring = data.draw(st.integers(0, 2))
    valid = (pixels != 5).all(axis=0)

    for run in data.draw(cuts(grid)):
        strips = list(reader.strips(run, ring=ring))
        assert_strips_show(pixels, valid, grid, run, strips, ring=ring)


@pytest.mark.parametrize(
    "profile",
    [
        {"compress": "lzw", "predictor": 2},
        {"compress": "deflate", "predictor": 2, "tiled": True},
        {"compress": "zstd"},
        {"BIGTIFF": "YES"},
        {"ENDIANNESS": "BIG"},
        {"driver": "COG", "blocksize": 128},
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 4])
def test_the_codec_changes_no_pixel(profile, threads, folder):
    grid = Grid(height=541, width=613, tile=64, halo=12, shard=160)
    pixels = noise("uint16", 3, grid.height, grid.width)
    path = make_plain(folder / "scene.tif", pixels, **profile)
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, grid, threads=threads)

    strips = list(reader.strips(whole(grid)))

    valid = np.ones(pixels.shape[1:], dtype=bool)
    assert_strips_show(pixels, valid, grid, whole(grid), strips)


def test_bands_come_in_the_order_asked_for(folder):
    grid = Grid(height=41, width=30, tile=16, halo=2, shard=24)
    pixels = noise("uint8", 4, 41, 30)
    path = make_scene(folder / "scene.tif", pixels, nodata=None)
    bands = open_scene(str(path)).select(("red", "blue"))

    strips = strips_of(path, grid, whole(grid), bands=bands)

    valid = np.ones((41, 30), dtype=bool)
    assert_strips_show(pixels[[2, 0]], valid, grid, whole(grid), strips)


def test_a_hole_in_a_band_that_is_not_used_is_no_hole(folder):
    grid = Grid(height=41, width=30, tile=16, halo=2, shard=24)
    pixels = noise("uint16", 4, 41, 30)
    pixels[3] = 0
    path = make_scene(folder / "scene.tif", pixels, nodata=0)
    bands = open_scene(str(path)).select(("red", "blue"))

    strips = strips_of(path, grid, whole(grid), bands=bands)

    assert all(strip.valid.all() for strip in strips)


def test_near_infrared_is_not_transparency(folder):
    """GDAL marks the last of four uint8 bands as alpha, also where it is named nir."""
    pixels = noise("uint8", 4, 1, 6)
    pixels[3] = [[0, 9, 0, 9, 255, 0]]
    path = make_scene(folder / "scene.tif", pixels, nodata=None)
    scene = open_scene(str(path))

    assert validity(path, bands=scene.select(("nir", "red"))).all()
    assert validity(path, bands=scene.select(("blue", "red"))).all()


@pytest.mark.parametrize("blocks", TILED + STRIPED, ids=str)
def test_one_run_decodes_every_pixel_once(blocks, folder):
    """At most 1.1 times the scene, however many strips it takes."""
    grid = Grid(height=1301, width=1100, tile=128, halo=16, shard=384)
    pixels = np.ones((1, grid.height, grid.width), dtype="uint8")
    path = make_plain(folder / "scene.tif", pixels, compress="deflate", **blocks)
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, grid)

    strips = list(reader.strips(whole(grid)))

    assert len(strips) > 1
    assert grid.scene.size <= reader.decoded_pixels <= 1.1 * grid.scene.size


@pytest.mark.parametrize("ring", [0, 1])
def test_column_bands_decode_little_twice(ring, folder):
    """A 3-band uint16 scene 24,000 wide, in the runs that memory allows."""
    grid = Grid(height=600, width=24_000, tile=128, halo=16, shard=1536)
    path = folder / "wide.tif"
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": 3,
        "dtype": "uint16",
        "transform": Affine(10, 0, 0, 0, -10, 0),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "sparse_ok": True,
    }
    with rasterio.open(path, "w", **profile):
        pass  # nothing written: every block reads as zeros
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, grid)
    band = scene.band_shards(grid, pixel_bytes=scene.pixel_bytes(scene.bands))

    runs = grid.runs(list(whole(grid)), band=band, rows=99)
    for run in runs:
        for _ in reader.strips(run, ring=ring):
            pass

    assert len(runs) > 1
    assert reader.decoded_pixels <= 1.1 * grid.scene.size
    assert reader.decoded_pixels == sum(reader.to_decode(it, ring=ring) for it in runs)


@pytest.mark.parametrize("blocks", TILED + STRIPED, ids=str)
@pytest.mark.parametrize("ring", [0, 1])
def test_what_is_decoded_is_known_before(ring, blocks, folder):
    """Of any run, at the scene's edges too."""
    grid = Grid(height=701, width=900, tile=64, halo=12, shard=160)
    pixels = np.ones((1, grid.height, grid.width), dtype="uint8")
    path = make_plain(folder / "scene.tif", pixels, **blocks)
    scene = open_scene(str(path))
    for band, rows in ((1, 1), (2, 3), (99, 2)):
        for run in grid.runs(list(whole(grid)), band=band, rows=rows):
            reader = Reader(scene, scene.bands, grid)
            for _ in reader.strips(run, ring=ring):
                pass
            assert reader.decoded_pixels == reader.to_decode(run, ring=ring)


@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_blocks_that_are_not_there_are_not_read(interleave, folder, monkeypatch):
    """Columns of blocks without any are left out; what else is missing is no data."""
    grid = Grid(height=150, width=333, tile=32, halo=4, shard=96)
    pixels = noise("uint16", 2, grid.height, grid.width)
    held = np.random.default_rng(1).random((5, 11)) < 0.5
    held[:, 3:6], held[0, 0], held[-1, -1] = False, True, True
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True}
    path = make_sparse(folder / "a.tif", pixels, held, interleave=interleave, **profile)
    asked = []
    read = Pixels._from_dataset
    monkeypatch.setattr(
        Pixels, "_from_dataset", lambda *args: asked.append(args[4]) or read(*args)
    )

    strips = strips_of(path, grid, whole(grid))

    valid = held.repeat(32, axis=0).repeat(32, axis=1)[: grid.height, : grid.width]
    assert_strips_show(pixels * valid, valid, grid, whole(grid), strips)
    assert all(window.col_stop <= 96 or window.col >= 192 for window in asked)
    assert sum(window.size for window in asked) < grid.scene.size


def make_sparse(path, pixels, held, **profile):
    """Write only the blocks that are to be there."""
    bands, height, width = pixels.shape
    facts = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **facts, **profile) as dataset:
        for row, col in np.argwhere(held):
            high, wide = min(32, height - 32 * row), min(32, width - 32 * col)
            window = rasterio.windows.Window(32 * col, 32 * row, wide, high)
            part = pixels[:, 32 * row : 32 * row + high, 32 * col : 32 * col + wide]
            dataset.write(part, window=window)
    return path


@pytest.mark.parametrize(
    "blocks", [*TILED[2:], {"blockysize": 1}, {"blockysize": 300}], ids=str
)
@pytest.mark.parametrize("ring", [0, 1])
def test_one_run_over_the_whole_scene_decodes_it_exactly_once(blocks, ring, folder):
    grid = Grid(height=2_101, width=1_900, tile=128, halo=16, shard=384)
    path = make_sparse(
        folder / "scene.tif",
        np.ones((3, grid.height, grid.width), "uint16"),
        np.zeros((0, 0), bool),
        sparse_ok=True,
        **blocks,
    )
    scene = open_scene(str(path))
    reader = Reader(scene, scene.bands, grid)

    for _ in reader.strips(whole(grid), ring=ring):
        pass

    assert reader.decoded_pixels == grid.scene.size


def validity(path, bands=None):
    """Return the scene's validity, read as one tile."""
    box = open_scene(str(path)).geobox
    side = max(box.height, box.width)
    grid = Grid(height=box.height, width=box.width, tile=side, halo=0, shard=side)
    (strip,) = strips_of(path, grid, whole(grid), bands=bands)
    return strip.valid[: box.height, : box.width]


@pytest.mark.parametrize(
    ("dtype", "nodata", "values", "expected"),
    [
        ("uint8", None, (0, 1, 255), (1, 1, 1)),
        ("uint8", 0, (0, 1, 255), (0, 1, 1)),
        ("uint8", 255, (0, 1, 255), (1, 1, 0)),
        ("int16", -9999, (-9999, 0, 9999), (0, 1, 1)),
        ("uint16", 65535, (0, 65534, 65535), (1, 1, 0)),
        ("int32", -(2**31), (-(2**31), -(2**31) + 1, 0), (0, 1, 1)),
        ("int32", 2**24 + 1, (2**24, 2**24 + 1, 2**24 + 2), (1, 0, 1)),
        ("uint32", 2**32 - 1, (2**32 - 1, 2**32 - 2, 0), (0, 1, 1)),
        ("int64", 2**24 + 1, (2**24, 2**24 + 1, 2**24 + 2), (1, 0, 1)),
        ("uint64", 0, (2**24, 1, 0), (1, 1, 0)),
        ("int8", -128, (-128, -127, 127), (0, 1, 1)),
        ("float32", None, (np.nan, np.inf, -np.inf, 0), (0, 0, 0, 1)),
        ("float32", np.nan, (np.nan, np.inf, 0), (0, 0, 1)),
        ("float32", np.inf, (np.nan, np.inf, 0), (0, 0, 1)),
        ("float32", 0, (0.0, -0.0, 1e-30), (0, 0, 1)),
        ("float32", 0.1, (0.1, 0.1000001, 0), (0, 1, 1)),
        ("float32", -3.4028234663852886e38, (-3.4028235e38, 0), (0, 1)),
        ("float32", -9999, (-9999, np.nan, 1), (0, 0, 1)),
        ("float64", 0.1, (0.1, 0.1000000001, np.nan), (0, 1, 0)),
        ("float64", -1.7976931348623157e308, (-1.7976931348623157e308, 1), (0, 1)),
        ("float64", None, (1e300, -1e300, 1, np.inf), (0, 0, 1, 0)),
    ],
)
def test_validity_of_a_pixel(dtype, nodata, values, expected, folder):
    """Nodata is compared in the stored type; what fp32 cannot hold is no number."""
    pixels = np.array(values, dtype=dtype).reshape(1, 1, -1)
    path = make_plain(folder / "scene.tif", pixels, nodata=nodata)

    np.testing.assert_array_equal([np.array(expected, dtype=bool)], validity(path))


def test_the_least_int64_may_mean_nodata(folder):
    """Written as the integer that GDAL writes; rasterio would write -9.2e+18."""
    pixels = np.array([[[-(2**63), -(2**63) + 2**40, 0]]], dtype="int64")
    path = make_plain(folder / "scene.tif", pixels, nodata=-(2**63))
    data, written = path.read_bytes(), b"-9.2233720368547758e+18"
    assert data.count(written) == 1
    path.write_bytes(data.replace(written, b"-9223372036854775808\0\0\0"))

    np.testing.assert_array_equal([[False, True, True]], validity(path))


def set_nodata_tag(path, text):
    """Overwrite the three characters of GDAL's nodata tag, 42113, in the file."""
    before = struct.pack("<HHI", 42113, 2, 4) + b"200\0"
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, before[:-4] + text + b"\0"))


@pytest.mark.parametrize("text", [b"-99", b"0.5", b"300", b"nan", b"inf", b"1e9"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_a_nodata_value_that_no_pixel_can_have_means_nothing(text, dtype, folder):
    """0.5 is not 0, -99 is not 157, 300 is not 44."""
    values = {0, 1, 44, 157, 255, 200} - {int(text) if text.isdigit() else -1}
    pixels = np.array([[sorted(values)]], dtype=dtype)
    path = make_plain(folder / "scene.tif", pixels, nodata=200)
    set_nodata_tag(path, text)

    assert validity(path).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_pixel_is_valid_if_every_band_is(dtype, folder):
    pixels = np.array([[[0, 0, 5, 5]], [[0, 5, 0, 5]]], dtype=dtype)
    path = make_plain(folder / "scene.tif", pixels, nodata=0)

    np.testing.assert_array_equal([[False, False, False, True]], validity(path))


@pytest.mark.parametrize("nodata", [None, 9])
@pytest.mark.parametrize("bands", [1, 3])
def test_an_internal_mask_counts_beside_nodata(nodata, bands, folder):
    mask = np.array([[True, False, True, False]])
    pixels = np.array([[[5, 5, 9, 9]]] * bands, dtype="uint8")
    path = make_plain(folder / "scene.tif", pixels, nodata=nodata)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(mask)

    expected = mask & (pixels[0] != nodata if nodata else True)
    np.testing.assert_array_equal(expected, validity(path))


@pytest.mark.parametrize("nodata", [None, 9])
def test_an_alpha_band_counts_beside_nodata(nodata, folder):
    """Fully transparent is invalid, whether or not there is a nodata value too."""
    pixels = np.full((4, 1, 4), 5, dtype="uint8")
    pixels[0] = [[5, 5, 9, 9]]
    pixels[3] = [[255, 0, 128, 0]]
    path = make_plain(
        folder / "scene.tif", pixels, nodata=nodata, photometric="RGB", alpha="YES"
    )
    scene = open_scene(str(path))

    valid = validity(path, bands=scene.select((1, 2)))

    assert scene.origin.alpha == 4
    np.testing.assert_array_equal([[True, False, nodata is None, False]], valid)


def test_an_internal_mask_counts_beside_an_alpha_band(folder):
    """What either of them hides is invalid."""
    pixels = np.full((4, 16, 16), 5, dtype="uint16")
    pixels[3] = 65_535
    pixels[3, :4] = 0
    path = folder / "scene.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        make_plain(path, pixels, photometric="RGB", alpha="YES")
        with rasterio.open(path, "r+") as dataset:
            is_shown = np.full((16, 16), fill_value=True)
            is_shown[:, :6] = False
            dataset.write_mask(is_shown)
    scene = open_scene(str(path))

    valid = validity(path, bands=scene.select((1, 2)))

    expected = np.full((16, 16), fill_value=True)
    expected[:4] = expected[:, :6] = False
    np.testing.assert_array_equal(expected, valid)


@pytest.fixture
def named(tmp_path):
    """Four bands: blue, Green, red, red."""
    path = make_scene(
        tmp_path / "bands.tif",
        noise("uint8", 4, 5, 6),
        names=("blue", "Green", "red", "red"),
    )
    return open_scene(str(path))


@pytest.mark.parametrize(
    ("wanted", "indexes"),
    [
        (("blue",), [1]),
        (("GREEN", "Blue"), [2, 1]),
        ((4, 3, 1), [4, 3, 1]),
        (("blue", 3), [1, 3]),
        ((2, 2), [2, 2]),
    ],
)
def test_bands_are_found_by_name_or_index(wanted, indexes, named):
    assert indexes == [band.index for band in named.select(wanted)]


@pytest.mark.parametrize("wanted", ["nir", "red", "", 0, 5, -1])
def test_a_missing_or_ambiguous_band_is_a_usage_error(wanted, named):
    """Exit 2, naming the file, what was wanted and everything there is."""
    with pytest.raises(UsageError) as caught:
        named.select(("blue", wanted))

    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) == 1
    for word in ("bands.tif", repr(wanted), "1: blue", "2: Green", "3: red", "4: red"):
        assert word in message


def test_an_index_is_an_index_whatever_the_names_say(tmp_path):
    path = make_scene(
        tmp_path / "bands.tif", noise("uint8", 3, 5, 6), names=("3", "2", "1")
    )
    scene = open_scene(str(path))

    assert [band.index for band in scene.select((1, 2, 3))] == [1, 2, 3]
    assert [band.index for band in scene.select(("1", "2", "3"))] == [3, 2, 1]


def test_colours_name_bands_without_a_description(tmp_path):
    path = make_plain(tmp_path / "rgb.tif", noise("uint8", 3, 5, 6), photometric="RGB")

    assert [band.index for band in open_scene(str(path)).select(("blue", "Red"))] == [
        3,
        1,
    ]


def test_a_scene_says_what_the_file_says(tmp_path):
    transform = Affine(8, 6, 500_000, 6, -8, 4_600_000)
    path = make_scene(
        tmp_path / "scene.tif",
        noise("int16", 2, 70, 90),
        scale=1e-4,
        offset=-0.1,
        transform=transform,
        nodata=-1,
    )
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")

    scene = open_scene(str(path))

    assert (scene.href, scene.origin.path) == (str(path), str(path))
    assert scene.size == path.stat().st_size
    assert (scene.geobox.height, scene.geobox.width) == (70, 90)
    assert scene.geobox.transform.almost_equals(transform)
    assert "32631" in scene.geobox.crs
    assert (scene.dtype, scene.block, scene.point) == ("int16", (64, 64), True)
    assert not scene.origin.has_mask
    assert [
        (band.name, band.nodata, band.scale, band.offset) for band in scene.bands
    ] == [("blue", -1, 1e-4, -0.1), ("green", -1, 1e-4, -0.1)]


def test_a_relative_path_is_kept_as_written_and_opened_absolutely(
    tmp_path, monkeypatch
):
    path = make_scene(tmp_path / "scene.tif", noise("uint8", 1, 5, 6))
    monkeypatch.chdir(tmp_path)

    scene = open_scene("scene.tif")

    assert ("scene.tif", str(path)) == (scene.href, scene.origin.path)


@pytest.mark.parametrize(
    "name",
    [
        "a b.tif",
        "Überschwemmung.tif",
        "50%.tif",
        "a#b.tif",
        "a?b=c.tif",
        "a!b.tif",
        "a,b.tif",
        "GTIFF_DIR:1:a.tif",
        "noextension",
        "scene.vrt",
    ],
)
def test_any_file_name_can_be_read(name, tmp_path):
    """A name is a name, not a query or an archive."""
    grid = Grid(height=5, width=6, tile=8, halo=0, shard=8)
    pixels = noise("uint8", 1, 5, 6)
    path = make_plain(tmp_path / "plain.tif", pixels).rename(tmp_path / name)

    (strip,) = strips_of(path, grid, whole(grid))

    np.testing.assert_array_equal(pixels, strip.pixels[:, :5, :6])


VRT = b"""<VRTDataset rasterXSize="6" rasterYSize="5"><VRTRasterBand dataType="Byte"
band="1"><SimpleSource><SourceFilename>/etc/hostname</SourceFilename></SimpleSource>
</VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize(
    "data",
    [b"no raster at all", VRT, b"", b"II", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*"],
    ids=["text", "xml", "empty", "2 bytes", "png", "gif", "3 bytes"],
)
def test_a_file_that_is_no_tiff_is_refused(data, tmp_path):
    """Exit 3 whatever its name, before GDAL sees it."""
    path = tmp_path / "scene.tif"
    path.write_bytes(data)

    with pytest.raises(RefusedError, match="not a GeoTIFF") as caught:
        open_scene(str(path))

    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "href",
    [
        "/vsimem/scene.tif",
        "/vsizip/archive.zip/scene.tif",
        "/vsigzip/scene.tif.gz",
        "/vsicurl/http://127.0.0.1:9/scene.tif",
        "/vsisubfile/0_100,scene.tif",
        "/vsistdin/",
        "vrt://scene.tif?bands=1",
        "GTIFF_DIR:1:scene.tif",
        "GTIFF_RAW:scene.tif",
        "MEM:::DATAPOINTER=1",
        VRT.decode(),
        "http://127.0.0.1:9/scene.tif",
        "file:///scene.tif",
        "zip://archive.zip!scene.tif",
        "zip+file://archive.zip!/scene.tif",
    ],
)
def test_names_that_ask_gdal_for_something_else_are_refused(href, monkeypatch):
    """Nothing is opened: not even an existing file's first bytes."""

    def opened(*_args, **_options):
        pytest.fail("it was opened")

    monkeypatch.setattr("pathlib.Path.open", opened)
    monkeypatch.setattr("rasterio.open", opened)

    with pytest.raises((RefusedError, UsageError)) as caught:
        open_scene(href)

    assert "\n" not in str(caught.value)
    assert re.split("[?\n]", href)[0] in str(caught.value)


@pytest.mark.parametrize(
    "href",
    [
        'NETCDF:"scene.nc":band',
        "",
        "scene\0.tif",
        "~/scene.tif",
    ],
)
def test_names_of_no_file_are_missing_files(href, tmp_path, monkeypatch):
    """Words that GDAL would understand are names of files that are not there."""
    make_scene(tmp_path / "scene.tif", noise("uint8", 1, 5, 6))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InputError) as caught:
        open_scene(href)

    assert caught.value.exit_code == 4


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "gone.tif"

    with pytest.raises(InputError, match="No such file") as caught:
        open_scene(str(path))

    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)


def test_a_folder_is_no_scene(tmp_path):
    with pytest.raises(InputError, match="directory") as caught:
        open_scene(str(tmp_path))

    assert caught.value.exit_code == 4


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A link to itself, which even root cannot follow."""
    path = tmp_path / "scene.tif"
    path.symlink_to(path)

    with pytest.raises(InputError, match="symbolic links") as caught:
        open_scene(str(path))

    assert str(path) in str(caught.value)


@pytest.mark.parametrize("blocks", [TILED[0], STRIPED[1]], ids=str)
@pytest.mark.parametrize("part", [0.0005, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_unreadable(part, blocks, tmp_path):
    """Exit 4, when it is opened or when the missing block is read, never later."""
    grid = Grid(height=210, width=130, tile=32, halo=4, shard=96)
    path = make_plain(tmp_path / "scene.tif", noise("uint16", 3, 210, 130), **blocks)
    data = path.read_bytes()
    path.write_bytes(data[: max(8, int(part * len(data)))])

    with pytest.raises(InputError) as caught:
        strips_of(path, grid, whole(grid))

    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("codec", ["lzw", "zstd"])
def test_a_damaged_block_is_named_by_its_rows(codec, tmp_path):
    grid = Grid(height=210, width=130, tile=32, halo=4, shard=96)
    path = make_plain(
        tmp_path / "scene.tif",
        noise("uint16", 1, 210, 130),
        compress=codec,
        **TILED[0],
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(data)

    with pytest.raises(InputError, match=r"rows \d+ to \d+, columns 0 to 129"):
        strips_of(path, grid, whole(grid))


def test_a_file_that_goes_away_is_an_input_error(tmp_path):
    grid = Grid(height=41, width=30, tile=16, halo=2, shard=24)
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 41, 30))
    scene = open_scene(str(path))
    path.unlink()

    with pytest.raises(InputError, match=r"scene\.tif"):
        list(Reader(scene, scene.bands, grid).strips(whole(grid)))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_pixels_are_refused_by_type(dtype, tmp_path):
    path = tmp_path / "scene.tif"
    make_plain(path, np.ones((1, 5, 6), dtype="complex64"), dtype=dtype)

    with pytest.raises(UsageError, match="complex") as caught:
        open_scene(str(path))

    assert caught.value.exit_code == 2


def test_a_palette_is_refused(tmp_path):
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 5, 6))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255)})

    with pytest.raises(UsageError, match="palette"):
        open_scene(str(path))


@pytest.mark.parametrize(
    ("dtype", "bits", "most"),
    [("uint8", 2, 3), ("uint8", 4, 15), ("uint16", 12, 4095), ("uint32", 20, 2**20)],
)
def test_a_type_of_fewer_bits_is_read_as_the_next_wider(dtype, bits, most, tmp_path):
    pixels = noise("uint32", 1, 5, 90) % (most + 1)
    path = make_plain(tmp_path / "s.tif", pixels.astype(dtype), nbits=bits)
    grid = Grid(height=5, width=90, tile=96, halo=0, shard=96)

    (strip,) = strips_of(path, grid, whole(grid))

    np.testing.assert_array_equal(pixels, strip.pixels[:, :5, :90])


def test_half_precision_is_read_exactly(tmp_path):
    pixels = np.array([[[0.1, 1e-7, 65504, -2, np.nan]]], "float16")
    path = make_plain(tmp_path / "s.tif", pixels.astype("float32"), nbits=16)
    grid = Grid(height=1, width=5, tile=8, halo=0, shard=8)

    (strip,) = strips_of(path, grid, whole(grid))

    np.testing.assert_array_equal(pixels, strip.pixels[:, :1, :5])
    np.testing.assert_array_equal([[1, 1, 1, 1, 0]], strip.valid[:1, :5])


def test_white_is_no_zero(tmp_path):
    """MINISWHITE turns the picture round, not the numbers."""
    pixels = noise("uint8", 1, 5, 6)
    path = make_plain(tmp_path / "s.tif", pixels, photometric="MINISWHITE")
    grid = Grid(height=5, width=6, tile=8, halo=0, shard=8)

    (strip,) = strips_of(path, grid, whole(grid))

    np.testing.assert_array_equal(pixels, strip.pixels[:, :5, :6])


@pytest.mark.parametrize("value", [2**24 + 1, 2**53 + 1, -(2**62) - 1])
def test_integers_that_fp32_cannot_hold_are_refused_by_name(value, tmp_path):
    """Exit 2, when they are met; under nodata they may stand."""
    pixels = np.array([[[value, 5, 7]]], dtype="int64")
    path = make_plain(tmp_path / "s.tif", pixels, nodata=7)
    hidden = make_plain(tmp_path / "hidden.tif", pixels, nodata=value)

    with pytest.raises(UsageError, match=f"{value} as int64") as caught:
        validity(path)

    assert caught.value.exit_code == 2
    if abs(value) < 2**53:  # GDAL's tag is text, rasterio's a double
        np.testing.assert_array_equal([[False, True, True]], validity(hidden))


def test_of_several_images_the_first_is_read_and_the_rest_named(tmp_path, caplog):
    pixels = noise("uint8", 1, 5, 6)
    path = make_plain(tmp_path / "s.tif", pixels, photometric="MINISBLACK")
    make_plain(path, np.zeros((1, 9, 9), "uint8"), append_subdataset=True)
    grid = Grid(height=5, width=6, tile=8, halo=0, shard=8)

    (strip,) = strips_of(path, grid, whole(grid))

    np.testing.assert_array_equal(pixels, strip.pixels[:, :5, :6])
    assert "holds 2 images, of which the first is read" in caplog.text


def test_a_sparse_bigtiff_of_any_size_is_a_scene(tmp_path):
    """80,000 pixels each way in a few kilobytes: its ends are read as they are."""
    side = 80_000
    path = tmp_path / "s.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "sparse_ok": True}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "bigtiff": "YES"}
    place = {"height": side, "width": side, "transform": Affine(1, 0, 0, 0, -1, 0)}
    with rasterio.open(path, "w", **profile, **blocks, **place) as dataset:
        last = np.full((1, 8, 8), 5, "uint16")
        dataset.write(last, window=((side - 8, side), (side - 8, side)))
    grid = Grid(height=side, width=side, tile=128, halo=16, shard=1536)

    first, last = (
        list(strips_of(path, grid, run))[-1]
        for run in grid.runs([(0, 0), (52, 52)], band=1, rows=1)
    )

    assert path.stat().st_size < 4_000_000
    assert not first.pixels.any()
    inside = last.pixels[0, : side - last.tiles.row * 96 + 16]
    assert (inside == 5).sum() >= 64


def test_ground_control_points_alone_are_refused(tmp_path):
    path = tmp_path / "scene.tif"
    points = [
        GroundControlPoint(row, col, 500_000 + 10 * col, 4_600_000 - 10 * row)
        for row, col in ((0, 0), (0, 6), (5, 0), (5, 6))
    ]
    make_plain(
        path,
        noise("uint8", 1, 5, 6),
        transform=None,
        gcps=points,
        crs="EPSG:32631",
    )

    with pytest.raises(UsageError, match="GCPs"):
        open_scene(str(path))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_that_lies_nowhere_is_read(tmp_path):
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 5, 6), transform=None)

    assert open_scene(str(path)).geobox.crs is None


AUX = """<PAMDataset><SRS>EPSG:4326</SRS>
<GeoTransform>1.0, 2.0, 0.0, 3.0, 0.0, -4.0</GeoTransform>
<Metadata><MDI key="AREA_OR_POINT">Point</MDI></Metadata>
<PAMRasterBand band="1"><NoDataValue>77</NoDataValue><Scale>9</Scale>
<Offset>8</Offset><Description>infrared</Description></PAMRasterBand></PAMDataset>"""
TFW = "2.0\n0.0\n0.0\n-4.0\n1.0\n3.0\n"


@pytest.mark.parametrize("lies", ["somewhere", "nowhere"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_files_beside_a_scene_change_nothing(lies, tmp_path):
    """Not its place, not its nodata, not one pixel."""
    grid = Grid(height=200, width=150, tile=32, halo=4, shard=96)
    pixels = random_pixels(200, 150, bands=1, nodata=0)
    place = {} if lies == "somewhere" else {"transform": None}
    path = make_plain(tmp_path / "scene.tif", pixels, **place)
    scene = open_scene(str(path))
    for suffix, text in ((".tif.aux.xml", AUX), (".tfw", TFW), (".wld", TFW)):
        (tmp_path / f"scene{suffix}").write_text(text)
    (tmp_path / "scene.tfwx").write_text(TFW)
    for suffix, value in ((".msk", 0), (".ovr", 1)):
        make_plain(
            tmp_path / f"scene.tif{suffix}",
            np.full((1, 100, 75), value, dtype="uint16"),
        )
    make_plain(tmp_path / "scene.tif.msk", np.zeros((1, 200, 150), dtype="uint8"))

    assert scene == open_scene(str(path))
    valid = np.ones((200, 150), dtype=bool)
    strips = strips_of(path, grid, whole(grid))
    assert_strips_show(pixels, valid, grid, whole(grid), strips)


def test_reading_leaves_no_file_behind(tmp_path):
    grid = Grid(height=41, width=30, tile=16, halo=2, shard=24)
    path = make_plain(tmp_path / "scene.tif", noise("uint8", 1, 41, 30))

    strips_of(path, grid, whole(grid))

    assert [path] == list(tmp_path.iterdir())


def test_scenes_and_bands_travel_light(scene_path):
    """What goes to a worker is the recipe: a few kilobytes, equal when it arrives."""
    scene = open_scene(str(scene_path))
    parcel = pickle.dumps((scene, scene.bands))

    assert (scene, scene.bands) == pickle.loads(parcel)  # noqa: S301  (our own)
    assert len(parcel) < 4096
