"""Workers, nodes and drivers that die, hang or go in the middle of a scene.

A real cluster: a head without processors, and nodes that come and go. Whatever happens,
every shard is made once and the products are those of the local engine, to the byte.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from faults import environment
from making import after, digests, job_maker, make_scene, random_pixels, receipts_of
from test_cluster import quiet, use

from tileseg.engines.leases import Leases
from tileseg.engines.staff import Staff
from tileseg.errors import ExitCode
from tileseg.job import run
from tileseg.settings import Job

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import benchmark  # noqa: E402
from benchmark import simulate  # noqa: E402

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(150)]

SHARDS = 104  # 13 x 8 of 4 x 4 tiles
RATE = 250  # tiles a second of each worker: a scene takes them some seconds
SEGMENT = Path(__file__).parents[1] / "jobs" / "segment.py"
DRAIN = SEGMENT.with_name("drain.py")
SLOW = pytest.mark.slow
LONG = (SLOW, pytest.mark.long)
SECONDS = 120  # within which everything ends, on a busy machine too


@pytest.fixture(scope="module")
def cluster():
    """A head that has no room for workers; a node that is frozen is missed in 10 s."""
    folder = tempfile.mkdtemp(prefix="ts", dir="/tmp")
    Path(folder, "ray").mkdir()
    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": folder,
        "RAY_worker_niceness": "0",  # the driver shall not come first
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "8",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback, as there
        "CUDA_VISIBLE_DEVICES": "",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        whole = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": 80_000_000,
                "node_ip_address": "127.0.0.1",
            },
        )
        ray.init(
            address=whole.address, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
        ray.cloudpickle.register_pickle_by_value(benchmark)
        yield whole
        ray.shutdown()
        whole.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def add(cluster):
    """Add a node with room for one worker; all of them go at the end."""

    def add_node(**environ):
        return cluster.add_node(
            num_cpus=2,
            object_store_memory=80_000_000,
            node_ip_address="127.0.0.1",
            env_vars=environ,
        )

    yield add_node
    for node in list(cluster.worker_nodes):
        for process in processes(node):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        cluster.remove_node(node, allow_graceful=False)


def processes(node):
    """Return a node's processes, its workers' too."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(1_190, 730))


@pytest.fixture
def job(scene, model_path, tmp_path, monkeypatch):
    """Make jobs for workers whose device has a known speed."""
    use(monkeypatch, simulate.SimulatedRecipe, rate=RATE)
    return job_maker(
        tmp_path,
        scene,
        model_path,
        shard=96,
        precision="fp32",
        engine="ray",
        device="cpu",
        workers=2,
        confidence=True,
        patience=4,
        wait=60,
    )


@pytest.fixture(scope="module")
def expected(scene, model_path, tmp_path_factory):
    """The digests of what an undisturbed run makes."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        use(patch, simulate.SimulatedRecipe, rate=50_000)
        record = run(
            Job(
                input=str(scene),
                model=str(model_path),
                trusted=True,
                output=str(output),
                shard=96,
                precision="fp32",
                engine="local",
                confidence=True,
            )
        )
    assert record.error is None
    return digests(output)


def segment(job, progress=quiet, *, ready=False):
    """Run a job on the cluster; return its record, and how long it took.

    Args:
        job: which.
        progress: told how far it is.
        ready: whether all workers are there before it begins.
    """
    start = time.monotonic()
    with Staff() as staff:
        if ready:
            gather(staff, job)
        values = run(job, progress, staff).values
    return values, time.monotonic() - start


def gather(staff, job):
    """Wait until each worker's process is there.

    Else a first one may make much of a scene before the node of another has any.
    """
    pool = staff.engine(job).pool
    pool.fill()
    ray.get([pool.hello(name) for name in pool.actors])


def check(values, seconds, expected, folder):
    """All is there, and as it would have been."""
    assert values["exit_code"] == ExitCode.OK, values["error"]
    assert expected == digests(folder)
    counts = values["counts"]
    assert counts["shards"] == SHARDS == counts["shards_done"]
    assert counts["shards_failed"] == 0
    assert not list(folder.parent.glob("out.work/*/"))
    assert seconds < SECONDS


@pytest.mark.parametrize(
    "fault",
    [
        "predict.Predictor._forward:before:15:kill",
        pytest.param("predict.Predictor._forward:before:15:term", marks=LONG),
        pytest.param("predict.Predictor._forward:before:15:stop", marks=SLOW),
        pytest.param("predict.Predictor._forward:before:15:hang", marks=LONG),
        pytest.param("predict.Predictor._forward:before:15:cuda", marks=LONG),
        pytest.param("worker.Worker._finish:before:15:hang", marks=LONG),
        pytest.param("reader.Reader._read:before:2:hang", marks=SLOW),
    ],
)
def test_a_worker_that_dies_or_hangs_is_replaced(
    add, job, expected, tmp_path, monkeypatch, fault
):
    """One node's worker fails in the middle; what it had is made again."""
    use(monkeypatch, simulate.SimulatedRecipe, rate=100)
    add(**environment(fault))
    add()
    left = []
    lost = Leases.lose

    def lose(self, name, **options):
        left.append(self.left)
        return lost(self, name, **options)

    monkeypatch.setattr(Leases, "lose", lose)

    values, seconds = segment(job(run_shards=(2, 8)))

    check(values, seconds, expected, tmp_path / "out")
    assert values["counts"]["worker_restarts"] >= 1
    # Nothing is redone but what was leased to it; and it is missed while there is
    # much left, not when the other one has done everything else.
    assert 0 < values["counts"]["retries"] < SHARDS
    assert left[0] > SHARDS / 4


def test_a_node_on_which_no_worker_starts_is_left_out(add, job, expected, tmp_path):
    add(**environment("worker.Worker.__init__:before:*:kill"))
    add()

    values, seconds = segment(job(patience=20))

    check(values, seconds, expected, tmp_path / "out")
    assert values["engine"]["workers"] == 1
    assert values["counts"]["retries"] == 0


@SLOW
def test_a_device_that_always_fails_is_exit_7(add, job, tmp_path):
    add(**environment("predict.Predictor._forward:before:1:cuda"))

    values, seconds = segment(job(workers=1))

    assert values["exit_code"] == ExitCode.MODEL
    assert "the device failed" in values["error"]
    assert values["counts"]["worker_restarts"] == 3
    assert not (tmp_path / "out").exists()
    assert seconds < SECONDS


def test_a_node_that_comes_later_takes_part(add, job, expected, tmp_path, monkeypatch):
    """All workers are asked for at once; the second waits for room."""
    add()
    # So slow that much is left when it is there, on a busy machine too.
    use(monkeypatch, simulate.SimulatedRecipe, rate=RATE // 5)
    task = job(patience=20)  # a node that starts takes the processors

    values, seconds = segment(task, after(task, 5, add))

    check(values, seconds, expected, tmp_path / "out")
    assert values["engine"]["workers"] == 2
    assert values["counts"]["retries"] == 0


@pytest.mark.parametrize("is_graceful", [False, pytest.param(True, marks=LONG)])
def test_a_node_that_goes_is_done_without(
    cluster, add, job, expected, tmp_path, is_graceful
):
    """Killed, or told to end by SIGTERM."""
    nodes = [add(), add()]
    task = job()

    def remove():
        cluster.remove_node(nodes[1], allow_graceful=is_graceful)

    values, seconds = segment(task, after(task, 20, remove), ready=True)

    check(values, seconds, expected, tmp_path / "out")
    assert values["counts"]["worker_restarts"] >= 1


@SLOW
def test_a_node_that_is_frozen_is_done_without(add, job, expected, tmp_path):
    """As one that the network cut off. It wakes up in the end, and harms nothing."""
    nodes = [add(), add()]
    task = job(keep_work=True)

    def freeze():
        for process in processes(nodes[1]):
            process.suspend()

    with Staff() as staff:
        gather(staff, task)
        values = run(task, after(task, 20, freeze), staff).values
        before = digests(tmp_path / "out")
        for process in processes(nodes[1]):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        time.sleep(3)  # it may still write a shard

    assert values["exit_code"] == ExitCode.OK, values["error"]
    assert values["counts"]["worker_restarts"] >= 1
    assert expected == before == digests(tmp_path / "out")
    again, _ = segment(job(keep_work=True))
    assert again["plan_id"] == values["plan_id"]
    assert expected == digests(tmp_path / "out")


def drain(node, seconds):
    """Have a node tell that it will be taken away, as its pod's preStop hook does."""
    head = ray.get_runtime_context().gcs_address
    words = [sys.executable, DRAIN, "--seconds", str(seconds)]
    return subprocess.Popen([*words, "--address", head, "--node", node.node_id])


def test_a_node_that_is_about_to_go_gets_nothing_more(
    cluster, add, job, expected, tmp_path
):
    """What its worker has in hand is finished: no shard is made twice."""
    nodes = [add(), add()]
    task = job(run_shards=(1, 8))
    told = []

    def tell(_done, _total):
        if not told:
            told.append(drain(nodes[1], 60))

    progress = after(task, 10, lambda: tell(0, 0))
    values, seconds = segment(task, progress)

    check(values, seconds, expected, tmp_path / "out")
    assert told[0].wait(SECONDS) == 0
    assert values["counts"]["retries"] == 0
    assert values["counts"]["worker_restarts"] == 0
    cluster.remove_node(nodes[1], allow_graceful=False)


@SLOW
@pytest.mark.long
@pytest.mark.parametrize("is_allowed", [False, True])
def test_other_hardware_takes_part_only_if_allowed(
    add, job, monkeypatch, caplog, is_allowed
):
    """Another CPU has other last bits, as another GPU has."""
    use(monkeypatch, simulate.SimulatedRecipe, rate=40)
    add()  # has room for two at most
    task = job(workers=3, mixed_devices=is_allowed)

    def add_other():
        add(ATEN_CPU_CAPABILITY="default")

    values, _ = segment(task, after(task, 3, add_other))

    assert values["exit_code"] == ExitCode.OK, values["error"]
    assert values["counts"]["shards_done"] == SHARDS
    assert len(set(values["engine"]["devices"])) == 1 + is_allowed
    is_refused = re.search("not used: has DEFAULT( bf16)?, the plan", caplog.text)
    assert bool(is_refused) is not is_allowed


@SLOW
def test_without_any_node_the_job_ends_resumably(cluster, add, job, expected, tmp_path):
    """Exit 12 when nobody came for so long; later, only the rest is made."""
    node = add()
    task = job(workers=1, wait=20)  # a busy machine starts one in 10

    values, seconds = segment(
        task, after(task, 20, lambda: cluster.remove_node(node, allow_graceful=False))
    )
    add()
    resumed, _ = segment(job(workers=1))

    assert values["exit_code"] == ExitCode.SHARDS
    assert "no worker with" in values["error"]
    assert seconds < SECONDS
    assert resumed["counts"]["shards_reused"] >= 20
    check(resumed, 0, expected, tmp_path / "out")


def test_workers_of_another_version_take_no_part(add, job, monkeypatch, tmp_path):
    add()
    others = {"tileseg": "0.0.1"}
    monkeypatch.setattr("tileseg.engines.shift.versions", lambda **_: others)

    values, _ = segment(job(workers=1))

    assert values["exit_code"] == ExitCode.USAGE
    assert "the driver has 0.0.1: install the same" in values["error"]
    assert not (tmp_path / "out").exists()


def start(cluster, job, faults="", wait=600, **environ):
    """Start the command as a driver of its own."""
    options = {
        "--input": job.input,
        "--model": job.model,
        "--output": job.output,
        "--precision": "fp32",
        "--device": "cpu",
        "--workers": str(job.workers),
        "--engine": "ray",
    }
    config = Path(job.output).parent / "job.toml"
    config.write_text(f"shard = 96\nrun_shards = [1, 8]\nwait = {wait}\n")
    words = [word for pair in options.items() for word in pair]
    address = {"RAY_ADDRESS": cluster.address} if cluster else {}
    faulty = environment(faults) if faults else {}
    return subprocess.Popen(
        [sys.executable, SEGMENT, *words, "--confidence", "--config", config],
        env={**os.environ, **faulty, **address, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, json.loads(out) if out else None, err


@pytest.fixture(scope="module")
def real(scene, model_path, tmp_path_factory):
    """What an undisturbed run with the real network makes."""
    output = tmp_path_factory.mktemp("real") / "out"
    facts = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "output": str(output),
    }
    record = run(Job(**facts, shard=96, precision="fp32", confidence=True))
    assert record.error is None
    return digests(output)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("ledger.Ledger.record:after:20:kill", -signal.SIGKILL),
        pytest.param("ledger.Ledger.record:torn:20:kill", -signal.SIGKILL, marks=LONG),
        pytest.param(
            "ledger.Ledger.record:after:20:term", ExitCode.PREEMPTED, marks=SLOW
        ),
        pytest.param("stitch.stitch:after:1:kill", -signal.SIGKILL, marks=SLOW),
        pytest.param("publish._replace:before:1:kill", -signal.SIGKILL, marks=LONG),
    ],
)
def test_a_driver_that_dies_is_resumed_by_another(
    cluster, add, job, real, tmp_path, fault, code
):
    """With another number of workers; what it recorded is not made again."""
    add()
    first = finish(start(cluster, job(workers=1), fault))
    assert first[0] == code, first[2]
    assert not (tmp_path / "out").exists()
    add()

    ended, values, err = finish(start(cluster, job(workers=2)))

    assert ended == ExitCode.OK, err
    assert real == digests(tmp_path / "out")
    recorded = SHARDS if "record" not in fault else 20 - ("torn" in fault)
    counts = values["counts"]
    if code == ExitCode.PREEMPTED:  # and what was in hand was finished before
        assert counts["shards_reused"] > recorded
        assert first[1]["exit_code"] == ExitCode.PREEMPTED
        assert first[1]["counts"]["shards_done"] == counts["shards_reused"]
    elif "torn" in fault:  # in the first call from then on that syncs
        assert counts["shards_reused"] >= recorded
    else:
        assert counts["shards_reused"] == recorded
    assert counts["shards_done"] == SHARDS
    assert {item.name for item in tmp_path.iterdir()} == {
        "job.toml", "out", "out.work",
    }  # fmt: skip
    assert not list((tmp_path / "out.work").glob("*/"))


def children(process, name):
    """Return the processes below one that have a name."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [item for item in below if name in item.name()]


@SLOW
def test_the_head_killed_under_a_driver_is_a_rerun(job, real, tmp_path):
    """Ray ends the process, as a node's end would; the rerun has another head."""
    # Else a fast machine is done before Ray has missed its head.
    hangs = "predict.Predictor._forward:before:40:hang"
    noticed = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "RAY_ADDRESS": ""}
    driver = start(None, job(workers=1), hangs, **noticed)
    while receipts_of(job()) < 1:
        assert driver.poll() is None
        time.sleep(0.1)

    (head,) = children(driver, "gcs_server")
    head.kill()
    code, _, _ = finish(driver)
    ended, values, err = finish(start(None, job(workers=2), RAY_ADDRESS=""))

    assert code != ExitCode.OK
    assert ended == ExitCode.OK, err
    assert values["counts"]["shards_reused"] > 0
    assert real == digests(tmp_path / "out")


@pytest.mark.parametrize("moment", [0.5, pytest.param(2.5, marks=SLOW)])
def test_sigterm_while_ray_starts_is_75(job, tmp_path, moment):
    """Ray has a handler of its own then."""
    driver = start(None, job(workers=1), RAY_ADDRESS="")
    while not children(driver, "gcs_server"):
        assert driver.poll() is None
        time.sleep(0.05)
    time.sleep(moment)

    driver.terminate()
    code, values, err = finish(driver)

    assert code == ExitCode.PREEMPTED, err
    assert values["exit_code"] == ExitCode.PREEMPTED
    assert not (tmp_path / "out").exists()


def test_a_sigterm_that_python_drops_is_heard():
    """What a handler raises in a callback of a fork is dropped, and Ray forks a lot."""
    script = """
import os, signal
from tileseg.errors import PreemptedError
from tileseg.engines.pool import connect

def send():
    if signal.getsignal(signal.SIGTERM) is not mine:  # but Ray's
        os.kill(os.getpid(), signal.SIGTERM)

def mine(*_):
    pass

signal.signal(signal.SIGTERM, mine)
os.register_at_fork(after_in_parent=send)
try:
    connect()
except PreemptedError:
    print(signal.getsignal(signal.SIGTERM) is mine)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert ended.stdout == "True\n", ended.stderr
    assert "Exception ignored" in ended.stderr


@SLOW
def test_workers_without_memory_are_not_hired_for_ever(job, tmp_path):
    """Ray's memory monitor kills them, again and again; the job ends, resumable."""
    driver = start(
        None,
        job(workers=1),
        wait=15,
        RAY_ADDRESS="",
        RAY_memory_usage_threshold="0.01",
        RAY_memory_monitor_refresh_ms="200",
    )

    code, values, err = finish(driver)

    assert code == ExitCode.SHARDS, err
    assert values["exit_code"] == ExitCode.SHARDS
    assert not (tmp_path / "out").exists()
