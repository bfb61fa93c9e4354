"""Whatever a name says, it is one plain name below the place it was meant for."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_scene, random_pixels

from tileseg.base.names import slug, stem
from tileseg.errors import ExitCode
from tileseg.job import run
from tileseg.settings import Job

HOSTILE = [
    "",
    ".",
    "..",
    "...",
    "../x",
    "../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "//host/share",
    "a/b",
    "a\\b",
    "a/../../b",
    "x/.",
    "~/x",
    "%2e%2e",
    "%2e%2e%2fx",
    "..%2f",
    "a\0b",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "\x1b[2Ja",
    "\x7f",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "a\u200bb",
    "\ufeffa",
    "a\u2028b",
    "\ud800",
    "\udcff\udcfe",
    "CON",
    "con.tif",
    "NUL",
    "lpt1",
    "aux.x",
    "x.",
    "x ",
    "   ",
    "a" * 300,
    "ä" * 300,
    "\U0001f6f0" * 300,
    "." * 300,
    "a/" * 300,
]


def is_plain(name):
    return (
        name not in ("", ".", "..")
        and not set("/\\\0\n\r%\x1b") & set(name)
        and len(os.fsencode(name)) <= 200
        and name == name.strip()[:200]
    )


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_hostile_name_is_one_plain_name(text, tmp_path):
    name = slug(text)
    (tmp_path / name).mkdir()

    assert is_plain(name.strip())
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@given(st.text())
def test_every_text_becomes_a_name_that_stays_as_it_is(text):
    name = slug(text)

    assert name not in ("", ".", "..")
    assert not set("/\\\0\n\r%") & set(name)
    assert len(name.encode()) <= 201
    assert slug(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "scene",
        "S2A_MSIL2A_20240101T100000_N0510_R022_T32TQM_20240101T120000",
        "LC08_L2SP_193028_20230715_02_T1",
        "2024-01-01T10:00:00",
        "Straße 12, Zürich",
        "場面",
        ".hidden",
        "a..b",
        "-x",
    ],
)
def test_a_name_as_people_give_them_stays(name):
    assert slug(name) == name


def test_long_names_stay_distinct():
    assert slug("a" * 300) != slug("a" * 301)


def test_the_results_name_is_the_files_without_suffix_query_and_folder():
    assert stem("/data/scene.tif") == "scene"
    assert stem("https://example.com/a/scene.tif?sig=a/b.c") == "scene"
    assert stem("a/b.c.tif") == "b.c"
    assert stem("....tif") != ".."


@pytest.mark.parametrize("name", ["...tif", "%2e%2e.tif", "a\nb.tif", "\u202ea.tif"])
def test_a_scene_of_a_hostile_name_writes_below_out_only(
    name, model_path, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    scene = make_scene(Path(name), random_pixels(40, 50))

    record = run(Job(input=str(scene), model=str(model_path), shard=96))

    assert record.values["exit_code"] == ExitCode.OK, record.values["error"]
    assert [item.name for item in tmp_path.iterdir()] == ["here"]
    assert {item.name for item in Path.cwd().iterdir()} == {name, "out"}
    [output] = [item for item in Path("out").iterdir() if (item / "run.json").exists()]
    assert output.resolve().parent == Path("out").resolve()
