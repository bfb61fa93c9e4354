"""Every command of the documents was run by a test, or the document says why not.

A page is a walk: its blocks are run in their order, in one shell and one folder. What
may stand before a block: see `walk.py`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import geopandas
import pytest
import rasterio
from making import make_model
from rasterio.warp import transform as project
from rasterio.windows import Window
from shapely.geometry import box
from walk import MARK, ROOT, blocks

from tileseg.base.builtin import default_model

PAGES = sorted(
    path
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/*.md",
        "examples/README.md",
        "infra/**/README.md",
    )
    for path in ROOT.glob(pattern)
)
LISBON = (-9.21, 38.77)
"""Where the scenes lie: longitude and latitude of their upper left corner."""
HEIGHT, WIDTH = 200, 260


def name(path):
    return str(path.relative_to(ROOT))


MARKED = [
    pytest.param(path, block, id=f"{name(path)}:{block.line}")
    for path in PAGES
    for block in blocks(path)
    if block.mark
]


def programs(text):
    """Return what the lines of a block begin with."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


WALKS = [
    path
    for path in PAGES
    if path.name != "tutorial.md"  # test_tutorial.py looks at what it makes, too
    and any(
        not block.mark and set(programs(block.text)) - {"pip"} for block in blocks(path)
    )
]


def words_of(text):
    """Return the verbs and options of commands, as Python may have them too."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "pip":
            continue  # see test_what_is_to_be_installed_is_there
        for number, word in enumerate(words):
            is_verb = all(re.fullmatch("[a-z]+", it) for it in words[: number + 1])
            if is_verb or re.fullmatch("--[a-z-]+", word):
                yield word.lstrip("-").replace("-", "[-_]")


@pytest.mark.parametrize(("path", "block"), MARKED)
def test_what_is_run_elsewhere_is_run_there(path, block):
    how, where = block.mark
    if how == "run":
        text = "".join((ROOT / it).read_text() for it in where.split(", "))
        missing = {it for it in words_of(block.text) if not re.search(it, text)}
        assert path.name in text or not missing


def test_marks_stand_before_blocks():
    """Else they would say nothing of anything."""
    marks = sum(len(MARK.findall(path.read_text())) for path in PAGES)

    assert marks == len(MARKED)


def test_what_is_to_be_installed_is_there():
    """In the walks nothing is: all of it is here already."""
    extras = metadata("tileseg").get_all("Provides-Extra")
    asked = re.findall(
        r"pip install 'tileseg\[([^]]*)\]'", "".join(it.read_text() for it in PAGES)
    )

    assert asked
    assert set(",".join(asked).split(",")) <= set(extras)


def cut(source, path, *, columns=(0, WIDTH), bands=(1, 2, 3), at=(0, 0)):
    """Write a part of the example scene, or bands of it, near Lisbon."""
    first, last = columns
    window = Window(at[1] + first, at[0], last - first, HEIGHT)
    x, y = (
        it[0] for it in project("EPSG:4326", "EPSG:32629", *([it] for it in LISBON))
    )
    place = rasterio.Affine(30, 0, x + 30 * first, 0, -30, y)
    profile = {"width": last - first, "crs": "EPSG:32629", "transform": place}
    profile |= source.profile | profile | {"height": HEIGHT, "count": len(bands)}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(source.read(bands, window=window))
        dataset.descriptions = [source.descriptions[it - 1] for it in bands]
        dataset.scales = [source.scales[it - 1] for it in bands]
        dataset.offsets = [source.offsets[it - 1] for it in bands]


def lay_out(folder):
    """Make a copy of the repository, and what the documents take to be there."""
    for part in ("jobs", "examples"):
        (folder / part).symlink_to(ROOT / part)
    for part in ("tiles", "data/scenes"):
        (folder / part).mkdir(parents=True)
    with rasterio.open(ROOT / "examples/itaipu.tif") as source:
        for path in ("scene.tif", "a.tif", "data/scene.tif", "data/scenes/scene.tif"):
            cut(source, folder / path, at=(700, 700))
        cut(source, folder / "b.tif", at=(900, 700))
        cut(source, folder / "tiles/west.tif", columns=(0, 130), at=(700, 700))
        cut(source, folder / "tiles/east.tif", columns=(130, 260), at=(700, 700))
        for number, color in enumerate(source.descriptions, 1):
            cut(source, folder / f"{color}.tif", bands=(number,), at=(700, 700))
    shutil.copytree(default_model(), folder / "models/mine")
    for seed, model in enumerate("abc"):
        make_model(folder / "models" / model, seed=seed)
    (folder / "nightly.toml").write_text(
        '[source]\nscenes = "data/scenes"\n[target]\noutput = "data/maps"\n'
    )
    west, north = LISBON
    halves = [box(west, 38.70, -9.17, north), box(-9.17, 38.70, -9.12, north)]
    classes = {"class": ["water", "trees"]}
    truth = geopandas.GeoDataFrame(classes, geometry=halves, crs="EPSG:4326")
    truth.to_crs("EPSG:32629").to_file(folder / "truth.gpkg")
    truth[:1].to_file(folder / "parcels.gpkg")


def script(path, folder):
    """Return a page's blocks as one script, which stops where a command fails."""
    lines = ["set -euo pipefail", "pip() { :; }"]
    for block in blocks(path):
        if not block.mark:
            text = block.text.replace("/data/", f"{folder}/data/")
            text = text.replace("--device cuda", "--device cpu")
            if block.is_python:
                text = f"python - <<'END'\n{text}END\n"
            lines += [f"echo {name(path)}:{block.line} >&3", text]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", WALKS, ids=name)
def test_a_page_can_be_walked(path, tmp_path):
    place = tmp_path / "repository"
    place.mkdir()
    lay_out(place)
    programs = str(Path(sys.executable).parent)
    environment = {
        **{key: it for key, it in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with (tmp_path / "place").open("w+") as where, (tmp_path / "log").open("w+") as log:
        done = subprocess.run(
            [shutil.which("bash"), "-c", f"exec 3>{where.name}\n{script(path, place)}"],
            check=False,
            cwd=place,
            env=environment,
            stdout=log,
            stderr=log,
        )

    told = (tmp_path / "log").read_text()[-3000:]
    assert done.returncode == 0, (tmp_path / "place").read_text() + told
