"""What the environment says to GDAL and PROJ is not heard, by any copy of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tileseg.base import environment
from tileseg.base.environment import scrub

ROOT = Path(__file__).parents[1]
DANGEROUS = {
    "GDAL_VRT_ENABLE_PYTHON": "YES",
    "GDAL_DRIVER_PATH": "/opt/evil",
    "OGR_DRIVER_PATH": "/opt/evil",
    "GDAL_HTTP_UNSAFESSL": "YES",
    "GDAL_HTTP_COOKIEFILE": "/opt/evil",
    "GDAL_PAM_PROXY_DIR": "/opt/evil",
    "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE",
    "GDAL_PAM_ENABLED": "YES",
    "GDAL_SKIP": "GTiff",
    "CPL_DEBUG": "ON",
    "CPL_LOG": "/opt/evil",
    "CPL_CURL_VERBOSE": "YES",
    "GTIFF_POINT_GEO_IGNORE": "TRUE",
    "OSR_DEFAULT_AXIS_MAPPING_STRATEGY": "AUTHORITY_COMPLIANT",
    "PROJ_NETWORK": "ON",
    "PROJ_NETWORK_ENDPOINT": "http://127.0.0.1:9",
    "PROJ_DEBUG": "3",
    "VRT_SHARED_SOURCE": "1",
}
LOOK = """
import json, logging, sys
logging.basicConfig(level="WARNING", format="%(message)s")
from tileseg.base.environment import scrub
scrub()
import pyogrio, rasterio
from pyproj import network
with rasterio.Env() as env:
    raster = env.drivers()
print(json.dumps({
    "raster": sorted(raster),
    "vector": sorted(pyogrio.list_drivers()),
    "debug": pyogrio.get_gdal_config_option("CPL_DEBUG"),
    "python": pyogrio.get_gdal_config_option("GDAL_VRT_ENABLE_PYTHON"),
    "network": network.is_network_enabled(),
}))
"""


def looked(*, cwd=ROOT, **variables):
    """Return what a fresh process finds, and what it warned of."""
    answer = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={"PYTHONPATH": str(ROOT), **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout), answer.stderr.splitlines()


def test_each_dangerous_variable_is_named_and_has_no_effect():
    found, warned = looked(**DANGEROUS)
    plain, silence = looked()

    assert found == plain
    assert [line.partition(":")[0] for line in warned] == sorted(DANGEROUS)
    assert silence == []
    assert found["debug"] is None
    assert found["python"] is None
    assert found["network"] is False


def test_both_libraries_have_what_we_write_and_nothing_that_follows_names():
    found, _ = looked()
    followers = set(environment._FOLLOWERS.split(","))

    assert {"GTiff", "COG", "MEM"} <= set(found["raster"])
    assert {"GPKG", "FlatGeobuf", "GeoJSON"} <= set(found["vector"])
    assert not followers & {*found["raster"], *found["vector"]}


@pytest.mark.parametrize("name", ["GDAL_DATA", "PROJ_DATA", "PROJ_LIB", "HOME"])
def test_where_the_data_lie_may_be_said(monkeypatch, caplog, name):
    monkeypatch.setattr("os.environ", {name: "/somewhere"})

    scrub()

    assert environment.os.environ[name] == "/somewhere"
    assert caplog.text == ""


def test_a_second_time_changes_nothing_and_says_nothing(monkeypatch, caplog):
    monkeypatch.setattr("os.environ", {"CPL_DEBUG": "ON", "AWS_REGION": "x"})
    scrub()
    once = dict(environment.os.environ)
    caplog.clear()

    scrub()

    assert environment.os.environ == once
    assert caplog.text == ""
    assert "CPL_DEBUG" not in once
    assert once["AWS_REGION"] == "x"
