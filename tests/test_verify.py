"""A raster that is not what the receipts say is not published."""

import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from making import NORTH_UP, after, digests, make_scene, random_pixels

from tileseg.errors import ExitCode, OutputError
from tileseg.geobox import GeoBox
from tileseg.job import run
from tileseg.masks.encode import shard_bytes
from tileseg.outputs import verify
from tileseg.outputs.verify import verify_layer, verify_mask
from tileseg.scenes.gdal import gdal_env
from tileseg.settings import Job

HEIGHT, WIDTH = 1300, 1700  # 3 x 4 blocks, two overviews
WKT, OTHER = (
    rasterio.CRS.from_epsg(code).to_wkt(version="WKT2_2019") for code in (32631, 32632)
)
BOX = GeoBox(HEIGHT, WIDTH, NORTH_UP, WKT)


@pytest.fixture(scope="module")
def labels():
    random = np.random.default_rng(3)
    labels = random.choice(np.array([0, 2, 4], np.uint8), (HEIGHT, WIDTH))
    labels[1200:, 700:] = 255
    return labels


@pytest.fixture(scope="module")
def pixels(labels):
    """What the receipts say: no class 1 and 3, and nothing of a hole of nodata."""
    values, counts = np.unique(labels, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return pixels | {1: 0, 3: 0, 255: pixels[255] - 500}


def write(path, values, box=BOX, resampling="mode"):
    """Write a COG as GDAL does, which is another writer than ours."""
    profile = {"driver": "COG", "count": 1, "dtype": "uint8", "nodata": 255}
    profile |= {"height": box.height, "width": box.width, "compress": "deflate"}
    profile |= {"transform": box.transform, "crs": box.crs}
    with rasterio.open(path, "w", overview_resampling=resampling, **profile) as dataset:
        dataset.write(values, 1)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory, labels):
    return write(tmp_path_factory.mktemp("sound") / "mask.tif", labels)


@pytest.fixture
def mask(tmp_path, sound):
    return shutil.copy(sound, tmp_path / "mask.tif")


def test_what_was_meant_passes(mask, pixels):
    verify_mask(mask, BOX, pixels)
    verify_layer(mask, BOX, mask)


@pytest.mark.parametrize("at", [(0, 0), (511, 512), (HEIGHT - 1, WIDTH - 1)])
def test_one_wrong_pixel_is_seen(tmp_path, labels, pixels, at):
    wrong = labels.copy()
    wrong[at] = 0 if wrong[at] else 2

    with pytest.raises(OutputError, match="pixels by value"):
        verify_mask(write(tmp_path / "mask.tif", wrong), BOX, pixels)


def test_a_class_that_no_shard_has_is_seen(tmp_path, labels, pixels):
    wrong = np.where(labels == 4, 3, labels)

    with pytest.raises(OutputError, match="3: "):
        verify_mask(write(tmp_path / "mask.tif", wrong), BOX, pixels)


BOXES = {
    "transform": GeoBox(
        HEIGHT, WIDTH, Affine(np.nextafter(10, 11), *NORTH_UP[1:6]), WKT
    ),
    "CRS": GeoBox(HEIGHT, WIDTH, NORTH_UP, OTHER),
    "no CRS": GeoBox(HEIGHT, WIDTH, NORTH_UP, None),
    "size": GeoBox(HEIGHT, WIDTH + 1, NORTH_UP, WKT),
}


@pytest.mark.parametrize("what", BOXES)
def test_another_place_is_seen(mask, pixels, what):
    """The transform to the last bit."""
    with pytest.raises(OutputError, match=what.removeprefix("no ")):
        verify_mask(mask, BOXES[what], pixels)


@pytest.mark.parametrize(
    "change", [{"nodata": 254}, {"nodata": None}, {"dtype": "int16"}]
)
def test_another_nodata_or_type_is_seen(mask, pixels, change):
    with rasterio.open(mask) as dataset:
        profile, values = dataset.profile, dataset.read()
    with rasterio.open(
        mask, "w", **{**profile, "driver": "GTiff", **change}
    ) as dataset:
        dataset.write(values)

    with pytest.raises(OutputError, match="bands"):
        verify_mask(mask, BOX, pixels)


def test_a_truncated_file_is_seen(mask, pixels):
    data = mask.read_bytes()

    mask.write_bytes(data[: len(data) * 9 // 10])

    with pytest.raises(OutputError, match="cannot be read"):
        verify_mask(mask, BOX, pixels)


def test_an_overview_that_invents_a_class_is_seen(tmp_path, labels, pixels):
    """An average of classes 2 and 4 is none."""
    path = write(tmp_path / "mask.tif", labels, resampling="average")

    with pytest.raises(OutputError, match=r"only overview 1 has: got \[1, 3\]"):
        verify_mask(path, BOX, pixels)


@pytest.mark.parametrize("value", [0, 255])
def test_confidence_has_nodata_exactly_where_the_mask_has(
    tmp_path, labels, mask, value
):
    wrong = labels.copy()
    wrong[0, 1200] = wrong[1250, 1500] = value
    path = write(tmp_path / "confidence.tif", wrong)

    with pytest.raises(OutputError, match="got 1, wanted 0"):
        verify_layer(path, BOX, mask)


@pytest.mark.parametrize("product", ["mask", "confidence", "entropy"])
def test_a_shard_that_changes_behind_our_back_is_not_published(
    tmp_path, model_path, product
):
    """Nor is it used by the next run, which is right."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(230, 170, seed=1))
    options = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "shard": 96,
    }
    options |= {"run_shards": (1, 1), "confidence": True, "entropy": True}
    job = Job(**options, output=str(tmp_path / "out"))
    suffix = "" if product == "mask" else f".{product}"

    def tamper():
        (file,) = job.work_path.glob(f"*/shards/0_0{suffix}.tif")
        with rasterio.open(file) as dataset:
            values = dataset.read(1)
        values[50, 50] = 7 if values[50, 50] == 255 else 255
        with gdal_env():
            file.write_bytes(shard_bytes(values, GeoBox(*values.shape, NORTH_UP, WKT)))

    record = run(job, after(job, 6, tamper))
    again = run(job).values

    assert record.values["exit_code"] == ExitCode.OUTPUT
    assert f"shards/0_0{suffix}.tif" in record.values["error"]
    assert again["exit_code"] == ExitCode.OK
    assert again["counts"]["shards_reused"] == 5
    expected = Job(**options, output=str(tmp_path / "expected"))
    assert run(expected).error is None
    assert digests(expected.output_path) == digests(job.output_path)


@pytest.mark.parametrize("shape", [(7, 9), (8, 14)])
@pytest.mark.parametrize("values", [1, 3, 9, 256])
def test_pixels_are_counted_once_whatever_is_likely(values, shape):
    pixels = np.random.default_rng(values).integers(0, values, shape, dtype=np.uint8)

    for likely in ((), (0,), (0, 2, 255), tuple(range(values))):
        counts = verify._histogram(pixels, likely)
        assert counts.tolist() == np.bincount(pixels.ravel(), minlength=256).tolist()
