"""One run at a time, and none for ever: the same laws for a disk and an object store.

The store is a real S3 server on loopback; owners are real processes.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import obstore
import pytest
from making import digests, make_scene, random_pixels, snapshot
from obstore.exceptions import GenericError
from s3 import serve

from tileseg.errors import BusyError, ExitCode, OutputError, StorageError
from tileseg.job import run
from tileseg.outputs import quicklook
from tileseg.settings import Job
from tileseg.stores import lock, objects
from tileseg.stores.lock import hold, hold_file
from tileseg.stores.objects import Objects, open_storage
from tileseg.stores.storage import Disk

ROOT = Path(__file__).parents[1]
NUMBERS = count()
STALE = 2.0
LONG_ENOUGH = STALE + 1.3  # a store tells whole seconds

HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us
from tileseg.stores import lock
from tileseg.stores.lock import hold
from tileseg.stores.objects import open_storage
lock._BEAT_SECONDS = 0.5
with hold(open_storage(sys.argv[1]), "a plan"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def work(request, tmp_path):
    """A work directory where nothing is yet."""
    if request.param == "disk":
        return Disk(tmp_path / "work")
    return Objects(f"s3://maps/work/{next(NUMBERS)}")


def spawn(program, *words):
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def owner(work):
    """A process that holds the work directory."""
    process = spawn(HOLD, work.address)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def long_enough(work, monkeypatch):
    """Seconds after which this process takes an owner for frozen."""
    monkeypatch.setattr(lock, "_STALE_SECONDS", 1.0)
    return 1.2 if isinstance(work, Disk) else 2.2  # a store tells whole seconds


def is_free(work):
    try:
        with hold(work, "another plan"):
            return True
    except BusyError:
        return False


def leave_lock(work):
    """Leave the lock of a process that was killed long ago."""
    killed = spawn(HOLD, work.address)
    killed.stdout.readline()
    killed.kill()
    killed.communicate()
    if isinstance(work, Disk):
        os.utime(work.path / "lock", (0, 0))


def left(work):
    if isinstance(work, Objects):
        return set(work.names())
    return {item.name for item in work.path.iterdir()}


def test_the_second_is_told_at_once_who_is_at_it(work, owner):
    start = time.monotonic()

    with pytest.raises(BusyError, match=f"lock: .*process {owner.pid} on "):
        hold(work, "another plan").__enter__()

    assert time.monotonic() - start < 5


@pytest.mark.parametrize("is_reaped", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_frees_the_lock_at_once(work, owner, number, is_reaped):
    """Also where its parent never asks how it ended, as in many containers."""
    owner.send_signal(number)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    if is_reaped:
        owner.wait()

    assert is_free(work)
    assert left(work) == set()


def test_an_owner_that_ends_leaves_nothing(work):
    for _ in range(3):
        with hold(work, "a plan"):
            assert not is_free(work)

    assert is_free(work)
    assert left(work) == set()


@pytest.mark.usefixtures("server")
def test_what_the_killed_asked_for_the_time_goes_with_the_next_owner():
    work = Objects(f"s3://maps/work/{next(NUMBERS)}")
    work.write("lock.now", b"")

    with hold(work, "a plan"):
        assert not is_free(work)
        work.write("lock.now", b"")

    assert left(work) == set()


def test_the_lock_is_free_after_an_error(work):
    for _ in range(2):
        with pytest.raises(ValueError, match="bug"), hold(work, "a plan"):
            raise ValueError("bug")


@pytest.mark.parametrize("is_left", [False, True])
def test_of_many_at_once_one_has_it(work, is_left):
    """Those that come while it is held are told so; none waits, none shares it.

    Also where a run that was killed long ago left its lock.
    """
    if is_left:
        leave_lock(work)
    inside, most, refused = [], [], []
    start, are_told = threading.Barrier(8), threading.Event()

    def contend():
        start.wait()
        try:
            with hold(work, "a plan"):
                inside.append(1)
                most.append(len(inside))
                are_told.wait(60)
                inside.pop()
        except BusyError:
            refused.append(1)
            if len(refused) == 7:
                are_told.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1]
    assert len(refused) == 7
    assert is_free(work)


def test_an_owner_that_beats_is_never_stale(work, long_enough, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.2)
    with hold(work, "a plan") as held:
        time.sleep(long_enough)

        assert not is_free(work)
        held.renew()


def test_a_frozen_owner_keeps_the_lock_for_a_while(work, owner):
    """It may wake up: slow is not dead."""
    owner.send_signal(signal.SIGSTOP)

    assert not is_free(work)
    owner.send_signal(signal.SIGCONT)


def test_a_frozen_owner_loses_the_lock_and_takes_nothing_back(work, owner, long_enough):
    owner.send_signal(signal.SIGSTOP)
    time.sleep(long_enough)
    with hold(work, "another plan") as held:
        owner.send_signal(signal.SIGCONT)
        time.sleep(0.8)  # it has seen by now that it lost
        owner.send_signal(signal.SIGINT)  # and ends
        owner.wait()

        held.renew()
        assert not is_free(work)
    assert left(work) == set()


def test_whoever_was_frozen_is_told_so(work, long_enough, monkeypatch):
    """Whatever goes wrong after that is the new owner's doing."""
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 3600)  # this one is frozen

    def be_late():
        with hold(work, "a plan") as held:
            time.sleep(long_enough)
            with hold(work, "another plan"):
                with pytest.raises(BusyError, match="stood still"):
                    held.renew()
                with pytest.raises(BusyError, match="stood still"):
                    held.check()
            raise FileNotFoundError

    with pytest.raises(BusyError, match="stood still"):
        be_late()
    assert left(work) == set()


def test_a_beat_that_was_taken_and_whose_answer_was_lost_loses_nothing(
    server, monkeypatch
):
    """The store could not even be asked what became of it."""
    del server
    work, put = Objects(f"s3://maps/work/{next(NUMBERS)}"), obstore.put
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 3600)
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)

    def fail(*_args, **_options):
        raise GenericError("no answer")

    def lose(*args, **options):
        put(*args, **options)
        fail()

    with hold(work, "a plan") as held:
        with monkeypatch.context() as patch:
            patch.setattr(obstore, "put", lose)
            patch.setattr(obstore, "get", fail)
            with pytest.raises(StorageError):
                held.renew()

        held.renew()
        held.check()
        assert not is_free(work)
    assert left(work) == set()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_mount_that_fails_for_a_moment_takes_no_lock_away(
    tmp_path, monkeypatch, code
):
    def fail(*_args):
        raise OSError(code, os.strerror(code))

    with hold_file(tmp_path / "lock") as held:
        with monkeypatch.context() as patch:
            patch.setattr(os.path, "samestat", fail)
            with pytest.raises(OutputError, match="cannot be renewed"):
                held.renew()

        held.renew()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch, hold_file(tmp_path / "lock"):
        patch.setattr(Path, "unlink", fail)

    with hold_file(tmp_path / "lock") as held:  # the kernel's was let go
        held.renew()


def test_the_end_does_not_wait_for_a_beat_that_hangs(tmp_path, monkeypatch):
    is_hanging, is_over = threading.Event(), threading.Event()

    def hang(_lock):
        is_hanging.set()
        return is_over.wait(60)

    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "_END_SECONDS", 0.1)
    monkeypatch.setattr(lock._FileLock, "renew", hang)
    with hold_file(tmp_path / "lock") as held:
        assert is_hanging.wait(10)
        start = time.monotonic()

    assert time.monotonic() - start < 5
    is_over.set()
    held._lock.free()


def test_the_machines_clock_does_not_matter(work, owner, monkeypatch):
    """Ages are told by the clock of the storage: this one is a day ahead."""
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)

    assert owner.poll() is None
    assert not is_free(work)


@pytest.mark.parametrize("place", ["file/work", "/proc/tileseg"])
def test_a_work_directory_that_cannot_be_made_is_an_output_error(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutputError, match="cannot be written"):
        hold(Disk(tmp_path / place), "a plan").__enter__()


def test_a_lock_that_nobody_can_read_still_holds(tmp_path):
    with hold_file(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(b"\xff")

        with pytest.raises(BusyError, match="unknown"):
            hold_file(tmp_path / "lock").__enter__()


# Jobs

FROZEN = """
import os, signal, sys
sys.path.insert(0, "tests")
from making import after
import tileseg.outputs.quicklook
from tileseg.job import run
from tileseg.settings import Job

def freeze(*_args):
    print("frozen", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

if {point!r} == "products":
    real = tileseg.outputs.quicklook.quicklook
    def picture(*args):
        freeze()
        return real(*args)
    tileseg.outputs.quicklook.quicklook = picture
job = Job(**{facts!r})
progress = after(job, 2, freeze) if {point!r} == "shards" else lambda *_: None
record = run(job, progress)
print("published" if record.is_news and not record.error else record.error)
sys.exit(record.values["exit_code"])
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(230, 170, seed=1))


@pytest.fixture
def facts(tmp_path, scene, model_path, work):
    """The fields of a job whose work is somewhere and whose outputs are local."""
    return {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "output": str(tmp_path / "out"),
        "work": work.address,
        "shard": 96,
        "run_shards": (1, 1),
        "precision": "fp32",
    }


def test_two_jobs_at_once_publish_once(facts, owner):
    """The job that comes second exits 8 at once and leaves the output alone."""
    busy = run(Job(**facts))
    owner.kill()
    owner.wait()
    free = run(Job(**facts))

    assert busy.values["exit_code"] == ExitCode.BUSY
    assert str(owner.pid) in busy.values["error"]
    assert free.values["exit_code"] == ExitCode.OK


@pytest.mark.slow
def test_jobs_that_start_together_publish_once(tmp_path, facts):
    """The others are told so, or find the result; nothing is left over."""
    jobs = [spawn(FROZEN.format(facts=facts, point="never")) for _ in range(4)]
    said = [item.communicate(timeout=120)[0].strip() for item in jobs]

    assert said.count("published") == 1
    assert {item.returncode for item in jobs} <= {ExitCode.OK, ExitCode.BUSY}
    assert left(open_storage(facts["work"])) == {"inputs.json"}
    assert {item.name for item in tmp_path.iterdir()} <= {"out", "work"}
    assert run(Job(**facts)).error is None
    assert left(open_storage(facts["work"])) == {"inputs.json"}


def published(output):
    """Return what a reader of the output sees, with versions and times."""
    if not output.startswith("s3://"):
        return snapshot(Path(output))
    place = Objects(output)
    return {name: (place.look(name), place.modified(name)) for name in place.names()}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["shards", "products"])
@pytest.mark.parametrize(
    "others", [{}, {"work": "another"}, {"blend": "cosine"}, {"output": "s3"}], ids=str
)
def test_a_frozen_owner_that_wakes_up_late_changes_nothing(
    tmp_path, facts, point, others, monkeypatch
):
    """The second takes over and publishes; the first ends 0 or 8 when it wakes up."""
    if others.get("output"):
        facts["output"] = f"s3://maps/out/{next(NUMBERS)}"
    second = {**facts, **{k: v for k, v in others.items() if k != "output"}}
    if others.get("work"):
        second["work"] = str(tmp_path / "another")
    late = spawn(FROZEN.format(facts=facts, point=point))
    try:
        assert late.stdout.readline() == "frozen\n"
        early = run(Job(**second))
        monkeypatch.setattr(lock, "_STALE_SECONDS", STALE)
        time.sleep(LONG_ENOUGH)
        taken = run(Job(**second))
        before = published(second["output"])
        late.send_signal(signal.SIGCONT)
        said = late.communicate(timeout=120)[0]
    finally:
        late.kill()
        late.wait()

    # A bucket has no lock of its own: with another work directory none is met.
    if not (others.get("output") and others.get("work")):
        assert early.values["exit_code"] == ExitCode.BUSY
    assert taken.values["exit_code"] == ExitCode.OK
    assert late.returncode in (ExitCode.OK, ExitCode.BUSY), said
    if others.get("blend"):
        assert late.returncode == ExitCode.BUSY
    assert before == published(second["output"])

    again = run(Job(**second))

    assert again.values["exit_code"] == ExitCode.OK
    assert not again.is_news
    if not others:
        assert left(open_storage(facts["work"])) == {"inputs.json"}
    names = {item.name for item in tmp_path.iterdir()} - {"work", "another"}
    assert names <= {"out"}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["shards", "products"])
def test_a_late_owner_does_not_disturb_its_successor(
    tmp_path, facts, point, monkeypatch
):
    """It wakes up while the second is at work on the same plan, and ends with 8."""
    job = Job(**facts)
    late = spawn(FROZEN.format(facts=facts, point=point))
    ended = []

    def wake(*_args):
        if not ended:
            late.send_signal(signal.SIGCONT)
            ended.append(late.communicate(timeout=120)[0])

    def draw(*args):
        wake()
        return real(*args)

    real = quicklook.quicklook
    try:
        assert late.stdout.readline() == "frozen\n"
        monkeypatch.setattr(lock, "_STALE_SECONDS", STALE)
        if point == "products":  # no shard is left to do
            monkeypatch.setattr(quicklook, "quicklook", draw)
        time.sleep(LONG_ENOUGH)
        taken = run(job, wake)
    finally:
        late.kill()
        late.communicate()

    assert late.returncode == ExitCode.BUSY, ended
    assert taken.values["exit_code"] == ExitCode.OK, taken.error
    assert left(open_storage(job.work)) == {"inputs.json"}
    other = Job(**{**facts, "output": str(tmp_path / "other"), "work": ""})
    assert run(other).error is None
    assert digests(tmp_path / "out") == digests(tmp_path / "other")
