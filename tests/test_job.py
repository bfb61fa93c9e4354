"""A job gives the same pixels however it is cut, interrupted or resumed."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from making import (
    after,
    digests,
    job_maker,
    make_model,
    make_scene,
    random_pixels,
    read,
    snapshot,
    stop_after,
    succeed,
)

from tileseg.errors import ExitCode
from tileseg.grid import Shard
from tileseg.job import run
from tileseg.plans.task import prepare
from tileseg.settings import Job

HEIGHT, WIDTH = 230, 170  # 3 x 2 shards of 96 pixels, 10 x 8 tiles of stride 24
SHARDS = 6


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene.tif", random_pixels(HEIGHT, WIDTH, seed=1))


@pytest.fixture
def job(tmp_path, scene, model_path):
    """Make a job on the scene; each has its own output unless it is given."""
    return job_maker(tmp_path, scene, model_path, shard=96, run_shards=(1, 1))


def plan_folder(job):
    """Return the one plan's directory in the work directory."""
    (folder,) = (item.parent for item in job.work_path.glob("*/plan.json"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_path):
    """The digests of what an undisturbed job makes of the scene."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scene = make_scene(folder / "scene.tif", random_pixels(HEIGHT, WIDTH, seed=1))
    options = {"model": str(model_path), "trusted": True, "shard": 96}
    succeed(Job(input=str(scene), output=str(folder / "out"), **options))
    return digests(folder / "out")


# However the scene is cut


@pytest.fixture(scope="module", params=["crop", "cosine"])
def blended(request, tmp_path_factory, model_path):
    """A scene, the options of its jobs, and the digests of the undisturbed result."""
    folder = tmp_path_factory.mktemp(request.param)
    scene = make_scene(folder / "scene.tif", random_pixels(HEIGHT, WIDTH, seed=1))
    options = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "shard": 96,
        "blend": request.param,
        "confidence": True,
    }
    succeed(Job(**options, output=str(folder / "whole"), run_shards=(3, 2)))
    return options, digests(folder / "whole")


@pytest.mark.parametrize("run_shards", [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), None])
def test_the_cut_into_runs_changes_no_byte(blended, tmp_path, run_shards):
    options, expected = blended
    job = Job(**options, output=str(tmp_path / "out"), run_shards=run_shards)

    succeed(job)

    assert {"mask.tif", "confidence.tif"} == set(expected)
    assert expected == digests(job.output_path)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_no_byte(blended, tmp_path, workers):
    options, expected = blended
    job = Job(
        **options, output=str(tmp_path / "out"), run_shards=(1, 1), workers=workers
    )

    values = succeed(job)

    assert workers == values["engine"]["workers"]
    assert expected == digests(job.output_path)


def test_the_order_of_shards_changes_no_byte(blended, tmp_path):
    """Shards done earlier, scattered, leave others for later: the result is one."""
    options, expected = blended
    job = Job(**options, output=str(tmp_path / "out"), run_shards=(1, 1))
    run(job, stop_after(job, SHARDS))
    journal = plan_folder(job) / "receipts.jsonl"
    lines = journal.read_text().splitlines(keepends=True)

    journal.write_text("".join(lines[::-2]))
    values = succeed(job)

    assert values["counts"]["shards_reused"] == SHARDS // 2
    assert expected == digests(job.output_path)


def test_the_shard_size_changes_no_label(job, tmp_path):
    succeed(job("small", shard=24))
    succeed(job("large", shard=24 * 16))

    np.testing.assert_array_equal(
        read(tmp_path / "small" / "mask.tif"), read(tmp_path / "large" / "mask.tif")
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_sizes_agree(job, tmp_path, batch_size):
    """In fp32 at least 99.99 % of the labels do not depend on the batch."""
    succeed(job("other", batch_size=batch_size, precision="fp32"))
    succeed(job("usual", batch_size=16, precision="fp32"))

    other, usual = (read(tmp_path / name / "mask.tif") for name in ("other", "usual"))
    assert (other == usual).mean() >= 0.9999


# Interruption and resumption


@pytest.mark.parametrize("count", range(SHARDS + 1))
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_stopped_at_any_shard_resumes_to_the_same_bytes(
    job, tmp_path, count, workers, undisturbed
):
    """Nothing that has a receipt is made again."""
    disturbed = job("disturbed", workers=workers)

    first = run(disturbed, stop_after(disturbed, count))
    word = json.loads((disturbed.work_path / "last-attempt.json").read_text())
    second = succeed(disturbed)

    assert first.values["exit_code"] == ExitCode.PREEMPTED
    assert first.values["status"] == "interrupted"
    assert first.values == word
    assert count == second["counts"]["shards_reused"]
    assert second["counts"]["shards_done"] == SHARDS
    assert undisturbed == digests(tmp_path / "disturbed")


def test_a_stopped_job_leaves_no_thread_at_work(job):
    before = set(threading.enumerate())
    stopped = job(workers=2)

    record = run(stopped, stop_after(stopped, 1))

    assert record.error is not None
    assert before.issuperset(threading.enumerate())


def test_a_failed_attempt_is_told_in_the_work_directory_only(job, tmp_path):
    stopped = job("deep/er/out")

    record = run(stopped, stop_after(stopped, 2))

    word = json.loads((stopped.work_path / "last-attempt.json").read_text())
    assert record.values == word
    assert not stopped.output_path.exists()
    assert {"out.work"} == {item.name for item in (tmp_path / "deep/er").iterdir()}


def test_success_forgets_the_plan_and_the_failed_attempt(job):
    resumed = job()
    run(resumed, stop_after(resumed, 2))

    succeed(resumed)

    assert list(resumed.work_path.glob("*/plan.json")) == []
    assert [p.name for p in resumed.work_path.iterdir() if p.is_dir()] == []
    assert not (resumed.work_path / "last-attempt.json").exists()
    assert list(resumed.work_path.rglob("*.tmp")) == []


def test_the_work_is_kept_on_demand(job):
    kept = job(keep_work=True)

    succeed(kept)

    assert len(list(plan_folder(kept).glob("shards/*.tif"))) == SHARDS


# Nodata


def test_tiles_without_a_valid_pixel_are_never_forwarded(tmp_path, model_path):
    """Counted against numpy: a core with a valid pixel is a tile, others are none."""
    pixels = random_pixels(HEIGHT, WIDTH, nodata=0)
    pixels[:, 20:150, 40:140] = 0
    pixels[1, :, 165:] = 0  # one band is enough
    scene = make_scene(tmp_path / "scene.tif", pixels)
    valid = (pixels != 0).all(axis=0)
    cores = np.pad(valid, ((0, -HEIGHT % 24), (0, -WIDTH % 24)))
    rows, cols = (side // 24 for side in cores.shape)
    expected = int(cores.reshape(rows, 24, cols, 24).any(axis=(1, 3)).sum())

    values = succeed(
        Job(
            input=str(scene),
            model=str(model_path),
            trusted=True,
            output=str(tmp_path / "out"),
            shard=96,
        )
    )

    assert 0 < expected < rows * cols
    assert expected == values["counts"]["tiles"]
    assert rows * cols - expected == values["counts"]["tiles_skipped"]
    assert int((~valid).sum()) == values["pixels"]["nodata"]
    np.testing.assert_array_equal(~valid, read(tmp_path / "out/mask.tif") == 255)


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_a_scene_without_a_valid_pixel_is_forwarded_nowhere(
    tmp_path, model_path, blend
):
    pixels = np.zeros((3, HEIGHT, WIDTH), np.uint16)
    job = Job(
        input=str(make_scene(tmp_path / "scene.tif", pixels)),
        model=str(model_path),
        trusted=True,
        output=str(tmp_path / "out"),
        shard=96,
        blend=blend,
        confidence=True,
    )

    values = succeed(job)

    assert values["counts"]["tiles"] == 0
    assert values["counts"]["shards_skipped"] == SHARDS
    assert values["pixels"]["nodata"] == HEIGHT * WIDTH
    for name in ("mask.tif", "confidence.tif"):
        assert {255} == set(np.unique(read(job.output_path / name)))


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_values_under_nodata_change_nothing(tmp_path, model_path, blend):
    """One band invalid makes the pixel invalid, whatever the others hold."""
    pixels = random_pixels(HEIGHT, WIDTH, nodata=0.3)
    changed = pixels.copy()
    changed[1:, pixels[0] == 0] = 60_000
    results = []
    for name, values in (("one", pixels), ("other", changed)):
        output = tmp_path / name
        succeed(
            Job(
                input=str(make_scene(tmp_path / f"{name}.tif", values)),
                model=str(model_path),
                trusted=True,
                output=str(output),
                shard=96,
                blend=blend,
                confidence=True,
            )
        )
        results.append(digests(output))

    assert (changed != pixels).any()
    assert results[0] == results[1]


# Which plan is there


def test_a_rerun_of_a_complete_plan_does_nothing(job, tmp_path):
    succeed(job())
    before = snapshot(tmp_path)

    values = succeed(job())

    assert before == snapshot(tmp_path)
    assert json.loads((tmp_path / "out/run.json").read_text()) == values


def test_a_damaged_result_is_made_again(job, tmp_path):
    succeed(job())
    expected = digests(tmp_path / "out")
    mask = tmp_path / "out" / "mask.tif"
    data = bytearray(mask.read_bytes())
    data[len(data) // 2] ^= 1

    mask.write_bytes(data)
    succeed(job())

    assert expected == digests(tmp_path / "out")


def change_model(options, tmp_path):
    return options | {"model": str(make_model(tmp_path / "other", seed=5))}


def change_card(options, tmp_path):
    folder = shutil.copytree(options["model"], tmp_path / "other")
    text = (folder / "card.json").read_text()
    (folder / "card.json").write_text(text.replace('"class 1"', '"forest"'))
    return options | {"model": str(folder)}


def change_input(options, tmp_path):
    pixels = random_pixels(HEIGHT, WIDTH, seed=1)
    pixels[0, 100, 100] += 1
    return options | {"input": str(make_scene(tmp_path / "other.tif", pixels))}


CHANGES = {
    "model": change_model,
    "card": change_card,
    "input": change_input,
    "blend": lambda options, _: options | {"blend": "cosine"},
    "scale": lambda options, _: options | {"scale": 2e-4},
    "bands": lambda options, _: options | {"bands": (3, 2, 1)},
    "confidence": lambda options, _: options | {"confidence": True},
    "polygons": lambda options, _: options | {"polygons": "fgb"},
    "batch": lambda options, _: options | {"batch_size": 5},
    "shard": lambda options, _: options | {"shard": 48},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_a_product_is_another_plan(job, tmp_path, change):
    first = job()
    options = {
        "input": first.input,
        "model": first.model,
        "output": first.output,
        "shard": first.shard,
    }
    held = succeed(first)
    before = snapshot(tmp_path / "out")
    other = Job(**change(options, tmp_path))

    refused = run(other)
    kept = snapshot(tmp_path / "out")
    (tmp_path / "again").mkdir()
    replaced = succeed(Job(**change(options, tmp_path / "again"), overwrite=True))

    assert refused.values["exit_code"] == ExitCode.BUSY
    assert "--overwrite" in refused.values["error"]
    assert before == kept
    assert held["plan_id"] != replaced["plan_id"]
    assert held["request_id"] != replaced["request_id"]


@pytest.mark.parametrize(
    "same", [{"workers": 2}, {"run_shards": (2, 2)}, {"keep_work": True}]
)
def test_what_changes_no_pixel_is_the_same_plan(job, same):
    assert prepare(job()).request_id == prepare(job(**same)).request_id


def test_the_name_of_the_scene_is_not_part_of_the_plan(job, tmp_path, scene):
    copy = shutil.copy(scene, tmp_path / "copy.tif")

    assert prepare(job()).request_id == prepare(job(input=str(copy))).request_id


# A work directory that others have been at


def flip(folder):
    path = folder / "shards" / "1_0.tif"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap(folder):
    shutil.copy(folder / "shards" / "0_0.tif", folder / "shards" / "1_0.tif")


def tear(folder):
    path = folder / "receipts.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def zeroes(folder):
    path = folder / "receipts.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))


def garble(folder):
    path = folder / "receipts.jsonl"
    path.write_bytes(path.read_bytes()[:-40] + b"\xff\xfe\x80" * 12)


def forget(folder):
    path = folder / "receipts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def remove(folder):
    (folder / "shards" / "1_0.tif").unlink()


def empty(folder):
    (folder / "shards" / "1_0.tif").write_bytes(b"")


def dangle(folder):
    path = folder / "shards" / "1_0.tif"
    path.unlink()
    path.symlink_to("/nowhere")


@pytest.mark.parametrize(
    "harm", [flip, swap, tear, zeroes, garble, forget, remove, empty, dangle]
)
def test_a_shard_without_a_true_receipt_is_made_again(job, tmp_path, harm, undisturbed):
    disturbed = job("disturbed")
    run(disturbed, stop_after(disturbed, 4))

    harm(plan_folder(disturbed))
    values = succeed(disturbed)

    assert values["counts"]["shards_reused"] == 3
    assert undisturbed == digests(tmp_path / "disturbed")


def test_a_torn_journal_still_takes_receipts(job, tmp_path, undisturbed):
    """The receipt written after a torn line is read by the third attempt."""
    disturbed = job("disturbed")
    run(disturbed, stop_after(disturbed, 3))
    tear(plan_folder(disturbed))
    run(disturbed, stop_after(disturbed, 2))

    values = succeed(disturbed)

    assert values["counts"]["shards_reused"] == 4
    assert undisturbed == digests(tmp_path / "disturbed")


def test_stray_files_among_the_shards_do_no_harm(job, tmp_path, undisturbed):
    disturbed = job("disturbed")
    run(disturbed, stop_after(disturbed, 4))
    shards = plan_folder(disturbed) / "shards"

    (shards / "2_1.tif.99999.tmp").write_bytes(b"half")
    (shards / "7_7.tif").write_bytes(b"foreign")
    values = succeed(disturbed)

    assert values["counts"]["shards_reused"] == 4
    assert undisturbed == digests(tmp_path / "disturbed")


# An input that changes meanwhile


@pytest.mark.parametrize("workers", [1, 2])
def test_an_input_changed_during_the_run_is_not_published(
    job, tmp_path, scene, workers
):
    pixels = random_pixels(HEIGHT, WIDTH, seed=2)
    other = make_scene(tmp_path / "other.tif", pixels).read_bytes()
    changed = job(workers=workers)

    record = run(changed, after(changed, 1, lambda: scene.write_bytes(other)))

    assert record.values["exit_code"] == ExitCode.INPUT
    assert str(scene) in record.values["error"]
    assert not (tmp_path / "out").exists()


def test_an_input_removed_during_the_run_is_not_published(job, tmp_path, scene):
    robbed = job()

    record = run(robbed, after(robbed, 1, scene.unlink))

    assert record.values["exit_code"] == ExitCode.INPUT
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop", [2, 99])
def test_shards_of_a_changed_input_are_not_taken_for_those_of_the_old(
    job, tmp_path, scene, stop, undisturbed
):
    """With the old bytes back the plan is the old one; its result too."""
    before = scene.read_bytes()
    pixels = random_pixels(HEIGHT, WIDTH, seed=2)
    other = make_scene(tmp_path / "other.tif", pixels).read_bytes()
    changed = job()
    change = after(changed, 1, lambda: scene.write_bytes(other))
    halt = stop_after(changed, stop)

    def progress(done, total):
        change(done, total)
        halt(done, total)

    run(changed, progress)
    scene.write_bytes(before)
    succeed(job())

    assert undisturbed == digests(tmp_path / "out")


def test_a_dry_run_writes_nothing(job, tmp_path):
    before = snapshot(tmp_path)

    values = succeed(job(dry_run=True))

    assert before == snapshot(tmp_path)
    assert values["status"] == "dry-run"
    assert values["estimate"]["shards"] == SHARDS
    assert values["estimate"]["tiles"] == 10 * 8


def test_a_shard_is_named_by_row_and_column(job):
    kept = job(keep_work=True)

    succeed(kept)

    files = {item.name for item in (plan_folder(kept) / "shards").iterdir()}
    expected = {f"{Shard(r, c).name}.tif" for r in range(3) for c in range(2)}
    assert expected == files


def test_a_float_scene_whose_nodata_is_nan_is_segmented(job, tmp_path):
    """NaN equals nothing, not even itself; the map is that of the same integers."""
    pixels = random_pixels(HEIGHT, WIDTH, seed=1)
    floats = np.where(pixels == 0, np.nan, pixels).astype(np.float32)
    path = make_scene(tmp_path / "float.tif", floats, nodata=np.nan)

    succeed(job("whole"))
    values = succeed(job("floats", input=str(path)))

    assert values["scene"]["nodata"] == ["nan"] * 3
    np.testing.assert_array_equal(
        read(tmp_path / "whole" / "mask.tif"), read(tmp_path / "floats" / "mask.tif")
    )


@pytest.mark.parametrize("crs", ["EPSG:7415", "EPSG:28992+5709", "EPSG:4979"])
def test_a_crs_with_heights_is_kept(job, tmp_path, crs):
    """GeoTIFF's keys lose a vertical datum that is spelled out: its code is written."""
    path = make_scene(tmp_path / "high.tif", random_pixels(70, 90), crs=crs)

    succeed(job("high", input=str(path)))

    with (
        rasterio.open(path) as scene,
        rasterio.open(tmp_path / "high" / "mask.tif") as mask,
    ):
        assert scene.crs == mask.crs
        assert scene.crs.to_wkt(version="WKT2_2019") == mask.crs.to_wkt(
            version="WKT2_2019"
        )


def test_what_was_measured_of_the_precision_outlives_an_interruption(job):
    """A resumed job publishes the check that the first attempt made."""
    task = job(precision="bf16")
    assert run(task, stop_after(task, 2)).error
    check = json.loads(next(task.work_path.glob("*/plan.json")).read_text())

    values = succeed(task)

    assert values["counts"]["shards_reused"] >= 2
    assert values["precision_check"] == check["precision_check"]
    assert values["precision_check"]["tiles"] > 0


def test_a_work_directory_in_the_output_is_refused(job, tmp_path):
    """It would be replaced with the results, and take the work along."""
    for work in ("out", "out/deeper/work"):
        record = run(job(work=str(tmp_path / work)))

        assert record.values["exit_code"] == ExitCode.USAGE
        assert not (tmp_path / "out").exists()


def test_an_interruption_after_publishing_leaves_no_work_behind(job, monkeypatch):
    """The next run finds the result complete, and clears up what is left."""
    monkeypatch.setattr("tileseg.job._clean", lambda *_, **__: None)
    task = job()
    plan = succeed(task)["plan_id"]
    assert (task.work_path / plan).is_dir()
    monkeypatch.undo()

    succeed(task)

    assert not (task.work_path / plan).exists()


def test_a_rerun_leaves_the_work_of_another_alone(job, tmp_path):
    """Two outputs share a work directory: a complete one's rerun cleans up nothing
    while the other one's job is at it, nor does a dry run ever."""
    work = str(tmp_path / "work")
    done = job("done", work=work)
    succeed(done)
    reruns = []

    def rerun():
        reruns.extend(run(task).values for task in (done, replace(done, dry_run=True)))

    other = job("other", work=work)
    values = run(other, after(other, 3, rerun)).values

    assert values["error"] is None
    assert [item["exit_code"] for item in reruns] == [0, 0]
    assert values["counts"]["shards_reused"] == 0
    assert digests(tmp_path / "done") == digests(tmp_path / "other")


def test_a_dry_run_of_a_complete_job_deletes_nothing(job, tmp_path):
    succeed(job(keep_work=True))
    before = snapshot(tmp_path)

    succeed(job(dry_run=True))

    assert before == snapshot(tmp_path)


def test_success_forgets_what_was_begun_for_the_same_output(job, tmp_path):
    """With other options; what is begun for another output stays."""
    work = str(tmp_path / "work")
    tasks = [job(work=work, blend="cosine"), job("other", work=work, confidence=True)]
    for task in tasks:
        run(task, stop_after(task, 2))
    assert len(list((tmp_path / "work").glob("*/"))) == 2

    succeed(job(work=work))

    (left,) = (tmp_path / "work").glob("*/")
    assert run(tasks[1]).values["counts"]["shards_reused"] >= 2
    assert not left.exists()
