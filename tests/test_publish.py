"""The output directory holds nothing, the old version or the new one; never a mix."""

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from making import snapshot

from tileseg.errors import BusyError, ExitCode, OutputError, PreemptedError
from tileseg.publishing import swap
from tileseg.publishing.publish import (
    check_free,
    is_complete,
    list_outputs,
    published,
    recover,
    staging,
)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "place" / "out"


def fill(folder, request_id="one", *, status="complete", size=100_000):
    """Put a product and the record that lists it into a folder."""
    (folder / "mask.tif").write_bytes(request_id.encode() * size)
    record = {
        "status": status,
        "request_id": request_id,
        "plan_id": f"plan of {request_id}",
        "outputs": list_outputs(folder),
    }
    (folder / "run.json").write_text(json.dumps(record))
    return record


def fail(output, error):
    """Try to publish a version, and fail when it is built."""
    with staging(output) as folder:
        fill(folder, "new")
        raise error


def put(output, request_id="one", **options):
    """Publish a version."""
    with staging(output) as folder:
        return fill(folder, request_id, **options)


# Published


@pytest.mark.parametrize("is_made", [False, True])
def test_nothing_is_published_in_an_empty_place(output, is_made):
    if is_made:
        output.mkdir(parents=True)

    assert published(output) is None


def test_what_was_put_is_published(output):
    record = put(output)

    assert record == published(output)
    assert {"mask.tif", "run.json"} == {item.name for item in output.iterdir()}
    assert [item.name for item in output.parent.iterdir()] == ["out"]


def test_a_new_version_replaces_the_old_one_and_its_files(output):
    with staging(output) as folder:
        (folder / "confidence.tif").write_bytes(b"old")
        fill(folder, "old")

    record = put(output, "new")

    assert record == published(output)
    assert {"mask.tif", "run.json"} == {item.name for item in output.iterdir()}
    assert [item.name for item in output.parent.iterdir()] == ["out"]


FOREIGN = {
    "no record": {"notes.txt": "mine"},
    "an empty record": {"run.json": ""},
    "another program's record": {"run.json": '{"outputs": []}'},
    "another program's list": {"run.json": "[]"},
    "a record of other things": {"run.json": '{"outputs": [3]}'},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_directory_of_others_is_never_ours(output, files):
    output.mkdir(parents=True)
    for name, text in files.items():
        (output / name).write_text(text)
    before = snapshot(output)

    with pytest.raises(OutputError, match="out: holds files"):
        published(output)

    assert before == snapshot(output)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "other.tif.aux.xml"])
def test_a_file_that_the_record_does_not_list_is_named(output, name):
    put(output)
    (output / name).write_text("mine")

    with pytest.raises(OutputError, match=name):
        published(output)


def test_a_viewers_notes_on_one_of_our_files_are_no_harm(output):
    """QGIS and gdalinfo leave statistics beside a raster; they go with it."""
    put(output, "one")
    (output / "mask.tif.aux.xml").write_text("<PAMDataset/>")

    assert published(output) is not None
    put(output, "two")
    assert not (output / "mask.tif.aux.xml").exists()


def test_an_output_that_is_a_file_is_refused(output):
    output.parent.mkdir()
    output.write_text("mine")

    with pytest.raises(OutputError, match="out"):
        published(output)

    assert output.read_text() == "mine"


# Complete, free


def test_a_complete_version_answers_its_own_request_only(output):
    record = put(output)

    assert is_complete(output, record, "one")
    assert not is_complete(output, record, "other")
    assert not is_complete(output, None, "one")


def test_a_version_with_holes_is_not_complete(output):
    record = put(output, status="partial")

    assert not is_complete(output, record, "one")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_version_with_a_damaged_file_is_not_complete(output, harm):
    record = put(output)

    harm(output / "mask.tif")

    assert not is_complete(output, record, "one")


def test_another_plan_is_replaced_only_if_asked(output):
    record = put(output)

    with pytest.raises(BusyError, match=r"plan of one.*--overwrite"):
        check_free(output, record, "other", overwrite=False)

    check_free(output, record, "other", overwrite=True)
    check_free(output, record, "one", overwrite=False)
    check_free(output, None, "other", overwrite=False)


def test_holes_are_replaced_by_the_same_scene_or_if_asked(output):
    """By the mended file, say; not by the map of another place."""
    record = put(output) | {"status": "partial", "scene": {"href": "a.tif"}}

    check_free(output, record, "other", href="a.tif", overwrite=False)
    check_free(output, record, "other", href="b.tif", overwrite=True)
    with pytest.raises(BusyError, match="--overwrite"):
        check_free(output, record, "other", href="b.tif", overwrite=False)


# Staging


@pytest.mark.parametrize(
    "error", [ValueError("bug"), PreemptedError("stop"), KeyboardInterrupt()]
)
def test_an_error_while_building_leaves_nothing(tmp_path, error):
    """The parents that were made for the output go as well."""
    with pytest.raises(type(error)):
        fail(tmp_path / "some" / "deep" / "out", error)

    assert list(tmp_path.iterdir()) == []


def test_an_error_while_building_leaves_the_old_version(output):
    put(output, "old")
    before = snapshot(output)

    with pytest.raises(ValueError, match="bug"):
        fail(output, ValueError("bug"))

    assert before == snapshot(output)
    assert [item.name for item in output.parent.iterdir()] == ["out"]


def test_an_error_of_the_reader_is_not_taken_for_one_of_the_output(output):
    """What the body of `staging` raises comes out as it is."""
    with pytest.raises(FileNotFoundError), staging(output):
        Path("/nowhere/scene.tif").read_bytes()


def test_what_a_killed_run_left_is_swept(output):
    """What others made, for outputs of similar names too, is left alone."""
    output.parent.mkdir()
    with staging(output) as folder:
        name = folder.name
        fill(folder)
    others = [name.replace("out", "outer"), f"{name}.mine", ".out.staging.mine"]
    for left in (name, *others):
        (output.parent / left).mkdir()
        (output.parent / left / "half.tif").write_bytes(b"half")

    put(output, "two")

    assert {"mask.tif", "run.json"} == {item.name for item in output.iterdir()}
    assert {"out", *others} == {item.name for item in output.parent.iterdir()}


def test_two_builds_for_a_place_never_share_a_directory(output):
    names = set()
    for _ in range(2):
        with staging(output) as folder:
            names.add(folder.name)
            fill(folder)

    assert len(names) == 2


def test_a_version_that_another_run_put_there_meanwhile_stays(output):
    """Nobody's lock kept the two apart: the one that is late gives way."""
    put(output, "old")

    def be_late():
        with staging(output) as folder:
            fill(folder, "late")
            output.with_name(".out.lock").unlink()
            put(output, "new")

    with pytest.raises(BusyError, match="meanwhile"):
        be_late()

    assert published(output)["request_id"] == "new"
    assert is_complete(output, published(output), "new")
    assert [item.name for item in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["file/out", "file/deep/out", "/proc/tileseg/out"])
def test_an_unwritable_place_is_an_output_error(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)

    with pytest.raises(OutputError, match="out") as caught, staging(tmp_path / place):
        pytest.fail("nothing may be built for a place that cannot be written")

    assert caught.value.exit_code == ExitCode.OUTPUT
    assert before == snapshot(tmp_path)


def test_an_output_that_is_a_link_keeps_its_target(tmp_path, output):
    """A link to a version is replaced like a version; nothing else is touched."""
    put(output, "old")
    link = tmp_path / "latest"
    link.symlink_to(output, target_is_directory=True)

    put(link, "new")

    assert published(link)["request_id"] == "new"


# The exchange


def look(output):
    """Read a whole version relative to one directory handle; return its id.

    Names are looked up in the directory that was there when it was opened.
    """
    handle = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        record = json.loads(_read_at(handle, "run.json"))
        for item in record["outputs"]:
            data = _read_at(handle, item["path"])
            if hashlib.sha256(data).hexdigest() != item["sha256"]:
                return "a mix"
    except FileNotFoundError:
        return None  # that version went while it was being read: look again
    finally:
        os.close(handle)
    return record["request_id"]


def _read_at(directory, name):
    handle = os.open(name, os.O_RDONLY, dir_fd=directory)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def test_a_reader_never_sees_a_mix_nor_an_empty_place(output):
    put(output, "version 0")
    seen, missing = set(), []
    is_over = threading.Event()

    def watch():
        while not is_over.is_set():
            try:
                seen.add(look(output))
            except FileNotFoundError as err:
                missing.append(err)

    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(1, 51):
        put(output, f"version {number}", size=1000)
    is_over.set()
    reader.join()

    assert missing == []
    assert seen - {None} <= {f"version {number}" for number in range(51)}
    assert len(seen) > 2


@pytest.fixture
def no_exchange(monkeypatch):
    """A file system that cannot swap two directories in one step."""
    monkeypatch.setattr(swap, "exchange", lambda _one, _other: False)


@pytest.mark.usefixtures("no_exchange")
def test_without_exchange_the_new_version_replaces_the_old_one(output):
    put(output, "old")

    record = put(output, "new")

    assert record == published(output)
    assert [item.name for item in output.parent.iterdir()] == ["out"]


class Crash(BaseException):
    """The process dies here: nothing after this point may matter."""


@pytest.mark.usefixtures("no_exchange")
def test_a_crash_between_the_two_renames_is_recovered(output, monkeypatch):
    """Nobody cleans up after a kill, so only what lies on the disk may count."""
    old = put(output, "old")
    rename = Path.rename

    def die_at_the_second(self, target):
        if Path(target) == output:
            raise Crash
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die_at_the_second)
    with pytest.raises(Crash), staging(output) as folder:
        fill(folder, "new")
    monkeypatch.undo()
    is_gap = not output.exists()
    held = published(output)
    recover(output)

    assert is_gap
    assert old == held == published(output)
    assert [item.name for item in output.parent.iterdir()] == ["out"]


def test_a_crash_after_the_second_rename_keeps_the_new_version(output):
    put(output, "old")
    output.rename(output.with_name(".out.old"))
    new = put(output, "new")

    assert new == published(output)
    assert [item.name for item in output.parent.iterdir()] == ["out"]


def test_recovery_of_what_is_whole_does_nothing(output):
    put(output)
    before = snapshot(output)

    recover(output)

    assert before == snapshot(output)


def test_a_swept_output_lists_its_files_with_size_and_digest(tmp_path):
    (tmp_path / "b.tif").write_bytes(b"bb")
    (tmp_path / "a.tif").write_bytes(b"")

    listed = list_outputs(tmp_path)

    assert [item["path"] for item in listed] == ["a.tif", "b.tif"]
    assert [item["bytes"] for item in listed] == [0, 2]
    assert [item["sha256"] for item in listed] == [
        hashlib.sha256(data).hexdigest() for data in (b"", b"bb")
    ]


def test_what_somebody_puts_there_meanwhile_is_not_lost(output):
    """A file that appears while a version is built ends in exit 5, and stays."""
    put(output, "old")

    def put_while_somebody_writes():
        with staging(output) as folder:
            fill(folder, "new")
            (output / "notes.txt").write_text("<mine/>")

    with pytest.raises(OutputError, match="notes"):
        put_while_somebody_writes()

    assert (output / "notes.txt").read_text() == "<mine/>"
    assert json.loads((output / "run.json").read_text())["request_id"] == "old"


def test_one_run_at_a_time_builds_for_a_place(output):
    """Whatever their work directories are; the first is not disturbed."""
    with staging(output) as folder:
        record = fill(folder)
        with pytest.raises(BusyError, match="another run"), staging(output):
            pytest.fail("two at once")

    assert record == published(output)
    assert [item.name for item in output.parent.iterdir()] == ["out"]
