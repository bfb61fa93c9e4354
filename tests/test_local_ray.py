"""The Ray that a job starts for itself can be reached from this machine only."""

import json
import os
import shutil
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
DASHBOARD = 8265
LOOK = """
import json
import psutil
import ray
from tileseg.engines.pool import _Actor, connect

connect()
actor = _Actor.remote()
ray.get(actor.hello.remote())
found = []
me = psutil.Process()
for process in (me, *me.children(recursive=True)):
    try:
        for item in process.net_connections("inet"):
            if item.status == psutil.CONN_LISTEN or (item.type == 2 and item.laddr):
                found.append([process.name(), *item.laddr])
    except psutil.Error:
        pass
print(json.dumps(found))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def listeners():
    """What a job's Ray listens at: the process, its address, its port."""
    session = Path("/tmp", f"tl{os.getpid()}")  # noqa: S108  (sockets' names are short)
    (session / "ray").mkdir(parents=True)
    variables = {"RAY_TMPDIR": str(session), "PYTHONPATH": str(ROOT)}
    variables |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(session)
    return json.loads(answer.stdout.splitlines()[-1])


def is_loopback(text):
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.slow
def test_it_listens_on_loopback_only(listeners):
    names = {name for name, _, _ in listeners}

    assert {"raylet", "gcs_server"} <= names  # else nothing was looked at
    assert [item for item in listeners if not is_loopback(item[1])] == []


@pytest.mark.slow
def test_it_has_no_dashboard_and_takes_no_jobs(listeners):
    """The agent of a node, which belongs to the raylet, listens on loopback as well."""
    assert DASHBOARD not in {port for _, _, port in listeners}
    assert "ray::DashboardHead" not in {name for name, _, _ in listeners}
