"""A training by Ray Train: the same as by one process, whatever befalls its workers."""

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_train import elsewhere, made, prepared

from tileseg.errors import ModelError, PreemptedError, UsageError
from tileseg.stopping import Stop, StopSignal
from tileseg.train import train

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def _our_ray():
    """A Ray of two CPUs, on loopback, that nobody else finds."""
    folder = tempfile.mkdtemp(prefix="tt", dir="/tmp")
    Path(folder, "ray").mkdir()
    settings = {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
    settings |= {"RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80_000_000,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, _our_ray):
    """The same by one process and by two workers."""
    alone = prepared(tmp_path_factory.mktemp("ray"), batch_size=5, epochs=4)
    team = elsewhere(alone, "team", engine="ray", workers=2)
    train(alone)
    train(team)
    return alone, team


def metrics(training):
    return json.loads((training.folder / "metrics.json").read_text())


def workers():
    """Return the processes of Ray Train's workers."""
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if "TrainWorker" in process.name()]


def test_two_workers_learn_and_judge_as_one_process_does(trainings):
    alone, team = map(metrics, trainings)

    np.testing.assert_allclose(
        [epoch["loss"] for epoch in team["epochs"]],
        [epoch["loss"] for epoch in alone["epochs"]],
        rtol=1e-4,
    )
    for part in ("validation", "test"):
        assert team[part]["confusion"] == alone[part]["confusion"]
    assert (team["workers"], team["training"]["engine"]) == (2, "ray")
    assert (trainings[1].folder / "curve.png").exists()
    assert not trainings[1].work.exists()


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(trainings, caplog):
    caplog.set_level("INFO")
    team = elsewhere(trainings[1], "killed")
    killed = []

    def kill():
        while not (team.work / "checkpoint.pt").exists():
            time.sleep(0.01)
        killed.extend(workers()[-1:])
        killed[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    train(team)
    killer.join()

    assert killed
    assert "a worker was lost" in caplog.text
    assert "epoch 4 of 4" in caplog.text  # told by a worker
    assert made(team) == made(trainings[1])


def test_a_stopped_training_goes_on_to_the_same_end(trainings):
    team = elsewhere(trainings[1], "stopped")
    stop = Stop()

    def ask():
        while not (team.work / "checkpoint.pt").exists():
            time.sleep(0.01)
        stop.ask(PreemptedError("stopped by the test"))

    asker = threading.Thread(target=ask)
    asker.start()
    with pytest.raises(StopSignal, match="stopped by the test"):
        train(team, stop)
    asker.join()
    assert not (team.folder / "card.json").exists()
    train(team)

    assert made(team) == made(trainings[1])


def test_what_a_worker_refuses_is_said_in_one_line(trainings):
    """And it is not tried again."""
    wild = {"learning_rate": 0.99, "weight_decay": 1e9, "steps": 400}
    with pytest.raises(ModelError, match=r"step \d+: the loss is") as found:
        train(elsewhere(trainings[1], "wild", **wild))

    assert "\n" not in str(found.value)


def test_more_workers_than_there_is_room_for_are_refused_at_once(trainings):
    with pytest.raises(UsageError, match="workers: got 3, here is CPU for 2"):
        train(elsewhere(trainings[1], "many", workers=3))
