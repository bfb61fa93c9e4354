"""`run.json` and `card.json` hold what is said of them, and that is what they hold."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import web
from click.testing import CliRunner
from making import make_model, make_scene, random_pixels
from schemas import described, faults, schema, told

from tileseg.cards.drift import statistics_of
from tileseg.cli import main
from tileseg.job import run
from tileseg.network.unet import UNet
from tileseg.settings import Job

ELSEWHERE = {
    ".counts.retries",  # Ray, see test_cluster.py
    ".counts.worker_restarts",
    ".memory.device_mb",  # a GPU
    ".estimate.device_mb",
}
"""What no run says that is made here."""

FORWARD = UNet.forward


@contextmanager
def blinded():
    """A network that does not know what to say about some tiles."""

    def forward(self, tiles):
        logits = FORWARD(self, tiles)
        logits[tiles.amax(dim=(1, 2, 3)) > 20] = torch.nan
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "forward", forward)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a scene that has a bright spot, the same come again, and a mask."""
    folder = tmp_path_factory.mktemp("place")
    pixels = random_pixels(130, 171, seed=1)
    (folder / "scenes").mkdir()
    make_scene(folder / "old.tif", pixels)
    pixels[:, 20, 30] = 60_000
    make_scene(folder / "scenes/a.tif", pixels)
    make_scene(folder / "scl.tif", pixels[:1] % 12)
    known = (statistics_of(np.linspace(0, 1, 101)),) * 3
    make_model(folder / "model", gsd=10.0, statistics=known)
    return folder


@pytest.fixture(scope="module")
def records(place):
    """The record of each kind of run."""
    scene = place / "scenes/a.tif"

    def job(name, source=scene, **options):
        facts = {
            "input": str(source),
            "model": str(place / "model"),
            "output": str(place / "maps" / name),
            "work": str(place / "work"),
            "trusted": True,
            "shard": 96,
            "precision": "fp32",
            "network": "plain",  # whose forward is replaced
        }
        return run(Job(**{**facts, **options})).told()

    def call(*words):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.stderr
        return result.stdout.splitlines()

    shares = {"class_std": 9.0, "history_least": 1}
    found = {
        "dry": job("a", dry_run=True),
        "failed": job("a", place / "model/card.json"),
        "plain": job("a", polygons="gpkg", watts=300.0, price=1.5),
        "fast": job("b", precision="bf16", gates={**shares, "precision": 0.0}),
        "parked": job("c", gates={"nodata": 0.0}),
    }
    call("release", place / "maps/c")
    found["released"] = json.loads((place / "maps/c/run.json").read_text())
    shutil.copy(place / "old.tif", place / "came.tif")
    found["first"] = job("d", place / "came.tif", incremental=True)
    shutil.copy(scene, place / "came.tif")
    found["again"] = job("d", place / "came.tif", incremental=True)
    with blinded():
        found["holes"] = job("e", allow_partial=True)
    with web.serve(scene.parent, place / "web") as site:
        options = {"hosts": (site.host,), "mask": (f"{place / 'scl.tif'} in 3",)}
        found["remote"] = job("f", f"{site.address}/a.tif", **options)
    words = ["--scenes", scene.parent, "--output", place / "night"]
    line, _ = call("nightly", *words, "--model", place / "model")
    return found | {"night": json.loads(line)}


@pytest.mark.slow
def test_every_record_is_what_is_said_of_it(records):
    wrong = {name: faults(record, "run") for name, record in records.items()}

    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.slow
def test_nothing_is_said_of_a_record_that_no_run_writes(records):
    said = schema("run")
    seen = set().union(*(told(record, said) for record in records.values()))

    assert described(said) - seen == ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"exit_code": "0"},
        {"seconds": {"total": 1.0}},
        {"failures": [{"shard": [0, 0], "window": [0, 0, 9, 9]}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_schema_sees_what_is_wrong(records, change):
    assert faults(records["plain"] | change, "run")


@pytest.mark.slow
def test_a_record_of_every_kind_was_looked_at(records):
    ends = {record["status"] for record in records.values()}

    assert ends == set(schema("run")["properties"]["status"]["enum"]) - {"interrupted"}
