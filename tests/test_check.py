"""`tileseg check`: what a job would meet is said, and nothing written."""

import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner
from making import make_model, make_scene, random_pixels, snapshot

from tileseg.cards.drift import statistics_of
from tileseg.cli import main
from tileseg.job import run
from tileseg.plans import task
from tileseg.settings import Job
from tileseg.steps.check import check

SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 4_600_000)
ROTATED = Affine(10, 2, 500_000, 2, -10, 4_600_000)
PLAIN = random_pixels(230, 170)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Check a scene in a folder of its own; return exit code, lines, errors."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model")

    def asked(*words):
        before = snapshot(tmp_path)
        told = CliRunner().invoke(main, ["check", *map(str, words), "--model", "model"])
        assert snapshot(tmp_path) == before
        return told.exit_code, told.stdout, told.stderr

    return asked


def test_a_plain_scene_has_nothing_odd(ask, tmp_path):
    make_scene(tmp_path / "scene.tif", PLAIN)

    code, said, err = ask("scene.tif")

    assert (code, err) == (0, "")
    assert "odd" not in said
    assert "230 rows x 170 columns of uint16" in said
    assert "band 2: green, stored * 0.0001 + 0, nodata 0" in said
    assert "WGS 84 / UTM zone 31N, pixels of 10 x 10" in said
    assert "tiles/s" in said


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"transform": SOUTH_UP}, "south at the top"),
        ({"transform": ROTATED}, "rotated"),
        ({"nodata": None}, "every pixel will have a class"),
        ({"dtype": "uint32"}, "are rounded"),
        ({"tiled": False, "blockysize": 230}, "strips of 230 rows"),
        ({"transform": Affine.identity(), "crs": None}, "does not say where it lies"),
        ({"scale": 1.0, "offset": 1.0}, "1e4 times too large"),
        ({"offset": 3.0}, "far from what the model knows"),
    ],
)
def test_what_is_odd_is_said(ask, tmp_path, profile, said):
    pixels = PLAIN.astype(profile.get("dtype", "uint16"))
    make_scene(tmp_path / "scene.tif", pixels, **profile)

    code, told, _ = ask("scene.tif")

    assert code == 0
    assert said in told
    assert all("odd" in line for line in told.splitlines() if said in line)


def test_it_doubts_of_values_what_the_job_would(tmp_path):
    """Another range and a drift, word by word."""
    valid = (PLAIN > 0).all(axis=0)
    known = tuple(map(statistics_of, PLAIN[:, valid] * np.float32(1e-4)))
    model = make_model(tmp_path / "model", statistics=known)
    scene = make_scene(tmp_path / "scene.tif", PLAIN, offset=0.4)
    job = Job(input=str(scene), model=str(model), output=str(tmp_path / "out"))

    found = [item.text for item in check(job) if item.topic == "odd"]
    warned = run(job).values["warnings"]

    assert len(found) == len(warned) == 2
    for text, warning in zip(found, warned, strict=True):
        assert warning.endswith(text)


def test_sidecars_are_named(ask, tmp_path):
    make_scene(tmp_path / "scene.tif", PLAIN)
    for name in ("scene.tfw", "scene.tif.ovr", "scene.tif.aux.xml"):
        (tmp_path / name).write_bytes(b"")

    _, told, _ = ask("scene.tif")

    assert told.count("beside it, which is not read") == 3


def test_it_ends_as_the_job_would_begin(ask, tmp_path):
    """What a scene is is said even if the model does not fit it."""
    make_scene(tmp_path / "unnamed.tif", PLAIN, names=None)
    make_scene(tmp_path / "unscaled.tif", PLAIN, scale=None)
    (tmp_path / "text.tif").write_text("no raster")
    scenes = ("unnamed.tif", "unscaled.tif", "text.tif", "missing.tif")
    for name in scenes:
        values = run(Job(input=name, model="model", output="out")).values

        code, said, err = ask(name)

        assert code == values["exit_code"] != 0
        assert err == f"tileseg: {values['error']}\n"
        assert ("230 rows" in said) == name.startswith("un")


def test_several_scenes_end_with_the_worst(ask, tmp_path):
    make_scene(tmp_path / "scene.tif", PLAIN)

    code, said, err = ask("scene.tif", "missing.tif")

    assert code == 4
    assert "tiles/s" in said
    assert "missing.tif" in err


def test_without_data_it_says_so_and_no_time(ask, tmp_path):
    make_scene(tmp_path / "scene.tif", np.zeros((3, 130, 171), np.uint16))

    code, said, _ = ask("scene.tif")

    assert code == 0
    assert "no valid pixel" in said
    assert "tiles/s" not in said


def test_what_the_job_says_is_not_odd(tmp_path):
    """A mask makes pixels nodata; bands that are listed need no names."""
    scene = make_scene(tmp_path / "s.tif", PLAIN, nodata=None, names=None)
    mask = make_scene(
        tmp_path / "m.tif", PLAIN[:1], nodata=None, names=None, scale=None
    )
    facts = {"input": str(scene), "model": str(make_model(tmp_path / "model"))}
    facts |= {"output": str(tmp_path / "out"), "bands": (1, 2, 3)}

    plain = [item.text for item in check(Job(**facts))]
    masked = [item.text for item in check(Job(mask=(f"{mask} in 1",), **facts))]

    assert any("every pixel will have a class" in text for text in plain)
    assert not any("every pixel will have a class" in text for text in masked)
    assert not any("unnamed bands" in text for text in plain)


def test_a_scene_is_looked_at_by_another_process_once(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "scene.tif", PLAIN)
    seen, examine = [], task.examine
    monkeypatch.setattr(
        task, "examine", lambda files: examine(seen.append(files) or files)
    )

    found = list(
        check(Job(input=str(scene), model=str(make_model(tmp_path / "model"))))
    )

    assert found
    assert len(seen) == 1


def test_what_it_counts_is_what_the_job_does(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", PLAIN)
    model = make_model(tmp_path / "model")
    job = Job(
        input=str(scene), model=str(model), output=str(tmp_path / "out"), shard=96
    )

    found = [item.text for item in check(job) if item.topic == "job"]
    counts = run(job).values["counts"]

    todo = (
        f"{counts['shards']} shards, {counts['tiles'] + counts['tiles_skipped']} tiles"
    )
    assert len(found) == 1
    assert found[0].startswith(todo)
