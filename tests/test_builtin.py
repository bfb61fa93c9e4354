"""The models that come with tileseg are there under their names, wherever one runs."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from making import digests, make_model, make_scene, random_pixels

import tileseg
from tileseg.base.builtin import MODELS, model_folder, portable_name
from tileseg.cards.item import read_card
from tileseg.cli import main
from tileseg.network.model import load_module
from tileseg.settings import Job

BANDS = {
    "landcover-bgr": ("blue", "green", "red"),
    "landcover-bgrn": ("blue", "green", "red", "nir"),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_is_whole_and_called_as_its_folder(name):
    folder = model_folder(name)
    card = read_card(folder)

    assert card.name == folder.name == name
    assert card.bands == BANDS[name]
    weights = list(load_module(folder, card).parameters())
    assert sum(part.numel() for part in weights) > 1_000_000
    assert all(torch.equal(part, part.bfloat16().float()) for part in weights)
    assert (folder / card.weights).stat().st_size < 10_000_000


def test_they_say_the_same_classes():
    first, *others = (read_card(model_folder(name)).classes for name in MODELS)

    assert others == [first]


@pytest.mark.parametrize("name", MODELS)
def test_one_is_meant_by_its_name_and_by_its_folder(tmp_path, name):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(150, 130, bands=4))
    made = []
    for model in (name, str(model_folder(name))):
        output = tmp_path / f"{len(made)}"
        tileseg.segment(str(scene), model=model, output=str(output))
        made.append(digests(output)["mask.tif"])

    assert made[0] == made[1]


def test_a_scene_without_infrared_is_told_what_is_missing(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(150, 130))
    line = ["segment", "--input", str(scene), "--model", "landcover-bgrn"]

    told = CliRunner().invoke(main, [*line, "--output", str(tmp_path / "out")])

    assert told.exit_code == 2
    assert "nir" in told.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_ones_own_with_such_a_name_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / MODELS[0])

    ours, own = (read_card(model_folder(f"{at}{MODELS[0]}")) for at in ("", "./"))
    assert ours.sha256 != own.sha256
    assert Path(portable_name(f"./{MODELS[0]}")) == tmp_path / MODELS[0]


def test_a_name_is_kept_where_a_path_is_made_absolute():
    assert [portable_name(name) for name in ("", *MODELS)] == ["", *MODELS]
    assert portable_name("mine") == str(Path("mine").absolute())
    assert Job(input="s.tif").model_path == model_folder(MODELS[0])


def test_a_model_that_is_not_there_is_told_the_names_of_ours(tmp_path):
    told = CliRunner().invoke(main, ["model", "info", str(tmp_path / "landcover")])

    assert told.exit_code == 7
    for name in MODELS:
        assert name in told.stderr


def test_both_answer_together(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(150, 130, bands=4))

    record = tileseg.segment(str(scene), model=MODELS, output=str(tmp_path / "out"))

    assert [it["name"] for it in record["model"]["members"]] == list(MODELS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["statistics", "import", "train"])
def test_none_is_written_to(tmp_path, monkeypatch, name, command):
    """Nor is a folder made that its name would not lead to."""
    monkeypatch.chdir(tmp_path)
    scene = str(make_scene(tmp_path / "scene.tif", random_pixels(150, 130, bands=4)))
    lines = {
        "statistics": ["model", "statistics", "--model", name, "--scene", scene],
        "import": ["model", "import", "any.pt", "--to", name],
        "train": ["train", "--scene", scene, "--labels", scene, "--to", name],
    }
    before = digests(model_folder(name))

    told = CliRunner().invoke(main, lines[command])

    assert told.exit_code == 2
    assert f"or ./{name}" in told.stderr
    assert digests(model_folder(name)) == before
    assert not Path(name).exists()
