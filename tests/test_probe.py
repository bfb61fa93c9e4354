"""Files that would kill a process are refused, and what is only large is not."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import rasterio
import web
from attacks import DEFLATE, bombs, strips, tiff, tiles, zeros
from making import NORTH_UP, make_scene, random_pixels
from rasterio.errors import RasterioIOError

from tileseg.base.address import allow
from tileseg.errors import InputError, RefusedError, TilesegError
from tileseg.job import run
from tileseg.plans.task import prepare
from tileseg.scenes import probe
from tileseg.scenes.probe import examine
from tileseg.settings import Job

BOMBS = bombs()


# In a process of its own: of children the largest ever counts.
PROGRAM = """
import json, resource, sys
from tileseg.scenes import probe
from tileseg.job import run
from tileseg.settings import Job

def used(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

facts = json.loads(sys.argv[1])
facts["hosts"] = tuple(facts.get("hosts", ()))
before = used(resource.RUSAGE_SELF)[1]
values = run(Job(**facts, bands=(1, 1, 1))).values
probe._nursery.close()  # of its children it tells when it ends
cpu, mb = used(resource.RUSAGE_CHILDREN)
own = used(resource.RUSAGE_SELF)[1] - before
print(json.dumps([values["exit_code"], values["error"], cpu, mb, own]))
"""


LOOK = """
import os, sys
import psutil
from tileseg.scenes import probe

def look():
    probe.examine({sys.argv[1]: "scene"})
    children = psutil.Process().children()
    return [one.pid for one in children if "tileseg.scenes.probe" in one.cmdline()]
"""


def look(*paths):
    """Look at files that are called as where they lie."""
    examine({path: path for path in paths})


def lookers():
    """Return the processes that look for this one."""
    children = psutil.Process().children()
    return [child for child in children if "tileseg.scenes.probe" in child.cmdline()]


def refuse(path, tmp_path, **facts):
    """Run a job that must be refused, soon and in little memory."""
    facts |= {"input": str(path), "output": str(tmp_path / "out")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(facts)],
        check=True,
        stdout=subprocess.PIPE,
    )
    code, error, cpu, mb, own = json.loads(ended.stdout)

    assert code == 3, error
    assert 0 < cpu < 5  # not the clock: others work too
    assert 30 < mb < 600
    assert own < 200  # libraries


@pytest.fixture
def bomb(tmp_path):
    def make(name):
        path = tmp_path / "bomb.tif"
        path.write_bytes(BOMBS[name])
        return path

    return make


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_in_little_memory(bomb, name, tmp_path):
    refuse(bomb(name), tmp_path)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A web server that allows itself to be read, and its folder."""
    folder = tmp_path_factory.mktemp("site")
    with web.serve(folder, tmp_path_factory.mktemp("place")) as site:
        allow([site.host])
        yield site, folder


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_on_the_web_goes_off_elsewhere_too(site, name, tmp_path):
    server, folder = site
    path = folder / f"{list(BOMBS).index(name)}.tif"
    path.write_bytes(BOMBS[name])

    refuse(f"{server.address}/{path.name}", tmp_path, hosts=[server.host])


def test_what_is_on_the_web_is_handed_over(site, tmp_path):
    """Of local and remote files together the one at fault is named."""
    server, folder = site
    here = make_scene(tmp_path / "here.tif", random_pixels(40, 50))
    make_scene(folder / "good.tif", random_pixels(300, 1200, nodata=0), compress=None)
    (folder / "broken.tif").write_bytes(tiff(strips(0, 0), b"\0" * 8))
    good, broken = f"{server.address}/good.tif", f"{server.address}/broken.tif"

    look(str(here), good)
    with pytest.raises(InputError, match=r"broken\.tif: cannot be read as a GeoTIFF"):
        look(good, str(here), broken)
    with pytest.raises(InputError, match=r"missing\.tif"):
        look(f"{server.address}/missing.tif")


def test_a_sparse_scene_of_many_gigabytes_passes(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "width": 92_000, "height": 91_000, "count": 1}
    profile |= {"dtype": "uint8", "tiled": True, "transform": NORTH_UP}
    with rasterio.open(path, "w", **profile, BIGTIFF="YES", SPARSE_OK=True):
        pass

    assert path.stat().st_size < 5_000_000
    look(str(path))


@pytest.mark.parametrize("compress", ["deflate", "zstd", "lzw", "lzma", None])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_what_a_codec_makes_passes(tmp_path, compress, interleave):
    pixels = random_pixels(300, 410)
    path = make_scene(
        tmp_path / "scene.tif", pixels, compress=compress, interleave=interleave
    )

    look(str(path))


def test_a_damaged_block_passes(tmp_path):
    """It is named where it is missed: `--allow-partial` may leave it out."""
    path = make_scene(tmp_path / "scene.tif", random_pixels(300, 410))
    data = bytearray(path.read_bytes())
    data[700:2700] = bytes(2000)  # of the first block
    path.write_bytes(data)

    look(str(path))
    with rasterio.open(path) as dataset, pytest.raises(RasterioIOError):
        dataset.read()


def test_a_block_as_large_as_allowed_is_read(tmp_path):
    """The limits fit each other: the process has the memory for such a block."""
    side = 11_584  # its square is just below 128 MiB
    data = zeros(side * side + (1 << 20))
    path = tmp_path / "large.tif"
    path.write_bytes(tiff(tiles(side, side, side, codec=DEFLATE, data=data), data))

    look(str(path))
    side += 16
    path.write_bytes(tiff(tiles(side, side, side, codec=DEFLATE, data=data), data))
    with pytest.raises(RefusedError, match="blocks of"):
        look(str(path))


def test_the_blocks_of_every_band_are_looked_at(site):
    """Of a file whose bands lie one after the other, as its server sees it."""
    server, folder = site
    pixels = random_pixels(800, 900, bands=8, nodata=0)  # a band is more than a range
    how = {"compress": None, "interleave": "band", "names": None}
    path = make_scene(folder / "p.tif", pixels, **how)
    with rasterio.open(path) as dataset:
        last = dataset.height // 64, dataset.width // 64
        starts = [
            int(dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index))
            for index in dataset.indexes
            for row, col in ((0, 0), last)
        ]
    server.be()

    look(f"{server.address}/p.tif")

    said = [entry["range"].removeprefix("bytes=").split("-") for entry in server.log()]
    ranges = [range(int(start), int(stop) + 1) for start, stop in said]
    assert [at for at in starts if not any(at in found for found in ranges)] == []


def test_more_names_than_a_command_line_holds_are_looked_at(tmp_path):
    folder = tmp_path
    while len(str(folder)) < 3700:
        folder /= "a" * 250
    folder.mkdir(parents=True)
    path = make_scene(folder / "scene.tif", random_pixels(40, 50))
    paths = 600 * [str(path)]
    assert sum(map(len, paths)) > 1 << 21  # what Linux takes

    look(*paths)
    path.write_bytes(BOMBS["a tile of 4 GB"])
    with pytest.raises(RefusedError, match="blocks of"):
        look(*paths)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a strip of 16 GiB that is there", "CPU time limit exceeded"),
        ("a mask in a tile of 4 GB", "a block does not fit"),
    ],
)
def test_of_many_files_the_one_is_named_with_a_reason(tmp_path, bomb, name, reason):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    path = bomb(name)

    with pytest.raises(RefusedError, match=rf"bomb\.tif: .*\({reason}\)"):
        look(str(scene), str(path))


def test_one_process_has_all_looks(tmp_path, bomb):
    """Of several threads too; what ends one look is no harm to another."""
    good = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    bad = bomb("a strip of 16 GiB that is there")
    look(str(good))

    def is_refused(path):
        try:
            look(str(path))
        except RefusedError as err:
            return "bomb.tif" in str(err)
        return False

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(is_refused, [good, good, bad, good, good, good]))

    assert found == [False, False, True, False, False, False]
    look(str(good))  # the bad one's was perhaps the last
    before = lookers()
    look(str(good))
    assert before == lookers()
    assert len(before) == 1


def test_a_process_that_is_forked_begins_one_of_its_own(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    program = f"""{LOOK}
ours = look()
if not os.fork():
    assert len(look()) == 1
    sys.exit()
assert os.wait()[1] == 0
assert look() == ours
"""
    subprocess.run([sys.executable, "-c", program, str(scene)], check=True)


def test_a_look_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    look(str(scene))
    [process] = lookers()
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(probe, "_WALL_SECONDS", 0.5)

    with pytest.raises(RefusedError, match=r"no answer in 0 s"):
        look(str(scene))

    monkeypatch.undo()
    look(str(scene))
    assert not process.is_running()


def test_it_is_not_the_file_s_fault_if_there_is_no_process(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    probe._nursery.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(InputError, match="no process can be started"):
            look(str(scene))
        (tmp_path / "python").write_text("#!/bin/sh\necho no libraries >&2; exit 1\n")
        (tmp_path / "python").chmod(0o755)
        with pytest.raises(InputError, match="started to look at it: no libraries"):
            look(str(scene))

    look(str(scene))


def test_the_process_ends_with_the_one_that_began_it(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    program = f"""{LOOK}
print(*look(), flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", program, str(scene)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)

    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(ended.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_file_that_leads_to_another_as_its_overviews_is_refused(tmp_path):
    """GDAL opens what a file's own metadata names so, with any of its drivers."""
    other = make_scene(tmp_path / "other.tif", random_pixels(40, 50))
    path = make_scene(tmp_path / "scene.tif", random_pixels(80, 100))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(other))

    with pytest.raises(RefusedError, match="names another file as its overviews"):
        look(str(path))
    with pytest.raises(RefusedError, match="names another file as its overviews"):
        prepare(Job(input=str(path), trusted=True))


def test_no_secret_is_in_the_environment_of_the_process(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("GDAL_DRIVER_PATH", "/opt/evil")

    kept = probe._environment()

    assert "canary" not in "".join(kept.values())
    assert "GDAL_DRIVER_PATH" not in kept


def test_the_folder_that_is_worked_in_lends_no_modules(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "scene.tif", random_pixels(40, 50))
    for name in ("rasterio", "tileseg", "struct", "resource"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)

    look(str(scene))

    assert not (tmp_path / "ran").exists()


def test_a_trusted_scene_and_one_that_is_known_are_not_looked_at(
    scene_path, model_path, tmp_path, monkeypatch
):
    facts = {
        "input": str(scene_path),
        "model": str(model_path),
        "output": str(tmp_path / "out"),
        "shard": 96,
    }
    looks = []
    monkeypatch.setattr("tileseg.plans.task.examine", looks.append)

    prepare(Job(**facts, trusted=True))
    assert looks == []
    run(Job(**facts))
    assert looks == [{str(scene_path): str(scene_path)}]
    prepare(Job(**facts))  # known: the last run read the very same file
    assert len(looks) == 1
    scene_path.touch()
    prepare(Job(**facts))
    assert len(looks) == 2


def test_more_pixels_than_allowed_are_refused_by_number(scene_path, model_path):
    facts = {"input": str(scene_path), "model": str(model_path), "shard": 96}

    with pytest.raises(RefusedError, match="123000 pixels, wanted at most 122999"):
        prepare(Job(**facts, max_pixels=122_999))
    prepare(Job(**facts, max_pixels=123_000))


def test_what_is_no_raster_is_told_by_the_process_too(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(tiff(strips(0, 0), b"\0" * 8))

    with pytest.raises(InputError, match="cannot be read as a GeoTIFF"):
        look(str(path))
    with pytest.raises(TilesegError):
        prepare(Job(input=str(path)))
