"""Whatever a store answers, a prefix holds the old version, the new one or nothing.

A real S3 server, behind a proxy that fails as stores do: see proxy.py.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner
from making import job_maker, make_scene, random_pixels, succeed
from proxy import stand_before
from publication import publish, whole
from s3 import SECRET, contents, environment, next_second, plain, serve

from tileseg.cli import main
from tileseg.errors import ExitCode, StorageError, TilesegError
from tileseg.job import run
from tileseg.stores import objects
from tileseg.stores.objects import Objects

PRODUCTS = 5  # mask, confidence, quicklook, item.json, report
NUMBERS = count()
OLD, NEW = "a" * 32, "b" * 32
KINDS = {
    "get": {"method": "GET", "target": r"/run\.json$"},
    "list": {"method": "GET", "target": "list-type"},
    "head": {"method": "HEAD"},
    "put": {"method": "PUT", "target": r"/mask\.tif$"},
    "begin": {"method": "POST", "target": r"\?uploads"},
    "part": {"method": "PUT", "target": "partNumber=2"},
    "complete": {"method": "POST", "target": r"\?uploadId"},
    "switch": {"method": "PUT", "target": r"/run\.json$"},
    "delete": {"method": "POST", "target": r"\?delete"},
}
WORK = {
    "shard": {"method": "PUT", "target": r"/shards/.*\.tif$"},
    "receipt": {"method": "PUT", "target": r"/receipts.*/.*json$"},
    "lock": {"method": "PUT", "target": "/lock$"},
    "plan": {"method": "PUT", "target": r"/plan\.json$"},
}
PASSING = [
    {"action": "answer", "status": 500, "code": "InternalError"},
    {"action": "answer", "status": 502, "code": "BadGateway"},
    {"action": "answer", "status": 503, "code": "SlowDown"},
    {"action": "answer", "status": 429, "code": "TooManyRequests"},
    {"action": "reset"},
    {"action": "short"},
    {"action": "lose"},
]
BUSY, RESET, LOSE = PASSING[2], PASSING[4], PASSING[6]
STALLS = [{"action": "stall"}, {"action": "stall_body"}]


def mostly_slow(cases, *quick):
    """Mark those that take the way of one of the `quick` as slow."""
    return [
        case if case in quick else pytest.param(case, marks=pytest.mark.slow)
        for case in cases
    ]


def name_of(fault):
    return str(fault.get("status", fault["action"]))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    with (
        stand_before(server, tmp_path_factory.mktemp("proxy")) as line,
        environment(line.address),
    ):
        yield line


@pytest.fixture(autouse=True)
def line(proxy, monkeypatch):
    """The proxy, obeying no rule yet; what hangs is given up after a second."""
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    monkeypatch.setattr(objects, "_WAIT_SECONDS", 0.02)
    proxy.obey()
    yield proxy
    proxy.obey()


class Prefix:
    """A prefix of its own, seen through the proxy by us and past it by readers."""

    def __init__(self, server):
        self.server = server
        self.output = f"s3://maps/faults/{next(NUMBERS)}"

    def contents(self):
        """Return path to bytes of all its objects."""
        return contents(self.output, self.server)

    def products(self):
        """Return the listed ones; there must be no other.

        Of the report, which says how long it took, that it is there.
        """
        objects = self.contents()
        listed = {item["path"] for item in json.loads(objects["run.json"])["outputs"]}

        assert listed | {"run.json"} == set(objects)
        return {
            plain(path): b"" if path.endswith("report.html") else objects[path]
            for path in listed
        }

    def record(self):
        return json.loads(self.contents()["run.json"])


@pytest.fixture
def prefix(server):
    return Prefix(server)


@pytest.fixture
def other(server):
    return Prefix(server)


@pytest.fixture
def hasty(monkeypatch):
    """Give up soon."""
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0.5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(130, 171))


@pytest.fixture
def job(tmp_path, scene, model_path, prefix):
    return job_maker(
        tmp_path,
        scene,
        model_path,
        output=prefix.output,
        work=str(tmp_path / "work"),
        shard=96,
        precision="fp32",
        confidence=True,
        overwrite=True,
    )


def command(job, folder):
    """Return the words of `tileseg` that do a job; some stand in a file beside it."""
    config = Path(f"{folder}.toml")
    config.write_text(f'shard = {job.shard}\nprecision = "{job.precision}"\n')
    words = ["--config", config, "--input", job.input, "--model", job.model]
    words += ["--output", job.output, "--work", job.work, "--confidence", "--overwrite"]
    return ["segment", *map(str, words)]


def receipts(line):
    """Return how many the server has taken."""
    return len([e for e in line.log(**WORK["receipt"]) if e["status"] == 200])


def unfinished(line):
    """Return the uploads that the server began, and neither completed nor aborted."""
    begun = len([e for e in line.log("POST", r"\?uploads") if e["status"] == 200])
    ended = [e for e in line.log("POST", r"\?uploadId") if e["status"] == 200]
    aborted = [e for e in line.log("DELETE", "uploadId") if e["status"] == 204]
    return begun - len({e["target"] for e in ended + aborted})


# Faults that pass


@pytest.mark.parametrize("fault", mostly_slow(PASSING, *PASSING[4:]), ids=name_of)
def test_a_fault_of_every_kind_of_request_changes_nothing(
    line, prefix, tmp_path, fault
):
    publish(prefix.output, tmp_path, OLD)
    line.obey(*({**kind, **fault, "times": 2} for kind in KINDS.values()))

    publish(prefix.output, tmp_path, NEW)
    publish(prefix.output, tmp_path, NEW)  # asks whether all is there

    for kind in KINDS.values():
        hit = [e for e in line.log(**kind) if e["action"] == fault["action"]]
        assert len(hit) == 2
    assert whole(NEW) == prefix.products()


STORMS = [{**fault, "every": every} for fault in PASSING for every in (2, 3)]


@pytest.mark.parametrize(
    "storm",
    mostly_slow(STORMS, {**BUSY, "every": 2}, {**LOSE, "every": 2}),
    ids=name_of,
)
def test_a_job_in_a_storm_makes_the_same_map(line, prefix, other, job, storm):
    succeed(job(output=other.output, work=job().work + "2"))
    line.obey(storm)

    first, second = succeed(job()), succeed(job())

    assert any(entry["action"] for entry in line.log())
    assert first == second
    assert other.products() == prefix.products()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("put", "RequestTimeout"),
        ("part", "RequestTimeout"),
        ("part", "NoSuchUpload"),
        ("complete", "NoSuchUpload"),
    ],
)
def test_an_upload_that_the_store_lost_is_begun_again(
    line, prefix, tmp_path, kind, code
):
    """It says so with a status that is final otherwise."""
    refusal = {"action": "answer", "status": 404, "code": code, "times": 1}
    line.obey({**KINDS[kind], **refusal})

    publish(prefix.output, tmp_path, NEW)

    assert whole(NEW) == prefix.products()
    assert unfinished(line) == 0


@pytest.mark.parametrize("fault", ["lose", "short", "reset"])
def test_a_record_is_switched_once_though_the_answer_was_lost(line, prefix, job, fault):
    line.obey({**KINDS["switch"], "action": fault, "times": 1})

    values = succeed(job())

    statuses = [entry["status"] for entry in line.log(**KINDS["switch"])]
    assert statuses == [0, 200] if fault == "reset" else [200, 412]
    assert values == prefix.record()
    assert len(prefix.products()) == PRODUCTS


@pytest.mark.usefixtures("hasty")
def test_a_record_is_found_switched_though_no_answer_ever_came(line, prefix, job):
    line.obey({**KINDS["switch"], "action": "stall_body"})

    values = succeed(job())

    assert values == prefix.record()


@pytest.mark.parametrize("fault", STALLS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_request_that_hangs_is_made_again(line, prefix, tmp_path, kind, fault):
    publish(prefix.output, tmp_path, OLD)
    line.obey({**KINDS[kind], **fault, "times": 1})

    publish(prefix.output, tmp_path, NEW)
    publish(prefix.output, tmp_path, NEW)

    assert [e for e in line.log() if e["action"]]
    assert whole(NEW) == prefix.products()


def test_a_job_whose_requests_hang_now_and_then_ends_well(line, prefix, job):
    line.obey(
        {**KINDS["switch"], "action": "stall_body", "times": 1},
        {**KINDS["get"], "action": "stall_body", "times": 1, "after": 1},
        {**KINDS["put"], "action": "stall", "times": 1},
    )

    values = succeed(job())

    assert values == prefix.record()
    assert len([e for e in line.log() if e["action"]]) == 3


def test_requests_become_rare_while_the_store_asks_for_it(line, prefix, monkeypatch):
    """Each that is refused waits, longer each time; in the end all get through."""
    monkeypatch.undo()
    place, number = Objects(prefix.output), 24
    line.obey()
    started = time.monotonic()
    for index in range(number):
        place.write(f"calm {index}", b"x")
    calm = number / (time.monotonic() - started)
    line.obey({"action": "throttle", "rate": 4})

    for index in range(number):
        place.write(f"slow {index}", b"x")

    log = line.log()
    rate = len(log) / (log[-1]["time"] - log[0]["time"])
    refused = [entry for entry in log if entry["status"] == 503]
    assert len(log) - len(refused) == number
    assert 1 < len(refused) < number
    assert rate < calm / 4


# Faults that do not pass


@pytest.mark.parametrize(
    "case",
    mostly_slow(
        [("put", BUSY), ("put", STALLS[0]), ("switch", RESET), ("switch", STALLS[0])],
        ("put", BUSY),
        ("switch", STALLS[0]),
    ),
)
@pytest.mark.usefixtures("hasty")
def test_a_store_that_fails_for_ever_keeps_the_old_version_and_the_work(
    line, prefix, job, case
):
    kind, fault = case
    succeed(job(blend="cosine"))
    before = prefix.contents()
    line.obey({**KINDS[kind], **fault})
    started = time.monotonic()

    failed = run(job())

    assert time.monotonic() - started < 30
    assert failed.values["exit_code"] == ExitCode.STORAGE
    after = prefix.contents()
    assert before == {path: after[path] for path in before}
    said = json.loads((job().work_path / "last-attempt.json").read_bytes())
    assert said["exit_code"] == ExitCode.STORAGE

    line.obey()
    next_second()
    values = succeed(job())

    assert values["counts"]["shards_reused"] == values["counts"]["shards"]
    assert values == prefix.record()
    assert len(prefix.products()) == PRODUCTS


@pytest.mark.parametrize("kind", mostly_slow(["get", "list", "head"], "get", "head"))
@pytest.mark.usefixtures("hasty")
def test_a_store_that_cannot_be_asked_costs_no_work(line, job, kind):
    if kind == "head":
        succeed(job())
    line.obey({**KINDS[kind], "action": "stall_body"})

    failed = run(job())

    assert failed.values["exit_code"] == ExitCode.STORAGE
    assert not job().work_path.exists() or not list(job().work_path.glob("*/shards"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "fault"),
    [("switch", PASSING[2]), ("switch", STALLS[0]), ("get", STALLS[1])],
)
def test_a_store_that_fails_for_ever_is_left_within_five_minutes(
    line, prefix, monkeypatch, kind, fault
):
    """With the pauses and the patience that users have: none is shortened here."""
    monkeypatch.undo()
    place = Objects(prefix.output)
    seen = place.replace("run.json", b"old", None)
    new = partial(place.replace, data=b"new", seen=seen)
    ask = place.look if kind == "get" else new
    line.obey({**KINDS[kind], **fault})
    started = time.monotonic()

    with pytest.raises(StorageError):
        ask("run.json")

    assert 60 <= time.monotonic() - started < 300


@pytest.mark.parametrize(
    "case", mostly_slow([("put", 403), ("put", 404), ("switch", 403)], ("put", 403))
)
def test_a_refusal_is_not_repeated_and_told_in_one_line(line, prefix, job, case):
    kind, status = case
    succeed(job(blend="cosine"))
    before = prefix.contents()
    line.obey(
        {**KINDS[kind], "action": "answer", "status": status, "code": "AccessDenied"}
    )

    result = CliRunner().invoke(main, command(job(), job().work))

    assert result.exit_code == ExitCode.OUTPUT
    assert len(line.log(**KINDS[kind])) == 1
    (told,) = [text for text in result.stderr.splitlines() if "tileseg:" in text]
    assert f"cannot be written ({status} AccessDenied); look at" in told
    for secret in (SECRET, "Signature", "X-Amz", "?", "127.0.0.1"):
        assert secret not in told
    after = prefix.contents()
    assert before == {path: after[path] for path in before}


UPLOADS = [
    (kind, code) for kind in ("begin", "part", "complete") for code in (500, 403)
]


@pytest.mark.parametrize(
    "case", mostly_slow(UPLOADS, ("begin", 403), ("part", 403), ("complete", 500))
)
@pytest.mark.usefixtures("hasty")
def test_a_failed_upload_is_aborted_and_nothing_of_it_is_seen(
    line, prefix, tmp_path, case
):
    kind, status = case
    line.obey({**KINDS[kind], "action": "answer", "status": status, "code": "No"})

    with pytest.raises(TilesegError):
        publish(prefix.output, tmp_path, NEW)

    assert {f"{NEW}/mask.tif"} >= set(map(plain, prefix.contents()))
    assert unfinished(line) == 0

    line.obey()
    next_second()
    publish(prefix.output, tmp_path, NEW)

    assert whole(NEW) == prefix.products()


# The uploading process is killed


def kill_at(line, words, rule):
    """Run a Python program until a request meets the rule; kill it there.

    Return how many receipts were in the store by then.
    """
    next_second()
    line.obey(rule)
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "AWS_TIMEOUT": "60s"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(entry["action"] for entry in line.log()):
            assert process.poll() is None, "it ended before"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    done = receipts(line)
    line.obey()
    return done


PHASES = [
    (kind, action)
    for kind in ("put", "begin", "part", "complete", "switch", "delete")
    for action in ("stall", "stall_body")
]


@pytest.mark.parametrize(
    "phase",
    mostly_slow(
        PHASES,
        ("put", "stall_body"),
        ("complete", "stall"),
        ("switch", "stall"),
        ("switch", "stall_body"),
    ),
)
def test_a_publication_killed_anywhere_is_made_good_by_the_next(
    line, prefix, tmp_path, phase
):
    """Before a request, and after it; readers see the old version until the switch."""
    kind, action = phase
    publish(prefix.output, tmp_path, OLD)
    words = [Path(__file__).with_name("publication.py"), prefix.output, tmp_path, NEW]

    kill_at(line, words, {**KINDS[kind], "action": action})
    seen = prefix.contents()
    record = json.loads(seen["run.json"])
    is_new = kind == "delete" or phase == ("switch", "stall_body")
    assert record["plan_id"] == (NEW if is_new else OLD)
    seen = {plain(path): data for path, data in seen.items()}
    assert whole(record["plan_id"]).items() <= seen.items()

    next_second()
    publish(prefix.output, tmp_path, NEW)

    assert whole(NEW) == prefix.products()


@pytest.mark.parametrize(
    "phase",
    [
        ("switch", "stall_body"),
        *(
            pytest.param((kind, action), marks=pytest.mark.slow)
            for kind in ("get", "put", "switch", "delete")
            for action in ("stall", "stall_body")
        ),
    ],
)
def test_a_job_killed_as_it_publishes_is_made_good_by_the_next(
    line, prefix, other, job, phase
):
    succeed(job(output=other.output, work=job().work + "2"))
    succeed(job(blend="cosine"))
    program = "from tileseg.cli import main; main()"
    words = ["-c", program, *command(job(), job().work)]
    kind, action = phase

    kill_at(line, words, {**KINDS[kind], "action": action, "after": kind == "get"})
    next_second()
    values = succeed(job())

    assert other.products() == prefix.products()
    # The work was done before the kill: what was published is not even looked at.
    is_published = kind == "delete" or phase == ("switch", "stall_body")
    reused = 0 if kind == "get" or is_published else values["counts"]["shards"]
    assert reused == values["counts"]["shards_reused"]


# The work directory is there too


@pytest.mark.parametrize(
    "fault", mostly_slow([*PASSING[2:], STALLS[0]], BUSY, LOSE), ids=name_of
)
def test_work_in_a_storm_makes_the_same_map(line, prefix, other, job, fault):
    succeed(job(output=other.output))
    line.obey({**fault, "every": 30 if fault in STALLS else 4})

    values = succeed(job(work=f"{prefix.output}-work"))

    assert any(entry["action"] for entry in line.log())
    assert values["counts"]["shards_done"] == values["counts"]["shards"]
    assert other.products() == prefix.products()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "case",
    mostly_slow(
        [(kind, fault) for kind in WORK for fault in (BUSY, STALLS[0])],
        ("receipt", BUSY),
        ("lock", STALLS[0]),
    ),
)
def test_work_that_cannot_be_written_stops_the_job_resumably(line, prefix, job, case):
    kind, fault = case
    remote = partial(job, work=f"{prefix.output}-work")
    line.obey(
        {**WORK[kind], **fault, "after": 2 if kind in ("shard", "receipt") else 0}
    )

    failed = run(remote())

    assert failed.values["exit_code"] == ExitCode.STORAGE
    assert prefix.contents() == {}

    done = receipts(line)
    line.obey()
    values = succeed(remote())

    assert done == values["counts"]["shards_reused"]
    assert len(prefix.products()) == PRODUCTS


@pytest.mark.parametrize(
    "phase",
    [
        ("receipt", "stall_body"),
        *(
            pytest.param((kind, action), marks=pytest.mark.slow)
            for kind in WORK
            for action in ("stall", "stall_body")
        ),
    ],
)
def test_a_job_killed_as_it_writes_its_work_is_resumed(line, prefix, other, job, phase):
    """The store shows the lock of a dead process, and what it had finished."""
    kind, action = phase
    succeed(job(output=other.output))
    remote = job(work=f"{prefix.output}-work")
    words = ["-c", "from tileseg.cli import main; main()", *command(remote, job().work)]

    done = kill_at(line, words, {**WORK[kind], "action": action})
    values = succeed(remote)

    assert done == values["counts"]["shards_reused"]
    assert other.products() == prefix.products()
    left = contents(remote.work, prefix.server)
    assert not any("/" in path for path in left)
    assert "lock" not in left
