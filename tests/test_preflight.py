"""Places that will not do are refused before anything is computed."""

import shutil
import time

import pytest
import rasterio
from making import NORTH_UP, job_maker, make_scene, random_pixels, snapshot, stop_after

from tileseg.errors import ExitCode, OutputError
from tileseg.job import run
from tileseg.network.unet import UNet
from tileseg.plans.preflight import _needs, preflight
from tileseg.plans.task import prepare

FORWARD = UNet.forward


@pytest.fixture
def forwards(monkeypatch):
    """The batches that a network was given."""
    seen = []

    def forward(self, tiles):
        seen.append(len(tiles))
        return FORWARD(self, tiles)

    monkeypatch.setattr(UNet, "forward", forward)
    return seen


@pytest.fixture
def job(tmp_path, model_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(130, 171))

    return job_maker(
        tmp_path,
        scene,
        model_path,
        shard=96,
        network="plain",  # whose forward is replaced
        precision="bf16",  # which is checked before there is a plan
    )


@pytest.fixture
def vast(tmp_path):
    """A small file of more pixels than any disk here has bytes."""
    path = tmp_path / "vast.tif"
    shape = {"height": 1_000_000, "width": 2_000_000, "count": 3, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": 1 << 13, "blockysize": 1 << 13}
    place = {"crs": "EPSG:32631", "transform": NORTH_UP, "nodata": 0}
    with rasterio.open(
        path,
        "w",
        SPARSE_OK=True,
        BIGTIFF="YES",
        INTERLEAVE="BAND",
        **shape,
        **blocks,
        **place,
    ) as dataset:
        dataset.descriptions = ("blue", "green", "red")
    return path


@pytest.mark.parametrize("place", ["output", "work"])
@pytest.mark.parametrize("path", ["/proc/tileseg/deep/out", "file/deep/out"])
def test_a_place_that_cannot_be_written_is_named_first(
    job, tmp_path, forwards, place, path
):
    """A file in the way, or no disk at all: permissions would not stop root."""
    (tmp_path / "file").write_bytes(b"")
    before = snapshot(tmp_path)

    values = run(job(**{place: str(tmp_path / path)})).values

    assert values["exit_code"] == ExitCode.OUTPUT
    assert f"--{place} {tmp_path / path}: " in values["error"]
    assert forwards == []
    assert before == snapshot(tmp_path)


@pytest.mark.parametrize("options", [{}, {"confidence": True, "polygons": "fgb"}])
def test_too_little_room_is_told_with_what_is_needed(
    job, tmp_path, vast, forwards, options
):
    """At once, whatever the scene's size; a dry run needs no room."""
    pixels = 1_000_000 * 2_000_000
    before = snapshot(tmp_path)
    start = time.monotonic()

    facts = {"scale": 1.0, "shard": None, "max_pixels": pixels, **options}
    values = run(job(input=str(vast), **facts)).values

    assert time.monotonic() - start < 30
    assert values["exit_code"] == ExitCode.OUTPUT, values["error"]
    words = values["error"].split()
    needed, free = (int(word) for word in words if word.isdecimal())
    assert needed > 1.1 * pixels * (3 + 4 * len(options) / 2)
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert f"--output {tmp_path / 'out'} and --work" in values["error"]
    assert str(tmp_path) in values["error"]
    assert forwards == []
    assert before == snapshot(tmp_path)


def test_what_an_earlier_attempt_made_needs_no_room(job):
    """Else a disk that is nearly full of shards would never see them published."""
    stopped = job(work=str(job().work_path), precision="fp32", run_shards=(1, 1))
    assert run(stopped, stop_after(stopped, 3)).error
    pixels = 130 * 171

    output, work = _needs(prepare(stopped))

    assert work.bytes <= pixels / 4 * 4 / 3  # a quarter is to do, with overviews
    assert output.bytes >= 2 * pixels


def test_a_disk_without_sizes_is_trusted(job, monkeypatch):
    """As some network disks are: all zeros."""
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, 0))

    preflight(prepare(job()))

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 0))
    with pytest.raises(OutputError, match="0 are free"):
        preflight(prepare(job()))
