"""Any raster of classes becomes the polygons that it shows, however it is stored."""

import json
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from itertools import groupby

import numpy as np
import psutil
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from making import NORTH_UP
from numpy.testing import assert_array_equal
from rasterio.features import rasterize, shapes
from shapely.geometry import shape

from tileseg.cli import main
from tileseg.errors import ExitCode, InputError, OtherPlanError, UsageError
from tileseg.geobox import GeoBox
from tileseg.polygons.features import write_features
from tileseg.polygons.join import join
from tileseg.polygons.table import Meaning
from tileseg.polygons.vectorize import polygonise
from tileseg.publishing.publish import staging_file
from tileseg.steps.polygonize import Wish, polygonize, windows
from tileseg.window import Window

UTM = rasterio.CRS.from_epsg(32631).to_wkt()
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(10, 0, 500_000, 0, 10, 4_600_000),
    "rotated": NORTH_UP @ Affine.rotation(31.7),
    "oblong": Affine(10, 0, 500_000, 0, -7, 4_600_000),
}


def random_mask(random):
    """Return a mask of blobs and of single pixels, with holes of nodata."""
    height, width = random.integers(1, 60, 2)
    side, classes = random.integers(1, 9), random.integers(1, 5)
    coarse = random.integers(0, classes, (height // side + 1, width // side + 1))
    mask = coarse.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)
    for value in (255, random.integers(0, 4)):
        mask[random.random(mask.shape) < random.choice([0, 0.03, 0.3])] = value
    return mask


def write(path, mask, **profile):
    """Write a mask as a GeoTIFF."""
    height, width = mask.shape
    facts = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 1,
        "dtype": mask.dtype,
        "nodata": 255,
        "transform": NORTH_UP,
        "crs": UTM,
    }
    tags = profile.pop("tags", {})
    valid = profile.pop("valid", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **{**facts, **profile}) as file,
        ):
            file.write(mask, 1)
            file.update_tags(**tags)
            if valid is not None:
                file.write_mask(valid)
    return str(path)


def of_windows(mask, size):
    """Yield the areas of a mask that is cut into windows of some height and width."""
    whole = Window(0, 0, *mask.shape)
    cut = [
        Window(row, col, *size).intersect(whole)
        for row in range(0, whole.height, size[0])
        for col in range(0, whole.width, size[1])
    ]
    return join(
        [polygonise(mask[at.slices], None, at, left_out=(255,)) for at in row]
        for _, row in groupby(cut, lambda at: at.row)
    )


def read(path):
    """Return columns and geometries of a GeoParquet file."""
    table = pq.read_table(path)
    return table.to_pydict(), shapely.from_wkb(table["geometry"].to_numpy())


def assert_is_the_mask(mask, transform, path, left_out=(255,)):
    """Topologically and in every number, against GDAL's polygons of the whole."""
    columns, got = read(path)
    wanted = np.isin(mask, left_out, invert=True)
    found = list(shapes(mask, wanted, connectivity=4))
    found.sort(key=lambda it: max((y, x) for x, y in it[0]["coordinates"][0]))
    pixels = np.array([shape(item) for item, _ in found], object)
    a, b, c, d, e, f = transform[:6]
    expected = shapely.transform(
        pixels, lambda at: at @ np.array([[a, d], [b, e]]) + np.array([c, f])
    )

    assert [value for _, value in found] == columns["class_id"]
    assert list(range(1, len(found) + 1)) == columns["id"]
    assert shapely.is_valid(got).all()
    assert shapely.equals_exact(
        shapely.normalize(expected), shapely.normalize(got), 1e-6
    ).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(got)).all()
    hectares = shapely.area(pixels) * abs(transform.determinant) / 10_000
    np.testing.assert_allclose(columns["area_ha"], hectares, rtol=1e-12)
    np.testing.assert_allclose(columns["perimeter_m"], shapely.length(expected))
    values = zip(got, columns["class_id"], strict=True)
    again = np.full_like(mask, 255)
    if len(got):
        again = rasterize(values, mask.shape, fill=255, transform=transform)
    assert_array_equal(np.where(wanted, mask, 255), again)


def try_masks(count, folder, seed):
    """Cut random masks in two ways; both files must be the mask, and be the same."""
    random = np.random.default_rng(seed)
    for number in range(count):
        mask = random_mask(random)
        transform = list(TRANSFORMS.values())[number % len(TRANSFORMS)]
        meaning = Meaning(
            dict.fromkeys(range(5), "it"), GeoBox(*mask.shape, transform, UTM)
        )
        paths = [folder / "one.parquet", folder / "two.parquet"]
        for path in paths:
            size = random.integers(1, 64, 2)
            write_features(of_windows(mask, size), meaning, path)
        assert_is_the_mask(mask, transform, paths[0])
        one, two = (path.read_bytes() for path in paths)
        assert one == two


def test_a_hundred_masks_are_their_polygons(tmp_path):
    try_masks(100, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_thousand_masks_are_their_polygons(tmp_path):
    try_masks(1_000, tmp_path, 2)


STORED = {
    "strips": {},
    "one strip": {"blockysize": 4096},
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 512},
    "packed": {"tiled": True, "blockxsize": 512, "blockysize": 16, "compress": "lzw"},
}


@pytest.fixture(scope="module")
def large():
    """A mask of several windows, with few and with many areas."""
    random = np.random.default_rng(5)
    mask = random.integers(0, 3, (60, 50), np.uint8).repeat(40, 0).repeat(40, 1)
    mask[random.random(mask.shape) < 0.003] = 3
    mask[300:1700, 1400:1600] = 255
    return np.ascontiguousarray(mask[:2_311, :1_987])


@pytest.fixture(scope="module")
def once(large, tmp_path_factory):
    """Its file, made by one process."""
    folder = tmp_path_factory.mktemp("once")
    mask, path = write(folder / "mask.tif", large), folder / "polygons.parquet"
    count = polygonize(Wish(mask=mask, output=path))
    assert count == pq.read_metadata(path).num_rows
    return path


def test_a_large_mask_is_its_polygons(large, once):
    assert_is_the_mask(large, NORTH_UP, once)


@pytest.mark.parametrize("stored", STORED)
def test_the_file_is_the_same_for_any_blocks(tmp_path, large, once, stored):
    mask = write(tmp_path / "mask.tif", large, **STORED[stored])

    polygonize(Wish(mask=mask, output=tmp_path / "made.parquet"))

    assert once.read_bytes() == (tmp_path / "made.parquet").read_bytes()


def test_the_file_is_the_same_for_any_number_of_workers(tmp_path, large, once):
    tiles = STORED["tiles"]
    mask = write(tmp_path / "mask.tif", large, **tiles)

    polygonize(Wish(mask=mask, output=tmp_path / "made.parquet", workers=2))

    assert once.read_bytes() == (tmp_path / "made.parquet").read_bytes()
    assert sorted(it.name for it in tmp_path.iterdir()) == ["made.parquet", "mask.tif"]


@pytest.mark.parametrize("block", [(1, 0), (16, 16), (512, 512), (4096, 0), (700, 900)])
@pytest.mark.parametrize("shape", [(1, 1), (5_000, 3), (3, 70_000), (4_000, 5_000)])
def test_windows_are_whole_blocks_and_all_of_the_raster(shape, block):
    box = GeoBox(*shape, NORTH_UP, None)
    high, wide = block[0], block[1] or shape[1]
    rows = list(windows(box, (high, wide)))

    cells = [window for row in rows for window in row]
    assert sum(window.size for window in cells) == box.window.size
    assert {window.intersect(box.window) for window in cells} == set(cells)
    assert all(window.row % high == window.col % wide == 0 for window in cells)
    for row in rows:
        assert len({(window.row, window.height) for window in row}) == 1


def test_values_of_16_bits_are_classes(tmp_path):
    random = np.random.default_rng(0)
    mask = random.choice([0, 255, 300, 65_535], (40, 70)).astype(np.uint16)
    path = write(tmp_path / "mask.tif", mask, nodata=300, tags={"CLASS_255": "wood"})
    output = tmp_path / "made.parquet"

    polygonize(Wish(mask=path, output=output))

    columns, got = read(output)
    names = dict(zip(columns["class_id"], columns["class_name"], strict=True))
    assert names == {0: "0", 255: "wood", 65_535: "65535"}
    assert shapely.area(got).sum() == 100 * (mask != 300).sum()


def test_without_nodata_every_pixel_is_of_a_class(tmp_path):
    mask = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13)
    path = write(tmp_path / "mask.tif", mask, nodata=None)

    polygonize(Wish(mask=path, output=tmp_path / "made.parquet"))

    columns, _ = read(tmp_path / "made.parquet")
    assert sorted(mask.ravel().tolist()) == sorted(columns["class_id"])


def test_what_is_masked_or_not_wanted_has_no_polygon(tmp_path):
    mask = np.random.default_rng(0).integers(0, 4, (40, 70), np.uint8)
    valid = np.ones(mask.shape, np.bool_)
    valid[10:20, 30:] = False
    path = write(tmp_path / "mask.tif", mask, nodata=None, valid=valid)
    output = tmp_path / "made.parquet"

    polygonize(Wish(mask=path, output=output, without=(2,)))

    mask[~valid] = 255
    assert_is_the_mask(mask, NORTH_UP, output, left_out=(255, 2))


def test_confidence_is_that_of_the_pixels(tmp_path):
    mask = np.array([[0, 0, 1], [1, 1, 1]], np.uint8)
    sure = np.array([[254, 127, 10], [200, 100, 50]], np.uint8)
    paths = [
        write(tmp_path / name, pixels)
        for name, pixels in (("mask.tif", mask), ("confidence.tif", sure))
    ]
    output = tmp_path / "made.parquet"

    args = ["polygonize", paths[0], "--output", str(output), "--workers", "1"]
    result = CliRunner().invoke(main, args)

    columns, _ = read(output)
    assert (result.exit_code, result.stdout) == (0, f"{output}: 2 polygons\n")
    assert columns["mean_confidence"] == pytest.approx([381 / 508, 360 / 4 / 254])
    assert columns["min_confidence"] == pytest.approx([127 / 254, 10 / 254])


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "geojson"])
def test_every_format_has_every_area(tmp_path, suffix):
    mask = np.random.default_rng(0).integers(0, 4, (40, 70), np.uint8)
    path = write(tmp_path / "mask.tif", mask)
    output = tmp_path / f"made.{suffix}"

    count = polygonize(Wish(mask=path, output=output))

    assert count == pyogrio.read_info(output, force_feature_count=True)["features"]


def test_geoparquet_says_its_bounds(once, large):
    facts = json.loads(pq.read_schema(once).metadata[b"geo"])

    height, width = large.shape
    bounds = [5e5, 4_600_000 - 10 * height, 5e5 + 10 * width, 4_600_000]
    assert facts["columns"]["geometry"]["bbox"] == bounds


@pytest.mark.parametrize(
    ("change", "profile", "says"),
    [
        ({}, {"dtype": "float32"}, "wanted classes of type uint8 or uint16"),
        ({"output": "made.shp"}, {}, "wanted a name that ends in"),
        ({"output": "made.geojson"}, {"crs": None}, "longitude and latitude"),
        ({"without": (256,)}, {}, "no pixel of uint8"),
        ({"confidence": "other.tif"}, {}, "is not a confidence raster"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, change, profile, says):
    mask = np.zeros((5, 7), profile.pop("dtype", "uint8"))
    path = write(tmp_path / "mask.tif", mask, **profile)
    write(tmp_path / "other.tif", mask[:4])
    change = {"output": "made.gpkg", **change}
    change["output"] = tmp_path / change["output"]
    if "confidence" in change:
        change["confidence"] = str(tmp_path / change["confidence"])

    with pytest.raises(UsageError, match=says):
        polygonize(Wish(mask=path, **change))

    assert not (tmp_path / "made.gpkg").exists()


def write_bands(path, bands, **profile):
    """Write several bands, the last one as alpha if there are two."""
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, crs=UTM,
        dtype="uint8", transform=NORTH_UP, **profile,
    ) as file:  # fmt: skip
        file.write(bands)
    return str(path)


def test_of_several_bands_one_must_be_named(tmp_path):
    bands = np.random.default_rng(0).integers(0, 4, (3, 20, 31), np.uint8)
    path = write_bands(tmp_path / "photo.tif", bands, photometric="rgb")
    output = tmp_path / "made.parquet"
    args = ["polygonize", path, "--output", str(output), "--workers", "1"]

    refused = CliRunner().invoke(main, args)
    beyond = CliRunner().invoke(main, [*args, "--band", "4"])
    assert (refused.exit_code, beyond.exit_code) == (ExitCode.USAGE, ExitCode.USAGE)
    assert "has 3 bands, wanted one of classes" in refused.stderr
    assert "has no band 4, wanted 1 to 3" in beyond.stderr
    assert not output.exists()
    assert CliRunner().invoke(main, [*args, "--band", "2"]).exit_code == ExitCode.OK

    assert_is_the_mask(bands[1], NORTH_UP, output)


def test_an_alpha_band_is_none_of_classes(tmp_path):
    mask = np.random.default_rng(0).integers(0, 4, (20, 31), np.uint8)
    alpha = np.full(mask.shape, 255, np.uint8)
    alpha[5:9, 10:] = 0
    path = write_bands(tmp_path / "mask.tif", np.stack([mask, alpha]), alpha="yes")
    output = tmp_path / "made.parquet"

    polygonize(Wish(mask=path, output=output))

    assert_is_the_mask(np.where(alpha, mask, 255), NORTH_UP, output)


@pytest.mark.parametrize(
    ("values", "profile", "is_told"),
    [(256, {}, True), (190, {}, False), (256, {"tags": {"CLASS_0": "a"}}, False),
     (256, {"photometric": "palette"}, False)],
)  # fmt: skip
def test_what_is_most_likely_a_photograph_is_told(
    tmp_path, caplog, values, profile, is_told
):
    """And made: nobody but its owner knows."""
    mask = np.arange(40 * 31, dtype=np.uint32).reshape(40, 31) % values
    mask = mask.astype(np.uint8)
    path = write(tmp_path / "mask.tif", mask, nodata=None, **profile)
    output = tmp_path / "made.parquet"

    count = polygonize(Wish(mask=path, output=output))

    assert count == mask.size
    assert len(caplog.messages) == is_told
    assert all("has 256 values within 40 x 31 pixels" in it for it in caplog.messages)


@pytest.fixture
def small(tmp_path):
    """A small mask, and the words to polygonise it but for the output."""
    random = np.random.default_rng(0)
    path = write(tmp_path / "mask.tif", random.integers(0, 3, (20, 31), np.uint8))
    return ["polygonize", path, "--workers", "1", "--output"]


def test_a_file_that_is_there_is_kept_unless_somebody_says_overwrite(tmp_path, small):
    """The exit code is that of `tileseg change`."""
    output = tmp_path / "made.parquet"
    output.write_bytes(b"mine")

    refused = CliRunner().invoke(main, [*small, str(output)])
    kept = output.read_bytes()
    result = CliRunner().invoke(main, [*small, str(output), "--overwrite"])

    assert refused.exit_code == ExitCode.BUSY == OtherPlanError.exit_code
    assert "is there already" in refused.stderr
    assert kept == b"mine"
    assert (result.exit_code, pq.read_metadata(output).num_rows > 1) == (0, True)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_folders_that_lack_are_made_for_a_whole_file_only(tmp_path, small, is_damaged):
    output, mask = tmp_path / "a" / "b" / "made.gpkg", tmp_path / "mask.tif"
    if is_damaged:
        random = np.random.default_rng(0)
        write(mask, random.integers(0, 3, (60, 70), np.uint8), compress="deflate")
        data = mask.read_bytes()
        mask.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))

    result = CliRunner().invoke(main, [*small, str(output)])

    assert result.exit_code == (ExitCode.INPUT if is_damaged else ExitCode.OK)
    assert output.exists() == (tmp_path / "a").exists() == (not is_damaged)


def test_what_killed_ones_left_is_swept_and_nothing_else(tmp_path, small):
    output = tmp_path / "made.gpkg"
    program = """
import os, signal, sys
import tileseg.steps.polygonize as it
it.write_features = lambda areas, meaning, path: (
    path.touch(), os.kill(os.getpid(), signal.SIGKILL))
it.polygonize(it.Wish(mask=sys.argv[1], output=it.Path(sys.argv[2])))
"""
    words = [sys.executable, "-c", program, small[1], str(output)]
    killed = subprocess.run(words, check=False, timeout=60)
    left = {item.name for item in tmp_path.iterdir()}
    others = [tmp_path / name for name in (".made.gpkg.staging.mine", ".tileseg-other")]
    for folder in others:
        folder.mkdir()

    result = CliRunner().invoke(main, [*small, str(output)])

    assert killed.returncode == -signal.SIGKILL
    assert len(left) == 3  # the mask, a folder and a lock
    assert result.exit_code == ExitCode.OK
    names = {"mask.tif", "made.gpkg", *(it.name for it in others)}
    assert {item.name for item in tmp_path.iterdir()} == names


def test_one_at_a_time_makes_a_file(tmp_path, small):
    output = tmp_path / "made.gpkg"

    with staging_file(output) as made:
        made.write_bytes(b"first")
        result = CliRunner().invoke(main, [*small, str(output)])

    assert result.exit_code == ExitCode.BUSY
    assert output.read_bytes() == b"first"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_mask_leaves_no_file(tmp_path, large, workers):
    path = write(tmp_path / "mask.tif", large, compress="deflate")
    data = bytearray((tmp_path / "mask.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5_000] = bytes(5_000)
    (tmp_path / "mask.tif").write_bytes(data)
    args = ["polygonize", path, "--output", str(tmp_path / "made.gpkg")]

    result = CliRunner().invoke(main, [*args, "--workers", str(workers)])

    assert result.exit_code == ExitCode.INPUT == InputError.exit_code
    assert "cannot be read" in result.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["mask.tif"]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet"])
def test_a_stopped_one_leaves_no_file(tmp_path, monkeypatch, suffix):
    tags = {"CLASS_0": "water"}  # so there is no look before
    path = write(tmp_path / "mask.tif", np.zeros((5, 7), np.uint8), tags=tags)
    args = ["polygonize", path, "--output", str(tmp_path / f"made.{suffix}")]

    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("tileseg.evaluation.class_raster.read_window", stopped)
    result = CliRunner().invoke(main, [*args, "--workers", "1"])

    assert result.exit_code == ExitCode.PREEMPTED
    assert [item.name for item in tmp_path.iterdir()] == ["mask.tif"]


def test_processes_end_with_the_one_that_started_them():
    """However that ends."""
    program = """
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tileseg.base.processes import _serve
pool = ProcessPoolExecutor(1, get_context("spawn"), _serve)
print(pool.submit(os.getpid).result(), flush=True)
os.abort()
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=60
    )

    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(answer.stdout)).wait(60)
