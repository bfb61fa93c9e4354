"""Each new scene once, a bad one stops no other, a second night does nothing."""

import json

import pytest
from click.testing import CliRunner
from making import digests, make_scene, random_pixels, snapshot
from schemas import faults

from tileseg.cli import main
from tileseg.errors import InputError
from tileseg.scenes.inputs import find_many


@pytest.fixture
def archive(tmp_path):
    """Three scenes, one of them no GeoTIFF, and what is no scene."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    make_scene(folder / "b.tif", random_pixels(130, 171))
    make_scene(folder / "c.TIFF", random_pixels(99, 260, seed=1))
    (folder / "a.tif").write_text("not a raster")
    (folder / "b.tif.aux.xml").write_text("<PAMDataset/>")
    (folder / ".d.tif").write_text("half copied")
    (folder / "old.tif").mkdir()
    return folder


@pytest.fixture
def night(archive, model_path, tmp_path):
    """Run a night; return its exit code, lines of JSON and last line."""

    def call(*more, scenes=archive):
        words = ["nightly", "--scenes", scenes, "--output", tmp_path / "maps"]
        words += ["--model", model_path, "--work", tmp_path / "work", *more]
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert "Traceback" not in result.stderr
        *lines, summary = map(json.loads, result.stdout.splitlines())
        assert faults(summary, "night") == []
        return result.exit_code, lines, summary

    return call


def states(summary):
    return {
        item["scene"].rpartition("/")[2]: item["state"] for item in summary["scenes"]
    }


def test_a_bad_scene_stops_no_other(night, tmp_path):
    code, lines, summary = night()

    assert code == summary["exit_code"] == 3
    assert [line["exit_code"] for line in lines] == [3, 0, 0]
    assert states(summary) == {"a.tif": "failed", "b.tif": "done", "c.TIFF": "done"}
    assert summary["counts"]["scenes"] == 3
    assert (tmp_path / "maps" / "b" / "mask.tif").is_file()
    assert (tmp_path / "maps" / "c" / "mask.tif").is_file()
    assert not (tmp_path / "maps" / "a").exists()
    written = json.loads((tmp_path / "maps" / "night.json").read_text())
    assert written["scenes"] == summary["scenes"]


def test_a_second_night_does_nothing(night, tmp_path):
    night()
    before = {
        name: facts
        for name, facts in snapshot(tmp_path / "maps").items()
        if name != "night.json"
    }

    _, _, summary = night()

    assert states(summary)["b.tif"] == states(summary)["c.TIFF"] == "unchanged"
    after = snapshot(tmp_path / "maps")
    del after["night.json"]
    assert before == after


def test_a_scene_is_known_however_its_path_is_spelt(night, archive):
    """By its bytes: a moved mount or a relative path makes no new scene."""
    night()

    _, _, summary = night(scenes=archive.parent / "scenes" / ".." / "scenes")

    assert summary["counts"]["unchanged"] == 2


def test_the_results_of_an_older_version_are_kept(night, tmp_path):
    """They are no failure: an upgrade must not turn a whole archive red."""
    night()
    before = digests(tmp_path / "maps" / "b")

    code, lines, summary = night("--confidence")

    assert states(summary)["b.tif"] == states(summary)["c.TIFF"] == "kept"
    assert [line["exit_code"] for line in lines] == [3, 8, 8]
    assert code == 3  # of the scene that is none
    assert before == digests(tmp_path / "maps" / "b")


def test_only_the_new_scene_is_segmented(night, archive, tmp_path):
    night()
    sums = digests(tmp_path / "maps" / "b")
    make_scene(archive / "d.tif", random_pixels(64, 80, seed=3))

    _, _, summary = night()

    assert states(summary)["d.tif"] == "done"
    assert states(summary)["b.tif"] == "unchanged"
    assert sums == digests(tmp_path / "maps" / "b")


def test_two_scenes_of_one_name_do_not_share_a_result(night, archive, tmp_path):
    """Not even with leave to overwrite: the first has it, the second is told."""
    make_scene(archive / "b.tiff", random_pixels(64, 80, seed=3))

    _, lines, summary = night("--overwrite")

    assert states(summary)["b.tiff"] == "failed"
    assert [line["exit_code"] for line in lines] == [3, 0, 2, 0]
    record = json.loads((tmp_path / "maps" / "b" / "run.json").read_text())
    assert record["scene"]["href"].endswith("b.tif")


def test_a_list_is_relative_to_where_it_lies(night, archive):
    scenes = archive / "tonight.txt"
    scenes.write_text("# the good ones\nb.tif\n\n  c.TIFF  \nmissing.tif\n")

    code, _, summary = night(scenes=scenes)

    assert code == 4
    assert list(states(summary).values()) == ["done", "done", "failed"]


def test_no_scene_is_a_quiet_night(night, tmp_path):
    (tmp_path / "empty").mkdir()

    code, lines, summary = night(scenes=tmp_path / "empty")

    assert (code, lines, summary["counts"]["scenes"]) == (0, [], 0)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        find_many(str(tmp_path / "nowhere"))


def test_a_stopped_night_says_who_waits(night, monkeypatch):
    """The scene in hand is resumable, the others wait for the next night."""
    from tileseg import job
    from tileseg.errors import PreemptedError

    def stop(*_args, **_more):
        raise PreemptedError("SIGTERM: stopped; the same command resumes")

    monkeypatch.setattr(job, "carry_out", stop)

    code, lines, summary = night()

    assert code == 75
    assert [line["exit_code"] for line in lines] == [3, 75]
    assert states(summary) == {
        "a.tif": "failed",
        "b.tif": "waiting",
        "c.TIFF": "waiting",
    }


def test_the_next_scene_is_hashed_once_while_one_is_done(night, archive, hashed):
    """Of what is known by then no byte is read."""
    (archive / "a.tif").unlink()  # cannot be opened, and is hashed as far as it gets
    night()

    assert hashed == ["b.tif in turn", "c.TIFF ahead"]
    hashed.clear()
    night()
    assert hashed == []


def test_a_scene_that_is_known_is_not_hashed_for_a_new_one(night, archive, hashed):
    (archive / "a.tif").unlink()
    night()
    make_scene(archive / "aa.tif", random_pixels(64, 80, seed=3))
    hashed.clear()

    _, _, summary = night()

    assert states(summary)["aa.tif"] == "done"
    assert hashed == ["aa.tif in turn"]


def test_of_several_inputs_the_next_is_hashed_ahead_too(
    archive, model_path, tmp_path, hashed
):
    words = ["segment", "--input", archive / "b.tif", "--input", archive / "c.TIFF"]
    words += ["--model", model_path, "--output", tmp_path / "maps"]

    assert CliRunner().invoke(main, [str(word) for word in words]).exit_code == 0
    assert hashed == ["b.tif in turn", "c.TIFF ahead"]


def test_a_night_leaves_a_collection_of_its_results(night, archive, tmp_path):
    """Of those before too, whatever became of them tonight."""
    night()
    (archive / "b.tif").unlink()
    make_scene(archive / "d.tif", random_pixels(64, 80, seed=3))

    night("--confidence")

    found = json.loads((tmp_path / "maps" / "collection.json").read_text())
    hrefs = [it["href"] for it in found["links"]]
    assert hrefs == [f"./{name}/item.json" for name in "bcd"]
    assert "confidence" in found["item_assets"]
