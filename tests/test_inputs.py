"""What an input names, and files that are joined to one scene."""

import json

import numpy as np
import obstore
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from making import digests, make_plain, make_scene, random_pixels, read
from obstore.store import from_url
from s3 import serve
from stac import GEOTIFF, earth_search, make_item

import tileseg
from tileseg.base.names import scene_name
from tileseg.cli import main
from tileseg.errors import InputError, UsageError
from tileseg.scenes.inputs import _matches, find_many, find_scenes, mosaic_of
from tileseg.scenes.layer import Layer
from tileseg.settings import Job

NORTH_UP = Affine(10, 0, 500_000, 0, -10, 4_600_000)


@pytest.fixture
def archive(tmp_path):
    """Scenes in folders, and what is none."""
    for name in ("b.tif", "a.TIFF", "deep/er/c.tif", "deep/d.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"II*\0")
    (tmp_path / ".hidden.tif").write_bytes(b"II*\0")
    (tmp_path / "b.tif.aux.xml").write_text("<PAMDataset/>")
    (tmp_path / "folder.tif").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("b.tif", ["b.tif"]),
        ("missing.tif", ["missing.tif"]),
        ("b.tif.aux.xml", ["b.tif.aux.xml"]),
        (".", ["a.TIFF", "b.tif"]),
        ("deep", ["deep/d.tif"]),
        ("*", ["a.TIFF", "b.tif"]),
        ("*.tif", ["b.tif"]),
        ("deep/?.tif", ["deep/d.tif"]),
        ("[ab].*", ["a.TIFF", "b.tif"]),
        ("**/*.tif", ["b.tif", "deep/d.tif", "deep/er/c.tif"]),
        ("deep/**", ["deep/d.tif", "deep/er/c.tif"]),
    ],
)
def test_an_input_names_scenes(archive, monkeypatch, source, expected):
    for folder in ("", f"{archive}/"):
        monkeypatch.chdir(archive)

        found = find_scenes([f"{folder}{source}"])

        assert found == tuple(f"{folder}{name}" for name in expected)


def test_a_file_named_like_a_pattern_is_itself(archive):
    path = archive / "s[1]*.tif"
    path.write_bytes(b"II*\0")

    assert find_scenes([str(path)]) == (str(path),)


@pytest.mark.parametrize(
    "source", ["*.png", "nowhere/*.tif", "folder.tif", "empty.txt"]
)
def test_an_input_that_names_nothing_is_named(archive, source):
    (archive / "empty.txt").write_text("# none tonight\n")

    with pytest.raises(InputError, match="names no scene"):
        find_scenes([str(archive / source)])


def test_a_list_names_paths_beside_it_and_addresses(archive):
    path = archive / "list.txt"
    path.write_text(
        "# tonight\n\n b.tif \ndeep/*.tif\n/x/y.tif\nhttps://example.org/z.tif\nb.tif\n"
    )

    expected = (
        f"{archive}/b.tif",
        f"{archive}/deep/d.tif",
        "/x/y.tif",
        "https://example.org/z.tif",
    )
    assert find_scenes([str(path)]) == expected
    assert find_many(str(path)) == expected


def test_a_list_that_is_in_a_list_is_a_scene_that_fails(archive):
    """So no list can lead round in a circle."""
    (archive / "list.txt").write_text("list.txt\n")

    assert find_scenes([str(archive / "list.txt")]) == (f"{archive}/list.txt",)


def test_a_list_of_something_else_is_named(archive):
    (archive / "bad.txt").write_bytes(b"\xff\xfe")

    for find in (find_many, lambda source: find_scenes([source])):
        with pytest.raises(InputError, match=r"bad\.txt"):
            find(str(archive / "bad.txt"))


LONG = "x" * 300  # more than a file may be called


@pytest.mark.parametrize("name", [LONG, f"{LONG}.tif", f"{LONG}/*.tif"])
def test_a_name_that_no_file_can_have_is_one_line(name):
    for find in (find_many, lambda source: find_scenes([source])):
        with pytest.raises(InputError, match="cannot be read as"):
            find(name)


def test_a_line_that_no_file_can_be_called_is_a_scene_that_fails(archive):
    """The night's other scenes do not."""
    path = archive / "list.txt"
    path.write_text(f"{LONG}\nb.tif\n")

    assert find_many(str(path)) == (f"{archive}/{LONG}", f"{archive}/b.tif")


def test_a_long_name_ends_the_command_as_a_missing_file_does(model_path):
    assert call("segment", "--input", LONG, "--model", model_path).exit_code == 4


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/item.json?sig=hidden",
        "https://example.org/item.geojson?sig=hidden#one",
        "https://example.org/collections/s2/items/S2B?sig=hidden",
    ],
)
def test_a_document_with_a_query_makes_no_job(address):
    """Its handle would look like one of its Items."""
    for source in (address, ("a.tif", address)):
        with pytest.raises(UsageError, match="without a query") as caught:
            Job(input=source, join="bands", output="out")
        assert "hidden" not in str(caught.value)


def test_inputs_stay_in_order_and_are_taken_once(archive):
    names = [str(archive / "deep"), str(archive / "b.tif"), str(archive)]

    found = find_scenes(names)

    assert found == tuple(f"{archive}/{n}" for n in ("deep/d.tif", "b.tif", "a.TIFF"))


def test_a_collection_names_a_scene_for_each_item(archive):
    items = [earth_search(name=name) for name in ("one", "two")]
    path = archive / "found.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))

    assert find_scenes([str(path)]) == (f"{path}#one", f"{path}#two")
    assert find_scenes([f"{path}#two"]) == (f"{path}#two",)
    assert find_many(str(path)) == (f"{path}#one", f"{path}#two")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/b.tif", "b"),
        ("https://example.org/a/b.tif?sig=x/y.tif", "b"),
        ("found.json#S2B_31TDG", "S2B_31TDG"),
        ("s3://maps/found.json#a/../b", "a_.._b"),
        ("found.json#..", "_"),
        ("https://example.org/found.json#a?b", "a_b"),
        ("a#b.tif", "a_b"),
    ],
)
def test_a_scene_has_a_name_that_is_one_folder(source, expected):
    assert scene_name(source) == expected
    assert Job(input=source).output_path.name == expected


NAMES = st.lists(st.sampled_from(["a", "b", "a.tif", "b.tif"]), min_size=1, max_size=4)


@given(names=NAMES, at=st.integers(0, 3))
def test_a_pattern_of_a_store_stops_at_slashes_but_for_two_stars(names, at):
    name = "/".join(names)
    at = min(at, len(names) - 1)

    assert _matches(name, name)
    assert _matches(name, "/".join([*names[:at], "*", *names[at + 1 :]]))
    assert _matches(name, "/".join([*names[:at], "**", *names[at:]]))
    assert _matches(name, "/".join(["**", names[-1]]))
    assert not _matches(f"x/{name}", "/".join("?*" for _ in names))


def test_several_files_are_one_scene_only_where_they_are_joined():
    files = ("a.tif", "b.tif")

    with pytest.raises(UsageError, match="--join"):
        Job(input=files, output="out")
    with pytest.raises(UsageError, match="output: wanted a directory"):
        Job(input=files, join="bands")
    with pytest.raises(UsageError, match="join: got 'both'"):
        Job(input=files, join="both", output="out")
    for empty in ((), "", ("a.tif", "")):
        with pytest.raises(UsageError, match="input"):
            Job(input=empty, join="bands", output="out")
    job = Job(input=files, join="bands", output="out")
    assert job.href == "a.tif and 1 more"
    assert job.given()["input"] == ["a.tif", "b.tif"]


def test_files_are_joined_as_bands_or_side_by_side():
    layers = Layer(href="a.tif"), Layer(href="b.tif")
    facts = {"input": ("a.tif", "b.tif"), "output": "out"}

    assert mosaic_of(Job(join="bands", **facts), ()) == (layers,)
    assert mosaic_of(Job(join="mosaic", **facts), ()) == tuple((x,) for x in layers)
    assert mosaic_of(Job(input="a.tif"), ()) == ((layers[0],),)


def call(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def whole(tmp_path, model_path):
    """A scene of one file, its pixels and the digests of its products."""
    pixels = random_pixels(130, 171)
    scene = make_scene(tmp_path / "whole.tif", pixels)
    words = ["segment", "--input", scene, "--model", model_path, "--confidence"]
    assert call(*words, "--output", tmp_path / "out" / "whole").exit_code == 0
    return pixels, tmp_path / "out" / "whole"


def test_bands_of_several_files_make_the_mask_of_one(tmp_path, model_path, whole):
    pixels, wanted = whole
    files = []
    for name, layer in zip(("blue", "green", "red"), pixels, strict=True):
        path = tmp_path / f"T31_{name}.tif"
        files += ["--input", make_scene(path, layer[None], names=(name,))]
    words = ["segment", *files, "--join", "bands", "--model", model_path]
    words += ["--confidence", "--output", tmp_path / "out" / "joined"]

    result = call(*words)

    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["scene"]["bands"] == ["blue", "green", "red"]
    assert digests(tmp_path / "out" / "joined") == digests(wanted)
    again = call("segment", "--config", tmp_path / "out" / "joined" / "run.json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["started"] == values["started"]


def test_parts_of_one_grid_make_the_mask_of_the_whole(tmp_path, model_path, whole):
    """By a pattern; the seam is at no border of a tile."""
    pixels, wanted = whole
    (tmp_path / "parts").mkdir()
    for number, left, right in ((1, 0, 71), (2, 71, 171)):
        make_scene(
            tmp_path / "parts" / f"part{number}.tif",
            pixels[:, :, left:right],
            transform=NORTH_UP @ Affine.translation(left, 0),
        )
    words = ["segment", "--input", tmp_path / "parts" / "part*.tif", "--join", "mosaic"]
    words += ["--model", model_path, "--output", tmp_path / "out" / "joined"]

    result = call(*words, "--confidence")

    assert result.exit_code == 0
    assert digests(tmp_path / "out" / "joined") == digests(wanted)
    assert json.loads(result.stdout)["job"]["input"] == [
        str(tmp_path / "parts" / f"part{number}.tif") for number in (1, 2)
    ]


def test_a_join_needs_a_name_and_is_no_night(tmp_path):
    for name in ("a", "b"):
        make_plain(tmp_path / f"{name}.tif", random_pixels(40, 50))

    unnamed = call("segment", "--input", tmp_path, "--join", "bands")
    night = call("nightly", "--scenes", tmp_path, "--join", "bands")

    assert unnamed.exit_code == night.exit_code == 2
    assert "output" in unnamed.stderr
    assert "a night has many scenes" in night.stderr


def test_a_pattern_is_a_job_for_each_and_nothing_is_an_error(tmp_path, model_path):
    for name in ("a", "b"):
        make_scene(tmp_path / f"{name}.tif", random_pixels(60, 50))
    words = ["segment", "--model", model_path, "--output", tmp_path / "out"]

    good = call(*words, "--input", tmp_path / "?.tif")
    none = call(*words, "--input", tmp_path / "?.jpg")

    assert good.exit_code == 0
    assert len(good.stdout.splitlines()) == 2
    assert (tmp_path / "out" / "a" / "mask.tif").is_file()
    assert none.exit_code == 4
    assert "?.jpg: names no scene" in none.stderr


def test_an_items_files_are_read_in_a_night(tmp_path, model_path):
    """Each Item of a collection is a scene by its id; a bad one stops no other."""
    pixels = random_pixels(60, 50)
    make_plain(tmp_path / "image.tif", pixels, crs="EPSG:32631", nodata=0)
    names = [{"name": name} for name in ("blue", "green", "red")]
    facts = [{"scale": 1e-4, "nodata": 0}] * 3
    image = {"href": "image.tif", "type": GEOTIFF}
    image |= {"eo:bands": names, "raster:bands": facts}
    items = [
        make_item({"image": image}, name="good"),
        make_item({"image": image | {"href": "/etc/passwd"}}, name="bad"),
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))

    result = call(
        "nightly", "--scenes", path, "--model", model_path, "--output", tmp_path / "out"
    )

    assert result.exit_code == 3
    *_, summary = map(json.loads, result.stdout.splitlines())
    assert [item["state"] for item in summary["scenes"]] == ["done", "failed"]
    one = make_scene(tmp_path / "one.tif", pixels)
    tileseg.segment(one, model=str(model_path), output=str(tmp_path / "one"))
    expected = read(tmp_path / "one" / "mask.tif")
    np.testing.assert_array_equal(
        expected, read(tmp_path / "out" / "good" / "mask.tif")
    )


def test_several_files_go_into_a_notebooks_call(tmp_path, model_path):
    pixels = random_pixels(60, 50)
    files = [
        make_scene(tmp_path / f"{n}.tif", layer[None], names=(n,))
        for n, layer in zip(("blue", "green", "red"), pixels, strict=True)
    ]

    output = str(tmp_path / "out")
    values = tileseg.segment(files, join="bands", model=str(model_path), output=output)

    assert values["exit_code"] == 0
    with rasterio.open(tmp_path / "out" / "mask.tif") as mask:
        assert mask.shape == (60, 50)


@pytest.mark.slow  # a server is started
def test_patterns_and_documents_in_a_store(tmp_path, model_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = random_pixels(60, 50)
    scene = make_scene(tmp_path / "a.tif", pixels)
    with serve(tmp_path):
        store = from_url("s3://maps/in")
        for name in ("a.tif", "b.TIF", "deep/c.tif", ".d.tif", "e.txt"):
            obstore.put(store, name, scene)
        for source, expected in {
            "s3://maps/in/": ["a.tif", "b.TIF"],
            "s3://maps/in/*.tif": ["a.tif"],
            "s3://maps/in/**/*.tif": ["a.tif", "deep/c.tif"],
            "s3://maps/i?/deep/*": ["deep/c.tif"],
            "s3://maps/in/zzz.tif": ["zzz.tif"],
        }.items():
            found = find_scenes([source])
            assert found == tuple(f"s3://maps/in/{name}" for name in expected)
        with pytest.raises(InputError, match="names no scene"):
            find_scenes(["s3://maps/in/*.jp2"])

        names = [{"name": name} for name in ("blue", "green", "red")]
        image = {"href": "./deep/c.tif", "type": GEOTIFF, "eo:bands": names}
        item = json.dumps(make_item({"image": image})).encode()
        obstore.put(store, "item.json", item)
        words = ["segment", "--model", model_path, "--output", tmp_path / "out"]
        result = call(*words, "--input", "s3://maps/in/item.json")

        assert result.exit_code == 0, result.stderr
        local = {"model": str(model_path), "output": str(tmp_path / "local")}
        tileseg.segment(scene, **local)
        assert digests(tmp_path / "out") == digests(tmp_path / "local")
