"""Every file of the corpus comes out as its table says: right, or refused by name.

The table is tests/corpus/expected.toml, the files are built by tests/corpus/build.py.
"""

import os
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import tifffile
from fuzz import Child
from making import make_model
from rasterio.crs import CRS

from tileseg.engines.staff import Staff
from tileseg.grid import Grid, Run
from tileseg.job import run
from tileseg.scenes.gdal import open_dataset
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene
from tileseg.settings import Job

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "corpus"))

import build  # noqa: E402

TABLE = tomllib.loads(build.TABLE.read_text(encoding="utf-8"))
SUCCESS = [name for name, facts in TABLE.items() if facts["exit"] == 0]
HOSTILE = [name for name, facts in TABLE.items() if facts["kind"] == "hostile"]
HUGE = {"sparse-huge.tif"}
NAMED = ("red", "green", "nir")
# Whole jobs that end well take most of a second each: one in ten is tried at once.
QUICK = {*TABLE} - {*SUCCESS} | {*SUCCESS[::10]}
LATER = ("cannot read", "int64", "uint64")  # what only reading the pixels can tell
SECONDS = 20  # more than any file may take, on a busy machine
MEGABYTES = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def cases(folder):
    return build.build(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of one to three bands."""
    folder = tmp_path_factory.mktemp("models")

    def make(count):
        facts = {"bands": NAMED[:count], "mean": (0,) * count, "std": (1,) * count}
        return make_model(folder / str(count), **facts)

    return {count: make(count) for count in (1, 2, 3)}


@pytest.fixture(scope="module")
def staff():
    with Staff() as staff:
        yield staff


@pytest.fixture(scope="module")
def child():
    with Child() as child:
        yield child


def job_of(case, folder, models, output):
    """Return the job that segments a case: the bands it says, and values up to 1."""
    peak = 1.0
    if case.valid is not None and case.valid.any() and not case.is_huge:
        peak = max(1.0, float(np.abs(case.seen).max()))
    facts = {
        "input": str(folder / case.name),
        "model": str(models[len(case.used)]),
        "output": str(output),
        "bands": case.used,
        "scale": 1 / peak,
        "shard": 1536 if case.kind == "hostile" or case.is_huge else 96,
        "precision": "fp32",
        "engine": "local",
        "dry_run": case.is_huge,
        # Only those that may need it are looked at by another process first.
        "trusted": case.kind != "hostile" and not case.is_huge,
    }
    return Job(**{**facts, **case.job})


def seen(path, bands):
    """Return (pixels, validity) of a scene as the network sees them, as float32."""
    scene = open_scene(str(path))
    box = scene.geobox
    grid = Grid(height=box.height, width=box.width, tile=32, halo=4, shard=96)
    strips = list(Reader(scene, scene.select(bands), grid).strips(Run(grid.shape)))
    inner = slice(grid.halo, -grid.halo)
    pixels = np.concatenate([s.pixels[:, inner, inner] for s in strips], axis=1)
    valid = np.concatenate([strip.valid[inner, inner] for strip in strips])
    whole = (slice(box.height), slice(box.width))
    pixels, valid = pixels[:, *whole], valid[whole]
    return np.where(valid, pixels, 0).astype(np.float32), valid


def is_same_system(expected, found):
    """Return whether two CRS are one, whatever they call themselves."""
    if expected is None or found is None:
        return expected is found
    one = CRS.from_user_input(expected)
    return one == found or (bool(one.to_dict()) and one.to_dict() == found.to_dict())


def test_the_table_is_what_the_program_makes(cases):
    assert build.table(cases) == build.TABLE.read_text(encoding="utf-8")


def test_there_are_enough_of_every_kind():
    kinds = {facts["kind"] for facts in TABLE.values()}

    assert len(TABLE) >= 120
    assert kinds == {part.__name__ for part in build.PARTS}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_that_asks_for_much_gets_little(
    name, cases, folder, models, child
):
    """All that a job does before it reads, by a process that may die of it."""
    case = cases[name]

    answer = child.look(folder / name, model=models[1])

    is_seen_later = case.says.startswith(LATER)
    assert answer.code == (0 if is_seen_later else case.code), answer.says
    assert not answer.fault


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in TABLE
    ],
)
def test_what_a_job_makes_of_a_file(name, cases, folder, models, staff, tmp_path):
    """It ends as expected, in time; the mask lies as the scene does, valid as it is."""
    case = cases[name]
    if name == "locked.tif" and os.geteuid() == 0:
        pytest.skip("the superuser may read anything")
    start = perf_counter()

    record = run(job_of(case, folder, models, tmp_path / "out"), staff=staff)

    error = record.values["error"]
    assert record.values["exit_code"] == case.code, error
    assert perf_counter() - start < SECONDS
    if case.code:
        assert case.says in error
        assert "\n" not in error
        assert not (tmp_path / "out").exists()
    elif not case.is_huge:
        assert_mask_fits(tmp_path / "out" / "mask.tif", case, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TABLE} - {*SUCCESS} - {*HOSTILE}))
def test_a_file_that_is_looked_at_first_ends_alike(
    name, cases, folder, models, tmp_path
):
    """The process that looks first says nothing else than a job that trusts."""
    case = cases[name]
    if name == "locked.tif" and os.geteuid() == 0:
        pytest.skip("the superuser may read anything")
    job = replace(job_of(case, folder, models, tmp_path / "out"), trusted=False)

    record = run(replace(job, dry_run=True))

    if case.says.startswith(LATER):
        assert record.values["exit_code"] in (0, case.code)
    else:
        assert record.values["exit_code"] == case.code
        assert case.says in record.values["error"]


def assert_mask_fits(path, case, scene_path):
    """The six terms and the CRS of the mask are the scene's; nodata is where it is."""
    box = open_scene(str(scene_path)).geobox
    with open_dataset(path) as mask:
        labels = mask.read(1)
        crs = mask.crs.to_wkt(version="WKT2_2019") if mask.crs else None
        transform = mask.transform
    assert transform[:6] == case.transform[:6] == box.transform[:6]
    assert crs == box.crs
    assert is_same_system(case.crs, CRS.from_wkt(crs) if crs else None)
    np.testing.assert_array_equal(case.valid, labels != 255)


@pytest.mark.parametrize("name", [n for n in SUCCESS if "sha256" in TABLE[n]])
def test_what_is_read_of_a_file(name, cases, folder):
    """Every valid pixel is what the file was made of; every other one is not valid."""
    case = cases[name]

    pixels, valid = seen(folder / name, case.used)

    np.testing.assert_array_equal(case.valid, valid)
    np.testing.assert_array_equal(case.seen, pixels)


@pytest.mark.parametrize("name", [n for n in SUCCESS if "within" in TABLE[n]])
def test_what_is_read_of_a_lossy_file(name, cases, folder):
    case = cases[name]

    pixels, valid = seen(folder / name, case.used)

    np.testing.assert_array_equal(case.valid, valid)
    np.testing.assert_allclose(pixels, case.seen, rtol=0, atol=case.within)


# Where tifffile does not forgive what libtiff does.
STRICT = {"strips-sizes-1.tif", "deflate-longer.tif", "bomb-behind.tif"}


@pytest.mark.parametrize("name", sorted({*SUCCESS} - STRICT - HUGE))
def test_another_reader_of_tiffs_sees_the_same(name, cases, folder):
    """What is expected does not rest on the program that made the file."""
    case = cases[name]

    with tifffile.TiffFile(folder / name) as file:
        page = file.pages[0]
        planes = page.asarray().reshape(page.shaped)[:, 0]
    pixels = planes.transpose(0, 3, 1, 2).reshape(-1, *planes.shape[1:3])

    expected, found = (np.where(case.valid, a, 0) for a in (case.pixels, pixels))
    np.testing.assert_allclose(found, expected, rtol=0, atol=case.within)


def test_the_corpus_is_the_same_each_time(cases, folder, tmp_path):
    again = build.build(tmp_path)
    here, there = (
        {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()}
        for where in (folder, tmp_path)
    )

    assert list(cases) == list(again)
    assert here == there
