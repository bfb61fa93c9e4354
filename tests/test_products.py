"""What is published opens everywhere, lies where the scene lies, invents nothing."""

import warnings

import matplotlib.image
import numpy as np
import pytest
import rasterio
from affine import Affine
from cogs import faults
from making import NORTH_UP, digests, make_model, make_scene, random_pixels, read
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from tileseg.cards.item import read_card
from tileseg.job import run
from tileseg.masks.overview import SHRINK
from tileseg.settings import LAYERS, Job

# What people divide by three, measure from satellites or convert from feet.
AWKWARD = 10 / 3
ORIGIN = (500_000.1 / 3, 4_600_000.7 / 7)

TRANSFORMS = {
    "north-up": Affine(AWKWARD, 0, ORIGIN[0], 0, -AWKWARD, ORIGIN[1]),
    "oblong": Affine(AWKWARD, 0, ORIGIN[0], 0, -np.pi, ORIGIN[1]),
    "south-up": Affine(AWKWARD, 0, ORIGIN[0], 0, np.e, ORIGIN[1]),
    "west-up": Affine(-AWKWARD, 0, ORIGIN[0], 0, -np.e, ORIGIN[1]),
    "rotated": Affine(*NORTH_UP[:6]) @ Affine.rotation(31.7),
    "sheared": Affine(AWKWARD, 0.1, ORIGIN[0], 0.7 / 3, -AWKWARD, ORIGIN[1]),
    "transposed": Affine(0, AWKWARD, ORIGIN[0], AWKWARD, 0, ORIGIN[1]),
    "small": Affine(1e-9 / 3, 0, -1e-7, 0, -1e-9 / 7, 1e-7 / 3),
    "large": Affine(1e6 / 3, 0, -2e7 / 3, 0, -1e6 / 7, 2e7 / 7),
}

ENGINEERING = (
    'ENGCRS["local grid",EDATUM["site"],CS[Cartesian,2],'
    'AXIS["(E)",east,ORDER[1],LENGTHUNIT["metre",1]],'
    'AXIS["(N)",north,ORDER[2],LENGTHUNIT["metre",1]]]'
)
LOCAL = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
LAMBERT = CRS.from_epsg(3035).to_wkt().replace("LAEA", "our own LAEA")

SYSTEMS = {
    "utm": CRS.from_epsg(32631),
    "us-feet": CRS.from_epsg(2263),
    "geographic": CRS.from_epsg(4326),
    "geographic 3D": CRS.from_epsg(4979),
    "web": CRS.from_epsg(3857),
    "custom": CRS.from_wkt(LAMBERT),
    "proj4": CRS.from_proj4("+proj=laea +lat_0=1.5 +lon_0=7 +R=6371000 +units=m"),
    "moon": CRS.from_proj4("+proj=longlat +R=1737400 +no_defs"),
    "compound": CRS.from_user_input("EPSG:32631+5773"),
    "geostationary": CRS.from_proj4("+proj=geos +h=35785831 +lon_0=9.5 +sweep=y"),
    "engineering": CRS.from_wkt(ENGINEERING),
    "LOCAL_CS": CRS.from_wkt(LOCAL),
    "none": None,
}


def segment(tmp_path, model, pixels, *, layers=("confidence",), name="out", **profile):
    """Segment pixels; return the scene's path and the output directory."""
    area_or_point = profile.pop("AREA_OR_POINT", "Area")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = make_scene(tmp_path / f"{name}.tif", pixels, **profile)
        if area_or_point == "Point":
            with rasterio.open(scene, "r+") as dataset:
                dataset.update_tags(AREA_OR_POINT=area_or_point)
    job = Job(
        input=str(scene),
        model=str(model),
        trusted=True,
        output=str(tmp_path / name),
        shard=96,
        **dict.fromkeys(layers, True),
    )
    record = run(job)

    assert record.error is None
    return scene, job.output_path


def lies_nowhere(path):
    """Return whether the file has no transform at all, not even the identity."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        with rasterio.open(path):
            return bool(caught)


def place(path):
    """Return where a raster says that it lies, to the last bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return (
                dataset.shape,
                tuple(dataset.transform),
                dataset.crs,
                dataset.tags().get("AREA_OR_POINT"),
            )


# Where it lies


@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_products_keep_the_transform_to_the_last_bit(
    tmp_path, model_path, transform, area_or_point
):
    """The six coefficients are compared as the doubles that they are."""
    scene, output = segment(
        tmp_path,
        model_path,
        random_pixels(53, 101),
        transform=transform,
        AREA_OR_POINT=area_or_point,
    )

    assert place(scene)[1:4:2] == (tuple(transform), area_or_point)
    for name in ("mask.tif", "confidence.tif"):
        assert place(scene) == place(output / name)


@pytest.mark.parametrize("crs", SYSTEMS.values(), ids=SYSTEMS)
def test_products_keep_the_crs(tmp_path, model_path, crs):
    transform = Affine(1e-4 / 3, 0, 7 / 3, 0, -1e-4 / 3, 48.1)
    scene, output = segment(
        tmp_path, model_path, random_pixels(53, 101), transform=transform, crs=crs
    )

    for name in ("mask.tif", "confidence.tif"):
        assert place(scene) == place(output / name)


@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
def test_a_raster_that_lies_nowhere_stays_there(tmp_path, model_path, area_or_point):
    """Without CRS and transform no identity is written as if it were real."""
    scene, output = segment(
        tmp_path,
        model_path,
        random_pixels(53, 101),
        crs=None,
        transform=None,
        AREA_OR_POINT=area_or_point,
    )

    assert place(scene) == place(output / "mask.tif")
    assert lies_nowhere(scene) == lies_nowhere(output / "mask.tif")


# What it is


@pytest.fixture(
    scope="module",
    params=[(1, 1), (1, 777), (51, 17), (512, 512), (513, 1537), (300, 2100)],
)
def sized(request, tmp_path_factory, model_path):
    """The output directory of a scene of some height and width."""
    folder = tmp_path_factory.mktemp("sized")
    pixels = random_pixels(*request.param, nodata=0.2, seed=3)
    return segment(folder, model_path, pixels, layers=LAYERS)[1]


PRODUCTS = ["mask.tif", "confidence.tif"]
ALL = tuple(f"{name}.tif" for name in ("mask", *LAYERS))


@pytest.mark.parametrize("product", ALL)
def test_products_are_valid_cogs(sized, product):
    """For two judges, to the last block."""
    assert faults(sized / product) == []


@pytest.mark.parametrize("name", ["south-up", "rotated"])
def test_products_are_valid_cogs_however_they_lie(tmp_path, model_path, name):
    _, output = segment(
        tmp_path,
        model_path,
        random_pixels(53, 101, seed=2),
        layers=LAYERS,
        transform=TRANSFORMS[name],
    )

    assert [faults(output / product) for product in ALL] == [[]] * len(ALL)


@pytest.mark.parametrize("product", ["mask.tif", "probabilities.tif"])
def test_the_judges_see_a_broken_block(sized, product, tmp_path):
    """Else their silence would say nothing."""
    data = bytearray((sized / product).read_bytes())
    data[-1] ^= 1  # of the last four bytes again, behind the last block
    broken = tmp_path / product
    broken.write_bytes(data)

    assert any("trailer" in text for text in faults(broken))


def test_one_column_is_a_valid_cog_without_overviews(tmp_path, model_path):
    """Overviews one pixel wide are none for the validators, which then miss them."""
    _, output = segment(tmp_path, model_path, random_pixels(777, 1))

    is_valid, errors, warned = cog_validate(output / "mask.tif")

    assert is_valid
    assert errors == []
    assert [text for text in warned if "internal overviews" not in text] == []


@pytest.mark.parametrize("product", ALL)
def test_overviews_are_the_commonest_class_and_the_mean(sized, product):
    """Each of the level before, of every band."""
    path = sized / product
    shrink = SHRINK["MODE" if product == "mask.tif" else "AVERAGE"]
    with rasterio.open(path) as dataset:
        above = dataset.read()
        levels = range(len(dataset.overviews(1)))
        is_large = max(dataset.shape) > 512
    for level in levels:
        with rasterio.open(path, OVERVIEW_LEVEL=level) as dataset:
            assert dataset.nodata == 255
            above = shrink(above)
            np.testing.assert_array_equal(dataset.read(), above)

    assert is_large == (len(levels) > 0)


def test_statistics_are_those_of_the_values(sized):
    """Of stored ones, as GDAL would have counted them; of classes how often each is."""
    for name in LAYERS:
        with rasterio.open(sized / f"{name}.tif") as dataset:
            bands = dataset.read(masked=True)
            tags = [dataset.tags(band) for band in dataset.indexes]
        for band, told in zip(bands, tags, strict=True):
            known = {key.removeprefix("STATISTICS_"): told[key] for key in told}
            share = 100 * band.count() / band.size
            assert float(known.pop("VALID_PERCENT")) == pytest.approx(share)
            if band.count():
                values = band.compressed().astype(float)
                expected = values.min(), values.max(), values.mean(), values.std()
                found = (
                    known.pop(it) for it in ("MINIMUM", "MAXIMUM", "MEAN", "STDDEV")
                )
                assert tuple(map(float, found)) == pytest.approx(expected)
            assert known == {}
    with rasterio.open(sized / "mask.tif") as dataset:
        mask, tags = dataset.read(1), dataset.tags()
    counts = {value: int((mask == value).sum()) for value in range(3)}
    assert counts == {value: int(tags[f"PIXELS_{value}"]) for value in range(3)}


@pytest.mark.parametrize("product", PRODUCTS)
def test_overviews_keep_a_block_of_nodata(tmp_path, model_path, product):
    """Where 64 x 64 pixels are nodata, what lies inside them is at every level."""
    pixels = random_pixels(600, 700, nodata=0)
    pixels[:, 128:256, 256:384] = 0
    _, output = segment(tmp_path, model_path, pixels)

    with rasterio.open(output / product, OVERVIEW_LEVEL=0) as dataset:
        level = dataset.read(1)
    assert {255} == set(np.unique(level[65:127, 129:191]))
    assert level[:60].max() < 255


def test_confidence_is_nodata_where_the_mask_is(sized):
    mask, confidence = (read(sized / name) for name in PRODUCTS)

    np.testing.assert_array_equal(mask == 255, confidence == 255)


def test_the_mask_says_what_its_values_mean(tmp_path, model_path):
    _, output = segment(tmp_path, model_path, random_pixels(53, 101))
    card = read_card(model_path)

    with rasterio.open(output / "mask.tif") as dataset:
        tags, colors = dataset.tags(), dataset.colormap(1)
        facts = (dataset.nodata, dataset.dtypes, dataset.descriptions)
        compression = dataset.profile["compress"]

    assert facts == (255, ("uint8",), ("class",))
    assert compression == "deflate"
    for item in card.classes:
        assert item.name == tags[f"CLASS_{item.value}"]
        assert (*item.rgb, 255) == colors[item.value]
    assert colors[255][3] == 0
    assert f"{card.name} {card.version}" == tags["MODEL"]
    assert card.sha256 == tags["MODEL_SHA256"]


def test_confidence_says_what_its_values_mean(tmp_path, model_path):
    _, output = segment(tmp_path, model_path, random_pixels(53, 101))
    card = read_card(model_path)

    with rasterio.open(output / "confidence.tif") as dataset:
        tags = dataset.tags()
        facts = (dataset.nodata, dataset.dtypes, dataset.descriptions, dataset.scales)

    assert facts == (255, ("uint8",), ("probability of the class",), (1 / 254,))
    assert f"{card.name} {card.version}" == tags["MODEL"]
    assert card.sha256 == tags["MODEL_SHA256"]


def test_identical_runs_give_identical_bytes(tmp_path, model_path):
    pixels = random_pixels(613, 529)

    _, one = segment(tmp_path, model_path, pixels, name="one")
    _, other = segment(tmp_path, model_path, pixels, name="other")

    assert digests(one) == digests(other)


def test_one_logit_makes_a_class_and_its_background(tmp_path):
    model = make_model(tmp_path / "model", outputs=1, seed=2)
    pixels = random_pixels(130, 171)

    _, output = segment(tmp_path, model, pixels)

    mask, confidence = (read(output / name) for name in PRODUCTS)
    assert {0, 1, 255} == set(np.unique(mask))
    assert confidence[mask < 255].min() >= 127  # the likelier of two


def test_confidence_is_at_least_that_of_a_guess(tmp_path, model_path):
    """The likeliest of three classes has at least a third."""
    _, output = segment(tmp_path, model_path, random_pixels(130, 171))

    confidence = read(output / "confidence.tif")
    assert confidence[confidence < 255].min() >= 84
    assert confidence[confidence < 255].max() <= 254


# What a person looks at


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 900), (900, 1), (53, 101), (700, 300)]
)
def test_the_quicklook_is_a_picture(tmp_path, model_path, height, width):
    pixels = random_pixels(height, width, nodata=0)
    _, output = segment(tmp_path, model_path, pixels, layers=())

    picture = matplotlib.image.imread(output / "quicklook.png")

    rows, columns = picture.shape[:2]
    assert 200 <= rows <= 2000
    assert 600 <= columns <= 3000
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 3


def test_the_quicklook_of_nothing_is_a_picture(tmp_path, model_path):
    pixels = np.zeros((3, 53, 101), np.uint16)
    _, output = segment(tmp_path, model_path, pixels, layers=())

    picture = matplotlib.image.imread(output / "quicklook.png")

    assert picture.shape[0] >= 200
