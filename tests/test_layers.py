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

# From values to the command line: a module imports only what stands before it.
ORDER = (
    "errors",
    "choices",
    "names",
    "redact",
    "logs",
    "environment",
    "times",
    "longitudes",
    "address",
    "locations",
    "source",
    "stopping",
    "watch",
    "rules",
    "builtin",
    "classes",
    "fields",
    "bounds",
    "attributes",
    "settings",
    "cost",
    "metrics",
    "train_settings",
    "overlap",
    "journal",
    "storage",
    "memory",
    "window",
    "geobox",
    "grid",
    "unet",
    "kernels",
    "fused",
    "variants",
    "architecture",
    "drift",
    "mlm",
    "card",
    "item",
    "ensemble",
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
    "objects",
    "server",
    "web",
    "gate",
    "calls",
    "remote",
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
    "overview",
    "cog",
    "encode",
    "vectors",
    "region",
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
    "owner",
    "lock",
    "seams",
    "moments",
    "ledger",
    "identity",
    "documents",
    "catalog",
    "inputs",
    "task",
    "questions",
    "fit",
    "budget",
    "preflight",
    "precision",
    "canary",
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
    "stitch",
    "verify",
    "swap",
    "versions",
    "place",
    "publish",
    "folder",
    "pointers",
    "bucket",
    "history",
    "glance",
    "figures",
    "quicklook",
    "overlay",
    "stac",
    "scores",
    "reference",
    "class_raster",
    "processes",
    "polygonize",
    "evaluate",
    "scorecard",
    "page",
    "codes",
    "hysteresis",
    "pair",
    "transitions",
    "changecard",
    "changepage",
    "change",
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
    "verdict",
    "record",
    "report",
    "inspection",
    "incremental",
    "products",
    "staff",
    "execution",
    "job",
    "check",
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
    "monitor",
    "options",
    "console",
    "intake",
    "cli_mask",
    "cli_train",
    "cli_model",
    "cli_nightly",
    "cli_versions",
    "cli",
)

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
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


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
    found = {name.split(".")[1] for name in names if name.startswith("tileseg.")}
    return found - OWN_NAMES


def outer(names: Iterator[str]) -> set[str]:
    """Return the top-level packages that are imported."""
    return {name.split(".")[0] for name in names}


@pytest.fixture(params=MODULES)
def module(request):
    return request.param


@pytest.fixture
def source(module):
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def test_the_package_is_flat_and_every_module_has_its_place():
    packages = {path.parent.name for path in PACKAGE.glob("*/*.py")}

    assert set() == packages
    assert set() == set(MODULES) - set(ORDER)


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
