"""`ray job submit`, literally: a real cluster on loopback, with token auth."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from making import digests, make_scene, random_pixels

pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
SECONDS = 240


def free_port():
    """Return a port that nobody uses; high, above those that Ray gives its workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """A head on loopback, started in a repository; ended by its pids."""

    def __init__(self, repository):
        self.folder = Path(tempfile.mkdtemp(prefix="ts", dir="/tmp"))
        (self.folder / "ray").mkdir()
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        self.repository = repository
        self.environment = {
            **os.environ,
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "500",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.environment.pop("RAY_ADDRESS", None)
        dashboard = free_port()
        self.api = f"http://127.0.0.1:{dashboard}"
        words = ["start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}"]
        words += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        words += [f"--dashboard-port={dashboard}", "--object-store-memory=80000000"]
        # Ports that are fixed otherwise: another Ray on this machine may have them.
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        words += ["--ray-client-server-port", str(free_port())]
        self.metrics_port = free_port()
        words += ["--metrics-export-port", str(self.metrics_port)]
        self.log = (self.folder / "head.log").open("w")
        self.head = subprocess.Popen(
            [RAY, *words],
            cwd=repository,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def wait(self):
        deadline = time.monotonic() + SECONDS
        while self.status("/api/version") not in (200, 401):
            assert time.monotonic() < deadline, self.log.name
            time.sleep(0.5)

    def status(self, path):
        """Return the HTTP status without a token."""
        try:
            with urllib.request.urlopen(self.api + path) as answer:  # noqa: S310  (loopback)
                return answer.status
        except urllib.error.HTTPError as err:
            return err.code
        except OSError:
            return None

    def metrics(self):
        """Return the sum over all workers of each metric of ours."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        try:
            with urllib.request.urlopen(url) as answer:
                text = answer.read().decode()
        except OSError:
            return Counter()
        sums = Counter()
        for line in text.splitlines():
            if found := re.match(r"ray_(tileseg_\w+)\{.*\} (\S+)", line):
                sums[found[1]] += float(found[2])
        return sums

    def job(self, *words):
        """Run `ray job`; return its exit status and all that it printed."""
        ended = subprocess.run(
            [RAY, "job", *map(str, words)],
            cwd=self.repository,
            env={**self.environment, "RAY_API_SERVER_ADDRESS": self.api},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return ended.returncode, re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout)

    def submit(self, *words):
        """Run `ray job submit`; return its exit status and all that it printed."""
        deadline = time.monotonic() + SECONDS
        while True:
            code, printed = self.job("submit", *words)
            # The head answers some seconds before it can start jobs.
            is_early = "No available agent to submit job" in printed
            if not is_early or time.monotonic() > deadline:
                return code, printed
            time.sleep(2)

    def close(self):
        self.head.terminate()
        try:
            self.head.wait(30)
        except subprocess.TimeoutExpired:
            self.head.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A clone of what a user has, with a scene in it."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("jobs", "tileseg"):
        shutil.copytree(ROOT / name, folder / name)
    make_scene(folder / "scene.tif", random_pixels(1_700, 210))
    return folder


@pytest.fixture(scope="module")
def cluster(repository):
    head = Cluster(repository)
    try:
        head.wait()
        yield head
    finally:
        head.close()


@pytest.fixture(scope="module")
def expected(repository, tmp_path_factory):
    """The digest that a run without Ray gives."""
    output = tmp_path_factory.mktemp("local") / "scene"
    command = [sys.executable, "jobs/segment.py", "--input", "scene.tif"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run(
        [*command, "--output", output, "--precision", "fp32", "-q"],
        cwd=repository,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    return digests(output)


def record(printed):
    """Return the JSON of the job's log; of a failure Ray says the end once more."""
    lines = {line for line in printed.splitlines() if line.startswith("{")}
    assert len(lines) == 1, printed
    return json.loads(lines.pop())


COMMAND = ("--", "python", "jobs/segment.py", "--input", "scene.tif")


def test_the_literal_command_works(cluster, repository, expected):
    """On a cluster started in the repository; progress and JSON are in the log."""
    code, printed = cluster.submit(*COMMAND, "--precision", "fp32")

    assert code == 0, printed
    values = record(printed)
    assert values["engine"]["kind"] == "ray"
    assert values["exit_code"] == 0
    assert expected == digests(repository / "out" / "scene")
    assert "tiles" in printed
    assert "Ray: asked for 1 workers" in printed


@pytest.mark.slow
def test_it_works_from_an_uploaded_folder(cluster, expected, tmp_path):
    code, printed = cluster.submit(
        "--working-dir", ".", *COMMAND, "--precision", "fp32",
        "--output", tmp_path / "scene",
    )  # fmt: skip

    assert code == 0, printed
    assert record(printed)["engine"]["kind"] == "ray"
    assert expected == digests(tmp_path / "scene")


def test_results_that_would_vanish_are_refused(cluster):
    """A relative output in an uploaded folder goes with it: exit 2, before any work."""
    code, printed = cluster.submit("--working-dir", ".", *COMMAND)

    assert code == 1  # all that `ray job submit` says of a failure
    assert record(printed)["exit_code"] == 2
    assert "absolute path" in printed


def test_a_night_works_the_same_way(cluster, repository, expected, tmp_path):
    words = ["--", "python", "jobs/nightly.py", "--scenes", repository]

    code, printed = cluster.submit(*words, "--output", tmp_path, "--precision", "fp32")

    assert code == 0, printed
    assert expected == digests(tmp_path / "scene")
    assert json.loads((tmp_path / "night.json").read_text())["counts"]["done"] == 1


def wait_for(condition):
    """Wait until something is so; return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


METERS = {
    "tileseg_tiles_total", "tileseg_shards_total", "tileseg_seconds_total",
    "tileseg_read_pixels_total", "tileseg_written_bytes_total",
    "tileseg_device_busy", "tileseg_shards_left",
}  # fmt: skip


@pytest.mark.slow
def test_a_stopped_job_is_resumed_by_another(cluster, tmp_path):
    """`ray job stop`: what is in hand is finished, and the driver says 75.

    Meanwhile Ray's metrics port tells how far it is.
    """
    scene = make_scene(tmp_path / "scene.tif", random_pixels(1_900, 1_500))
    config = tmp_path / "job.toml"
    config.write_text('shard = 96\nrun_shards = [1, 4]\nprecision = "fp32"\n')
    words = ["--", "python", "jobs/segment.py", "--input", scene, "--config", config]
    words += ["--output", tmp_path / "out"]
    work = tmp_path / "out.work"

    code, printed = cluster.submit("--no-wait", "--submission-id", "first", *words)
    assert code == 0, printed
    wait_for(lambda: list(work.glob("*/receipts.jsonl")))
    wait_for(lambda: set(cluster.metrics()) >= METERS)
    code, printed = cluster.job("stop", "first")
    assert code == 0, printed
    word = wait_for(lambda: list(work.glob("last-attempt.json")))[0]
    wait_for(lambda: "was stopped" in cluster.job("status", "first")[1])
    stopped = json.loads(word.read_text())
    code, printed = cluster.submit(*words)

    assert stopped["exit_code"] == 75
    assert 0 < stopped["counts"]["shards_done"] < 20 * 16
    assert code == 0, printed
    counts = record(printed)["counts"]
    assert counts["shards_reused"] == stopped["counts"]["shards_done"]
    assert counts["shards_done"] == counts["shards"] == 20 * 16


def test_without_the_token_nobody_gets_in(cluster):
    assert cluster.status("/api/jobs/") == 401
