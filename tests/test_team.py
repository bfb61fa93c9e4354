"""Several processes train one network as one process does; no engine is needed."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import made, prepared

from tileseg.training.train import train

ROOT = Path(__file__).parents[1]
SIZE = 3
MEMBER = """
import json, sys
from contextlib import suppress
from dataclasses import replace
import torch
from torch import distributed
from tileseg.errors import PreemptedError
from tileseg.base.stopping import Stop, StopSignal
from tileseg.stores.storage import Disk
from tileseg.training.survey import survey
from tileseg.training.team import Team
from tileseg.training.train import _learn
from tileseg.training.train_settings import Training

rank, size, facts = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
facts = {key: tuple(it) if isinstance(it, list) else it for key, it in facts.items()}
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=sys.argv[4], rank=rank,
    world_size=size)
whole, halting = (
    Training(**{**facts, "to": facts["to"] + name}).settled() for name in "ab"
)
found, team = survey(whole, None, Disk(whole.work)), Team(rank, size)
_learn(whole, found, team, Stop(), lambda *_: None)
while not halting.folder.exists():
    stop, mine = Stop(), [0]

    def told(done, total):
        mine[0] += 1
        if mine[0] == 3:
            stop.ask(PreemptedError("stopped by the test"))

    with suppress(StopSignal):
        _learn(halting, found, team, stop, told)
    distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The same by one process, by a team, and by a team that was stopped thrice."""
    folder = tmp_path_factory.mktemp("team")
    alone = prepared(folder, batch_size=4, dice=0.7)
    facts = json.dumps(asdict(replace(alone, to=str(folder / "team"))))
    place = f"file://{folder}/meeting"
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(rank), str(SIZE), facts, place],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(SIZE)
    ]
    train(alone)
    assert [member.wait(300) for member in members] == [0] * SIZE
    return [alone, *(replace(alone, to=str(folder / f"team{name}")) for name in "ab")]


def metrics(training):
    return json.loads((training.folder / "metrics.json").read_text())


def test_a_team_learns_as_one_process_does(trainings):
    """Up to the order of sums: two tiles of a batch for the first, one for others."""
    alone, team = map(metrics, trainings[:2])

    for key in ("loss", "validation_loss"):
        np.testing.assert_allclose(
            [epoch[key] for epoch in team["epochs"]],
            [epoch[key] for epoch in alone["epochs"]],
            rtol=1e-4,
        )
    weights, theirs = (
        load_file(training.folder / "weights.safetensors") for training in trainings[:2]
    )
    for name, values in weights.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-3, atol=1e-4)
    assert (alone["workers"], team["workers"]) == (1, SIZE)


def test_a_team_judges_as_one_process_does(trainings):
    alone, team = map(metrics, trainings[:2])

    for part in ("validation", "test"):
        assert alone[part]["confusion"] == team[part]["confusion"]
        assert alone[part]["places"] == team[part]["places"] > 0
    assert alone["temperature"] == pytest.approx(team["temperature"], abs=1e-3)


def test_a_team_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(trainings):
    """Also three of them, whose sums are not the same in every order."""
    _, whole, halting = trainings

    assert made(whole) == made(halting)
    assert metrics(whole)["steps"] == metrics(halting)["steps"] == 12
