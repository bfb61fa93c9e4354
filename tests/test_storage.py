"""Work is safe wherever it lies: the same laws for a disk and an object store.

The store is a real S3 server on loopback.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from making import (
    digests,
    job_maker,
    make_scene,
    random_pixels,
    receipts_of,
    stop_after,
    succeed,
)
from s3 import serve

from tileseg.base.journal import Entries
from tileseg.errors import ExitCode, OutputError, StorageError
from tileseg.grid import Shard
from tileseg.job import run
from tileseg.plans.ledger import Artifact, Ledger, Plan, Receipt, find_plan, forget
from tileseg.plans.seams import Seams
from tileseg.settings import Job
from tileseg.stores.objects import Objects, open_storage

ROOT = Path(__file__).parents[1]
PLAN = Plan({"input": "a scene", "blend": "crop"}, {"batch_size": 16})
SHARDS = 6
NUMBERS = count()


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def address(request, tmp_path):
    """Where nothing is yet."""
    if request.param == "disk":
        return str(tmp_path / "work")
    return f"s3://maps/some work/{next(NUMBERS)}"


@pytest.fixture
def storage(address):
    return open_storage(address)


@pytest.fixture
def ledger(storage):
    return Ledger(storage, PLAN)


def finish(ledger, row=0, col=0, data=b"labels"):
    """Write a shard file and record its receipt."""
    name = f"shards/{Shard(row, col).name}.tif"
    ledger.folder.write(name, data)
    artifact = Artifact(name, len(data), hashlib.sha256(data).hexdigest())
    receipt = Receipt(
        shard=Shard(row, col),
        artifacts={"mask": artifact},
        pixels={0: 12, 255: 56},
        masked=0,
        hectares={0: 0.12},
        seams=Seams(20, 3, 60, 9),
        work={"tiles": 20},
    )
    ledger.record(receipt)
    return receipt


# Files


@pytest.mark.parametrize("name", ["file", "deep/er/file", "night 1/ä+%20.tif"])
def test_what_was_written_last_is_read(storage, name):
    storage.write(name, b"first")
    storage.write(name, b"")
    storage.write(name, b"last")

    assert storage.read(name) == b"last"
    assert open_storage(storage.address).read(name) == b"last"


def test_what_is_not_there_is_not_found(storage):
    storage.write("file", b"data")
    storage.remove("file")
    storage.remove("file")

    for name in ("file", "other", "deep/file"):
        with pytest.raises(FileNotFoundError):
            storage.read(name)


def test_folders_are_what_stands_before_a_slash(storage):
    assert storage.folders() == []
    for name in ("file", "b/file", "a/deep/file"):
        storage.write(name, b"data")

    assert storage.folders() == ["a", "b"]
    assert storage.below("a").folders() == ["deep"]
    assert storage.below("a").read("deep/file") == b"data"


def test_clearing_goes_no_further(storage):
    for name in ("a/one", "a/deep/two", "ab/three", "four"):
        storage.write(name, name.encode())
    storage.below("a").clear()
    storage.below("nothing").clear()

    assert left(storage.address) == {"ab/three", "four"}


def test_a_reader_never_sees_a_part(storage):
    """Two write the same name over and over; whoever reads it gets one or the other."""
    versions = [bytes([n]) * 300_000 for n in range(2)]
    storage.write("file", versions[0])
    is_over = threading.Event()

    def rewrite(data):
        while not is_over.is_set():
            storage.write("file", data)

    writers = [threading.Thread(target=rewrite, args=(data,)) for data in versions]
    for thread in writers:
        thread.start()
    seen = {storage.read("file") for _ in range(100)}
    is_over.set()
    for thread in writers:
        thread.join()

    assert seen <= set(versions)


# The ledger


def test_recorded_receipts_come_back(ledger, storage):
    assert ledger.open() == {}
    receipts = [finish(ledger, row, row + 1) for row in range(100)]
    ledger.flush()

    again = Ledger(storage, PLAN).open()

    assert {item.shard: item for item in receipts} == again


def test_a_shard_that_is_made_again_counts_once(ledger):
    ledger.open()
    finish(ledger, data=b"first")
    last = finish(ledger, data=b"second")
    ledger.flush()

    assert {last.shard: last} == ledger.open()
    assert ledger.distrusted == 0


def test_what_its_receipt_does_not_describe_is_counted_and_not_used(ledger):
    """Tampered, foreign, gone; and a file that nobody gave a receipt for."""
    ledger.open()
    kept = [finish(ledger, 0, col, bytes([col])) for col in range(5)][3:]
    ledger.flush()
    ledger.folder.write("shards/0_0.tif", b"tampered")
    ledger.folder.write("shards/0_1.tif", ledger.folder.read("shards/0_4.tif"))
    ledger.folder.remove("shards/0_2.tif")
    ledger.folder.write("shards/7_7.tif", b"without a receipt")

    assert {item.shard: item for item in kept} == ledger.open()
    assert ledger.distrusted == 3


def test_a_file_that_changed_since_is_named_when_it_is_read(ledger):
    ledger.open()
    receipts = [finish(ledger, 0, col, bytes([col])) for col in range(40)]
    known = {item.shard: item for item in reversed(receipts)}
    files = ledger.files(known, "mask")
    before = list(files.read(sorted(files.shards)))
    ledger.folder.write("shards/0_9.tif", b"tampered")

    assert before == [(Shard(0, col), bytes([col])) for col in range(40)]
    with pytest.raises(OutputError, match=r"shards/0_9\.tif.*made again"):
        list(files.read(sorted(files.shards)))
    ledger.flush()


def test_a_plan_that_was_begun_is_found_again(ledger, storage):
    other = Ledger(storage, replace(PLAN, request={"input": "another"}))
    other.open()
    assert find_plan(storage, PLAN.request, {}) is None
    ledger.open()
    storage.write("theirs/plan.json", b"[]")

    assert find_plan(storage, PLAN.request, {}) == PLAN
    assert find_plan(storage, PLAN.request, {"batch_size": 1}) is None


def test_removing_a_plan_leaves_other_plans(ledger, storage):
    other = Ledger(storage, replace(PLAN, resolved={"batch_size": 8}))
    for item in (ledger, other):
        item.open()
        finish(item)
        item.flush()

    forget(storage, PLAN.plan_id)

    assert not any(name.startswith(PLAN.plan_id) for name in left(storage.address))
    assert len(other.open()) == 1


def test_a_receipt_that_the_store_refused_is_no_secret(monkeypatch):
    """It was put behind the driver; the driver is told before it relies on it."""
    place = Objects(f"s3://maps/{next(NUMBERS)}")
    ledger = Ledger(place, PLAN)
    receipt = finish(ledger)
    ledger.flush()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")

    refused = Ledger(Objects(place.address), PLAN)
    refused.record(receipt)

    with pytest.raises(OutputError, match=r"receipts: .*json cannot be written"):
        refused.flush()
    refused.flush()


def test_a_store_that_is_gone_is_given_up_with_the_first_receipt():
    """Those behind it are not tried one after the other, each for a minute or two."""
    tried = []

    def fail(name, _data):
        tried.append(name)
        time.sleep(0.2 if len(tried) == 1 else 1)
        raise StorageError(name)

    journal = Entries(SimpleNamespace(write=fail))
    for _ in range(8):
        journal.add(b"receipt")

    with pytest.raises(StorageError):
        journal.flush()
    journal.flush()

    assert len(tried) <= 5


def test_a_receipt_that_was_not_stored_stops_the_next_one():
    def fail(name, _data):
        raise StorageError(name)

    def add_many():
        for _ in range(20):
            journal.add(b"receipt")

    journal = Entries(SimpleNamespace(write=fail))

    with pytest.raises(StorageError):
        add_many()


def test_a_kill_costs_a_few_receipts_at_most():
    is_over, is_added = threading.Event(), threading.Event()
    journal = Entries(SimpleNamespace(write=lambda *_args: is_over.wait(60)))

    def add_many():
        for _ in range(8):
            journal.add(b"receipt")
        is_added.set()
        journal.add(b"one too many")

    driver = threading.Thread(target=add_many)
    driver.start()

    assert is_added.wait(10)
    driver.join(0.3)
    assert driver.is_alive()
    is_over.set()
    driver.join()
    journal.flush()


@pytest.mark.parametrize("plan_id", ["", ".", "..", "../other", "theirs", "a/b"])
def test_what_is_no_plan_id_removes_nothing(storage, plan_id):
    """It stands in a run.json, which others may have written."""
    for name in ("theirs/file", "a/b/file", "file"):
        storage.write(name, b"theirs")
    before = left(storage.address)

    forget(storage, plan_id)

    assert before == left(storage.address)


# Jobs


@pytest.fixture
def job(tmp_path, scene, model_path, address):
    """Make a job whose work is somewhere and whose outputs are local."""
    return job_maker(
        tmp_path,
        scene,
        model_path,
        work=address,
        shard=96,
        run_shards=(1, 1),
        precision="fp32",
        confidence=True,
        polygons="fgb",
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(230, 170, seed=1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scene, model_path):
    """What an undisturbed job makes of the scene, by name."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    options = {"shard": 96, "confidence": True, "polygons": "fgb", "precision": "fp32"}
    facts = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "output": str(output),
    }
    succeed(Job(**facts, **options))
    return products(output)


def products(output):
    polygons = (output / "polygons.fgb").read_bytes()
    return {**digests(output), "polygons": hashlib.sha256(polygons).hexdigest()}


def left(address):
    """Return the names of all that is in a work directory."""
    storage = open_storage(address)
    if isinstance(storage, Objects):
        return set(storage.names())
    files = (item for item in storage.path.rglob("*") if item.is_file())
    return {str(item.relative_to(storage.path)) for item in files}


def test_where_the_work_is_does_not_show(job, tmp_path, address, undisturbed):
    values = succeed(job())

    assert undisturbed == products(tmp_path / "out")
    assert values["counts"]["shards_distrusted"] == 0
    assert left(address) == {"inputs.json"}
    assert [i.name for i in tmp_path.iterdir() if i.name != "work"] == ["out"]


def test_work_and_outputs_may_both_be_in_a_store(job, tmp_path, undisturbed):
    place = f"s3://maps/both/{next(NUMBERS)}"
    job = job(output=f"{place}/out", work=f"{place}/work")

    values = succeed(job)

    for item in values["outputs"]:
        stem = Path(item["path"]).name.replace(".fgb", "")
        if stem in undisturbed:
            assert undisturbed[stem] == item["sha256"]
    assert left(job.work) == {"inputs.json"}
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from making import after
from tileseg.base.bounds import Gates
from tileseg.job import run
from tileseg.settings import Job
job = Job(**{facts!r})
run(job, after(job, {count}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.mark.parametrize("number", [1, 4])
def test_a_killed_job_resumes_at_once_with_what_was_recorded(
    job, tmp_path, address, undisturbed, number
):
    facts = {name: getattr(job(), name) for name in Job.__dataclass_fields__}
    program = KILLED.format(facts=facts, count=number)
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    recorded = receipts_of(job())

    values = succeed(job())

    assert killed.returncode == -signal.SIGKILL
    assert number <= recorded == values["counts"]["shards_reused"]
    assert undisturbed == products(tmp_path / "out")
    assert left(address) == {"inputs.json"}


def test_a_tampered_shard_is_made_again_and_counted(job, tmp_path, undisturbed, caplog):
    run(job(), stop_after(job(), 3))
    recorded = receipts_of(job())
    (plan,) = open_storage(job().work).folders()
    open_storage(job().work).write(f"{plan}/shards/0_0.tif", b"tampered")

    values = succeed(job())

    assert values["counts"]["shards_distrusted"] == 1
    assert values["counts"]["shards_reused"] == recorded - 1
    assert undisturbed == products(tmp_path / "out")
    told = [i.message for i in caplog.records if "not what was written" in i.message]
    assert len(told) == 1


@pytest.mark.parametrize("name", ["0_0.tif", "1_0.confidence.tif", "2_1.polygons.npz"])
def test_what_changed_since_it_was_made_is_never_published(
    job, tmp_path, undisturbed, monkeypatch, name
):
    """Its receipt was there and true; the file is another one when it is stitched."""
    flush = Ledger.flush

    def tamper(ledger):
        flush(ledger)
        data = bytearray(ledger.folder.read(f"shards/{name}"))
        data[-1] ^= 1
        ledger.folder.write(f"shards/{name}", bytes(data))

    monkeypatch.setattr(Ledger, "flush", tamper)
    record = run(job())
    monkeypatch.undo()

    assert record.values["exit_code"] == ExitCode.OUTPUT
    assert f"shards/{name}: is gone, or is not what" in str(record.error)
    assert not (tmp_path / "out").exists()

    values = succeed(job())

    assert values["counts"]["shards_distrusted"] == 1
    assert values["counts"]["shards_reused"] == SHARDS - 1
    assert undisturbed == products(tmp_path / "out")


def test_a_failed_attempt_is_told_where_the_work_is(job):
    stopped = run(job(), stop_after(job(), 2))
    word = open_storage(job().work).read("last-attempt.json")

    assert stopped.as_bytes() == word
    succeed(job())
    assert left(job().work) == {"inputs.json"}


def test_a_store_that_refuses_the_work_is_an_output_error(job, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    job = job(work=f"s3://maps/{next(NUMBERS)}")

    record = run(job)

    assert record.values["exit_code"] == ExitCode.OUTPUT
    assert str(record.error).startswith(f"{job.work}: inputs.json cannot be read (403")
    assert not Path(job.output).exists()


@pytest.mark.parametrize("work", ["s3://maps/out", "s3://maps/out/", "s3://maps/out/w"])
def test_work_in_the_output_is_refused(job, work):
    record = run(job(output="s3://maps/out", work=work))

    assert record.values["exit_code"] == ExitCode.USAGE
    assert "lies in --output" in str(record.error)


def test_work_beside_the_output_is_not_in_it(job):
    place = f"s3://maps/{next(NUMBERS)}"

    assert run(job(output=place, work=f"{place}.work", dry_run=True)).error is None


def test_an_uploaded_working_directory_lets_work_in_a_store_through(job, monkeypatch):
    config = '{"runtime_env": {"working_dir": "gcs://x.zip"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", config)
    work = f"s3://maps/{next(NUMBERS)}"

    assert run(job(engine="local", work=work, dry_run=True)).error is None


@pytest.mark.slow
def test_workers_of_ray_share_no_disk_but_the_store(job, tmp_path, undisturbed):
    """They write shards to it and the driver reads them there."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ts", dir="/tmp")
    (Path(folder) / "ray").mkdir()
    (tmp_path / "job.toml").write_text("shard = 96\nrun_shards = [1, 1]\n")
    work = f"s3://maps/ray/{next(NUMBERS)}"
    words = ["--input", job().input, "--model", job().model, "--output", job().output]
    words += ["--work", work, "--precision", "fp32", "--confidence"]
    words += ["--polygons", "fgb", "--config", tmp_path / "job.toml"]
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}

    try:
        done = subprocess.run(
            [sys.executable, "jobs/segment.py", "--engine", "ray", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **settings, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["engine"]["kind"] == "ray"
    assert undisturbed == products(tmp_path / "out")
    assert left(work) == {"inputs.json"}
