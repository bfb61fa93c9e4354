"""Faults of the machine, each made to happen: told by the right exit code, and healed.

After every one of them the next run gives what an undisturbed run gives.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import chaos
import faults
import pytest
import s3
from making import make_plain, make_scene, random_pixels, snapshot
from test_publish import look

ROOT = Path(__file__).parents[1]
SEGMENT = (sys.executable, "jobs/segment.py")
NOBODY = 65534
FORWARD = "predict.Predictor._forward"
RECORD = "ledger.Ledger.record"


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    return chaos.Arena(tmp_path_factory.mktemp("arena"), "local", "local")


class Trial:
    """One job of the arena, run as often as a test wants."""

    def __init__(self, arena, name):
        self._arena = arena
        self.place, self.folder = arena.place(name)
        self.output = Path(self.place.output)
        self.log = self.folder / "log"

    def words(self, **options):
        """Return the arguments; an option given here replaces the arena's."""
        words = self._arena.words(self.place, self.folder, workers=1)
        more = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        kept = [word for word in words if word.partition("=")[0] not in more]
        return [*kept, *(f"{name}={value}" for name, value in more.items())]

    def start(self, faulty="", prepare=None, **options):
        self.log.write_text("")
        return chaos.Attempt(self.words(**options), self.folder, faulty, prepare)

    def run(self, faulty="", prepare=None, **options):
        """Run the job; return its exit code, record and stderr."""
        attempt = self.start(faulty, prepare, **options)
        code = attempt.end()
        return code, attempt.record(), attempt.said()

    def calls(self, name):
        return faults.logged(self.log)[name]

    def is_undisturbed(self):
        """Whether the output is an undisturbed run's and nothing else is left."""
        record = json.loads((self.output / "run.json").read_text())
        return (
            chaos.version(self.place) == self._arena.versions["new"]
            and self.place.names() == self.place.wanted(record)
            and self._arena.kept(self.folder) <= chaos.WORK_KEPT
        )


@pytest.fixture
def trial(arena, request):
    return Trial(arena, request.node.name.translate(str.maketrans("[]:*/", "_____")))


# The faults themselves


def test_a_fault_happens_in_a_process_that_is_started_with_it(trial):
    """At the third call, after it: three receipts are on the disk, and it is dead."""
    faulty = f"{RECORD}:after:*:log {RECORD}:after:3:kill"
    process = subprocess.run(
        [*SEGMENT, *trial.words()[1:]],
        cwd=ROOT,
        env={**os.environ, **faults.environment(faulty, trial.log)},
        capture_output=True,
        check=False,
    )

    receipts = list((trial.folder / "work").glob("*/receipts.jsonl"))
    assert process.returncode == -signal.SIGKILL
    assert trial.calls(RECORD) == 3
    assert len(receipts) == 1
    assert trial.run()[1]["counts"]["shards_reused"] == 3
    assert trial.is_undisturbed()


def test_a_fault_may_be_of_one_shard_or_item(trial):
    write, cut = "maker.Maker._write", "shelf._Shelf.shards"
    faulty = f"{write}:before:*:log@2_1 {write}:after:*:log@7_7 {cut}:item:*:log"

    code, _, _ = trial.run(faulty)

    assert code == 0
    assert trial.calls(write) == 0  # it is told names, not shards
    assert trial.calls(cut) == chaos.SHARDS


@pytest.mark.parametrize(
    "text", ["ledger.lock", "a.b:before:1:explode", "a:after:1:log"]
)
def test_a_fault_that_there_is_not_is_refused(text):
    with pytest.raises(ValueError, match="no fault"):
        faults.install(text)


# A reader while publishers are killed: F5


def watch(is_over, look_once, seen):
    while not is_over.is_set():
        seen.append(look_once())


def look_at_store(place):
    """Follow the record; what it lists may go only when the record changes."""
    before = place.read("run.json")
    try:
        return json.dumps(chaos.version(place), sort_keys=True)
    except FileNotFoundError:
        return "gone" if place.read("run.json") == before else None


@pytest.mark.slow
@pytest.mark.parametrize("kind", chaos.PLACES)
def test_a_reader_sees_one_version_while_publishers_are_killed(kind, tmp_path_factory):
    """Two plans take turns, and die at every step of publishing."""
    with s3.serve(tmp_path_factory.mktemp("s3")):
        arena = chaos.Arena(tmp_path_factory.mktemp("arena"), kind, "local")
        place, folder = arena.place("read")
        place.copy(arena.old)
        plans = [json.loads(arena.place(name)[0].read("run.json")) for name in PLANS]
        steps = chaos.points(chaos.ON_DISK if kind == "local" else chaos.IN_STORE)
        is_over, seen = threading.Event(), []
        look_once = (
            partial(look, place.output)
            if kind == "local"
            else partial(look_at_store, place)
        )
        reader = threading.Thread(target=watch, args=(is_over, look_once, seen))
        reader.start()
        try:
            for turn, (name, moment, _) in enumerate([*steps, *steps[-2:]]):
                words = arena.words(place, folder, workers=1, is_old=turn % 2 == 1)
                faulty = f"{name}:{moment}:1:kill"
                assert chaos.Attempt(words, folder, faulty).end() in (0, chaos.KILLED)
            assert chaos.Attempt(words, folder).end() == 0
        finally:
            is_over.set()
            reader.join()

    wanted = (
        {plan["request_id"] for plan in plans}
        if kind == "local"
        else {json.dumps(arena.versions[name], sort_keys=True) for name in PLANS}
    )
    assert wanted == set(seen) - {None}
    assert len(seen) > len(steps)


PLANS = ("old", "new")


# Disks: F6, F7

UNSHARE = ("unshare", "-Urm")
FILL = """
set -u
mount -t tmpfs -o size="$SIZE" tmpfs "$1" || exit 99
shift
"$@"
echo "code $?"
find "$DISK" -name '*.tmp'
mount -o remount,size=64m "$DISK"
"$@"
echo "code $?"
cp -r "$DISK" "$COPY"
"""


def can_mount():
    words = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return not subprocess.run(words, capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no mounts without being root here")
@pytest.mark.parametrize(("what", "size"), [("work", "160k"), ("output", "60k")])
def test_a_full_disk_is_told_and_room_lets_the_job_go_on(trial, what, size):
    """The disk is real: too small for all shards or products, then 64 MB."""
    disk, copy = trial.folder / "disk", trial.folder / "copy"
    disk.mkdir()
    words = trial.words(**{what: disk / "x" / "out"})

    result = subprocess.run(
        [*UNSHARE, "sh", "-c", FILL, "sh", disk, *SEGMENT, *words[1:]],
        cwd=ROOT,
        env={**os.environ, "DISK": str(disk), "COPY": str(copy), "SIZE": size},
        capture_output=True,
        text=True,
        check=False,
    )

    lines = result.stdout.splitlines()
    assert [lines[1], lines[3]] == ["code 5", "code 0"], result.stderr
    assert len(lines) == 4, "temporary files are left"
    full = json.loads(lines[0])
    assert full["status"] == "failed"
    assert str(disk) in full["error"]
    assert "Traceback" not in result.stderr
    output = copy / "x" / "out" if what == "output" else trial.output
    place = chaos.Disk(trial.folder)
    place.output = str(output)
    assert chaos.version(place) == trial._arena.versions["new"]


def be_nobody():
    if os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)


@pytest.mark.parametrize("what", ["work", "output"])
def test_a_place_that_may_not_be_written_is_told_before_any_work(trial, what):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nobody may look, and not write
        for item in ("scene.tif", "job.toml"):
            shutil.copy(trial._arena.folder / item, folder)
        shutil.copytree(trial._arena.folder / "model", folder / "model")
        with (folder / "job.toml").open("a") as config:
            config.write("trusted = true\n")  # nobody may start no Python to look at it
        (folder / "mine").mkdir()
        (folder / "mine").chmod(0o777)
        (folder / "mine" / "log").touch(0o666)
        places = {"work": folder / "mine" / "work", "output": folder / "mine" / "out"}
        places[what] = folder / "x"
        trial.folder, trial.log = folder / "mine", folder / "mine" / "log"

        code, record, said = trial.run(
            f"{FORWARD}:before:*:log",
            be_nobody,
            input=folder / "scene.tif",
            model=folder / "model",
            config=folder / "job.toml",
            **places,
        )

        assert code == 5, said
        assert str(folder / "x") in record["error"]
        assert "Permission denied" in record["error"]
        assert trial.calls(FORWARD) == 0
        assert not (folder / "mine" / "out").exists()


# Devices and disks that never answer: F18


@pytest.mark.parametrize(
    "step",
    [
        "model.Network.__call__:before:9:hang",
        pytest.param("worker.Worker._finish:before:9:hang", marks=pytest.mark.slow),
        pytest.param("reader.Reader._read:before:2:hang", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_hangs_is_ended_and_the_rerun_goes_on(trial, arena, step):
    """A disk or a device that never answers: exit 12, and the process is gone."""
    config = arena.folder / "impatient.toml"
    config.write_text((arena.folder / "job.toml").read_text() + "patience = 1\n")

    code, record, said = trial.run(step, config=config)

    assert code == record["exit_code"] == 12, said
    assert "no progress for" in record["error"]
    assert not trial.output.exists()
    assert trial.run()[0] == 0
    assert trial.is_undisturbed()


def test_numbers_that_are_none_are_never_labels(trial):
    """Once only: the shard is tried again."""
    assert trial.run("model.Network.__call__:after:9:nan")[0] == 0
    assert trial.is_undisturbed()


# Reruns: F22, F28

IMPORTS = """
import sys, time
start = time.monotonic()
from tileseg.cli import main
try:
    main(sys.argv[1:])
finally:
    print(time.monotonic() - start, *sys.modules)
"""


def test_a_rerun_of_a_complete_job_touches_nothing_and_loads_no_network(trial):
    trial.run()
    before = snapshot(trial.output)

    rerun = subprocess.run(
        [sys.executable, "-c", IMPORTS, *trial.words()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    _, last = rerun.stdout.splitlines()
    seconds, *modules = last.split()
    print(f"a rerun took {seconds} s")  # noqa: T201
    assert before == snapshot(trial.output)
    assert set() == {"torch", "ray", "matplotlib", "shapely"} & set(modules)
    assert float(seconds) < 10  # a hang, not a claim
    assert trial.is_undisturbed()


@pytest.mark.parametrize(
    "step",
    [
        "stitch._place:before:7",
        "stitch._assemble:before:2",
        "features.write_features:after:1",
    ],
)
def test_products_are_made_from_shards_alone(trial, step):
    code = trial.start(f"{step}:kill").end()
    rerun, record, _ = trial.run(f"{FORWARD}:before:*:log")

    assert (code, rerun) == (chaos.KILLED, 0)
    assert trial.calls(FORWARD) == 0
    assert record["counts"]["shards_reused"] == chaos.SHARDS
    assert trial.is_undisturbed()


# Another time and place: F24


def set_zone(zone):
    os.environ["TZ"] = zone
    time.tzset()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns", "nowhere"])
def test_no_byte_depends_on_the_time_or_the_zone(trial, zone):
    """The arena's own run is a while ago."""
    assert trial.run(prepare=partial(set_zone, zone))[0] == 0
    assert trial.is_undisturbed()


# Inputs that change: F25


def rewrite(path):
    """Change a file in place; its size and modification time stay."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def wait_stopped(pid):
    """Wait until a process stands still."""
    for _ in range(600):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    pytest.fail("it never stood still")


def test_an_input_rewritten_during_the_run_is_not_published(trial, arena):
    """Size and time are the same; it happens while the job stands still."""
    scene = Path(shutil.copy(arena.folder / "scene.tif", trial.folder / "log.tif"))
    attempt = trial.start(f"{RECORD}:after:3:stop", input=scene)
    wait_stopped(attempt.process.pid)

    rewrite(scene)
    os.kill(attempt.process.pid, signal.SIGCONT)

    assert attempt.end() == 4
    assert str(scene) in attempt.record()["error"]
    assert not trial.output.exists()


# A slow consumer: F29


def test_the_network_waits_for_a_slow_disk(trial):
    """At most four shards wait, beside the one being written and the one at hand."""
    cut, finish = "shelf._Shelf.shards", "worker.Worker._finish"
    faulty = f"{cut}:item:*:log {finish}:before:*:slow {finish}:after:*:log"

    code, _, _ = trial.run(faulty)

    names = [line.partition(" ")[2] for line in trial.log.read_text().splitlines()]
    waiting = [
        names[:end].count(cut) - names[:end].count(finish) for end in range(len(names))
    ]
    assert code == 0
    assert names.count(cut) == names.count(finish) == chaos.SHARDS
    assert 1 < max(waiting) <= 6


# Nobody listens: F33


def to_full(*streams):
    """Send streams to a disk that is full."""
    for number in streams:
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def to_nobody(*streams):
    """Send streams to a reader that is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    for number in streams:
        os.dup2(writer, number)


@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("send", [to_full, to_nobody])
def test_a_job_does_not_need_to_be_heard(trial, send, streams):
    attempt = trial.start(prepare=partial(send, *streams))

    assert attempt.end() == 0, attempt.said()
    assert trial.is_undisturbed()


def test_an_error_that_nobody_hears_keeps_its_code(trial):
    """Nor does a full log disk keep a dry run's line of JSON away."""
    with Path("/dev/full").open("w") as full:
        wrong = [*SEGMENT, "--config", "nowhere.toml"]
        code = subprocess.run(wrong, cwd=ROOT, stderr=full, check=False).returncode
        told = subprocess.run(
            [*SEGMENT, *trial.words()[1:], "--dry-run"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )

    assert code == 2
    assert told.returncode == 0
    assert json.loads(told.stdout)["status"] == "dry-run"


def test_a_job_without_streams_is_done(trial):
    line = '"$@" <&- >&- 2>&-'
    words = [*SEGMENT, *trial.words()[1:]]

    process = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *words], cwd=ROOT, check=False
    )

    assert process.returncode == 0
    assert trial.is_undisturbed()


# Many inputs: F34


@pytest.mark.slow
def test_bad_scenes_among_many_stop_none_of_them(trial):
    """Twenty good ones, and one of each kind of bad; the worst code wins."""
    folder = trial.folder / "streams"
    folder.mkdir()
    good = [folder / f"good{number}.tif" for number in range(20)]
    for number, path in enumerate(good):
        make_scene(path, random_pixels(60 + number, 70, seed=number))
    data = good[0].read_bytes()
    bad = {
        "truncated": (lambda path: path.write_bytes(data[: len(data) // 2]), 4),
        "empty": (Path.touch, 3),
        "text": (lambda path: path.write_text("<VRTDataset/>"), 3),
        "folder": (Path.mkdir, 4),
        "mute": (lambda path: make_plain(path, random_pixels(50, 60), nodata=0), 2),
        "poor": (lambda path: make_scene(path, random_pixels(50, 60, bands=1)), 2),
        "gone": (lambda _path: None, 4),
    }
    for name, (spoil, _) in bad.items():
        spoil(folder / f"{name}.tif")
    inputs = [*good[:10], *(folder / f"{name}.tif" for name in bad), *good[10:]]
    words = [word for word in trial.words() if not word.startswith("--input")]
    words += [f"--input={path}" for path in inputs]

    attempt = chaos.Attempt(words, trial.folder)
    code = attempt.end()

    lines = (folder / "out").read_text().splitlines()
    codes = {
        Path(r["scene"]["href"]).stem: r["exit_code"] for r in map(json.loads, lines)
    }
    expected = {path.stem: 0 for path in good}
    assert codes == expected | {name: code for name, (_, code) in bad.items()}
    assert code == 3
    assert all((trial.output / name / "run.json").is_file() for name in expected)
    assert not any((trial.output / name).exists() for name in bad)
