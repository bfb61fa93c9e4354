"""Rules about masks: what they say, and which pixels they hide."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from making import NORTH_UP, make_plain, make_scene
from test_compose import ZONE, layer, read_all, stack
from test_scene import noise

from tileseg.base.rules import Rule, parse_rule
from tileseg.errors import UsageError
from tileseg.grid import Grid, Run
from tileseg.scenes.compose import Target, Wish
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("scl.tif in 3,8, 9", Rule("scl.tif", "in", (3, 8, 9))),
        ("a in b.tif not  in 4,5", Rule("a in b.tif", "not in", (4, 5))),
        ("band:qa bits 1,3", Rule("band:qa", "bits", (1, 3))),
        ("s3://b/c.tif > 40", Rule("s3://b/c.tif", ">", (40,))),
        ("c.tif<=-0.5", None),
        ("c.tif <=-.5", Rule("c.tif", "<=", (-0.5,))),
        ("in 3", None),
        ("c.tif", None),
        ("c.tif in", None),
        ("c.tif in 3;4", None),
        ("c.tif bits 64", None),
        ("c.tif bits 1.5", None),
        ("c.tif bits -1", None),
        ("c.tif > 3,4", None),
        ("c.tif = 3", None),
        ("c.tif > nan", None),
    ],
)
def test_a_rule_is_a_source_a_verb_and_numbers(text, rule):
    if rule:
        assert rule == parse_rule(text)
    else:
        with pytest.raises(UsageError, match="mask: got") as caught:
            parse_rule(text)
        assert repr(text) in str(caught.value)


SCL = (
    "no data", "defective", "dark", "shadow", "vegetation", "bare", "water",
    "unclassified", "medium cloud", "high cloud", "cirrus", "snow",
)  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "values", "hidden"),
    [
        ("in", (0, 1, 3, 8, 9, 10), {0, 1, 3, 8, 9, 10}),  # Sentinel-2 SCL
        ("not in", (4, 5, 6, 7, 11), {0, 1, 2, 3, 8, 9, 10}),
        (">", (8,), {9, 10, 11}),
        (">=", (8,), {8, 9, 10, 11}),
        ("<", (2,), {0, 1}),
        ("<=", (2,), {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64"])
def test_a_rule_hides_what_it_says(verb, values, hidden, dtype):
    codes = np.arange(len(SCL)).astype(dtype)

    hits = Rule("scl.tif", verb, values).hits(codes)

    assert hidden == set(codes[hits])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int64", "uint64"])
def test_any_of_the_bits_hides(dtype):
    """Landsat QA_PIXEL: fill 0, dilated cloud 1, cirrus 2, cloud 3, cloud shadow 4."""
    clear, cloud, shadow, fill, water = 21824 & ~0, 22280, 23888, 1, 21952
    codes = np.array([clear, cloud, shadow, fill, water]).astype(dtype)

    hits = Rule("qa.tif", "bits", (0, 1, 2, 3, 4)).hits(codes)

    assert hits.tolist() == [False, True, True, True, False]


def test_what_is_no_number_hides():
    values = np.array([1, np.nan, np.inf, -np.inf])

    assert Rule("c", ">", (5,)).hits(values).tolist() == [False, True, True, True]


@pytest.fixture
def scene_path(tmp_path):
    pixels = noise("uint8", 1, 12, 16)
    pixels[0, :3] = 0
    return make_plain(tmp_path / "scene.tif", pixels, nodata=0, **ZONE)


def states(scene):
    """Return (valid, masked) of a whole scene."""
    box = scene.geobox
    side = max(box.height, box.width)
    grid = Grid(height=box.height, width=box.width, tile=side, halo=0, shard=side)
    (strip,) = Reader(scene, scene.bands[:1], grid).strips(Run(grid.shape))
    at = slice(box.height), slice(box.width)
    return strip.valid[at], strip.masked[at]


def test_a_coarser_mask_hides_by_its_nearest_pixel(scene_path, tmp_path):
    """Its own nodata is a value; what it hides has data otherwise."""
    classes = np.array([[[9, 4, 4, 4], [4, 4, 9, 0], [0, 9, 4, 4]]], "uint8")
    mask = make_plain(
        tmp_path / "scl.tif",
        classes,
        nodata=9,
        transform=NORTH_UP @ Affine.scale(4),
        **ZONE,
    )

    scene = open_scene(str(scene_path), Wish(rules=(parse_rule(f"{mask} in 9"),)))

    has_data = read_all(open_scene(str(scene_path)))[1]
    is_cloud = (classes[0] == 9).repeat(4, axis=0).repeat(4, axis=1)
    valid, masked = states(scene)
    np.testing.assert_array_equal(has_data & ~is_cloud, valid)
    np.testing.assert_array_equal(has_data & is_cloud, masked)
    assert [str(scene_path), str(mask)] == [file.path for file in scene.files]


def test_where_there_is_no_mask_nothing_is_known(scene_path, tmp_path):
    mask = make_plain(tmp_path / "scl.tif", np.full((1, 12, 10), 4, "uint8"), **ZONE)
    rule = parse_rule(f"{mask} in 9")

    valid, masked = states(open_scene(str(scene_path), Wish(rules=(rule,))))

    assert masked[3:, 10:].all()
    assert not masked[:, :10].any()
    assert not valid[:, 10:].any()


@pytest.mark.parametrize(
    ("nodata", "rule", "is_hidden"),
    [
        (None, "> 40", False),
        (None, "in 0", True),
        (255, "> 40", True),
        (255, "in 100", False),
    ],
)
def test_a_block_that_a_mask_does_not_hold_has_its_nodata_value_or_0(
    nodata, rule, is_hidden, scene_path, tmp_path
):
    """Masks of 0 and 100 are written so, to be small."""
    mask = write_sparse(
        tmp_path / "clouds.tif", np.full((1, 40, 50), 100, "uint8"), nodata=nodata
    )
    scene_path = make_plain(tmp_path / "s.tif", np.ones((1, 40, 50), "uint8"), **ZONE)

    _, masked = states(
        open_scene(str(scene_path), Wish(rules=(parse_rule(f"{mask} {rule}"),)))
    )

    expected = np.full((40, 50), is_hidden)
    expected[:16, :32] = rule != "in 0"
    np.testing.assert_array_equal(expected, masked)


def test_a_block_that_the_scenes_own_band_does_not_hold_is_unknown(tmp_path):
    red = make_scene(
        tmp_path / "red.tif", np.ones((1, 40, 50), "uint8"), names=("red",)
    )
    qa = write_sparse(tmp_path / "qa.tif", np.ones((1, 40, 50), "uint8"))
    with rasterio.open(qa, "r+") as dataset:
        dataset.descriptions = ("qa",)
    wish = Wish(bands=("red",), rules=(parse_rule("band:qa > 40"),))

    valid, masked = states(open_scene(stack(red, qa), wish))

    assert valid[:16, :32].all()
    assert (valid.sum(), masked.sum()) == (16 * 32, 40 * 50 - 16 * 32)


def write_sparse(path, pixels, **profile):
    """Write the first 16 rows of 32 columns only: the other blocks are not there."""
    settings = {
        "driver": "GTiff", "count": 1, "height": 40, "width": 50, "dtype": "uint8",
        "transform": NORTH_UP, "tiled": True, "blockxsize": 32, "blockysize": 16,
        "sparse_ok": "TRUE", **ZONE, **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **settings) as dataset:
        dataset.write(pixels[:, :16, :32], window=((0, 16), (0, 32)))
    return path


def test_a_mask_that_lies_elsewhere_or_has_bands_is_refused(scene_path, tmp_path):
    far = NORTH_UP @ Affine.translation(500, 0)
    elsewhere = make_plain(
        tmp_path / "far.tif", noise("uint8", 1, 12, 16), transform=far, **ZONE
    )
    many = make_plain(tmp_path / "many.tif", noise("uint8", 2, 12, 16), **ZONE)

    for mask, words in ((elsewhere, "does not lie on"), (many, "2 bands, wanted one")):
        with pytest.raises(UsageError, match=words):
            open_scene(str(scene_path), Wish(rules=(parse_rule(f"{mask} in 9"),)))


def test_a_band_of_the_scene_may_hide_the_others(tmp_path):
    """Its nodata, which GDAL gives to every band of a file, is a value here."""
    pixels = np.array([[[5, 5, 5, 0]], [[0, 1, 2, 0]]], "uint8")
    path = make_scene(tmp_path / "s.tif", pixels, names=("red", "qa"), nodata=0)
    scene = open_scene(
        str(path), Wish(bands=("red",), rules=(parse_rule("band:qa in 1,3"),))
    )

    valid, masked = states(scene)

    np.testing.assert_array_equal([[True, False, True, False]], valid)
    np.testing.assert_array_equal([[False, True, False, False]], masked)


def test_each_place_is_hidden_by_its_own_band(tmp_path):
    """Where the first has clouds the next one that is clear counts; coarser bands are
    resampled by nearest, the others not at all."""
    mosaic = []
    for name, value, clouds in (("a", 1, 0), ("b", 2, 9), ("c", 3, 9)):
        red = make_scene(
            tmp_path / f"{name}_red.tif",
            np.full((1, 8, 8), value, "uint8"),
            names=("red",),
        )
        codes = np.zeros((1, 4, 4), "uint8")
        codes[0, :2] = clouds
        codes[0, :, 0] = 9
        qa = make_scene(
            tmp_path / f"{name}_qa.tif",
            codes,
            names=("qa",),
            transform=NORTH_UP @ Affine.scale(2),
        )
        mosaic += stack(red, qa)
    wish = Wish(bands=("red",), rules=(parse_rule("band:qa in 9"),))
    scene = open_scene(tuple(mosaic[1:]), wish)

    pixels, valid = read_all(scene, scene.select(("red",)))
    _, masked = states(scene)

    expected = np.zeros((8, 8))
    expected[4:, 2:] = 2
    np.testing.assert_array_equal(expected, np.where(valid, pixels[0], 0))
    np.testing.assert_array_equal(expected == 0, masked)
    whole = open_scene(tuple(mosaic), wish)
    pixels, valid = read_all(whole, whole.select(("red",)))
    np.testing.assert_array_equal(
        np.where(np.arange(8) < 2, 0, 1)[None].repeat(8, axis=0),
        np.where(valid, pixels[0], 0),
    )


def test_masks_go_where_the_scene_goes(scene_path, tmp_path):
    """On a resampled scene too: nearest, and counted after the resampling."""
    codes = np.zeros((1, 12, 16), "uint8")
    codes[0, 6:, 8:] = 9
    mask = make_plain(tmp_path / "scl.tif", codes, **ZONE)
    wish = Wish(target=Target(resolution=5), rules=(parse_rule(f"{mask} in 9"),))

    scene = open_scene(((layer(scene_path),),), wish)

    _, masked = states(scene)
    expected = (codes[0] == 9).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(expected, masked)


def test_a_mask_may_have_a_palette(scene_path, tmp_path):
    """Class rasters do; a scene's measurements have none."""
    mask = make_plain(tmp_path / "scl.tif", np.full((1, 12, 16), 9, "uint8"), **ZONE)
    with rasterio.open(mask, "r+") as dataset:
        dataset.write_colormap(1, {9: (255, 255, 255, 255)})
    rule = parse_rule(f"{mask} in 9")

    _, masked = states(open_scene(str(scene_path), Wish(rules=(rule,))))

    assert masked[3:].all()
    with pytest.raises(UsageError, match="palette"):
        open_scene(str(mask))
