"""The order of the modules, the owners of the toolkits, and what an import costs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tileseg"

# From values to the command line: a module imports only what stands before it, here
# and in its own package.
PACKAGES = {
    "errors": ("errors",),
    "base": (
        "choices",
        "names",
        "redact",
        "logs",
        "environment",
        "times",
        "longitudes",
        "address",
        "locations",
        "stopping",
        "watch",
        "rules",
        "builtin",
        "classes",
        "fields",
        "bounds",
        "attributes",
        "metrics",
        "overlap",
        "journal",
        "memory",
        "owner",
        "processes",
    ),
    "settings": ("settings",),
    "window": ("window",),
    "geobox": ("geobox",),
    "grid": ("grid",),
    "stores": (
        "source",
        "storage",
        "objects",
        "server",
        "web",
        "gate",
        "calls",
        "remote",
        "lock",
        "documents",
    ),
    "cards": (
        "architecture",
        "drift",
        "mlm",
        "card",
        "item",
        "ensemble",
    ),
    "network": (
        "unet",
        "kernels",
        "fused",
        "variants",
        "checkpoint",
        "foreign",
        "lanes",
        "device",
        "energy",
        "model",
        "averaging",
        "bus",
        "blend",
        "batches",
        "picture",
        "predict",
    ),
    "scenes": (
        "gdal",
        "jail",
        "nursery",
        "probe",
        "layer",
        "raster",
        "area",
        "ground",
        "warp",
        "compose",
        "scene",
        "pixels",
        "reader",
        "sample",
        "sketch",
        "prints",
        "vectors",
        "region",
        "identity",
        "catalog",
        "inputs",
    ),
    "masks": (
        "overview",
        "cog",
        "encode",
    ),
    "polygons": (
        "outlines",
        "trace",
        "vectorize",
        "borders",
        "unite",
        "join",
        "wkb",
        "simplify",
        "eliminate",
        "lonlat",
        "measure",
        "columns",
        "table",
        "features",
    ),
    "plans": (
        "cost",
        "seams",
        "moments",
        "ledger",
        "task",
        "questions",
        "fit",
        "budget",
        "preflight",
        "precision",
        "canary",
    ),
    "engines": (
        "shelf",
        "maker",
        "worker",
        "crew",
        "engine",
        "resolve",
        "leases",
        "meters",
        "actor",
        "pool",
        "shift",
        "cluster",
        "staff",
    ),
    "publishing": (
        "swap",
        "versions",
        "place",
        "publish",
        "folder",
        "pointers",
        "bucket",
        "history",
    ),
    "outputs": (
        "stitch",
        "verify",
        "glance",
        "figures",
        "quicklook",
        "overlay",
        "stac",
        "page",
        "codes",
    ),
    "evaluation": (
        "scores",
        "reference",
        "class_raster",
        "evaluate",
        "scorecard",
    ),
    "steps": (
        "polygonize",
        "verdict",
        "record",
        "report",
        "inspection",
        "incremental",
        "products",
        "execution",
        "check",
    ),
    "job": ("job",),
    "changes": (
        "hysteresis",
        "pair",
        "transitions",
        "changecard",
        "changepage",
        "change",
    ),
    "training": (
        "train_settings",
        "footprint",
        "onnx_facts",
        "recognise",
        "losses",
        "augment",
        "split",
        "train_overlap",
        "team",
        "train_ground",
        "train_tiles",
        "survey",
        "calibrate",
        "judge",
        "train_checkpoint",
        "train_loop",
        "train_ray",
        "curve",
        "train",
        "adopt",
    ),
    "nights": (
        "series",
        "nightly_file",
        "nightly_search",
        "nightly_source",
        "nightly_entry",
        "nightly_state",
        "nightly_summary",
        "nightly",
        "rollback",
        "nightly_plan",
        "nightly_table",
        "nightly_page",
        "nightly_run",
        "nightly_hook",
    ),
    "commands": (
        "monitor",
        "options",
        "console",
        "intake",
        "cli_mask",
        "cli_train",
        "cli_model",
        "cli_nightly",
        "cli_versions",
    ),
    "cli": ("cli",),
}
ORDER = tuple(module for modules in PACKAGES.values() for module in modules)

# Names that `tileseg/__init__.py` sets itself; any other name there is a late import.
OWN_NAMES = {"__version__"}

OWNERS = {
    "PIL": {"overlay"},
    "click": {
        "cli",
        "cli_mask",
        "cli_model",
        "cli_nightly",
        "cli_train",
        "cli_versions",
        "console",
        "options",
    },
    "jinja2": {"page"},
    "matplotlib": {"figures", "quicklook", "scorecard", "changecard", "curve"},
    "obstore": {"objects"},
    "onnxruntime": {"foreign"},
    "segmentation_models_pytorch": {"foreign"},
    "prometheus_client": {"monitor"},
    "pyarrow": {"columns", "features", "table", "vectors"},
    "pynvml": {"energy"},
    "pyogrio": {"features", "vectors"},
    "pyproj": {
        "area",
        "ground",
        "lonlat",
        "features",
        "region",
        "reference",
        "train_overlap",
    },
    "pystac": {"catalog"},
    "pystac_client": {"nightly_search"},
    "ray": {"meters", "actor", "pool", "shift", "cluster", "train_ray"},
    "rasterio": {
        "gdal",
        "warp",
        "scene",
        "encode",
        "region",
        "evaluate",
        "reference",
        "codes",
    },
    "safetensors": {"checkpoint", "model", "recognise"},
    "shapely": {
        "ground",
        "lonlat",
        "features",
        "vectors",
        "region",
        "reference",
        "simplify",
        "table",
    },
    "torch": {
        "unet",
        "kernels",
        "fused",
        "variants",
        "foreign",
        "device",
        "model",
        "averaging",
        "lanes",
        "bus",
        "blend",
        "batches",
        "picture",
        "predict",
        "checkpoint",
        "footprint",
        "recognise",
        "losses",
        "team",
        "calibrate",
        "judge",
        "train_checkpoint",
        "train_loop",
        "train",
        "adopt",
    },
    "tqdm": {"console"},
    "triton": {"kernels"},
    "urllib3": {"server", "web"},
}

HEAVY = {
    "PIL",
    "jinja2",
    "matplotlib",
    "obstore",
    "prometheus_client",
    "pyarrow",
    "pyogrio",
    "pystac",
    "pystac_client",
    "rasterio",
    "ray",
    "shapely",
    "torch",
}

# `__init__` stands outside the order: it names things of every layer, lazily.
FILES = {path.stem: path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
MODULES = sorted(FILES)


def imported(source: str) -> Iterator[str]:
    """Yield the dotted name of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = ["tileseg"] if node.level else []
            parts += [node.module] if node.module else []
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def inner(names: Iterator[str]) -> set[str]:
    """Return the modules of tileseg among the imports, or the odd names it gives."""
    found = set()
    for name in names:
        top, *parts = name.split(".")
        if top == "tileseg" and parts:
            is_within = parts[0] in PACKAGES and parts[0] not in ORDER and parts[1:]
            found.add(parts[1] if is_within else parts[0])
    return found - OWN_NAMES


def outer(names: Iterator[str]) -> set[str]:
    """Return the top-level packages that are imported."""
    return {name.split(".")[0] for name in names}


@pytest.fixture(params=MODULES)
def module(request):
    return request.param


@pytest.fixture
def source(module):
    return FILES[module].read_text(encoding="utf-8")


def test_every_module_has_its_place_in_a_package():
    """No two have the same name, so that one may be spoken of without its package."""
    places = {
        module: PACKAGE / (f"{module}.py" if name == module else f"{name}/{module}.py")
        for name, modules in PACKAGES.items()
        for module in modules
    }
    files = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]

    assert sorted(places.values()) == sorted(files)


def test_a_package_says_what_it_holds_and_nothing_else():
    for path in PACKAGE.glob("*/__init__.py"):
        (said,) = ast.parse(path.read_text(encoding="utf-8")).body

        assert isinstance(said, ast.Expr), path


def test_the_design_page_has_the_modules_in_their_order():
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+\.py`[^|]*) \|", page, re.MULTILINE)

    assert list(ORDER) == re.findall(r"`(\w+)\.py`", " ".join(rows))


def test_a_module_imports_only_those_before_it(module, source):
    before = ORDER[: ORDER.index(module)]

    assert set() == inner(imported(source)) - set(before)


def test_a_toolkit_is_imported_by_its_owners_only(module, source):
    foreign = {kit for kit, owners in OWNERS.items() if module not in owners}

    assert set() == outer(imported(source)) & foreign


@pytest.mark.parametrize(
    "source",
    [
        "import tileseg.job",
        "from tileseg import job",
        "from tileseg.job import Job",
        "import tileseg.steps.job",
        "from tileseg.steps import job",
        "from tileseg.steps.job import Job",
        "from tileseg.job import Job as J, segment",
        "from . import job",
        "from .job import Job",
        "def late():\n    from tileseg.job import Job",
        "if TYPE_CHECKING:\n    from tileseg.job import Job",
    ],
)
def test_every_way_to_import_a_module_is_seen(source):
    assert {"job"} == inner(imported(source))


def test_a_lazy_name_of_the_package_counts_as_an_import():
    """`from tileseg import segment` reaches any layer, so no module may say it."""
    names = imported("from tileseg import __version__, segment")

    assert {"segment"} == inner(names)


@pytest.mark.parametrize("name", ["", ".grid", ".window", ".cli"])
def test_an_import_loads_no_heavy_package(name):
    program = f"import sys, tileseg{name}; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()

    assert f"tileseg{name}" in loaded
    assert set() == HEAVY & set(loaded)


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "tileseg.cli", "--help"],
        ["-m", "tileseg.cli", "segment", "--help"],
        ["-m", "tileseg.cli", "--version"],
        ["jobs/segment.py", "--help"],
        ["jobs/nightly.py", "--help"],
    ],
)
def test_a_word_of_help_loads_no_heavy_package(words):
    """It answers at once: numpy alone takes as long as all the rest."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = {
        line.split("|")[2].strip() for line in said.stderr.splitlines() if "|" in line
    }

    assert said.stdout
    assert "click" in loaded
    assert set() == (HEAVY | {"numpy", "pyproj", "urllib3", "tqdm"}) & loaded
