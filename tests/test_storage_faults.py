"""Whatever a store answers, a prefix holds the old version, the new one or nothing.

A real S3 server, behind a proxy that fails as stores do: see proxy.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count

import pytest
from click.testing import CliRunner
from making import make_scene, random_pixels
from proxy import stand_before
from s3 import SECRET, contents, environment, serve

from tileseg import bucket
from tileseg.bucket import Bucket
from tileseg.cli import main
from tileseg.errors import ExitCode, StorageError
from tileseg.job import run
from tileseg.settings import Job

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
PASSING = [
    {"action": "answer", "status": 500, "code": "InternalError"},
    {"action": "answer", "status": 502, "code": "BadGateway"},
    {"action": "answer", "status": 503, "code": "SlowDown"},
    {"action": "answer", "status": 429, "code": "TooManyRequests"},
    {"action": "answer", "status": 400, "code": "RequestTimeout"},
    {"action": "reset"},
    {"action": "short"},
    {"action": "lose"},
]
STALLS = [{"action": "stall"}, {"action": "stall_body"}]


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
    """The proxy, obeying no rule yet; a request that hangs is given up after 1 s."""
    monkeypatch.setenv("AWS_TIMEOUT", "1s")
    proxy.obey()
    yield proxy
    proxy.obey()


@pytest.fixture
def output():
    return f"s3://maps/faults/{next(NUMBERS)}"


@pytest.fixture
def hasty(monkeypatch):
    """Give up soon."""
    monkeypatch.setattr(bucket, "_RETRY_SECONDS", 1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(130, 171))


@pytest.fixture
def job(tmp_path, scene, model_path, output):
    def make(**options):
        facts = {
            "input": str(scene),
            "model": str(model_path),
            "output": output,
            "work": str(tmp_path / "work"),
            "shard": 96,
            "precision": "fp32",
            "confidence": True,
            "overwrite": True,
        }
        return Job(**{**facts, **options})

    return make


def command(job, output):
    """Return the words of `tileseg` that do a job."""
    words = ["segment", "--input", job.input, "--model", job.model, "--overwrite"]
    return [*words, "--output", output, "--work", job.work, "--confidence"]


def succeed(job):
    """Run a job that must end well, and return its record's values."""
    record = run(job)

    assert record.error is None
    assert record.values["exit_code"] == ExitCode.OK
    return record.values


def publish(output, work, plan):
    """Publish a version without a job: a small product and one of two parts."""
    place = Bucket(output, work)
    held = place.published()
    if held:
        place.is_complete(held, held["request_id"])
    with place.staging() as folder:
        (folder / "mask.tif").write_bytes(plan.encode())
        (folder / "confidence.tif").write_bytes(plan.encode() * 200_000)
        record = {
            "status": "complete",
            "request_id": plan,
            "plan_id": plan,
            "outputs": place.list_outputs(folder, plan, is_whole=True),
        }
        (folder / "run.json").write_text(json.dumps(record))


def whole(plan):
    """Return what a prefix holds then, but for the record."""
    text = plan.encode()
    return {f"{plan}/mask.tif": text, f"{plan}/confidence.tif": text * 200_000}


def products(objects):
    """Return the listed ones of a prefix's objects; there must be no other."""
    listed = {item["path"] for item in json.loads(objects["run.json"])["outputs"]}

    assert listed | {"run.json"} == set(objects)
    return {path: objects[path] for path in listed}


def unfinished(line):
    """Return the uploads that the server began, and neither completed nor aborted."""
    begun = len([e for e in line.log("POST", r"\?uploads") if e["status"] == 200])
    ended = [e for e in line.log("POST", r"\?uploadId") if e["status"] == 200]
    aborted = [e for e in line.log("DELETE", "uploadId") if e["status"] == 204]
    return begun - len({e["target"] for e in ended + aborted})


# Faults that pass


@pytest.mark.parametrize("fault", PASSING, ids=name_of)
def test_a_fault_of_every_kind_of_request_changes_nothing(
    line, server, output, tmp_path, fault
):
    publish(output, tmp_path, OLD)
    line.obey(*({**kind, **fault, "times": 2} for kind in KINDS.values()))

    publish(output + "/new", tmp_path, NEW)  # lists, since nothing is there
    publish(output, tmp_path, NEW)

    for kind in KINDS.values():
        hit = [e for e in line.log(**kind) if e["action"] == fault["action"]]
        assert len(hit) == 2
    assert whole(NEW) == products(contents(output + "/new", server))
    expected = whole(NEW).keys() | {"run.json", *(f"new/{p}" for p in whole(NEW))}
    assert expected | {"new/run.json"} == contents(output, server).keys()


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("fault", PASSING, ids=name_of)
def test_a_job_in_a_storm_makes_the_same_map(
    line, server, output, job, tmp_path, fault, every
):
    calm = f"{output}-calm"
    succeed(job(output=calm, work=str(tmp_path / "other")))
    line.obey({**fault, "every": every})

    first, second = succeed(job()), succeed(job())

    assert any(entry["action"] for entry in line.log())
    assert first == second
    assert products(contents(calm, server)) == products(contents(output, server))
