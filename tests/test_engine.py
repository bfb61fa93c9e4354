"""What cannot be made is named; with leave, everything else is published."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from making import job_maker, make_model, make_scene, random_pixels, read, stop_after

from tileseg.cards.card import NODATA
from tileseg.engines.worker import Recipe, Worker
from tileseg.errors import ExitCode, PreemptedError
from tileseg.grid import Run, Shard
from tileseg.job import run
from tileseg.network.device import Device
from tileseg.network.unet import UNet
from tileseg.plans.ledger import Ledger, Plan
from tileseg.plans.task import prepare
from tileseg.stores.storage import Disk
from tileseg.window import Window

HEIGHT, WIDTH = 410, 300  # 5 x 4 shards of 96 pixels
BLOCK, SHARD, HALO = 64, 96, 4
RESOLVED = {
    "device": "cpu",
    "hardware": "any",
    "precision": "fp32",
    "batch_size": 4,
}
BROKEN = Window(2 * BLOCK, 2 * BLOCK, BLOCK, BLOCK)


def damage(path, row, col):
    """Overwrite the compressed bytes of one block."""
    with rasterio.open(path) as dataset:
        offset, size = (
            int(dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=1))
            for what in ("OFFSET", "SIZE")
        )
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * size)


def needing(broken):
    """Return the shards whose tiles look at a window, halo included."""
    shards = (Shard(row, col) for row in range(5) for col in range(4))
    return {
        shard
        for shard in shards
        if Window(shard.row * SHARD, shard.col * SHARD, SHARD, SHARD)
        .pad(HALO)
        .intersect(broken)
        .size
    }


@pytest.fixture
def job(tmp_path, scene_path, model_path):
    return job_maker(tmp_path, scene_path, model_path, shard=SHARD)


@pytest.fixture
def damaged(job, scene_path, tmp_path):
    """The mask of the sound scene, and the scene's bytes, which are damaged now."""
    assert run(job("sound")).error is None
    before = scene_path.read_bytes()
    damage(scene_path, 2, 2)
    return read(tmp_path / "sound" / "mask.tif"), before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_block_is_named_and_nothing_is_published(
    job, damaged, scene_path, tmp_path, workers
):
    assert damaged
    names = {item.name for item in tmp_path.iterdir()}

    values = run(job(workers=workers)).values

    assert values["exit_code"] == ExitCode.INPUT
    assert str(scene_path) in values["error"]
    first, last = map(int, re.findall(r"rows (\d+) to (\d+)", values["error"])[0])
    assert first <= 128  # with the margin of its row of shards
    assert 191 <= last < 256
    assert "columns" in values["error"]
    assert {item.name for item in tmp_path.iterdir()} - names == {"out.work"}


def test_without_leave_every_bad_shard_is_named_and_the_others_are_made(job, damaged):
    assert damaged

    values = run(job()).values

    counts = values["counts"]
    holes = needing(BROKEN)
    assert holes == {Shard(*item["shard"]) for item in values["failures"]}
    assert counts["shards_failed"] == len(holes)
    assert counts["shards_done"] + counts["shards_failed"] == counts["shards"] == 20


@pytest.mark.parametrize(
    "options",
    [{}, {"run_shards": (1, 1)}, {"run_shards": (2, 2)}, {"workers": 2}],
    ids=str,
)
def test_only_the_shards_that_need_a_damaged_block_are_holes(
    job, damaged, tmp_path, options
):
    """However the runs are cut; every other shard is that of the sound scene."""
    expected = damaged[0].copy()
    holes = needing(BROKEN)
    for row, col in holes:
        part = slice(row * SHARD, (row + 1) * SHARD)
        expected[part, col * SHARD : (col + 1) * SHARD] = NODATA

    values = run(job(allow_partial=True, **options)).values

    assert values["error"] is None
    assert values["exit_code"] == ExitCode.PARTIAL
    assert values["status"] == "partial"
    np.testing.assert_array_equal(expected, read(tmp_path / "out" / "mask.tif"))
    assert holes == {Shard(*item["shard"]) for item in values["failures"]}
    assert values == json.loads((tmp_path / "out" / "run.json").read_text())


def test_failures_tell_window_and_reason(job, damaged, scene_path):
    assert damaged

    values = run(job(allow_partial=True)).values

    for item in values["failures"]:
        row, col = item["shard"]
        assert item["window"] == [row * SHARD, col * SHARD, SHARD, SHARD]
        assert str(scene_path) in item["reason"]


def test_every_shard_is_done_or_failed(job, damaged):
    """Conservation: shards, and their pixels."""
    assert damaged

    values = run(job(allow_partial=True)).values

    counts, pixels = values["counts"], values["pixels"]
    assert counts["shards"] == counts["shards_done"] + counts["shards_failed"]
    assert counts["shards_failed"] == len(values["failures"]) == 4
    assert pixels["total"] == pixels["nodata"] + sum(pixels["by_class"].values())
    assert pixels["total"] == HEIGHT * WIDTH


def test_the_work_of_a_partial_result_is_kept(job, damaged):
    assert damaged
    partial = job(allow_partial=True)

    run(partial)
    values = run(partial).values

    assert values["exit_code"] == ExitCode.PARTIAL
    assert values["counts"]["shards_reused"] == 16


def test_a_healed_scene_is_another_plan_and_replaces_the_holes(
    job, damaged, scene_path, tmp_path
):
    """A result with holes is not complete, so nobody need ask to overwrite it."""
    mask, before = damaged
    holey = run(job(allow_partial=True)).values

    scene_path.write_bytes(before)
    values = run(job(allow_partial=True)).values

    assert values["error"] is None
    assert values["status"] == "complete"
    assert values["plan_id"] != holey["plan_id"]
    np.testing.assert_array_equal(mask, read(tmp_path / "out" / "mask.tif"))


def test_a_scene_without_one_readable_shard_is_not_published(job, scene_path, tmp_path):
    with rasterio.open(scene_path) as dataset:
        blocks = [at for at, _ in dataset.block_windows(1)]
    for row, col in blocks:
        damage(scene_path, row, col)

    values = run(job(allow_partial=True)).values

    assert values["exit_code"] == ExitCode.INPUT
    assert not (tmp_path / "out").exists()


def test_a_truncated_scene_is_named(job, scene_path, tmp_path):
    data = scene_path.read_bytes()
    scene_path.write_bytes(data[: len(data) * 6 // 10])

    values = run(job()).values

    assert values["exit_code"] == ExitCode.INPUT
    assert str(scene_path) in values["error"]
    assert not (tmp_path / "out").exists()


def test_the_upper_part_of_a_truncated_scene_can_be_had(job, tmp_path, scene_path):
    """Where the file's directory comes first, what was written before the cut."""
    assert run(job("sound")).error is None
    ordered = tmp_path / "ordered.tif"
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    rasterio.shutil.copy(scene_path, ordered, driver="GTiff", **blocks)
    data = ordered.read_bytes()
    ordered.write_bytes(data[: len(data) * 6 // 10])

    values = run(job(input=str(ordered), allow_partial=True)).values

    assert values["exit_code"] == ExitCode.PARTIAL
    sound, mask = (read(tmp_path / name / "mask.tif") for name in ("sound", "out"))
    np.testing.assert_array_equal(sound[:SHARD], mask[:SHARD])
    assert {NODATA} == set(np.unique(mask[-26:]))


# The network


@pytest.mark.parametrize("allow_partial", [False, True])
def test_weights_that_are_no_numbers_are_a_model_error(
    job, tmp_path, scene_path, allow_partial
):
    network = UNet(3, 3, width=4, depth=2)
    with torch.no_grad():
        network.final_conv.bias[1] = torch.nan
    model = make_model(tmp_path / "model", module=network)

    values = run(job(model=str(model), allow_partial=allow_partial)).values

    assert scene_path.exists()
    assert values["exit_code"] == ExitCode.MODEL
    assert "tile (row " in values["error"]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hot(tmp_path):
    """A scene whose pixel (100, 50) becomes infinite when it is scaled."""
    pixels = random_pixels(HEIGHT, WIDTH, nodata=0).astype(np.float32) * 1e-4
    pixels[:, 100, 50] = 3e38
    return make_scene(tmp_path / "hot.tif", pixels, scale=None)


def test_the_tile_that_is_not_finite_is_named(job, hot, tmp_path):
    """Tile (4, 1) is the first to see column 50, four pixels right of its core."""
    values = run(job(input=str(hot), scale=1.0)).values

    assert values["exit_code"] == ExitCode.MODEL
    assert "tile (row 4, column 1)" in values["error"]
    assert not (tmp_path / "out").exists()


def test_only_the_shard_with_a_tile_that_is_not_finite_is_a_hole(job, hot, tmp_path):
    cold = tmp_path / "cold.tif"
    with rasterio.open(hot) as dataset:
        pixels = dataset.read()
    pixels[:, 100, 50] = 0.5
    make_scene(cold, pixels, scale=None)
    assert run(job("cold", input=str(cold), scale=1.0)).error is None
    expected = read(tmp_path / "cold" / "mask.tif")
    expected[SHARD : 2 * SHARD, :SHARD] = NODATA

    values = run(job(input=str(hot), scale=1.0, allow_partial=True)).values

    assert values["exit_code"] == ExitCode.PARTIAL
    assert [item["shard"] for item in values["failures"]] == [[1, 0]]
    np.testing.assert_array_equal(expected, read(tmp_path / "out" / "mask.tif"))


# The disk


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_shard_that_cannot_be_written_is_an_output_error(
    job, tmp_path, workers, allow_partial
):
    """It is no fault of the shard, so leave to publish holes does not cover it.

    A file takes the folder's place: permissions would not stop root.
    """
    full = job(workers=workers, allow_partial=allow_partial)
    run(full, stop_after(full, 1))
    (shards,) = full.work_path.glob("*/shards")
    shutil.rmtree(shards)
    shards.write_text("in the way")

    values = run(full).values

    assert values["exit_code"] == ExitCode.OUTPUT
    assert str(full.work_path) in values["error"]
    assert not (tmp_path / "out").exists()


def test_more_workers_than_runs_do_no_harm(job, tmp_path):
    values = run(job(workers=7, run_shards=(5, 4))).values

    assert values["error"] is None
    assert values["counts"]["shards_done"] == 20
    assert (tmp_path / "out" / "mask.tif").exists()


def test_a_damaged_block_does_not_hinder_the_precision_check(job, damaged):
    """Where bf16 is used, spots that cannot be read are left out of the check."""
    assert damaged

    values = run(job(precision="bf16", allow_partial=True)).values

    assert values["exit_code"] == ExitCode.PARTIAL
    assert values["precision_check"]["agreement"] > 0.9
    assert values["counts"]["shards_failed"] == len(needing(BROKEN))


def test_a_device_that_fails_is_no_hole_in_the_map(job, tmp_path, monkeypatch):
    """Other shards would meet the same device: exit 7, nothing published."""
    forwards = iter(range(1000))
    real = UNet.forward

    def fail_later(self, tiles):
        if next(forwards) > 3:
            msg = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(msg)
        return real(self, tiles)

    monkeypatch.setattr(UNet, "forward", fail_later)
    values = run(job(network="plain", allow_partial=True)).values

    assert values["exit_code"] == ExitCode.MODEL
    assert "illegal memory access" in values["error"]
    assert not (tmp_path / "out").exists()


def test_stopping_does_not_wait_for_nodata_to_end(job, tmp_path):
    """A job over nodata alone stops within a strip, not at its end."""
    pixels = np.zeros((3, 3000, 500), np.uint16)
    scene = make_scene(tmp_path / "blank.tif", pixels)
    task = prepare(job(input=str(scene)))
    ledger = Ledger(Disk(tmp_path / "work"), Plan(task.request, RESOLVED))
    recipe = Recipe.of(task, ledger, Device("cpu", "any", "fp32"))
    stop = threading.Event()
    worker = Worker(recipe, stop)
    stop.set()

    with pytest.raises(PreemptedError):
        list(worker.process([Run(task.grid.shape)]))
    assert worker.tiles < task.grid.tiles.size / 5
