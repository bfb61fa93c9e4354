"""The Ray engine gives what the local one gives, byte for byte, whoever dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from making import (
    after,
    digests,
    job_maker,
    make_model,
    make_scene,
    random_pixels,
    read,
    succeed,
)
from test_engine import damage

from tileseg.cards.card import NODATA
from tileseg.engines.actor import NONCE
from tileseg.engines.leases import MAX_TRIES
from tileseg.engines.staff import Staff
from tileseg.engines.worker import Recipe
from tileseg.errors import ExitCode, InputError
from tileseg.job import run
from tileseg.plans.canary import make_canary, save_canary
from tileseg.plans.ledger import Ledger, Plan
from tileseg.plans.task import prepare
from tileseg.publishing.publish import file_sha256
from tileseg.scenes.identity import Identities
from tileseg.settings import Job
from tileseg.stores.storage import Disk

ray = pytest.importorskip("ray")

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import bench  # noqa: E402
import benchmark  # noqa: E402
from benchmark import simulate  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")

HEIGHT, WIDTH, SHARD = 1_190, 730, 96  # 13 x 8 shards of 4 x 4 tiles
STORE_BYTES = 80_000_000
EVERYTHING = {"confidence": True, "polygons": "gpkg"}


@pytest.fixture(scope="module")
def cluster():
    """A Ray of our own, on loopback, that nobody else finds."""
    folder = tempfile.mkdtemp(prefix="ts", dir="/tmp")
    Path(folder, "ray").mkdir()
    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": folder,
        "RAY_worker_niceness": "0",  # the driver shall not come first
        "RAY_DEDUP_LOGS": "0",
        "RAY_health_check_failure_threshold": "60",  # a busy machine is not a dead one
        "CUDA_VISIBLE_DEVICES": "",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
        ray.cloudpickle.register_pickle_by_value(benchmark)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Of fields of 20 pixels: few polygons, so that a run is short."""
    fields = random_pixels(-(-HEIGHT // 20), -(-WIDTH // 20))
    pixels = fields.repeat(20, axis=1).repeat(20, axis=2)[:, :HEIGHT, :WIDTH]
    return make_scene(tmp_path_factory.mktemp("scene") / "scene.tif", pixels)


@pytest.fixture
def job(scene, model_path, tmp_path):
    return job_maker(tmp_path, scene, model_path, shard=SHARD, precision="fp32")


@pytest.fixture(scope="module")
def expected(scene, model_path, tmp_path_factory):
    """The digests of what the local engine makes: rasters and polygons."""
    output = tmp_path_factory.mktemp("local") / "out"
    facts = {
        "input": str(scene),
        "model": str(model_path),
        "trusted": True,
        "output": str(output),
    }
    succeed(Job(**facts, shard=SHARD, precision="fp32", engine="local", **EVERYTHING))
    return products(output)


def products(folder):
    """Return the digests of all that depends on the pixels alone, and its STAC Item."""
    others = "polygons.gpkg", "item.json"
    return {**digests(folder), **{it: file_sha256(folder / it) for it in others}}


def quiet(_done, _total):
    """Tell nobody how far it is."""


def check(values, workers):
    """Everything was made, by so many workers, and none was lost."""
    assert values["engine"]["kind"] == "ray"
    assert values["engine"]["workers"] == workers
    assert values["counts"]["shards_done"] == values["counts"]["shards"] == 104
    assert values["counts"]["retries"] == values["counts"]["worker_restarts"] == 0
    assert values["memory"]["peak_rss_mb"] > 100


@pytest.mark.parametrize("workers", [1, 3])
def test_rays_mask_is_the_local_one_to_the_byte(job, expected, tmp_path, workers):
    values = succeed(job(engine="ray", workers=workers, **EVERYTHING))

    assert expected == products(tmp_path / "out")
    check(values, workers)


def test_a_part_of_the_scene_is_the_same_on_a_cluster(job, tmp_path):
    """Its polygons travel to the workers."""
    corners = [[501_003, 4_599_001], [506_502, 4_596_004], [502_001, 4_590_003]]
    area = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    feature = {"type": "Feature", "properties": {}, "geometry": area}
    collection = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (tmp_path / "area.geojson").write_text(json.dumps(collection))
    options = {"aoi": str(tmp_path / "area.geojson"), **EVERYTHING}

    here = succeed(job("here", engine="local", **options))
    there = succeed(job("there", engine="ray", workers=2, **options))

    assert products(tmp_path / "here") == products(tmp_path / "there")
    assert here["pixels"] == there["pixels"]
    assert here["pixels"]["outside"] > 0
    assert here["counts"]["shards"] == there["counts"]["shards"] < 104


@pytest.mark.slow
def test_golden_tiles_are_asked_of_a_worker(job, tmp_path):
    """It need not reach the file: what is in it travels."""
    path = tmp_path / "golden.npz"
    save_canary(make_canary([job()]), str(path))

    values = succeed(job(engine="ray", workers=1, gates={"canary": str(path)}))

    (gate,) = (it for it in values["gates"] if it["name"] == "canary")
    assert (gate["got"], gate["passed"]) == (1.0, True)


@pytest.mark.slow
def test_averages_and_layers_are_the_same_on_a_cluster(job, model_path, tmp_path):
    """Of two models, one with another band first, and of a tile's eight symmetries."""
    bands = ("red", "blue", "green")
    other = make_model(tmp_path / "other", seed=3, bands=bands, mean=(0.2,) * 3)
    pixels = random_pixels(250, 170, seed=4)
    options = {
        "input": str(make_scene(tmp_path / "small.tif", pixels)),
        "model": (str(model_path), str(other)),
        "tta": "d4",
        "blend": "cosine",
        "margin": True,
        "entropy": True,
        "probabilities": True,
        **EVERYTHING,
    }

    succeed(job("here", engine="local", **options))
    succeed(job("there", engine="ray", workers=2, run_shards=(1, 1), **options))

    here = products(tmp_path / "here")
    assert {"margin.tif", "probabilities.tif", "polygons.gpkg"} < here.keys()
    assert here == products(tmp_path / "there")


def pids(staff, job):
    """Return the process of every actor."""
    actors = staff.engine(job).pool.actors.values()
    return [hello.pid for hello in ray.get([actor.hello.remote() for actor in actors])]


def test_the_only_worker_killed_comes_back(job, expected, tmp_path):
    with Staff() as staff:
        task = job(engine="ray", workers=1, **EVERYTHING)

        def kill():
            os.kill(pids(staff, task)[0], signal.SIGKILL)

        values = succeed(task, after(task, 10, kill), staff)

    assert expected == products(tmp_path / "out")
    assert values["counts"]["worker_restarts"] == 1


class PoisonNetwork(simulate.SimulatedNetwork):
    """Ends its process at the sight of a pixel."""

    def __call__(self, tiles):
        if (tiles > 1e3).any():
            os._exit(9)
        return super().__call__(tiles)


class PoisonRecipe(simulate.SimulatedRecipe):
    """A recipe for workers that a pixel kills."""

    __slots__ = ()

    def network(self):
        return PoisonNetwork(Recipe.network(self), self.rate)


def use(monkeypatch, kind, rate=50_000):
    """Give the workers recipes of another kind."""
    make = Recipe.of

    def of(*args):
        recipe = make(*args)
        facts = {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}
        return kind(**facts, rate=rate)

    monkeypatch.setattr("tileseg.engines.worker.Recipe.of", of)


class StillbornRecipe(PoisonRecipe):
    """A recipe whose network kills the process that loads it."""

    __slots__ = ()

    def network(self):
        os._exit(9)


def test_workers_that_die_of_the_network_are_not_hired_for_ever(job, monkeypatch):
    """No shard is blamed; when no worker is left the job ends, resumable."""
    use(monkeypatch, StillbornRecipe)
    task = job(engine="ray", workers=1)

    values = run(task).values

    assert values["exit_code"] == ExitCode.SHARDS
    assert "no worker is left" in values["error"]
    assert values["failures"] == []
    assert values["counts"]["worker_restarts"] == 3


def stored_bytes():
    """Return all that was ever put into the object store."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return stats.cumulative_created_bytes


def ratio(*words):
    """Return the share of a simulated device's speed that a Ray engine gets."""
    with tempfile.TemporaryDirectory() as place:
        arguments = ["--engine", "ray", "--rounds", "1", "--json", *map(str, words)]
        arguments += ["--output", place, "--cache", place]
        result = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    return json.loads(result.stdout)["rows"][0]["figures"]["ratio"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "enough"), [(1, 0.93), (2, 0.88)])
def test_the_workers_keep_a_device_of_known_speed_busy(workers, enough):
    """Nearly all of it, and nothing to speak of in the object store.

    On two quiet cores 0.96 was measured with one worker, and 0.949 with two.

    A slow device: without a GPU, tiling and blending take this machine's processor
    (about 14 ms a batch where it was measured), and the device waits for them. Three
    tries: whatever else the machine does is no fault of the engine's.
    """
    ratios = []
    words = ("--simulate", 25, "--workers", workers, "--size", 3_300 * workers, 4_700)
    while len(ratios) < 3 and max(ratios, default=0) < enough:
        ratios.append(ratio(*words))

    print(f"{workers} workers: ratios {ratios}")  # noqa: T201
    assert max(ratios) >= enough
    assert stored_bytes() < 1_000_000


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_without_overlap_a_device_waits_for_the_disk():
    """The control: on a slow disk, reading, forward and writing in turn."""
    words = ("--simulate", 60, "--storage", 0.4, "--size", 2_200, 3_300)

    together, in_turn = ratio(*words), ratio(*words, "--in-turn")

    print(f"overlapped {together:.2f}, in turn {in_turn:.2f}")  # noqa: T201
    assert in_turn < together - 0.1


@pytest.fixture(scope="module")
def staff(cluster, scene):
    """Two workers that the tests from here on share, as scenes do.

    They have all the CPUs: whoever wants workers of its own stands above.
    """
    assert cluster is None
    with Staff() as both:
        both.engine(Job(input=str(scene), engine="ray", workers=2))
        yield both


@pytest.mark.slow
def test_two_workers_too(job, expected, tmp_path, staff):
    values = succeed(job(engine="ray", **EVERYTHING), quiet, staff)

    assert expected == products(tmp_path / "out")
    check(values, 2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 30])
def test_a_worker_killed_in_the_middle_changes_nothing(
    job, expected, tmp_path, count, staff
):
    """Its process is killed by its pid; its shards are leased again."""
    task = job(engine="ray", **EVERYTHING)

    def kill():
        os.kill(pids(staff, task)[0], signal.SIGKILL)

    values = succeed(task, after(task, count, kill), staff)

    assert expected == products(tmp_path / "out")
    assert values["counts"]["worker_restarts"] == 1
    assert values["counts"]["shards_done"] == 104


def test_scenes_share_the_workers(job, tmp_path, staff):
    """The second scene finds the processes of the first, and is right all the same."""
    other = make_scene(tmp_path / "other.tif", random_pixels(300, 410, seed=1))
    jobs = [
        job("one", engine="ray"),
        job("two", engine="ray", input=str(other), blend="cosine"),
    ]
    seen = []
    for task in jobs:
        succeed(task, quiet, staff)
        seen.append(pids(staff, task))
    succeed(job("alone", input=str(other), blend="cosine"))

    assert seen[0] == seen[1]
    assert digests(tmp_path / "alone") == digests(tmp_path / "two")


@pytest.mark.slow
def test_workers_gone_for_good_are_replaced(job, expected, tmp_path, staff):
    """Between scenes, all at once: as Ray gives up actors of a node that it gave up."""
    pool = staff.engine(job(engine="ray")).pool
    pool.fill()
    for actor in pool.actors.values():
        ray.kill(actor)

    values = succeed(job(engine="ray", **EVERYTHING), quiet, staff)

    assert expected == products(tmp_path / "out")
    check(values, 2)


@pytest.fixture
def poisoned(scene, tmp_path, monkeypatch):
    """A scene one of whose pixels kills the process that looks at it."""
    copy = shutil.copy(scene, tmp_path / "poison.tif")
    with rasterio.open(copy, "r+") as dataset:
        dataset.write(
            np.full((3, 1, 1), 60_000, "uint16"), window=((700, 701), (300, 301))
        )
    use(monkeypatch, PoisonRecipe)
    return make_model(tmp_path / "bright", mean=(0.0,) * 3, std=(5e-3,) * 3), copy


def test_a_shard_that_kills_its_workers_is_given_up_alone(
    job, poisoned, tmp_path, staff
):
    """After three of them; every other shard is made."""
    model, scene = map(str, poisoned)
    task = job(engine="ray", input=scene, model=model, allow_partial=True)

    values = run(task, quiet, staff).values

    assert values["exit_code"] == ExitCode.PARTIAL
    (failure,) = values["failures"]
    assert failure["shard"] == [700 // SHARD, 300 // SHARD]
    assert f"{MAX_TRIES} workers died of it" in failure["reason"]
    assert values["counts"]["worker_restarts"] == MAX_TRIES
    assert values["counts"]["shards_done"] == 103
    is_hole = read(tmp_path / "out" / "mask.tif")[672:768, 288:384] == NODATA
    assert is_hole.all()


@pytest.mark.slow
def test_without_leave_a_lost_shard_is_exit_12(job, poisoned, tmp_path, staff):
    model, scene = map(str, poisoned)

    values = run(job(engine="ray", input=scene, model=model), quiet, staff).values

    assert values["exit_code"] == ExitCode.SHARDS
    assert values["counts"]["shards_done"] == 103
    assert not (tmp_path / "out").exists()


class CrampedNetwork(simulate.SimulatedNetwork):
    """A network on a device whose memory holds three tiles."""

    def __init__(self, network):
        self.card, self.device, self._network = network.card, network.device, network

    def __call__(self, tiles):
        if len(tiles) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        return self._network(tiles)


class CrampedRecipe(simulate.SimulatedRecipe):
    """A recipe for workers with little memory."""

    __slots__ = ()

    def network(self):
        return CrampedNetwork(Recipe.network(self))


@pytest.mark.slow
def test_too_little_memory_on_a_worker_halves_the_batch_of_all(
    job, staff, tmp_path, monkeypatch
):
    """No worker is lost over it."""
    succeed(job("local", batch_size=2))
    use(monkeypatch, CrampedRecipe)

    values = succeed(job(engine="ray", batch_size=8), quiet, staff)

    assert values["engine"]["batch_size"] == 2
    assert values["counts"]["worker_restarts"] == 0
    assert digests(tmp_path / "local") == digests(tmp_path / "out")


def test_a_damaged_block_fails_as_it_does_locally(job, scene, tmp_path, staff):
    """The same shards, for the same reason, and the same mask round them."""
    copy = shutil.copy(scene, tmp_path / "damaged.tif")
    damage(Path(copy), 5, 3)
    options = {"input": str(copy), "allow_partial": True}

    local = run(job("local", **options)).values
    far = run(job("far", engine="ray", **options), quiet, staff).values

    assert local["failures"]
    assert sorted(map(str, local["failures"])) == sorted(map(str, far["failures"]))
    assert digests(tmp_path / "local") == digests(tmp_path / "far")


def test_a_work_directory_that_no_worker_sees_is_named(
    job, staff, monkeypatch, tmp_path
):
    """Before a shard is made, and with what to do about it."""
    elsewhere = Disk(tmp_path / "elsewhere")
    monkeypatch.setattr("tileseg.engines.shift.open_storage", lambda _: elsewhere)

    values = run(job(engine="ray"), quiet, staff).values

    assert values["exit_code"] == ExitCode.OUTPUT
    assert "--work must lie on storage" in values["error"]
    assert values["counts"]["shards_done"] == 0


def test_a_worker_without_a_plan_says_so(staff, job):
    """Its process died between two calls, and the new one knows nothing."""
    pool = staff.engine(job(engine="ray")).pool
    pool.fill()
    actor = next(iter(pool.actors.values()))
    ray.get(actor.rest.remote())

    assert ray.get(actor.work.remote([], 0.0, is_last=False)) is None


def test_another_file_at_the_same_path_is_no_scene_of_ours(job, staff):
    """A node that sees other bytes there takes no part; nobody is left here."""
    engine = staff.engine(job(engine="ray"))
    task = prepare(job())
    ledger = Ledger(Disk(job().work_path), Plan(task.request, {"batch_size": 1}))
    ledger.open()
    recipe = Recipe.of(task, ledger, engine.resolve(job()))
    (file,) = task.identity.files
    copy = replace(file, stamp=(1, 2, 3))
    ledger.folder.write(NONCE, b"nonce")
    actor = next(iter(engine.pool.actors.values()))

    def begin(file):
        other = replace(recipe, identity=Identities((file,)))
        return ray.get(actor.begin.remote(other, "nonce", is_mixed=False))

    assert begin(copy)
    with pytest.raises(InputError, match="another file here"):
        begin(replace(copy, sha256="0" * 64))


def test_an_address_where_nobody_is_is_named(job, monkeypatch):
    """At once: Ray itself would wait for ever."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    values = run(job()).values

    assert values["exit_code"] == ExitCode.USAGE
    assert "RAY_ADDRESS=127.0.0.1:1" in values["error"]


def test_sigterm_ends_a_ray_job_resumably(job, tmp_path, staff):
    """Exit 75, also where Ray is waiting and raises an interruption of its own."""
    assert staff.engine(job(engine="ray"))  # has all the CPUs
    address = ray.get_runtime_context().gcs_address
    command = ["jobs/segment.py", "--input", job().input, "--output", tmp_path / "out"]
    with subprocess.Popen(
        [sys.executable, *command, "--model", job().model],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while "asked for" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)

    assert process.returncode == ExitCode.PREEMPTED, err
    assert json.loads(out)["exit_code"] == ExitCode.PREEMPTED


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:8265"])
def test_an_address_that_is_none_of_a_cluster_is_named(job, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    values = run(job(engine="ray")).values

    assert values["exit_code"] == ExitCode.USAGE
    assert address in values["error"]


def test_a_gpu_that_no_node_has_is_not_waited_for_unasked(job):
    values = run(job(engine="ray", device="cuda")).values

    assert values["exit_code"] == ExitCode.USAGE
    assert "--workers" in values["error"]
