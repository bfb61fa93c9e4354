"""What was live and is to stay is never lost, and comes back as it was."""

import json
import os
from pathlib import Path

import pytest
from making import snapshot

from tileseg.errors import OutputError, UsageError
from tileseg.plans.task import meet
from tileseg.publishing import publish, swap
from tileseg.publishing.folder import Folder
from tileseg.publishing.place import PARKED
from tileseg.publishing.publish import list_outputs
from tileseg.publishing.versions import name_of
from tileseg.settings import Job


@pytest.fixture
def output(tmp_path):
    return tmp_path / "place" / "out"


def put(output, name, *, keep=0, status="complete"):
    """Publish a version."""
    with Folder(output, keep).staging() as folder:
        (folder / "mask.tif").write_bytes(name.encode() * 1000)
        record = {
            "status": status,
            "request_id": name,
            "plan_id": name * 8,
            "started": f"2026-11-2{name[-1]}T01:02:03+00:00",
            "outputs": list_outputs(folder),
        }
        (folder / "run.json").write_text(json.dumps(record))
    return record


def products(folder):
    """Return the bytes of all files but the record, by name."""
    return {
        name: data
        for name, (_, _, data) in snapshot(folder).items()
        if not name.endswith("run.json")
    }


def names(output):
    return [version.record["request_id"] for version in Folder(output).kept()]


def live(output):
    return publish.published(output)["request_id"]


@pytest.mark.parametrize("beside", ["out", "out.versions", "out.parked"])
def test_no_work_goes_where_versions_lie(output, beside):
    for number, status in enumerate(("complete", "complete", PARKED)):
        put(output, f"v{number}", keep=1, status=status)
    work = output.with_name(beside)
    assert any(work.rglob("mask.tif"))

    with pytest.raises(UsageError, match="or where its versions do"):
        meet(Job(input="scene.tif", output=str(output), work=str(work / "w")))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_versions_stay(output, keep):
    for number in range(5):
        put(output, f"v{number}", keep=keep)

    assert live(output) == "v4"
    assert names(output) == ["v3", "v2", "v1"][:keep]
    folder = output.with_name("out.versions")
    assert {item.name for item in output.parent.iterdir()} == {"out", folder.name}
    assert {name_of(version.record) for version in Folder(output).kept()} == {
        item.name for item in folder.iterdir()
    }


def test_none_is_kept_unasked_and_those_that_are_stay(output):
    put(output, "v0", keep=1)
    put(output, "v1", keep=1)

    put(output, "v2")

    assert (live(output), names(output)) == ("v2", ["v0"])


def test_a_version_put_back_is_the_one_that_was(output):
    """And again: rolling back twice is doing nothing."""
    put(output, "v0", keep=1)
    first = products(output)
    put(output, "v1", keep=1)
    second = products(output)

    Folder(output).roll_back()
    assert (live(output), names(output), products(output)) == ("v0", ["v1"], first)

    Folder(output).roll_back()
    assert (live(output), names(output), products(output)) == ("v1", ["v0"], second)


def test_any_kept_version_is_chosen_by_name_or_plan(output):
    for number in range(4):
        put(output, f"v{number}", keep=3)

    Folder(output).roll_back("v1v1")

    assert (live(output), names(output)) == ("v1", ["v3", "v2", "v0"])
    with pytest.raises(OutputError, match=r"several versions kept; wanted one of"):
        Folder(output).roll_back("202611")
    with pytest.raises(OutputError, match=r"v9: no such version"):
        Folder(output).roll_back("v9")
    assert live(output) == "v1"


def test_a_damaged_version_is_not_put_back(output):
    put(output, "v0", keep=1)
    put(output, "v1", keep=1)
    (item,) = output.with_name("out.versions").glob("*/mask.tif")
    item.write_bytes(b"other")

    with pytest.raises(OutputError, match="is missing or is not"):
        Folder(output).roll_back()

    assert live(output) == "v1"


def test_a_record_that_leads_out_of_its_folder_puts_nothing_there(output):
    put(output, "v0")
    put(output, "v1", status=PARKED)
    home = output.with_name("out.parked")
    (output.parent / "other.tif").write_bytes((home / "mask.tif").read_bytes())
    record = json.loads((home / "run.json").read_text())
    record["outputs"].append({**record["outputs"][0], "path": "../other.tif"})
    (home / "run.json").write_text(json.dumps(record))

    with pytest.raises(OutputError, match="is missing or is not"):
        Folder(output).release()

    assert live(output) == "v0"


def test_what_was_rolled_back_is_remembered_until_another_goes_live(output):
    put(output, "v0", keep=2)
    put(output, "v1", keep=2)
    assert Folder(output).rolled_back() == frozenset()

    Folder(output).roll_back()
    assert Folder(output).rolled_back() == {"v1"}

    put(output, "v2", keep=2)
    assert Folder(output).rolled_back() == frozenset()


def test_what_is_parked_leaves_the_live_bytes_untouched(output):
    put(output, "v0")
    before = snapshot(output)

    put(output, "v1", status=PARKED)
    put(output, "v2", status=PARKED)

    assert before == snapshot(output)
    assert Folder(output).parked()["request_id"] == "v2"
    assert {item.name for item in output.parent.iterdir()} == {"out", "out.parked"}


@pytest.mark.parametrize("keep", [0, 2])
def test_a_released_version_is_the_one_that_was_parked(output, keep):
    put(output, "v0", keep=keep)
    put(output, "v1", status=PARKED)
    expected = products(output.with_name("out.parked"))

    record = Folder(output, keep).release()

    assert expected == products(output)
    assert record == publish.published(output)
    assert (record["status"], record["promoted"]["by"]) == ("complete", "release")
    assert (Folder(output).parked(), names(output)) == (None, ["v0"][:keep])
    with pytest.raises(OutputError, match="nothing is parked"):
        Folder(output).release()


def test_where_nothing_is_live_a_parked_version_may_be_the_first(output):
    put(output, "v0", status=PARKED)
    assert publish.published(output) is None

    Folder(output).release()

    assert live(output) == "v0"


def test_a_newer_version_takes_the_place_of_the_parked_one(output):
    put(output, "v0", status=PARKED)

    put(output, "v1")

    assert (live(output), Folder(output).parked()) == ("v1", None)


def test_a_parked_version_is_discarded(output):
    put(output, "v0")
    put(output, "v1", status=PARKED)

    Folder(output).discard_parked()

    assert (live(output), Folder(output).parked()) == ("v0", None)
    assert [item.name for item in output.parent.iterdir()] == ["out"]


class Crash(BaseException):
    """The process dies here: nothing after this point may matter."""


def die_at(patch, number):
    """Die before the nth step that the disk keeps."""
    left = [number]

    def counted(real):
        def step(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return real(*args, **options)

        return step

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink")):
        patch.setattr(owner, name, counted(getattr(owner, name)))
    for owner, name in ((swap, "exchange"), (os, "utime"), (os, "rmdir")):
        patch.setattr(owner, name, counted(getattr(owner, name)))
    # Nobody cleans up after a kill.
    patch.setattr("shutil.rmtree", counted(lambda *_args, **_options: None))


STEPS = {
    "publish": (lambda output: put(output, "v3", keep=2), "v3"),
    "roll back": (lambda output: Folder(output).roll_back("v0v0"), "v0"),
    "release": (lambda output: Folder(output, 2).release(), "v9"),
    "park": (lambda output: put(output, "v8", status=PARKED), "v2"),
}


@pytest.mark.parametrize(
    "can_exchange", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("act", STEPS)
def test_a_kill_at_any_step_loses_nothing_that_should_stay(
    output, monkeypatch, act, can_exchange
):
    """Live is the old version or the new one, whole; all others are still there."""
    if not can_exchange:
        monkeypatch.setattr(swap, "exchange", lambda _one, _other: False)
    action, new = STEPS[act]
    is_done, number = False, 0
    while not is_done:
        here = output.with_name(f"out{number}")
        for name in ("v0", "v1", "v2"):
            put(here, name, keep=2)
        put(here, "v9", status=PARKED)
        with monkeypatch.context() as patch:
            die_at(patch, number)
            try:
                action(here)
                is_done = True
            except Crash:
                pass
        here.with_name(f".{here.name}.lock").unlink(missing_ok=True)
        assert live(here) in ("v2", new)
        publish.sweep(here)

        now = publish.published(here)
        assert publish.is_intact(here, now)
        assert now["request_id"] == (new if is_done else live(here))
        kept = names(here)
        assert len({now["request_id"], *kept}) == 1 + len(kept)
        # All but the oldest, which goes when a newer one went live.
        assert {"v1", "v2"} <= {now["request_id"], *kept}
        assert "v0" in {now["request_id"], *kept} or now["request_id"] in ("v3", "v9")
        parked = Folder(here).parked()
        if act == "park":
            assert parked["request_id"] in ("v8", "v9")
        elif now["request_id"] == "v2":
            assert parked["request_id"] == "v9"
        allowed = {here.name, f"{here.name}.versions", f"{here.name}.parked"}
        left = {it.name for it in here.parent.iterdir() if here.name in it.name}
        assert left <= allowed
        number += 1

    assert number > (4 if act == "park" else 5) - can_exchange * 3
