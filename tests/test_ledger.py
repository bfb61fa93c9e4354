"""What is done is known after any crash, and only what is whole is used again."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from making import digests, make_scene, random_pixels, snapshot

from tileseg.base.journal import Lines
from tileseg.errors import ExitCode, OutputError
from tileseg.grid import Shard
from tileseg.job import run
from tileseg.plans.ledger import Artifact, Ledger, Plan, Receipt, digest
from tileseg.plans.seams import Seams
from tileseg.settings import Job
from tileseg.stores.storage import Disk, write_whole

ROOT = Path(__file__).parents[1]
PLAN = Plan({"input": "a scene", "blend": "crop"}, {"batch_size": 16})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(Disk(tmp_path / "work"), PLAN)


def finish(ledger, row=0, col=0, data=b"labels"):
    """Write a shard file and record its receipt."""
    name = f"shards/{Shard(row, col).name}.tif"
    ledger.folder.write(name, data)
    artifact = Artifact(name, len(data), hashlib.sha256(data).hexdigest())
    receipt = Receipt(
        shard=Shard(row, col),
        artifacts={"mask": artifact},
        pixels={0: 12, 1: 34, 255: 56},
        masked=0,
        hectares={0: 0.12, 1: 1 / 3},
        seams=Seams(20, 3, 60, 9),
        work={"tiles": 20, "read": 0.1},
    )
    ledger.record(receipt)
    return receipt


# Plans


def test_a_plan_id_names_every_fact_and_no_order():
    turned = Plan(dict(reversed(PLAN.request.items())), PLAN.resolved)
    others = [
        replace(PLAN, request={**PLAN.request, "blend": "cosine"}),
        replace(PLAN, resolved={"batch_size": 8}),
    ]

    assert PLAN.plan_id == turned.plan_id
    assert len({PLAN.plan_id, *(plan.plan_id for plan in others)}) == 3
    assert others[0].request_id != PLAN.request_id == others[1].request_id


def test_a_digest_does_not_depend_on_the_process():
    """The id of `{}` in hexadecimal, from sha256sum."""
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e"


# Receipts


@pytest.mark.parametrize("hectares", [None, {0: 0.1, 254: 1e-12}, {}])
def test_a_receipt_survives_json(hectares):
    receipt = Receipt(
        shard=Shard(3, 14),
        artifacts={"mask": Artifact("shards/3_14.tif", 15, "9" * 64)},
        pixels={0: 1, 254: 2**40, 255: 3},
        masked=0,
        hectares=hectares,
        seams=Seams(7, 2, 2**40, 3),
        work={"tiles": 256, "forward": 0.1},
    )

    text = json.dumps(receipt.to_json())

    assert receipt == Receipt.from_json(json.loads(text))


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_torn_line_is_no_receipt(ledger, cut):
    """The next one begins a line of its own."""
    ledger.open()
    kept = [finish(ledger, 0, col) for col in range(2)]
    finish(ledger, 0, 2)
    journal = ledger.folder.path / "receipts.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    whole = 1 + (cut == 1)  # only the line's end is missing

    before = ledger.open()
    kept.append(finish(ledger, 0, 3))

    assert len(before) == 1 + whole
    assert {item.shard for item in kept} <= set(ledger.open())


def test_one_sync_is_for_many_receipts(tmp_path, monkeypatch):
    """What was added can be read at once; after a flush all of it is on the disk."""
    path = tmp_path / "receipts.jsonl"
    synced = []

    def sync(handle):
        time.sleep(0.02)  # a slow disk
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    journal = Lines(path)
    entries = [b"%d" % number for number in range(300)]
    for entry in entries:
        journal.add(entry)
        assert path.read_bytes().endswith(b"%s\n" % entry)
    journal.flush()
    count = len(synced)
    journal.flush()

    assert entries == [entry for entry in Lines(path).entries() if entry]
    assert synced[-1] == path.stat().st_size
    assert count < len(entries) / 2
    assert count == len(synced)


def test_receipts_that_cannot_be_read_are_an_output_error(ledger):
    """They may be there, so nothing is made again over a disk's hiccup."""
    ledger.open()
    journal = ledger.folder.path / "receipts.jsonl"
    journal.mkdir()

    with pytest.raises(OutputError, match=re.escape(f"{journal}: cannot be read")):
        ledger.open()


JUNK = [b"\n", b"null\n", b"[]\n", b"{}\n", b"3\n", b"\xff\xfe\n", bytes(99), b"{" * 9]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_among_the_receipts_does_no_harm(ledger, junk):
    ledger.open()
    first = finish(ledger, 0, 0)
    with (ledger.folder.path / "receipts.jsonl").open("ab") as journal:
        journal.write(junk)
    ledger.open()
    second = finish(ledger, 0, 1)

    assert {first.shard: first, second.shard: second} == ledger.open()


@pytest.mark.parametrize("harm", [b"", b"other ", b"labels and more"])
def test_a_file_that_its_receipt_does_not_describe_is_not_used(ledger, harm):
    ledger.open()
    finish(ledger)

    (ledger.folder.path / "shards/0_0.tif").write_bytes(harm)

    assert ledger.open() == {}


def test_opening_touches_no_file_of_others(ledger):
    """The work directory is the user's: it may be /tmp itself."""
    work = ledger.folder.path.parent
    for name in ("theirs.tmp", "theirs/deep/down.tmp", "theirs/shards/0_0.tif.1.tmp"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("theirs")
    before = snapshot(work)

    ledger.open()

    assert before.items() <= snapshot(work).items()


DIE = """
import os, signal, sys
from pathlib import Path
from tileseg.stores.storage import write_whole
os.fsync = lambda _handle: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), b"data")
"""


@pytest.mark.parametrize("name", ["shards/0_0.tif", "plan.json", "../inputs.json"])
def test_opening_sweeps_what_a_killed_run_left(ledger, name):
    """The process dies when its bytes are written and not yet in place."""
    ledger.open()
    before = snapshot(ledger.folder.path.parent)
    subprocess.run(
        [sys.executable, "-c", DIE, str(ledger.folder.path / name)],
        cwd=ROOT,
        check=False,
    )
    between = snapshot(ledger.folder.path.parent)

    ledger.open()

    assert len(between) == len(before) + 1
    assert set(before) == set(snapshot(ledger.folder.path.parent))


# Whole files


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "file"

    write_whole(path, b"one")
    write_whole(path, b"two")

    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.mkdir()

    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(path, b"two")

    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["file/inside", "file/deep/inside", "/proc/tileseg"])
def test_an_impossible_place_is_an_output_error(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / place, b"data")


def test_an_interrupted_write_leaves_nothing(tmp_path):
    """Whatever ends it: here data that cannot be written."""
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", object())

    assert list(tmp_path.iterdir()) == []


# A full disk


def segment(*options, limit=None):
    """Run the command line in a process; file sizes limited to `limit` bytes."""

    def allow():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "jobs/segment.py", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=allow if limit else None,
    )


@pytest.mark.parametrize("limit", [3_000, 4_500, 12_000, 40_000])
def test_a_full_disk_is_an_output_error_that_keeps_the_shards(
    tmp_path, model_path, limit
):
    """No file may exceed the limit: receipts, shards, the mask or the picture do."""
    scene = make_scene(tmp_path / "scene.tif", random_pixels(230, 170))
    (tmp_path / "job.toml").write_text("shard = 96\nrun_shards = [1, 1]\n")
    options = ["--input", scene, "--model", model_path, "--output", tmp_path / "out"]
    facts = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "shard": 96,
    }

    full = segment(*options, "--config", tmp_path / "job.toml", limit=limit)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tmp")}
    names = {item.name for item in tmp_path.iterdir()}
    journals = list(tmp_path.glob("out.work/*/receipts.jsonl"))  # one or none
    receipts = [line for item in journals for line in item.read_text().split("\n")[:-1]]
    resumed = run(Job(**facts, output=str(tmp_path / "out")))
    run(Job(**facts, output=str(tmp_path / "undisturbed")))

    assert full.returncode == ExitCode.OUTPUT, full.stderr
    assert "Traceback" not in full.stderr
    assert left == set()
    assert names == {"out.work", "scene.tif", "job.toml"}
    assert resumed.error is None
    assert len(receipts) == resumed.values["counts"]["shards_reused"]
    assert digests(tmp_path / "undisturbed") == digests(tmp_path / "out")
