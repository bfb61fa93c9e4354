"""A job can be run again from its record; what is done already costs nothing."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner
from making import make_model, make_scene, random_pixels, snapshot

from tileseg.base.bounds import Gates
from tileseg.cli import main
from tileseg.commands.intake import read_job
from tileseg.errors import UsageError
from tileseg.settings import Job

ROOT = Path(__file__).parents[1]
NOT_NEEDED = {"matplotlib", "obstore", "pyarrow", "pyogrio", "ray", "shapely", "torch"}
EVERYTHING = {
    "input": ("a.tif", "b.tif"),
    "join": "mosaic",
    "bbox": (-1.5, 2, 3, 4.25),
    "model": ("models/one", ""),
    "output": "s3://maps/2024",
    "work": "w",
    "engine": "local",
    "workers": 3,
    "device": "cpu",
    "batch_size": 5,
    "precision": "fp32",
    "network": "compiled",
    "blend": "cosine",
    "confidence": True,
    "polygons": "fgb",
    "simplify": 12.5,
    "min_area": 0.25,
    "attributes": {"farm": "Green Court", "year": 2024, "is_known": False},
    "scale": 1.0,
    "offset": -0.1,
    "bands": ("red", 2),
    "allow_partial": True,
    "keep_work": True,
    "shard": 96,
    "run_shards": (1, 2),
    "mixed_devices": True,
    "grace": 1.5,
    "patience": 7.0,
    "wait": 9.0,
    "hosts": ("example.org", "localhost:8000"),
    "crs": "EPSG:32631",
    "resolution": "card",
    "resampling": "cubic",
    "mask": ("scl.tif in 3,8", "band:qa bits 1"),
    "allow_ungeoreferenced": True,
    "max_pixels": 10_000,
    "trusted": True,
    "trust_model_code": True,
    "tta": "d4",
    "margin": True,
    "entropy": True,
    "probabilities": True,
    "watts": 250.0,
    "price": 1.85,
    "incremental": True,
    "keep": 3,
    "gates": Gates(seams=1.5, history=7, canary="golden.npz"),
}


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene.tif", random_pixels(130, 171))


def call(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def values_of(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def record(scene, model_path, tmp_path):
    """The record of a job that ended well."""
    (tmp_path / "job.toml").write_text("shard = 96\nrun_shards = [1, 1]\n")
    options = ["--input", scene, "--model", model_path, "--output", tmp_path / "out"]
    options += ["--confidence", "--scale", "2e-4", "--config", tmp_path / "job.toml"]
    assert call("segment", *options).exit_code == 0
    return tmp_path / "out" / "run.json"


def test_every_field_of_a_job_comes_back_from_its_record(tmp_path):
    job = Job(**EVERYTHING)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"request_id": "", "plan_id": "", "job": job.given()}))

    assert {item.name for item in fields(Job)} - set(EVERYTHING) == {
        "overwrite",
        "again",
        "dry_run",
        "aoi",  # in the place of bbox
    }
    assert read_job(str(path)) == EVERYTHING


def test_what_is_default_is_not_recorded_nor_what_was_for_once():
    job = Job(input="scene.tif", overwrite=True, dry_run=True, blend="crop")

    assert job.given() == {"input": "scene.tif"}


def test_a_rerun_from_the_record_of_a_complete_job_does_nothing(record, tmp_path):
    before = snapshot(tmp_path)

    result = call("segment", "--config", record)

    assert result.exit_code == 0
    assert before == snapshot(tmp_path)
    assert values_of(result) == json.loads(record.read_text())


RERUN = """
import atexit, sys
from tileseg.cli import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main(["segment", "--config", sys.argv[1]])
"""


def test_a_rerun_loads_neither_torch_nor_what_makes_products(
    scene, model_path, tmp_path
):
    """And writes nothing: not even a folder's time of change moves."""
    options = ["--input", scene, "--model", model_path, "--output", tmp_path / "out"]
    options += ["--polygons", "geojson", "--confidence"]
    assert call("segment", *options).exit_code == 0
    before = times(tmp_path)

    ended = subprocess.run(
        [sys.executable, "-c", RERUN, str(tmp_path / "out/run.json")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )

    loaded = set(ended.stderr.splitlines()[-1].split())
    assert "tileseg.job" in loaded
    assert set() == loaded & NOT_NEEDED
    assert before == times(tmp_path)
    assert "nothing to do" in ended.stderr


def times(folder):
    """Return when every file and folder below was last changed."""
    return {item: item.stat().st_mtime_ns for item in (folder, *folder.rglob("*"))}


def test_options_win_over_the_record(record, tmp_path):
    """Another model is another plan; leave to overwrite is not remembered."""
    other = make_model(tmp_path / "other", seed=5)
    options = ["segment", "--config", record, "--model", other]

    refused = call(*options)
    done = call(*options, "--overwrite")

    assert refused.exit_code == 8
    assert done.exit_code == 0
    job = values_of(done)["job"]
    assert job["model"] == str(other)
    assert job["run_shards"] == [1, 1]
    assert "overwrite" not in job
    assert json.loads(record.read_text())["job"] == job
    assert call("segment", "--config", record).exit_code == 0


def test_a_failed_attempt_is_repeated_from_its_record(tmp_path, model_path):
    pixels = random_pixels(130, 171, nodata=0).astype("float32")
    pixels[:, 100, 50] = 3e38  # infinite when it is scaled
    scene = make_scene(tmp_path / "hot.tif", pixels, scale=None)
    (tmp_path / "job.toml").write_text('shard = 96\nprecision = "fp32"\n')
    options = ["--input", scene, "--model", model_path, "--output", tmp_path / "out"]
    options += ["--scale", "10", "--config", tmp_path / "job.toml"]
    word = tmp_path / "out.work" / "last-attempt.json"

    assert call("segment", *options).exit_code == 7
    assert call("segment", "--config", word).exit_code == 7
    holey = call("segment", "--config", word, "--allow-partial")

    assert holey.exit_code == 10
    assert values_of(holey)["counts"]["shards_reused"] == 3


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "nobody's": '{"job": {"input": "scene.tif"}}',
    "a night's": '{"started": "", "scenes": []}',
    "no job": '{"request_id": "", "plan_id": ""}',
    "null job": '{"request_id": "", "plan_id": "", "job": null}',
    "an unknown key": '{"request_id": "", "plan_id": "", "job": {"tile_size": 3}}',
    "a wrong type": '{"request_id": "", "plan_id": "", "job": {"shard": "96"}}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)

    result = call("segment", "--config", path)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"tileseg: {path}: ")
    assert result.stderr.count("\n") == 1
    with pytest.raises(UsageError):
        read_job(str(path))


def test_a_night_takes_the_options_of_a_record_but_not_its_places(
    record, scene, tmp_path
):
    """Nor do several scenes."""
    other = make_scene(tmp_path / "other.tif", random_pixels(70, 101))
    (tmp_path / "scenes.txt").write_text(f"{other}\n")
    options = ["--config", record, "--output", tmp_path / "night"]
    before = snapshot(tmp_path / "out")

    night = call("nightly", "--scenes", tmp_path / "scenes.txt", *options)
    both = call("segment", "--input", scene, "--input", other, *options)

    assert (night.exit_code, both.exit_code) == (0, 0)
    assert {
        "night.json",
        "collection.json",
        "other",
        "scene",
        "other.work",
        "scene.work",
    } == {item.name for item in (tmp_path / "night").iterdir()}
    made = json.loads((tmp_path / "night/other/run.json").read_text())
    assert made["job"]["shard"] == 96
    assert "confidence.tif" in {item["path"] for item in made["outputs"]}
    assert before == snapshot(tmp_path / "out")
