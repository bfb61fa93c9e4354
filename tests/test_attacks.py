"""The attack set: nothing is fetched, nothing read that was not given, nothing run."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import obstore
import pytest
import rasterio
import s3
import web
from attacks import bombs, odd_names, pretended
from canary import Canary
from making import digests, make_scene, random_pixels
from obstore.store import from_url

from tileseg.errors import TilesegError
from tileseg.job import run
from tileseg.settings import Job
from tileseg.steps.record import Record

ROOT = Path(__file__).parents[1]
CANARY = "ZWTQ-4711-QXVZ"  # in a file that nobody may read through us
PRETENDED = sorted(pretended(Path("/nowhere"), "", Path(), write=False))


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    server = Canary(tmp_path_factory.mktemp("canary"))
    yield server
    server.close()


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text(f"{CANARY}\n" * 300)  # enough for 64 x 64 pixels of bytes
    return path


@pytest.fixture
def attacked(tmp_path, canary, model_path, capfd, caplog):
    """Run a job, and see that no secret and no request came of it."""

    def attack(href, **facts):
        caplog.set_level("DEBUG")
        asked = len(canary.requests)
        out = tmp_path / "here" / "out"
        facts = {"model": str(model_path), "shard": 96, **facts}
        try:
            record = run(Job(input=str(href), output=str(out), **facts))
        except TilesegError as err:  # no job could mean that
            record = Record(str(href))
            record.fail(err)
        texts = [json.dumps(record.values), caplog.text, *capfd.readouterr()]
        made = [item for item in (tmp_path / "here").rglob("*") if item.is_file()]
        for item in texts + [item.read_bytes().decode("latin-1") for item in made]:
            for part in (CANARY[:4], CANARY[-4:]):
                assert part not in item
        assert len(canary.requests) == asked
        assert not (tmp_path / "ran").exists()
        return record

    return attack


def test_the_canary_sings(canary):
    """The negative control: a request is seen."""
    asked = len(canary.requests)
    with pytest.raises(HTTPError):
        urllib.request.urlopen(canary.url)  # noqa: S310  (loopback)

    assert len(canary.requests) == asked + 1


@pytest.mark.parametrize("name", PRETENDED)
@pytest.mark.parametrize("trusted", [False, True])
def test_what_only_looks_like_a_geotiff_is_refused(
    attacked, tmp_path, canary, secret, name, trusted
):
    paths = pretended(tmp_path, canary.url, secret)

    record = attacked(paths[name], trusted=trusted)

    assert record.values["exit_code"] == 3, record.values["error"]


def test_names_that_mean_something_to_gdal_are_refused(
    attacked, tmp_path, canary, secret
):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    names = odd_names(canary.url, scene, secret)

    codes = {name: attacked(name).values["exit_code"] for name in names}

    assert {name for name, code in codes.items() if code not in (2, 3, 4)} == set()
    assert {code for name, code in codes.items() if name.startswith("/vsi")} == {3}


@pytest.fixture(scope="module")
def served(canary, tmp_path_factory):
    """The attack set, a bomb and a scene, in a folder that is served."""
    folder = tmp_path_factory.mktemp("served")
    secret = folder / "secret.txt"
    secret.write_text(f"{CANARY}\n" * 300)
    pretended(folder, canary.url, secret)
    (folder / "bomb.tif").write_bytes(bombs()["a tile of 4 GB"])
    scene = make_scene(folder / "scene.tif", random_pixels(40, 50))
    led = make_scene(folder / "led_astray.tif", random_pixels(40, 50))
    with rasterio.open(led, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(scene))
    return folder


def _codes(attacked, served, href, **facts):
    """Return the exit code of each file of the folder, read from elsewhere."""
    return {
        path.name: attacked(href.format(path.name), **facts).values["exit_code"]
        for path in sorted(served.glob("*.tif"))
    }


def _all_refused(codes):
    refused = {name: code for name, code in codes.items() if name != "scene.tif"}

    assert codes["scene.tif"] == 0  # the negative control
    assert len(refused) > len(PRETENDED)
    assert refused.pop("nothing.tif") == 4  # it is empty, and said to be
    assert set(refused.values()) == {3}, refused


def test_the_attack_set_is_refused_from_a_web_server(attacked, served, tmp_path):
    with web.serve(served, tmp_path / "web") as site:
        codes = _codes(
            attacked,
            served,
            site.address + "/{}",
            hosts=(site.host,),
            overwrite=True,
        )

    _all_refused(codes)


@pytest.mark.slow
def test_the_attack_set_is_refused_from_a_bucket(attacked, served, tmp_path):
    (tmp_path / "s3").mkdir()
    with s3.serve(tmp_path / "s3") as address, s3.environment(address):
        for path in served.glob("*.tif"):
            obstore.put(from_url("s3://maps/a"), path.name, path.read_bytes())
        codes = _codes(attacked, served, "s3://maps/a/{}", overwrite=True)

    _all_refused(codes)


def _sidecars(scene, url, secret):
    """Lay files beside a scene that GDAL would read if it were let."""
    source = "<SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource>"
    vrt = (
        '<VRTDataset rasterXSize="{}" rasterYSize="{}"><VRTRasterBand dataType="Byte" '
        'band="1">{}</VRTRasterBand></VRTDataset>'
    )
    overview = vrt.format(150, 205, source.format(f"/vsicurl/{url}"))
    mask = vrt.format(300, 410, source.format(secret))
    beside = {
        f"{scene.name}.ovr": overview,
        f"{scene.name}.msk": mask,
        f"{scene.name}.aux.xml": "<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0, 1, "
        "0, 0, 0, -1</GeoTransform><Metadata domain='OVERVIEWS'><MDI "
        f"key='OVERVIEW_FILE'>/vsicurl/{url}</MDI></Metadata><PAMRasterBand band='1'>"
        "<NoDataValue>7</NoDataValue><Scale>9</Scale></PAMRasterBand></PAMDataset>",
        f"{scene.stem}.aux": mask,
        f"{scene.stem}.tfw": "1\n0\n0\n-1\n0\n0\n",
        f"{scene.name}w": "1\n0\n0\n-1\n0\n0\n",
        f"{scene.stem}.wld": "1\n0\n0\n-1\n0\n0\n",
        f"{scene.stem}.tab": '!table\nDefinition Table\n  File "scene.tif"\n',
        f"{scene.stem}.IMD": "BEGIN_GROUP = BAND_C\nEND_GROUP = BAND_C\nEND;\n",
        f"{scene.stem}.imd": "satId = x;\nEND;\n",
        f"{scene.stem}.RPB": "satId = x;\nBEGIN_GROUP = IMAGE\nEND_GROUP = IMAGE\n",
        f"{scene.stem}_RPC.TXT": "LINE_OFF: 1\n",
        f"{scene.stem}_rpc.txt": "LINE_OFF: 1\n",
        f"{scene.stem}_metadata.xml": "<a/>",
        f"{scene.stem}.xml": "<isd><IMD/></isd>",
        f"{scene.stem}.prj": "EPSG:3857",
        f"{scene.stem}_MTL.txt": "GROUP = L1_METADATA_FILE\n",
    }
    for name, text in beside.items():
        (scene.parent / name).write_text(text)


def test_what_lies_beside_a_scene_changes_nothing(
    attacked, scene_path, tmp_path, canary, secret
):
    facts = {"confidence": True, "overwrite": True}
    plain = attacked(scene_path, **facts)
    before = digests(tmp_path / "here" / "out")
    _sidecars(scene_path, canary.url, secret)

    record = attacked(scene_path, **facts, keep_work=True, grace=3.0)
    (tmp_path / "here" / "out" / "mask.tif").unlink()  # else there is nothing to do
    again = attacked(scene_path, **facts)

    assert plain.values["exit_code"] == record.values["exit_code"] == 0
    assert again.values["exit_code"] == 0, again.values["error"]
    assert before == digests(tmp_path / "here" / "out")
    assert plain.values["scene"] == again.values["scene"]


@pytest.mark.parametrize("kind", ["raster", "vrt", "url"])
def test_a_scene_that_names_its_overviews_elsewhere_is_refused(
    attacked, scene_path, tmp_path, canary, secret, kind
):
    places = {
        "raster": str(make_scene(tmp_path / "other.tif", random_pixels(40, 50))),
        "vrt": str(pretended(tmp_path, canary.url, secret)["vrt of a url"]),
        "url": f"/vsicurl/{canary.url}",
    }
    with rasterio.open(scene_path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=places[kind])

    record = attacked(scene_path)

    assert record.values["exit_code"] == 3
    assert attacked(scene_path, trusted=True).values["exit_code"] == 3


def test_a_symlink_to_a_scene_is_a_scene(attacked, scene_path, tmp_path):
    """The negative control: nothing is wrong with links, nor with this job."""
    link = tmp_path / "link.tif"
    link.symlink_to(scene_path)

    assert attacked(link).values["exit_code"] == 0


SECOND = """
import json, sys
from tileseg.base.environment import scrub
scrub()
import pyogrio, rasterio
opened = []
for path in sys.argv[1:]:
    for name, call in (("rasterio", rasterio.open), ("pyogrio", pyogrio.read_info)):
        try:
            call(path)
            opened.append([name, path])
        except Exception:
            pass
print(json.dumps(opened))
"""


def test_the_second_layer_holds_alone(tmp_path, canary, secret):
    """Asked for any driver, neither GDAL follows what a file or a name says."""
    asked = len(canary.requests)
    paths = pretended(tmp_path, canary.url, secret)
    ours = {"ascii grid", "stac", "text", "nothing", "symlink"}  # mere data
    targets = [str(path) for name, path in paths.items() if name not in ours]

    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SECOND, *targets],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(answer.stdout) == []
    assert len(canary.requests) == asked
    assert not (tmp_path / "ran").exists()
