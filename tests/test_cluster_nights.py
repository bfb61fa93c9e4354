"""A night's file on a Ray cluster: the deadline ends a night, the next one finishes."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from making import digests, make_model, make_scene, random_pixels
from test_cluster import cluster, use  # noqa: F401  (a fixture)

from tileseg.cli import main

ray = pytest.importorskip("ray")

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
from ray.util import placement_group, remove_placement_group  # noqa: E402

from benchmark import simulate  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")

NIGHT = """
[source]
scenes = "{folder}/scenes"
[target]
output = "{folder}/{output}"
work = "{folder}/{output}.work"
[night]
order = "smallest"
hours = {hours}
[job]
model = "{folder}/model"
engine = "{engine}"
workers = 2
shard = 48
precision = "fp32"
grace = 2
wait = {wait}
"""
SECONDS = 90  # in which two workers come, and do not do 1,600 tiles at 5 a second each


@pytest.fixture
def night(tmp_path):
    """Run a night of two scenes; return exit code, records and summary."""
    (tmp_path / "scenes").mkdir()
    make_scene(tmp_path / "scenes/small.tif", random_pixels(40, 45))
    make_scene(tmp_path / "scenes/long.tif", random_pixels(960, 950, seed=1))
    make_model(tmp_path / "model")

    def run(output="maps", *, engine="ray", hours=9.0, wait=600):
        path = tmp_path / "nightly.toml"
        facts = {"folder": tmp_path, "output": output, "engine": engine}
        path.write_text(NIGHT.format(**facts, hours=hours, wait=wait))
        result = CliRunner().invoke(main, ["nightly", "--config", str(path)])
        assert "Traceback" not in result.stderr, result.stderr
        *lines, summary = map(json.loads, result.stdout.splitlines())
        return result.exit_code, lines, summary

    return run


def states(summary):
    return {row["name"]: row["state"] for row in summary["scenes"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_without_workers_ends_the_night_and_no_scene_failed(night, tmp_path):
    """It is said once, no attempt counts, and the next night begins where it stood."""
    taken = placement_group([{"CPU": 4}])
    ray.get(taken.ready())

    code, lines, summary = night(wait=2)

    remove_placement_group(taken)
    assert (code, len(lines)) == (12, 1)
    assert "no worker with" in lines[0]["error"]
    assert states(summary) == {"small": "waiting", "long": "waiting"}
    assert summary["exit_code"] == 12
    assert [row["attempts"] for row in summary["scenes"]] == [0, 0]
    known = json.loads((tmp_path / "maps/night-state.json").read_bytes())["scenes"]
    assert {name: it["state"] for name, it in known.items()} == {"small": "waiting"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deadline_ends_a_night_and_the_next_one_finishes(
    night, tmp_path, monkeypatch
):
    """What workers had done is not done again, and the maps are the local engine's."""
    with monkeypatch.context() as patch:
        use(patch, simulate.SimulatedRecipe, rate=5)
        code, lines, summary = night(hours=SECONDS / 3600)
    assert code == 0
    assert states(summary) == {"small": "done", "long": "waiting"}
    assert "the night is over" in lines[1]["error"]
    assert summary["exit_code"] == 0

    use(monkeypatch, simulate.SimulatedRecipe, rate=10_000)
    code, lines, summary = night()

    assert code == 0
    assert states(summary) == {"small": "done", "long": "done"}
    (line,) = lines
    assert line["engine"]["kind"] == "ray"
    assert 0 < line["counts"]["shards_reused"] < line["counts"]["shards"]
    night("here", engine="local")
    for name in ("small", "long"):
        assert digests(tmp_path / "maps" / name) == digests(tmp_path / "here" / name)
