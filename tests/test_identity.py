"""What a scene's bytes are, and when that is still known."""

import hashlib
import os
import time
from dataclasses import replace

import pytest
from making import files_of

from tileseg.base.stopping import Stop, StopSignal
from tileseg.commands.console import deadline
from tileseg.errors import InputError
from tileseg.job import run
from tileseg.plans import task
from tileseg.scenes import identity as module
from tileseg.scenes.identity import Ahead, Identities, identify
from tileseg.settings import Job
from tileseg.stores.storage import Disk

DATA = b"II*\0" + bytes(range(200))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def work(tmp_path):
    path = tmp_path / "work"
    path.mkdir()
    return Disk(path)


def sha256(file, work):
    (identity,) = identify((str(file),), work).files
    return identity.sha256


def remember(file, work, digest):
    """Leave another digest than the file's in the work directory."""
    (identity,) = identify((str(file),), work).files
    Identities((replace(identity, sha256=digest),)).remember(work)


def rewrite_quietly(path, data):
    """Put other bytes of the same size into a file and set its old times again."""
    before = path.stat()
    time.sleep(0.05)  # the clock of change times ticks every few milliseconds
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ino,
    )


def test_an_identity_is_size_and_sha256(file, work):
    (identity,) = identify((str(file),), work).files

    assert identity.path == str(file)
    assert identity.size == len(DATA)
    assert hashlib.sha256(DATA).hexdigest() == identity.sha256


def test_an_unchanged_file_is_not_hashed_again(file, work):
    """The digest comes from the last run's record: here one that no hash gives."""
    remember(file, work, "f" * 64)

    assert sha256(file, work) == "f" * 64


def test_a_remembered_identity_comes_back_the_same(file, work):
    identity = identify((str(file),), work)
    identity.remember(work)

    assert identity == identify((str(file),), work)


def test_a_rewrite_of_the_same_size_and_time_is_seen(file, work):
    identity = identify((str(file),), work)
    identity.remember(work)
    rewrite_quietly(file, DATA[::-1])

    assert hashlib.sha256(DATA[::-1]).hexdigest() == sha256(file, work)
    with pytest.raises(InputError, match="changed") as caught:
        identity.check_unchanged()
    assert caught.value.exit_code == 4


def test_another_file_in_its_place_is_seen(file, work):
    identity = identify((str(file),), work)
    identity.remember(work)
    other = file.with_name("other.tif")
    other.write_bytes(DATA[::-1])
    stat = file.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)

    assert identity.files[0].sha256 != sha256(file, work)
    with pytest.raises(InputError, match="changed"):
        identity.check_unchanged()


def test_a_record_of_another_file_is_not_used(file, work):
    other = file.with_name("other.tif")
    other.write_bytes(DATA)
    remember(other, work, "f" * 64)

    assert hashlib.sha256(DATA).hexdigest() == sha256(file, work)


def test_an_unchanged_file_passes(file, work):
    assert identify((str(file),), work).check_unchanged() is None


def test_a_file_that_went_away_has_changed(file, work):
    identity = identify((str(file),), work)
    file.unlink()

    with pytest.raises(InputError, match=r"scene\.tif"):
        identity.check_unchanged()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b"[7]",
        b"[null]",
        b'{"path": ',
        b"\xff\xfe",
        b'[{"stamp": null}]',
        b'[{"path": "x", "size": 1, "stamp": [1, 2, 3], "sha256": "f", "more": 1}]',
    ],
)
def test_a_broken_record_is_no_record(record, file, work):
    work.write("inputs.json", record)

    assert hashlib.sha256(DATA).hexdigest() == sha256(file, work)


def test_a_missing_file_is_named(work, tmp_path):
    with pytest.raises(InputError, match=r"gone\.tif") as caught:
        identify((str(tmp_path / "gone.tif"),), work)

    assert caught.value.exit_code == 4


def test_a_folder_is_refused(work, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        identify((str(tmp_path),), work)


def test_of_several_files_only_what_changed_is_hashed_again(file, work):
    """One identity a file, in their order; any of them can have changed."""
    other = file.with_name("other.tif")
    other.write_bytes(DATA[::-1])
    both = (str(other), str(file))
    identities = identify(both, work)
    first, second = identities.files
    Identities((first, replace(second, sha256="f" * 64))).remember(work)
    other.write_bytes(DATA + DATA)

    again = identify(both, work)

    assert [str(other), str(file)] == [item.path for item in again.files]
    assert again.files[0].sha256 == hashlib.sha256(DATA + DATA).hexdigest()
    assert again.files[1].sha256 == "f" * 64
    assert again.size == 3 * len(DATA)
    with pytest.raises(InputError, match=r"other\.tif"):
        identities.check_unchanged()


@pytest.fixture
def ahead():
    """One that nobody stops."""
    return Ahead(lambda: False)


def test_what_was_hashed_ahead_is_not_hashed_again(file, work, ahead, hashed):
    """Its digest is the one that its own turn would give, and nothing is written."""
    expected = identify((str(file),), work)
    hashed.clear()
    ahead.begin(str(file), str(work))

    assert expected == identify((str(file),), work, ahead)
    assert hashed == ["scene.tif ahead"]
    assert list(work.path.iterdir()) == []


def test_a_file_that_changed_after_it_was_hashed_ahead_is_hashed_anew(
    file, work, ahead
):
    ahead.begin(str(file), str(work))
    assert ahead.recall(str(file))
    rewrite_quietly(file, DATA[::-1])

    (identity,) = identify((str(file),), work, ahead).files

    assert hashlib.sha256(DATA[::-1]).hexdigest() == identity.sha256


def test_of_a_file_that_changes_while_it_is_hashed_nothing_is_known(
    file, work, ahead, monkeypatch
):
    real = module._sha256

    def disturbed(path, is_over):
        sha256 = real(path, is_over)
        rewrite_quietly(file, DATA[::-1])
        return sha256

    monkeypatch.setattr(module, "_sha256", disturbed)
    ahead.begin(str(file), str(work))

    assert ahead.recall(str(file)) is None


def test_what_the_last_run_knew_is_not_hashed_ahead(file, work, ahead, hashed):
    remember(file, work, "f" * 64)
    hashed.clear()
    ahead.begin(str(file), str(work))

    (identity,) = identify((str(file),), work, ahead).files

    assert identity.sha256 == "f" * 64
    assert hashed == []


def test_only_plain_local_files_are_hashed_ahead(tmp_path, work, ahead, hashed):
    """Of the rest nothing is said before its own turn, and no pipe is waited for."""
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "item.json").write_text("{}")
    names = ("gone.tif", "pipe.tif", "item.json", "item.json#a", "", "a\0b.tif")
    for source in [*(str(tmp_path / name) for name in names), "s3://bucket/scene.tif"]:
        ahead.begin(source, str(work))

        assert ahead.recall(source) is None
    assert hashed == []


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def huge(tmp_path):
    """A file that is hashed for minutes, and takes no room."""
    path = tmp_path / "huge.tif"
    with path.open("wb") as file:
        file.truncate(1 << 38)
    return path


def test_a_stop_ends_who_waits_and_who_hashes(huge, work):
    stop = Stop()
    ahead = Ahead(lambda: stop.error is not None)
    ahead.begin(str(huge), str(work))

    with pytest.raises(StopSignal), deadline(stop, 0.3):
        identify((str(huge),), work, ahead)
    wait_for(lambda: str(huge) not in files_of(os.getpid()))


def test_a_file_is_hashed_while_it_is_looked_at(
    scene_path, model_path, tmp_path, hashed, monkeypatch
):
    def look_until_it_is_hashed(_names):
        wait_for(lambda: hashed)

    monkeypatch.setattr(task, "examine", look_until_it_is_hashed)
    places = {"model": str(model_path), "output": str(tmp_path / "out")}
    job = Job(input=str(scene_path), dry_run=True, **places)

    assert run(job).error is None
    assert hashed == ["scene.tif in turn"]


def test_who_begins_twice_with_a_file_goes_on(file, work, ahead, hashed):
    for _ in range(2):
        ahead.begin(str(file), str(work))

    assert ahead.recall(str(file))
    assert hashed == ["scene.tif ahead"]


@pytest.mark.parametrize("act", ["begin", "close"])
def test_a_file_that_is_of_no_more_use_is_hashed_no_further(
    act, huge, file, work, ahead
):
    ahead.begin(str(huge), str(work))
    wait_for(lambda: str(huge) in files_of(os.getpid()))

    ahead.close() if act == "close" else ahead.begin(str(file), str(work))

    wait_for(lambda: str(huge) not in files_of(os.getpid()))
    assert ahead.recall(str(huge)) is None
