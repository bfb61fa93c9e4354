"""A training by Ray Train: the same as by one process, whatever befalls its workers."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from test_train import elsewhere, made, prepared

from tileseg.base.stopping import Stop, StopSignal
from tileseg.errors import LostError, ModelError, PreemptedError, UsageError
from tileseg.training.train import _learn, train
from tileseg.training.train_settings import Training

ray = pytest.importorskip("ray")
train_ray = pytest.importorskip("tileseg.training.train_ray")
from tileseg.engines.pool import _on_loopback, demand  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # processes start slowly

BATCH, STEPS = 5, 4  # of an epoch: the sixth step is after the first checkpoint
SIXTH = 6 * BATCH


@pytest.fixture(scope="module")
def _our_ray():
    """A Ray of two CPUs, on loopback, that nobody else finds."""
    folder = tempfile.mkdtemp(prefix="tt", dir="/tmp")
    Path(folder, "ray").mkdir()
    settings = {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
    settings |= {"RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    settings |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}  # an end is seen sooner
    settings |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # a process less to start
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=80_000_000,
                _node_ip_address="127.0.0.1",
            )
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, _our_ray):
    """The same by one process and by two workers."""
    folder = tmp_path_factory.mktemp("ray")
    alone = prepared(folder, batch_size=BATCH, steps=STEPS, epochs=3)
    team = elsewhere(alone, "team", engine="ray", workers=2)
    train(alone)
    train(team)
    return alone, team


def metrics(training):
    return json.loads((training.folder / "metrics.json").read_text())


def losses(training):
    return [epoch["loss"] for epoch in metrics(training)["epochs"]]


def test_two_workers_learn_and_judge_as_one_process_does(trainings):
    alone, team = map(metrics, trainings)

    np.testing.assert_allclose(*map(losses, trainings), rtol=1e-4)
    for part in ("validation", "test"):
        assert team[part]["confusion"] == alone[part]["confusion"]
    assert (team["workers"], team["training"]["engine"]) == (2, "ray")
    assert (trainings[1].folder / "curve.png").exists()
    assert not trainings[1].work.exists()


class Deadly:
    """What kills the first worker that gets it, which does so before it begins."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return arrive, (self._mark,)


def arrive(mark):
    if "TrainWorker" in psutil.Process().name() and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die_once(_gift, training, found, team, stop, told):
    """Learn, as one of a team whose second process is killed at the sixth step."""
    mark = training.folder.with_name("died at work")

    def telling(done, total):
        told(done, total)
        if team.rank == 1 and done == SIXTH and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    _learn(training, found, team, stop, telling)


def test_a_killed_worker_is_replaced_and_the_bytes_are_the_same(
    trainings, caplog, monkeypatch
):
    """One is killed while it starts, and one after a checkpoint."""
    caplog.set_level("INFO")
    team = elsewhere(trainings[1], "killed")
    marks = [team.folder.with_name(f"died {when}") for when in ("early", "at work")]
    deadly = partial(die_once, Deadly(marks[0]))
    monkeypatch.setattr("tileseg.training.train._learn", deadly)

    train(team)

    assert all(mark.exists() for mark in marks)
    assert caplog.text.count("a worker was lost") == 2
    assert "epoch 3 of 3" in caplog.text  # told by a worker
    assert made(team) == made(trainings[1])


def wait_at_sixth(training, found, team, stop, told):
    """Learn, as one of a team whose first process waits there to be asked to stop."""

    def telling(done, total):
        told(done, total)
        while team.rank == 0 and done == SIXTH and not stop.error:
            time.sleep(0.01)

    _learn(training, found, team, stop, telling)


def test_a_stopped_training_goes_on_with_as_many_workers_or_without(
    trainings, monkeypatch
):
    """With as many to the same bytes, with others to the same up to rounding."""
    alone, undisturbed = trainings
    team, stop = elsewhere(undisturbed, "stopped"), Stop()

    def ask(done, _total):
        if done == SIXTH and not stop.error:
            stop.ask(PreemptedError("stopped by the test"))

    with monkeypatch.context() as patch:
        patch.setattr("tileseg.training.train._learn", wait_at_sixth)
        with pytest.raises(StopSignal, match="stopped by the test"):
            train(team, stop, ask)
    assert not (team.folder / "card.json").exists()
    checkpoint = team.work / "checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == 6

    one = elsewhere(alone, "one")
    one.work.mkdir()
    shutil.copy(checkpoint, one.work)
    seen = []
    train(one, told=lambda done, _total: seen.append(done))
    train(team)

    assert seen[0] == SIXTH + BATCH
    assert made(team) == made(undisturbed)
    assert metrics(one)["workers"] == 1
    assert metrics(one)["epochs"][0]["loss"] == metrics(team)["epochs"][0]["loss"]
    np.testing.assert_allclose(losses(one), losses(alone), rtol=1e-4)


def test_what_a_worker_refuses_is_said_in_one_line(trainings):
    """And it is not tried again."""
    wild = {"learning_rate": 0.99, "weight_decay": 1e9, "steps": 400}
    with pytest.raises(ModelError, match=r"step \d+: the loss is") as found:
        train(elsewhere(trainings[1], "wild", **wild))

    assert "\n" not in str(found.value)


def test_more_workers_than_there_is_room_for_are_refused_at_once(trainings):
    with pytest.raises(UsageError, match="workers: got 3, here is CPU for 2"):
        train(elsewhere(trainings[1], "many", workers=3))


def test_workers_that_never_come_are_waited_for_once(trainings, monkeypatch):
    """Of a cluster, which may grow: nobody knows beforehand."""
    monkeypatch.setenv("RAY_ADDRESS", "a cluster")  # it is connected already
    monkeypatch.setattr(train_ray, "_WAIT_SECONDS", 1)

    with pytest.raises(LostError, match=r"no 3 workers .* came in 1 s; the same"):
        train(elsewhere(trainings[1], "waiting", workers=3))


def test_each_worker_has_a_tile_of_the_batch(tmp_path, monkeypatch):
    """However many nodes there are; each then has more of their processors."""
    nodes = [{"Alive": True, "Resources": {"CPU": 4}}] * 9
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(train_ray, "_check_room", lambda *_: None)
    monkeypatch.setattr(train_ray, "_Board", Mock())
    monkeypatch.setattr(train_ray, "_groups", set)
    asked = {"labels": ("a",), "batch_size": 5, "engine": "ray", "device": "cpu"}
    training = Training(scenes=("a",), to=str(tmp_path / "model"), **asked)

    run = train_ray._Run(None, training, Stop(), lambda *_: None)

    assert (run._workers, run._share) == (5, {"CPU": 4, "GPU": 0})
    assert demand("cpu", None)[0] == 9
