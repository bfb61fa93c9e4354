"""What a job may wish of a scene: another grid, masks, a place by GCPs; whole jobs."""

import warnings
from math import nan

import numpy as np
import pytest
import rasterio
from affine import Affine
from making import (
    NORTH_UP,
    digests,
    job_maker,
    make_card,
    make_model,
    make_plain,
    make_scene,
    random_pixels,
    read,
    stop_after,
    succeed,
)
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from test_scene import noise

from tileseg.cards.card import NODATA
from tileseg.cards.item import read_card, to_stac
from tileseg.errors import ExitCode, UsageError
from tileseg.job import run
from tileseg.outputs.glance import glance
from tileseg.plans.task import prepare
from tileseg.scenes.compose import Target, Wish
from tileseg.scenes.layer import Layer
from tileseg.scenes.scene import open_scene
from tileseg.settings import Job

HEIGHT, WIDTH = 230, 170


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene.tif", random_pixels(HEIGHT, WIDTH, seed=1))


@pytest.fixture
def clouds(tmp_path):
    """A mask of half the resolution: about one in seven pixels is 3."""
    codes = noise("uint8", 1, HEIGHT // 2, WIDTH // 2) % 7
    place = NORTH_UP @ Affine.scale(2)
    return make_plain(tmp_path / "clouds.tif", codes, transform=place, crs="EPSG:32631")


@pytest.fixture
def job(tmp_path, scene, model_path):
    return job_maker(tmp_path, scene, model_path, shard=96, run_shards=(1, 1))


def test_masked_pixels_are_nodata_and_counted(job, clouds):
    """The other labels stay what they are but near them: none changes to nodata."""
    plain = succeed(job())
    masked = succeed(job("masked", mask=(f"{clouds} in 3",)))

    bare, mask = (
        read(job().output_path / "mask.tif"),
        read(job("masked").output_path / "mask.tif"),
    )
    is_cloud = (read(clouds) == 3).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal((bare == NODATA) | is_cloud, mask == NODATA)
    count = int((is_cloud & (bare != NODATA)).sum())
    assert (0, count) == (plain["pixels"]["masked"], masked["pixels"]["masked"])
    assert plain["pixels"]["nodata"] + count == masked["pixels"]["nodata"]
    assert plain["request_id"] != masked["request_id"]
    assert [str(job().input), str(clouds)] == [
        item["href"] for item in masked["scene"]["files"]
    ]


@pytest.mark.parametrize("wish", ["mask", "grid"])
def test_a_stopped_job_resumes_to_the_same_bytes_and_counts(wish, job, clouds):
    """However it is cut: by shards, over workers, in two attempts."""
    wishes = {
        "mask": {"mask": (f"{clouds} in 3", f"{clouds} > 5")},
        "grid": {"resolution": 8, "mask": (f"{clouds} in 3",), "confidence": True},
    }[wish]
    whole = succeed(job("whole", run_shards=None, **wishes))
    stopped = job("stopped", **wishes)
    assert run(stopped, stop_after(stopped, 2)).values["exit_code"] == 75

    resumed = succeed(stopped)

    assert resumed["counts"]["shards_reused"] >= 2
    assert whole["pixels"] == resumed["pixels"]
    assert digests(job("whole").output_path) == digests(stopped.output_path)
    assert run(stopped).values["exit_code"] == ExitCode.OK


def test_the_mask_lies_on_the_grid_that_was_asked_for(job):
    values = succeed(job(crs="EPSG:32632", resolution=12, polygons="gpkg"))

    with rasterio.open(job().output_path / "mask.tif") as dataset:
        assert dataset.crs == "EPSG:32632"
        assert (dataset.transform.a, dataset.transform.e) == (12, -12)
        assert list(dataset.transform)[:6] == values["scene"]["transform"]
        assert (dataset.read(1) != NODATA).mean() > 0.5


def test_what_is_wished_is_part_of_what_is_asked_for(job, clouds):
    """Each another request; the same wish in other words is the same one."""
    wishes = (
        {},
        {"resolution": 5},
        {"resolution": 5, "resampling": "cubic"},
        {"crs": "EPSG:32632"},
        {"mask": (f"{clouds} in 3",)},
        {"mask": (f"{clouds} in 4",)},
        {"mask": (f"{clouds} not in 3",)},
    )
    ids = [prepare(job(**wish)).request_id for wish in wishes]

    assert len(set(ids)) == len(wishes)
    same = ({"resolution": 10}, {"crs": "EPSG:32631"}, {"resampling": "cubic"})
    assert {ids[0]} == {prepare(job(**wish)).request_id for wish in same}


def test_a_mask_that_changes_under_the_job_ends_it(job, clouds):
    masked = job(mask=(f"{clouds} in 3",))
    data = clouds.read_bytes()

    values = run(masked, lambda *_: clouds.write_bytes(data)).values

    assert values["exit_code"] == ExitCode.INPUT
    assert "clouds.tif: changed" in values["error"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"mask": ("band:qa in 3",)}, "has no band 'qa'"),
        ({"crs": "EPSG:1"}, "crs: got 'EPSG:1'"),
        ({"resolution": "card"}, "does not say it (tileseg:gsd)"),
        ({"resolution": 2000}, "200 times as large"),
    ],
    ids=str,
)
def test_a_wish_that_makes_no_sense_is_a_usage_error(wish, words, job):
    values = run(job(**wish)).values

    assert values["exit_code"] == ExitCode.USAGE
    assert words in values["error"]


def test_a_rule_that_is_none_makes_no_job():
    with pytest.raises(UsageError, match=r"mask: got 'clouds\.tif 3', wanted"):
        Job(input="s.tif", mask=("clouds.tif 3",))


def test_what_is_secret_in_the_address_of_a_mask_is_kept():
    """Shown are neither the query nor, in an error, what stands behind it."""
    address = "https://maps.org/scl.tif?key=hidden"
    job = Job(input="s.tif", mask=(f"{address} in 3,0.1",))

    assert job.given()["mask"] == ["https://maps.org/scl.tif in 3,0.1"]
    assert "hidden" not in repr(job)
    with pytest.raises(UsageError, match="mask") as caught:
        Job(input="s.tif", mask=(f"{address} 3",))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("gsd", "gsd_range", "warned"),
    [
        (None, None, False),
        (10, None, False),
        (14, None, False),
        (20, None, True),
        (5, None, True),
        (30, (8, 60), False),
        (30, (14, 60), False),
        (30, (20, 60), True),
        (5, (3, 6), True),
    ],
)
def test_pixels_of_another_size_than_the_models_are_warned_of(
    gsd, gsd_range, warned, job, tmp_path, caplog
):
    model = make_model(tmp_path / "model", gsd=gsd, gsd_range=gsd_range)

    prepare(job(model=str(model)))

    assert warned == ("resolution = 'card'" in caplog.text)


@pytest.mark.parametrize(
    ("crs", "unit"), [("EPSG:32631", 1), ("EPSG:32164", 0.3048006096012192)]
)
def test_the_models_resolution_is_in_metres(crs, unit, job, tmp_path):
    """Also where the CRS counts in feet; degrees are none."""
    model = str(make_model(tmp_path / "model", gsd=12.0))
    assert read_card(tmp_path / "model").gsd == 12
    place = {"crs": crs, "transform": Affine(10, 0, 2e6, 0, -10, 1e6)}
    path = make_scene(tmp_path / "s.tif", random_pixels(50, 60), **place)

    task = prepare(job(input=str(path), model=model, resolution="card"))

    assert task.scene.geobox.transform.a == pytest.approx(12 / unit)
    place = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 5, 0, -1e-4, 40)}
    path = make_scene(tmp_path / "s.tif", random_pixels(50, 60), **place)
    values = run(job(input=str(path), model=model, resolution="card")).values
    assert values["exit_code"] == ExitCode.USAGE
    assert "knows no metres" in values["error"]


def test_a_card_without_a_resolution_says_none():
    assert "tileseg:gsd" not in to_stac(make_card())["properties"]
    with pytest.raises(ValueError, match="gsd > 0"):
        make_card(gsd=0)
    for facts in ({}, {"gsd": 1}, {"gsd": 40}, {"gsd": nan}):
        with pytest.raises(ValueError, match="gsd"):
            make_card(**facts, gsd_range=(10, 30))


RPC = {
    "ERR_BIAS": "0", "ERR_RAND": "0", "HEIGHT_OFF": "100", "HEIGHT_SCALE": "500",
    "LAT_OFF": "41", "LAT_SCALE": "0.1", "LONG_OFF": "3", "LONG_SCALE": "0.1",
    "LINE_OFF": "100", "LINE_SCALE": "100", "SAMP_OFF": "80", "SAMP_SCALE": "80",
    **{f"{kind}_COEFF": " ".join(["1"] + ["0"] * 19)
       for kind in ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN")},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gcps", "rpc"])
def test_a_scene_placed_by_points_makes_a_mask_placed_alike(kind, job, tmp_path):
    """Only if that is asked for: else exit 2."""
    path = tmp_path / "tied.tif"
    points = [
        GroundControlPoint(row, col, 500_000 + 10 * col, 4_600_000 - 10 * row)
        for row, col in ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH))
    ]
    place = {"gcps": points, "crs": "EPSG:32631"} if kind == "gcps" else {"crs": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        make_scene(path, random_pixels(HEIGHT, WIDTH), transform=None, **place)
        if kind == "rpc":
            with rasterio.open(path, "r+") as dataset:
                dataset.update_tags(ns="RPC", **RPC)
    refused = run(job(input=str(path))).values
    assert refused["exit_code"] == ExitCode.USAGE
    assert "allow_ungeoreferenced" in refused["error"]

    succeed(job(input=str(path), allow_ungeoreferenced=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.open(path) as source,
            rasterio.open(job().output_path / "mask.tif") as mask,
        ):
            assert source.shape == mask.shape
            assert mask.transform.is_identity
            assert [p.asdict() for p in source.gcps[0]] == [
                p.asdict() for p in mask.gcps[0]
            ]
            assert source.gcps[1] == mask.gcps[1]
            assert source.rpcs == mask.rpcs
            assert bool(mask.rpcs) == (kind == "rpc")


# Of several files


@pytest.fixture
def parts(scene, tmp_path):
    """The scene cut into four files that overlap, in no order; and into its bands."""
    with rasterio.open(scene) as dataset:
        pixels, profile = dataset.read(), dataset.profile
        names = dataset.descriptions
    cuts = ((100, 230, 0, 90), (0, 110, 80, 170), (0, 105, 0, 80), (90, 230, 70, 170))
    quarters = []
    for index, (top, bottom, left, right) in enumerate(cuts):
        part = pixels[:, top:bottom, left:right]
        place = profile["transform"] @ Affine.translation(left, top)
        quarters.append(make_scene(tmp_path / f"q{index}.tif", part, transform=place))
    bands = [
        make_scene(tmp_path / f"{name}.tif", band[None], names=(name,))
        for name, band in zip(names, pixels, strict=True)
    ]
    return {"mosaic": tuple(map(str, quarters)), "bands": tuple(map(str, bands))}


@pytest.mark.parametrize("join", ["mosaic", "bands"])
def test_a_scene_in_parts_makes_the_same_products(join, parts, job, clouds):
    """Seamless, to the last byte of every raster, masked or not; a picture as well."""
    wish = {"mask": (f"{clouds} in 3",), "confidence": True}
    succeed(job(**wish))

    values = succeed(job(join, input=parts[join], join=join, **wish))

    assert digests(job().output_path) == digests(job(join).output_path)
    files = [*parts[join], str(clouds)]
    assert files == [item["href"] for item in values["scene"]["files"]]
    picture = job(join).output_path / "quicklook.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_scale_that_is_none_is_said_of_the_scene_by_its_name(job, tmp_path):
    pixels = random_pixels(50, 60)
    files = [
        make_scene(tmp_path / f"{at}.tif", band[None], names=(at,), offset=np.inf)
        for at, band in zip(("blue", "green", "red"), pixels, strict=True)
    ]

    values = run(job(input=tuple(map(str, files)), join="bands")).values

    assert values["exit_code"] == ExitCode.USAGE
    assert values["error"].startswith(f"{files[0]} and 2 more: band 1 says scale")


def test_the_picture_of_parts_is_that_of_the_whole(parts, scene):
    """At full size to the pixel; smaller ones are near."""
    whole = open_scene(str(scene))
    box = whole.geobox
    shape = (box.height, box.width)
    beside = open_scene(tuple((Layer(href=path),) for path in parts["mosaic"]))
    stacked = open_scene((tuple(Layer(href=path) for path in parts["bands"]),))
    finer = open_scene(str(scene), Wish(target=Target(resolution=5)))

    expected = glance(whole, whole.bands, box.window, shape)
    for part in (beside, stacked):
        seen = glance(part, part.bands, box.window, shape)
        np.testing.assert_array_equal(expected, seen)
    seen = glance(finer, finer.bands, finer.geobox.window, shape)
    assert np.nanmean(np.abs(seen - expected)) < 0.1 * np.nanmean(expected)
    assert np.mean(np.isnan(seen) == np.isnan(expected)) > 0.95
    for part in (whole, beside, stacked, finer):
        small = glance(part, part.bands, part.geobox.window, (40, 30))
        assert np.nanmean(small) == pytest.approx(np.nanmean(expected), rel=0.05)


@pytest.mark.slow
def test_a_cluster_makes_the_same_of_parts_that_are_resampled(parts, job, clouds):
    """Byte for byte: the tree of files, grids and masks travels whole."""
    wish = {
        "input": parts["mosaic"],
        "join": "mosaic",
        "resolution": 8,
        "mask": (f"{clouds} in 3",),
        "polygons": "gpkg",
    }
    succeed(job("local", **wish))
    record = run(job("cluster", engine="ray", workers=2, **wish))
    assert record.error is None

    local, cluster = job("local").output_path, job("cluster").output_path
    assert digests(local) == digests(cluster)
    name = "polygons.gpkg"
    assert (local / name).read_bytes() == (cluster / name).read_bytes()
