"""A result goes live when it passes the gates; else it waits, parked, for a person."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from making import digests, job_maker, make_model, make_scene, random_pixels, snapshot

from tileseg.cli import main
from tileseg.engines.staff import Staff
from tileseg.errors import ExitCode
from tileseg.job import run
from tileseg.publishing.folder import Folder

HEIGHT, WIDTH = 130, 171
TOO_FEW = {"nodata": 0.0}  # the scene has some


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(HEIGHT, WIDTH, seed=1))


@pytest.fixture
def job(tmp_path, scene, model_path):
    """Make a job on the scene that replaces what is there, and keeps it."""
    return job_maker(
        tmp_path,
        scene,
        model_path,
        output=str(tmp_path / "maps" / "scene"),
        work=str(tmp_path / "work"),
        shard=96,
        precision="fp32",
        overwrite=True,
        keep=2,
    )


class Idle(Staff):
    """Has nobody: whoever needs a network fails."""

    def engine(self, job):
        pytest.fail(f"{job.href}: a worker was asked for")


def call(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert "Traceback" not in result.output
    return result


def done(job, **options):
    record = run(job, **options)
    assert record.error is None
    return record.values


def parked(job, **options):
    record = run(job, **options)
    assert record.values["status"] == "parked"
    assert record.values["exit_code"] == ExitCode.REFUSED
    return record.values


def test_a_refused_result_is_parked_whole_and_the_old_one_stays(job):
    done(job())
    before = snapshot(job().output_path)

    values = parked(job(confidence=True, gates=TOO_FEW))

    home = job().output_path.with_name("scene.parked")
    assert before == snapshot(job().output_path)
    assert json.loads((home / "run.json").read_text()) == values
    assert {item["path"] for item in values["outputs"]} | {"run.json"} == {
        item.name for item in home.iterdir()
    }
    (gate,) = (it for it in values["gates"] if it["passed"] is False)
    assert (gate["name"], gate["wanted"]) == ("nodata", "at most 0")
    assert gate["got"] == values["pixels"]["nodata"] / values["pixels"]["total"]
    assert "nodata: got" in values["error"]
    assert f"tileseg release {job().output}" in values["error"]
    assert any("gate nodata" in text for text in values["warnings"])
    assert "parked" in (home / "report.html").read_text()
    assert not list(job().work_path.glob("*/plan.json"))


def test_a_parked_result_is_not_made_again_and_may_be_released(job):
    done(job())
    wish = job(confidence=True, gates=TOO_FEW)
    parked(wish)
    before = snapshot(job().output_path.parent)

    again = parked(wish, staff=Idle())

    assert before == snapshot(job().output_path.parent)
    assert "nodata: got" in again["error"]
    expected = digests(job().output_path.with_name("scene.parked"))
    assert call("release", job().output).exit_code == 0
    assert expected == digests(job().output_path)
    assert done(wish, staff=Idle())["promoted"]["by"] == "release"
    assert len(Folder(job().output_path).kept()) == 1


def test_other_gates_judge_a_parked_result_anew(job):
    """From its record: no shard is made, no file of it changes."""
    done(job())
    parked(job(confidence=True, gates=TOO_FEW))
    expected = digests(job().output_path.with_name("scene.parked"))
    stricter = job(confidence=True, gates={"nodata": 0.001, "seams": 0.0})

    assert "seams: got" in parked(stricter, staff=Idle())["error"]
    record = run(job(confidence=True, gates={"nodata": 0.9}), staff=Idle())

    values = record.values
    assert (record.error, record.is_news, record.is_made) == (None, True, False)
    assert (values["status"], values["promoted"]["by"]) == ("complete", "gates")
    assert {it["passed"] for it in values["gates"]} == {True}
    assert expected == digests(job().output_path)
    assert Folder(job().output_path).parked() is None


def test_a_discarded_result_is_made_again(job):
    wish = job(gates=TOO_FEW)
    first = parked(wish)
    assert call("release", "--discard", job().output).exit_code == 0

    again = parked(wish)

    assert again["started"] >= first["started"]
    assert again["counts"]["shards_reused"] == 0
    missing = call("release", "--discard", job().output + "2")
    assert missing.exit_code == ExitCode.OUTPUT
    assert "nothing is parked" in missing.stderr
    assert call("versions", job().output + "2").exit_code == ExitCode.INPUT


def test_a_scene_that_comes_again_on_another_grid_is_parked(job, tmp_path, scene):
    path = tmp_path / "again.tif"
    shutil.copy(scene, path)
    done(job(input=str(path)))
    make_scene(path, random_pixels(HEIGHT, WIDTH - 1, seed=1))

    values = parked(job(input=str(path)))

    (gate,) = (it for it in values["gates"] if it["name"] == "grid")
    assert gate["got"] == "another width"
    done(job(input=str(path), gates={"grid": False}), staff=Idle())


def test_a_night_parks_what_is_unlike_its_series(tmp_path, model_path):
    """The catalog goes on listing what is live; a night later nothing is computed."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for number in range(4):
        make_scene(scenes / f"s{number}.tif", random_pixels(99, 80, seed=number))
    facts = {"history_least": 3, "class_jump": 0.1}
    table = "".join(f"{key} = {value}\n" for key, value in facts.items())
    (tmp_path / "job.toml").write_text(f"keep = 1\n[gates]\n{table}")
    words = ["nightly", "--scenes", scenes, "--model", model_path]
    words += ["--output", tmp_path / "maps", "--config", tmp_path / "job.toml"]
    assert call(*words).exit_code == 0
    catalog = (tmp_path / "maps" / "collection.json").read_bytes()
    live = snapshot(tmp_path / "maps" / "s1")
    odd = np.full((3, 99, 80), 9000, "uint16")
    make_scene(scenes / "s1.tif", odd)
    make_scene(scenes / "s4.tif", odd)

    codes = [call(*words, "--overwrite") for _ in "12"]

    assert [it.exit_code for it in codes] == [ExitCode.REFUSED] * 2
    summary = json.loads(codes[1].stdout.splitlines()[-1])
    states = [item["state"] for item in summary["scenes"]]
    assert states == ["unchanged", "parked", "unchanged", "unchanged", "parked"]
    assert summary["counts"]["parked"] == 2
    assert live == snapshot(tmp_path / "maps" / "s1")
    assert not (tmp_path / "maps" / "s4").exists()
    assert catalog == (tmp_path / "maps" / "collection.json").read_bytes()

    assert call("release", tmp_path / "maps" / "s4").exit_code == 0

    linked = json.loads((tmp_path / "maps" / "collection.json").read_text())["links"]
    assert [link["href"] for link in linked][-1] == "./s4/item.json"
    assert len(linked) == 5


def test_a_night_does_not_make_again_what_was_rolled_back(tmp_path, scene, model_path):
    """By the very plan; a person who says overwrite is obeyed."""
    other = make_model(tmp_path / "other", seed=5, version="2")
    maps = tmp_path / "maps"
    words = ["--output", maps, "--work", tmp_path / "work", "--overwrite"]
    (tmp_path / "job.toml").write_text("keep = 1\n")
    words += ["--config", tmp_path / "job.toml"]

    def night(model):
        found = call("nightly", "--scenes", scene.parent, "--model", model, *words)
        (item,) = json.loads(found.stdout.splitlines()[-1])["scenes"]
        return found.exit_code, item["state"], item["error"]

    assert night(model_path)[:2] == (0, "done")
    first = digests(maps / "scene")
    assert night(other)[:2] == (0, "done")
    second = digests(maps / "scene")
    rolled = call("rollback", maps / "scene")
    assert rolled.exit_code == 0
    assert first == digests(maps / "scene") != second
    catalog = json.loads((maps / "collection.json").read_text())
    (model,) = catalog["summaries"]["tileseg:models"]
    assert model["version"] == "1"

    code, state, error = night(other)

    assert (code, state) == (0, "kept")
    assert "was rolled back" in error
    assert first == digests(maps / "scene")

    told = [json.loads(line) for line in
            call("versions", "--json", maps / "scene").stdout.splitlines()]  # fmt: skip
    assert [(it["state"], it["model"]) for it in told] == [
        ("live", "test 1"),
        ("kept", "test 2"),
    ]
    assert sum(told[0]["shares"].values()) == pytest.approx(1)
    lines = call("versions", maps / "scene").stdout.splitlines()
    assert told[1]["version"] in lines[1]
    options = ["--input", scene, "--model", other, *words]
    options[options.index(maps)] = maps / "scene"
    assert call("segment", *options).exit_code == 0
    assert second == digests(maps / "scene")


# Golden tiles


@pytest.fixture(scope="module")
def golden(tmp_path_factory, scene, model_path):
    """A file of tiles of the scene, and the labels that its model gives them."""
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    words = ["--scene", scene, "--to", path, "--precision", "fp32"]
    made = call("model", "canary", model_path, *words)
    assert made.exit_code == 0
    assert "9 spots" in made.stdout
    return path


def test_golden_tiles_that_are_given_again_let_a_result_pass(job, golden):
    staff = Staff()

    values = done(job(gates={"canary": str(golden)}), staff=staff)

    (gate,) = (it for it in values["gates"] if it["name"] == "canary")
    assert (gate["got"], gate["passed"]) == (1.0, True)
    # Once a process: the next job's engine is not asked.
    staff.engine(job()).agree = None
    done(job(confidence=True, gates={"canary": str(golden)}), staff=staff)


def test_golden_labels_are_those_of_a_mask(job, golden):
    """Where a spot's tiles lie in the scene: the same network, grid and scaling."""
    from tileseg.plans.canary import read_canary
    from tileseg.plans.precision import spots
    from tileseg.plans.task import prepare

    done(job())
    labels = read_canary(str(golden)).labels
    task = prepare(job())
    grid = replace(task.grid, shard=2 * task.grid.stride)
    import rasterio

    with rasterio.open(job().output_path / "mask.tif") as dataset:
        mask = dataset.read(1)
    for spot, found in zip(spots(grid), labels, strict=True):
        window = grid.pixels(spot)
        expected = mask[window.slices]
        inner = found[: window.height, : window.width]
        np.testing.assert_array_equal(expected, inner)


def test_a_network_that_answers_otherwise_goes_nowhere(job, golden, tmp_path):
    """One label of one pixel is enough."""
    with np.load(golden) as file:
        arrays = dict(file)
    at = tuple(np.argwhere(arrays["labels"] != 255)[0])
    arrays["labels"][at] = (arrays["labels"][at] + 1) % 3
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)

    values = parked(job(gates={"canary": str(path)}))

    (gate,) = (it for it in values["gates"] if it["name"] == "canary")
    assert 0.999 < gate["got"] < 1
    share = gate["got"] - 1e-6
    done(job(gates={"canary": str(path), "canary_share": share}), staff=Idle())


def test_golden_tiles_of_another_model_are_told_before_any_work(job, golden, tmp_path):
    other = make_model(tmp_path / "other", seed=5)
    text = tmp_path / "text.npz"
    text.write_text("golden")

    refused = run(job(model=str(other), gates={"canary": str(golden)}), staff=Idle())
    broken = run(job(gates={"canary": str(text)}), staff=Idle())

    assert refused.values["exit_code"] == ExitCode.USAGE
    assert "make it anew" in str(refused.error)
    assert broken.values["exit_code"] == ExitCode.INPUT
    assert "is no file of tileseg model canary" in str(broken.error)
