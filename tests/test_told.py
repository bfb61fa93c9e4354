"""What is said of `night.json`, a plan, `metrics.json` and `change.json` is what they
hold, and all that they hold."""

import json
import shutil
from collections.abc import Iterable
from datetime import timedelta

import pytest
import web
from click.testing import CliRunner
from making import make_scene, random_pixels
from schemas import described, faults, schema, told
from test_nightly_service import DAY, FIRST, Nights, stop_in_hand
from test_records import blinded
from test_train import prepared

from tileseg import job
from tileseg.base.address import allow
from tileseg.base.choices import (
    BLENDS,
    ENGINES,
    FORMATS,
    NETWORKS,
    PRECISIONS,
    SYMMETRIES,
    UNITS,
)
from tileseg.changes.change import Wish, change
from tileseg.changes.pair import find
from tileseg.cli import main
from tileseg.errors import PreemptedError
from tileseg.job import run
from tileseg.nights import nightly_run
from tileseg.nights.nightly_summary import STATES
from tileseg.nights.nightly_table import _WHY
from tileseg.settings import Job
from tileseg.training.train import train


def check(name: str, documents: Iterable[dict]) -> None:
    """Hold documents to their schema, and the schema to them."""
    documents, said = list(documents), schema(name)

    assert [faults(it, name) for it in documents] == [[] for _ in documents]
    assert described(said) - set().union(*(told(it, said) for it in documents)) == set()


@pytest.mark.parametrize(
    ("name", "path", "known"),
    [
        ("night", "scenes.state", STATES),
        ("plan", "scenes.why", _WHY),
        ("change", "format", FORMATS),
        ("run", "model.tta", (*SYMMETRIES, None)),
        ("run", "grid.blend", (*BLENDS, None)),
        ("run", "engine.kind", (*ENGINES, None)),
        ("run", "engine.precision", (*PRECISIONS, None)),
        ("run", "engine.precision_asked", ("auto", *PRECISIONS, None)),
        ("run", "engine.network", (*NETWORKS, None)),
        ("card", "properties.tileseg:unit", UNITS),
    ],
)
def test_values_are_those_of_the_code(name, path, known):
    said = schema(name)
    for key in path.split("."):
        said = said.get("items", said)["properties"][key]

    values = said.get("enum") or [it["const"] for it in said["oneOf"]]
    assert values == list(known)


@pytest.mark.slow
def test_nights_and_their_plans(tmp_path, model_path, monkeypatch):
    """Scenes of every state, planned for every reason."""
    nights, scenes = Nights(tmp_path, model_path), tmp_path / "scenes"
    monkeypatch.setattr(nightly_run, "_now", lambda: nights.now)
    (scenes / "more").mkdir(parents=True)
    nights.source = f'scenes = "{scenes}/**/*.tif"'
    nights.more = "[night]\nretries = 1\nbackoff = [2]\nhours = 2"
    nights._job += (
        '\nwatts = 300\nprice = 1.5\nnetwork = "plain"\nallow_partial = true'
        "\ngates = {nodata = 0.5}"
    )
    (scenes / "failing.tif").write_text("not a raster")
    plans, summaries = [nights.run("--plan")[2]], []

    def spend():
        plans.append(nights.run("--plan")[2])
        summaries.append(nights.run()[2])

    for seed, name in enumerate(("gone", "changing", "more/same")):
        make_scene(scenes / f"{name}.tif", random_pixels(60, 51, seed=seed))
    make_scene(scenes / "cloudy.tif", random_pixels(60, 51, nodata=0.9))
    spend()
    nights.now += DAY
    shutil.copy(scenes / "gone.tif", scenes / "same.tif")
    make_scene(scenes / "changing.tif", random_pixels(60, 51, seed=5))
    shutil.rmtree(nights.output / "gone")
    with monkeypatch.context() as patch:
        patch.setattr(job, "carry_out", stop_in_hand(PreemptedError("SIGTERM")))
        spend()
    spend()
    nights.now += DAY
    spend()
    spend()
    CliRunner().invoke(main, ["release", str(nights.output / "cloudy")])
    pixels = random_pixels(130, 51)
    pixels[:, 20, 30] = 60_000
    make_scene(scenes / "holes.tif", pixels)
    with blinded():
        spend()
    nights.now += DAY
    nights.take_another_model()
    nights._job += "\noverwrite = false"
    spend()
    nights.more = f'[night]\ndeadline = "{FIRST + timedelta(hours=1):%H:%M}"'
    nights.now += timedelta(hours=2)
    make_scene(scenes / "late.tif", random_pixels(60, 51))
    spend()

    check("night", summaries)
    check("plan", plans)


@pytest.mark.slow
def test_scores_of_trainings(tmp_path):
    for name, parts in {"all": {}, "none": {"validation": 0.0, "test": 0.0}}.items():
        (tmp_path / name).mkdir()
        train(prepared(tmp_path / name, epochs=2, **parts))

    found = tmp_path.glob("*/model/metrics.json")
    check("metrics", (json.loads(path.read_text()) for path in found))


def test_what_changed(tmp_path, model_path):
    """Between masks on a disk, and at addresses."""
    for seed, name in enumerate(("old", "new")):
        scene = make_scene(tmp_path / f"{name}.tif", random_pixels(60, 51, seed=seed))
        facts = {"model": str(model_path), "confidence": True, "shard": 48}
        run(Job(input=str(scene), output=str(tmp_path / name), **facts))
    with web.serve(tmp_path, tmp_path / "web") as site:
        allow([site.host])
        records = []
        for place in (str(tmp_path), site.address):
            old, new = (find(f"{place}/{it}/mask.tif") for it in ("old", "new"))
            output = tmp_path / f"change{len(records)}"
            records.append(change(Wish(old=old, new=new, output=output)))

    check("change", records)
